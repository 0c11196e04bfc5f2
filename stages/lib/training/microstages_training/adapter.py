"""The adapter in PEFT's own format, the same bytes for the same weights: sorted names, no versions, no paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def weights(peft: Any) -> dict[str, Any]:
    """The adapter's tensors under PEFT's names, fp32, on the CPU."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(peft, save_embedding_layers=False)
    return {name: state[name].detach().float().cpu().contiguous() for name in sorted(state)}


def save(folder: Path, peft: Any, tensors: dict[str, Any], base_digest: str, modules_to_save: list[str] | None) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`.

    The weights are fp32, as they were trained: rounding them to bf16 would lose updates smaller than 1/256 of a weight.
    `base_model_name_or_path` is the digest of the base model's files: its place on this machine is nobody's business.
    `modules_to_save` is as it was asked for: PEFT rewrites its own where weights are tied.
    """
    from safetensors.torch import save_file

    copies: dict[int, str] = {}
    for name, tensor in tensors.items():  # safetensors refuses tensors that share memory
        if tensor.data_ptr() in copies:
            tensors[name] = tensor.clone()
        copies[tensor.data_ptr()] = name
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    value = config(peft, base_digest) | {"modules_to_save": sorted(modules_to_save) if modules_to_save else None}
    (folder / "adapter_config.json").write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def config(peft: Any, base_digest: str) -> dict[str, Any]:
    """The adapter's configuration as PEFT reads it: what differs from its defaults, and what every reader expects."""
    from peft import LoraConfig

    value, defaults = peft.peft_config["default"].to_dict(), LoraConfig().to_dict()
    expected = ("peft_type", "r", "lora_alpha", "lora_dropout", "bias", "fan_in_fan_out", "init_lora_weights",
                "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")  # fmt: skip
    kept = {k: v for k, v in value.items() if k in expected or v != defaults[k]}
    kept |= {"base_model_name_or_path": base_digest, "task_type": "CAUSAL_LM", "inference_mode": True}
    kept.pop("peft_version", None)
    kept.pop("auto_mapping", None)
    return {k: sorted(v) if isinstance(v, (set, frozenset)) else v for k, v in kept.items()}
