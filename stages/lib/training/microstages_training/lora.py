"""A LoRA layer's forward in fewer passes: `W·x + scale·B·A·x` with the sum and the scale inside the last product.

PEFT computes the same in four operations over the layer's whole output. Here it is one product into the base layer's
output, with one rounding; its gradient needs no pass over the output either.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch


def speed_up(causal: Any) -> None:
    """Replace the forward of the model's plain LoRA layers. Layers of another kind (DoRA) stay as they are."""
    from peft.tuners.lora import LoraLayer

    for module in causal.modules():
        if isinstance(module, LoraLayer) and _plain(module):
            module.forward = MethodType(_forward, module)  # type: ignore[attr-defined]


def _plain(module: Any) -> bool:
    linear = "default" in module.lora_A and not isinstance(module.get_base_layer(), torch.nn.Embedding)
    return linear and not module.lora_variant and not module.lora_bias["default"]


def _forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    """`x` (…, in) -> (…, out), of the one adapter that is being trained."""
    base = self.base_layer(x)
    low = self.lora_A["default"](self.lora_dropout["default"](x))
    up = self.lora_B["default"].weight.t()
    out = torch.addmm(base.flatten(0, -2), low.flatten(0, -2), up, alpha=self.scaling["default"])
    return out.view(base.shape)
