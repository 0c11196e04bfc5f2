"""Optimizers and learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from microstages.errors import UserError

from microstages_training.settings import Settings


def warmup_steps(warmup: float, total: int) -> int:
    """Steps of warm-up: below 1 a share of `total`, else steps."""
    return round(warmup * total) if warmup < 1 else int(warmup)


def rate_at(step: int, total: int, warmup: int, schedule: str) -> float:
    """Share of the highest learning rate in step `step` (from 0) of `total`.

    It rises linearly over the warm-up, then falls to 0 at `total` (linear; cosine: half a period), or stays.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    left = 1 - (step - warmup) / max(1, total - warmup)
    return left if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def make_optimizer(parameters: Iterable[Any], settings: Settings, device: Any) -> Any:
    """AdamW over the trained parameters; matrices decay, vectors do not."""
    import torch

    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    rest: dict[str, Any] = {
        "lr": settings.learning_rate, "betas": (settings.adam_beta1, settings.adam_beta2), "eps": settings.adam_epsilon
    }  # fmt: skip
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True, **rest)
    require_gpu(settings, device)
    import bitsandbytes

    kinds = {
        "adamw-8bit": bitsandbytes.optim.AdamW8bit,
        "paged-adamw-8bit": bitsandbytes.optim.PagedAdamW8bit,
        "paged-adamw-32bit": bitsandbytes.optim.PagedAdamW32bit,
    }
    return kinds[settings.optimizer](groups, **rest)


def require_gpu(settings: Settings, device: Any) -> None:
    """Raise UserError for what needs an NVIDIA GPU where there is none."""
    if device.type == "cuda":
        return
    if settings.optimizer != "adamw":
        raise UserError(
            f"the optimizer {settings.optimizer} needs an NVIDIA GPU, and there is none",
            where="--optimizer",
            fix="use adamw here",
        )
    if settings.liger:
        raise UserError(
            "the fused kernels need an NVIDIA GPU, and there is none", where="--liger", fix="leave --liger out here"
        )
