"""The 4-bit base of QLoRA, by bitsandbytes through transformers. Needs bitsandbytes and accelerate.

Reference: Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, https://arxiv.org/abs/2305.14314
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from microstages.errors import UserError

from microstages_training.settings import Settings


def config(settings: Settings, compute_dtype: Any) -> Any:
    """The quantization configuration for `from_pretrained`. Raises UserError where bitsandbytes is not installed."""
    try:
        import accelerate  # noqa: F401
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed here", fix="install train-qlora in an environment of its own, with its lock"
        ) from None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quant_type,
        bnb_4bit_use_double_quant=settings.double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
    )  # the output layer, and what is tied to it, stay as they are


def layers(causal: Any) -> dict[str, Any]:
    """Full names and modules of the quantized layers."""
    from bitsandbytes.nn import Linear4bit

    return {n: m for n, m in causal.named_modules() if isinstance(m, Linear4bit)}


def keep_layout(causal: Any) -> None:
    """On CPUs with bf16 bitsandbytes repacks the weights in the first evaluation, for inference, for good.

    Training needs them as they are: without this, training after an evaluation would compute something else.
    """
    for module in layers(causal).values():
        module.support_avx512bf16_for_cpu = False


def distorted(causal: Any) -> list[str]:
    """Names of quantized layers that bitsandbytes 0.50 reads wrongly: on the CPU, where the width is no whole number of
    blocks, it takes the scale of a neighbouring block (an error of 25 % in the weights, where 9 % is usual)."""
    found = []
    for name, module in layers(causal).items():
        state = module.weight.quant_state
        if state.absmax.device.type == "cpu" and module.in_features % state.blocksize:
            found.append(name)
    return found


def record(causal: Any, settings: Settings) -> dict[str, Any]:
    """What was quantized and how, so that a merge can dequantize exactly the same. Call before the adapter is added."""
    quantized = layers(causal)
    if not quantized:
        raise UserError("the model has no linear layer that bitsandbytes can quantize", fix="use train-lora")
    state = next(iter(quantized.values())).weight.quant_state
    return {
        "type": settings.quant_type,
        "double_quant": settings.double_quant,
        "compute_dtype": str(state.dtype).removeprefix("torch."),
        "block_size": state.blocksize,
        "device": state.absmax.device.type,  # the scales of double quantization differ in the last bit
        "modules": sorted(quantized),
    }


def begin_by_loftq(peft: Any, folder: Path, rank: int) -> None:
    """Let each adapter begin as the best approximation of what the quantization of its layer lost, of rank `rank`:
    scale·B·A ≈ W − dequantized(W). One iteration of LoftQ. `folder`: the model with the weights as they were.

    Reference: Li et al., LoftQ: LoRA-Fine-Tuning-Aware Quantization for LLMs, https://arxiv.org/abs/2310.08659
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit

    weights = _Weights(folder)
    for name, module in layers(peft).items():
        layer = name.removeprefix("base_model.model.").removesuffix(".base_layer")
        parent = peft.get_submodule(name.removesuffix(".base_layer"))
        if "default" not in getattr(parent, "lora_A", {}):
            continue
        with torch.no_grad():
            weight = module.weight
            now = dequantize_4bit(weight.data, weight.quant_state).float()
            lost = weights.read(f"{layer}.weight").to(now.device, torch.float32) - now
            u, s, v = torch.linalg.svd(lost, full_matrices=False)
            root = s[:rank].sqrt()
            parent.lora_B["default"].weight.copy_(u[:, :rank] * root)
            parent.lora_A["default"].weight.copy_(root[:, None] * v[:rank] / parent.scaling["default"])


class _Weights:
    """The weights of a model folder, one tensor at a time."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._open: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            opened = safe_open(file, "pt")
            self._open |= dict.fromkeys(opened.keys(), opened)
        self._ends = {n.partition(".")[2]: n for n in self._open}  # files of a bare model have no first part

    def read(self, name: str) -> Any:
        found = name if name in self._open else name.partition(".")[2]
        found = found if found in self._open else self._ends.get(name, found)
        if found not in self._open:
            raise UserError(f"the model's files hold no {name}", where=name, fix="use --init kaiming")
        return self._open[found].get_tensor(found)
