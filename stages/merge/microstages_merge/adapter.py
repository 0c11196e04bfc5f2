"""A PEFT adapter folder as typed values: every tensor in it is understood, or it is an error.

Reads `adapter_config.json` and `adapter_model.safetensors` as PEFT 0.21 writes them. Names of tensors:

    base_model.model.<module>.lora_A.weight, .lora_B.weight, .lora_B.bias, .lora_magnitude_vector     a linear layer
    base_model.model.<module>.lora_embedding_A, .lora_embedding_B                                      an embedding
    base_model.model.<module>.token_adapter.trainable_tokens_delta                                     some of its rows
    base_model.model.<module>.weight (or .base_layer.weight)                                           a whole tensor
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microstages.errors import UserError
from microstages.tensors import Tensor, Weights
from microstages.tokens import read_json

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NAME = r"(?:\.default)?"  # some writers keep the adapter's name
_LORA = re.compile(rf"^(.+)\.lora_(A|B|embedding_A|embedding_B){_NAME}(?:\.(weight|bias))?$")
_MAGNITUDE = re.compile(rf"^(.+)\.lora_magnitude_vector{_NAME}(?:\.weight)?$")
_ROWS = re.compile(rf"^(.+)\.token_adapter\.trainable_tokens_delta{_NAME}$")
_ORIGINAL = re.compile(r"\.(original_module|token_adapter\.trainable_tokens_original)(\.|$)")
_WRAPPED = re.compile(r"\.(base_layer|token_adapter\.base_layer|modules_to_save(?:\.default)?)(?=\.[^.]+$)")
# Variants of LoRA that change what a layer computes. PEFT cannot merge some; for the others nobody has asked yet.
_VARIANTS = ("target_parameters", "layer_replication", "use_qalora", "alora_invocation_tokens", "arrow_config",
             "velora_config", "monteclora_config", "kasa_config", "use_bdlora")  # fmt: skip
# Initializations that leave the base model as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, …) take something out of
# it, so that what they trained is no sum with the original weights.
_PLAIN_INIT = (None, True, False, "true", "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Settings:
    """What `adapter_config.json` says that a merge depends on."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool
    fan_in_fan_out: bool
    modules_to_save: tuple[str, ...]
    tied: bool  # `ensure_weight_tying`: what is trained on one of two tied layers counts for both
    tokens: Mapping[str, tuple[int, ...]]  # trainable token indices by layer; "" for the input embeddings

    def rank_of(self, module: str) -> int:
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """alpha / r, with rsLoRA alpha / sqrt(r) (https://arxiv.org/abs/2312.03732)."""
        rank, alpha = self.rank_of(module), _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def saves(self, module: str) -> bool:
        """Whether a module is one of `modules_to_save`."""
        return any(module == m or module.endswith(f".{m}") for m in self.modules_to_save)


@dataclass(frozen=True)
class Factors:
    """The low-rank factors of one module, as they lie in the file.

    Linear: a (r, in), b (out, r), magnitude (out,), bias (out,).
    Embedding: a (r, rows), b (width, r), magnitude (width,).
    """

    a: Tensor
    b: Tensor
    embedding: bool
    bias: Tensor | None = None
    magnitude: Tensor | None = None


@dataclass
class Adapter:
    """All of an adapter: factors by module, whole tensors by parameter name, replaced rows by module."""

    folder: Path
    weights: Weights
    settings: Settings
    factors: dict[str, Factors] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches a module's name at its end, as PEFT matches."""
    return next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", module)), default)


def read_settings(folder: Path) -> Settings:
    """Read and check `adapter_config.json`. Raises UserError for what cannot be merged into plain weights."""
    where = folder / CONFIG
    value = read_json(where)
    if (kind := value.get("peft_type")) != "LORA":
        raise UserError(
            f"this adapter is of type {kind}; only LORA (with rsLoRA, DoRA) can be merged",
            where=where,
            fix="merge it with PEFT's merge_and_unload where it can, or train a LoRA adapter",
        )
    for key in _VARIANTS:
        if value.get(key):
            raise UserError(f"{key} is set: this variant of LoRA is not supported", where=where, fix="train plain LoRA")
    init = value.get("init_lora_weights")
    if (init.lower() if isinstance(init, str) else init) not in _PLAIN_INIT:
        raise UserError(
            f"init_lora_weights is {init!r}, which trained against a changed base model",
            where=where,
            fix="save it as plain LoRA: save_pretrained(…, path_initial_model_for_weight_conversion=…)",
        )
    try:
        tokens = value.get("trainable_token_indices") or {}
        tokens = tokens if isinstance(tokens, dict) else {"": tokens}
        settings = Settings(
            rank=int(value["r"]),
            alpha=float(value["lora_alpha"]),
            rank_pattern={str(k): int(v) for k, v in (value.get("rank_pattern") or {}).items()},
            alpha_pattern={str(k): float(v) for k, v in (value.get("alpha_pattern") or {}).items()},
            rslora=bool(value.get("use_rslora")),
            dora=bool(value.get("use_dora")),
            fan_in_fan_out=bool(value.get("fan_in_fan_out")),
            modules_to_save=tuple(map(str, value.get("modules_to_save") or ())),
            tied=bool(value.get("ensure_weight_tying")),
            tokens={str(k): tuple(map(int, v)) for k, v in tokens.items()},
        )
        for pattern in (*settings.rank_pattern, *settings.alpha_pattern):
            re.compile(pattern)
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise UserError(f"this is not a LoRA configuration: {error!r}", where=where, fix="get the file again") from None
    ranks = {"r": settings.rank, **{f"rank_pattern.{k}": r for k, r in settings.rank_pattern.items()}}
    if wrong := next((k for k, r in ranks.items() if r < 1), ""):
        what = f"{wrong} is {ranks[wrong]}; a rank is 1 or more"
        raise UserError(what, where=where, fix="train the adapter again, or write the rank that its weights have")
    return settings


def read_adapter(folder: Path, weights: Weights) -> Adapter:
    """Sort the tensors of an adapter. Raises UserError naming a tensor that is not understood or lacks its partner."""
    adapter = Adapter(folder, weights, read_settings(folder))
    where, parts = folder / FILE, dict[str, dict[str, Tensor]]()
    for full, tensor in weights.tensors.items():
        name = full.removeprefix(_PREFIX)
        if m := _LORA.match(name):
            part = m[2] + (".bias" if m[3] == "bias" else "")
            if part not in ("A", "B", "B.bias", "embedding_A", "embedding_B") or part in parts.setdefault(m[1], {}):
                raise UserError(f"the tensor {full} is not understood", where=where, fix="save one adapter only")
            parts[m[1]][part] = tensor
        elif m := _MAGNITUDE.match(name):
            parts.setdefault(m[1], {})["magnitude"] = tensor
        elif m := _ROWS.match(name):
            adapter.rows[m[1]] = tensor
        elif _ORIGINAL.search(name):
            continue  # what a module was before it was trained
        elif ".lora_" in name or "." not in name:
            raise UserError(
                f"the tensor {full} is not understood", where=where, fix="this is not a plain LoRA adapter of PEFT"
            )
        else:
            adapter.whole[_WRAPPED.sub("", name)] = tensor
    for module, found in parts.items():
        adapter.factors[module] = _factors(module, found, adapter.settings, where)
    if not (adapter.factors or adapter.whole or adapter.rows):
        raise UserError("there is no trained tensor in it", where=where, fix="check that training has saved it")
    return adapter


def _factors(module: str, found: Mapping[str, Tensor], settings: Settings, where: Path) -> Factors:
    kind = "embedding_" if "embedding_A" in found or "embedding_B" in found else ""
    a, b, magnitude = found.get(f"{kind}A"), found.get(f"{kind}B"), found.get("magnitude")
    wanted = {"A", "B", "B.bias", "magnitude"} if not kind else {"embedding_A", "embedding_B", "magnitude"}
    if a is None or b is None or set(found) - wanted:
        raise UserError(
            f"{module} has {', '.join(f'lora_{k}' for k in sorted(found))}: not the two factors of a LoRA layer",
            where=where,
            fix="save the adapter again",
        )
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise UserError(
            f"{module} is not a linear layer or embedding: its lora_{kind}A has the shape {list(a.shape)}",
            where=where,
            fix="only linear layers and embeddings are merged; ZeRO-3 and FSDP must gather weights before saving",
        )
    rank = settings.rank_of(module)
    if (a.shape[0], b.shape[1]) != (rank, rank):
        raise UserError(
            f"{module} has rank {a.shape[0]} and {b.shape[1]} in the weights, {rank} in {CONFIG}",
            where=where,
            fix="the two files do not belong together: get the adapter again",
        )
    if settings.dora and magnitude is None:
        raise UserError(f"{module} lacks its lora_magnitude_vector, and DoRA is on", where=where, fix="save it again")
    if magnitude is not None and not settings.dora:
        raise UserError(f"{module} has a lora_magnitude_vector, and use_dora is off", where=where, fix="get it again")
    return Factors(a, b, bool(kind), found.get("B.bias"), magnitude)


def check_finite(adapter: Adapter) -> None:
    """Raises UserError naming the first tensor with NaN or infinity."""
    import numpy as np

    for t in adapter.weights.tensors.values():
        for start in range(0, t.count, 1 << 20):
            if not np.isfinite(adapter.weights.read(t, start, min(start + (1 << 20), t.count))).all():
                raise UserError(
                    f"{t.name} holds NaN or infinity",
                    where=adapter.folder / FILE,
                    fix="the training diverged: train again with a lower learning rate",
                )
