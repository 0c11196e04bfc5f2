"""Fused kernels of liger-kernel (https://github.com/linkedin/Liger-Kernel): RMSNorm, SwiGLU, rotary embedding.

They compute the same as the model's own modules in fewer passes over memory. The loss is not taken from there: ours
computes logits at trained positions only. NVIDIA GPUs; needs Triton and a C compiler at run time.
"""

from __future__ import annotations

from typing import Any

from microstages.errors import UserError


def use_liger(causal: Any) -> None:
    """Put the fused kernels into a model, in place. Raises UserError where they are missing or do not know it."""
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN
        from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance as apply
    except ImportError as error:
        raise UserError(
            f"the fused kernels cannot be loaded: {error}",
            where="--liger",
            fix="pip install liger-kernel, or leave it out",
        ) from None
    kind = causal.config.model_type
    if kind not in KNOWN:
        raise UserError(f"liger-kernel knows no model of type {kind}", where="--liger", fix="leave --liger out")
    apply(model=causal, cross_entropy=False, fused_linear_cross_entropy=False)
