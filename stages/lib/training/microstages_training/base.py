"""The base model, loaded and fitted with an adapter.

The base model is frozen, in bf16 or fp32, or its linear layers are 4-bit. The adapter is fp32; with bf16 its products
run in bf16 (autocast), its updates in fp32.
"""

from __future__ import annotations

from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from microstages.errors import UserError, nearest

from microstages_training import lora
from microstages_training.settings import Settings

TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load_base(folder: Path, settings: Settings, device: torch.device, precision: str) -> Any:
    """The base model of a folder, frozen: in the CPU's memory, or 4-bit on the device. Raises UserError where it cannot
    be loaded whole."""
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    getLogger("bitsandbytes").setLevel(ERROR)  # it tells at import what it would fetch from a hub
    logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": TYPES[precision]}
    if settings.quant_type is not None:
        from microstages_training.quantized import config

        options["quantization_config"] = config(settings, TYPES[precision])
        options["device_map"] = {"": device}
    fix = "check that the download is complete, and that transformers knows this architecture"
    loader: Any = transformers.AutoModelForCausalLM
    try:
        causal, info = loader.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
            **options,
        )  # fmt: skip
    except torch.OutOfMemoryError:
        raise
    except (ValueError, OSError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        raise UserError(f"this model cannot be loaded: {str(error).splitlines()[0]}", where=folder, fix=fix) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise UserError(f"its weights cannot be read: {error}", where=folder, fix=fix) from None
    if lost := sorted(info["missing_keys"]):
        raise UserError(f"its files lack {len(lost)} of its weights, such as {lost[0]}", where=folder, fix=fix)
    causal.config.use_cache = False
    causal.requires_grad_(False)
    return causal


def linear_layers(causal: Any) -> dict[str, Any]:
    """Full names and modules of the linear layers, without the output layer."""
    from transformers.pytorch_utils import Conv1D

    head = causal.get_output_embeddings()
    return {n: m for n, m in causal.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head}


def resolve_targets(causal: Any, wanted: list[str] | None) -> list[str]:
    """Names for PEFT's `target_modules`, sorted. Raises UserError where one matches no linear layer."""
    linear = linear_layers(causal)
    short = sorted({n.rpartition(".")[2] for n in linear})
    if wanted is None:
        others = {n.rpartition(".")[2] for n, _ in causal.named_modules() if n not in linear}
        return short if not others & set(short) else sorted(linear)
    head = causal.get_output_embeddings()
    names = {n: m for n, m in causal.named_modules() if n in linear or m is head}
    for name in wanted:
        matches = [m for n, m in names.items() if n == name or n.endswith(f".{name}")]
        if not matches:
            raise UserError(
                f"no linear layer is named {name!r}{nearest(name, short)}",
                where="--target-modules",
                fix=f"the model has {', '.join(short)}",
            )
        if any(m is head for m in matches) and tied(causal):
            raise UserError(
                f"{name} shares its weights with the input embeddings, which an adapter would separate",
                where="--target-modules",
                fix="train both whole: --modules-to-save lm_head --modules-to-save embed_tokens",
            )
    return sorted(set(wanted))


def check_saved(causal: Any, wanted: list[str] | None) -> list[str] | None:
    """Names for PEFT's `modules_to_save`, sorted. Raises UserError where one matches no layer."""
    if not wanted:
        return None
    names = [n for n, m in causal.named_modules() if n and any(True for _ in m.parameters(recurse=False))]
    for name in wanted:
        if not any(n == name or n.endswith(f".{name}") for n in names):
            short = sorted({n.rpartition(".")[2] for n in names})
            raise UserError(
                f"no layer is named {name!r}{nearest(name, short)}",
                where="--modules-to-save",
                fix=f"the model has {', '.join(short)}",
            )
    if tied(causal):
        pair = [causal.get_input_embeddings(), causal.get_output_embeddings()]
        ends = [next(n for n, m in causal.named_modules() if m is module) for module in pair]
        named = [any(n == w or n.endswith(f".{w}") for w in wanted) for n in ends]
        if any(named) and not all(named):
            one, other = (ends[i].rpartition(".")[2] for i in (named.index(True), named.index(False)))
            raise UserError(
                f"{one} shares its weights with {other}, which is not to be trained",
                where="--modules-to-save",
                fix=f"name both: --modules-to-save {one} --modules-to-save {other}",
            )
    return sorted(set(wanted))


def tied(causal: Any) -> bool:
    """Whether input embeddings and output layer are one tensor."""
    head, embeddings = causal.get_output_embeddings(), causal.get_input_embeddings()
    return head is not None and embeddings is not None and head.weight is embeddings.weight


def add_adapter(causal: Any, settings: Settings) -> Any:
    """Fit the model with a new adapter. Its start depends on the seed alone."""
    import warnings

    from peft import LoraConfig, get_peft_model

    saved = check_saved(causal, settings.modules_to_save)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=resolve_targets(causal, settings.target_modules),
        modules_to_save=saved,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights=True if settings.init in ("kaiming", "loftq") else settings.init,  # type: ignore[arg-type]
        ensure_weight_tying=bool(saved) and tied(causal),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(settings.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            peft = get_peft_model(causal, config)
        except ValueError as error:  # layers that PEFT refuses in this architecture
            raise UserError(
                str(error).splitlines()[0], where="--target-modules", fix="name other layers with --target-modules"
            ) from error
    for parameter in causal.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in causal.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # autocast casts once, to bf16; PEFT would cast to fp32 before
    lora.speed_up(causal)
    return peft
