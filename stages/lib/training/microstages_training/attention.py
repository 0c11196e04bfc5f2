"""Attention over a flat micro-batch: each token attends to the earlier tokens of its own example, and to nothing else.

Examples of similar length are gathered into one padded batch and go through `scaled_dot_product_attention` with
`is_causal`. Padding stands at the right, so causality keeps it from every real token. The work is that of the examples
alone: packing more of them into a micro-batch costs nothing, and no mask over the micro-batch is ever made.

    q, k, v  (1, heads, tokens, dim)  ->  for each group (examples, heads, longest, dim)  ->  (1, tokens, heads, dim)

It is registered with transformers under `NAME`; models hand `layout` through their forward's keyword arguments. What
it cannot do (attention sinks, soft caps, windows shorter than an example) raises NotImplementedError; `model.choose`
then falls back to padded batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "microstages_examples"
SHORT = 64  # examples up to this length share a group whatever their lengths: one call is cheaper than no padding
PLAIN = 512  # on CPUs in bf16 up to this length plain products are 3 to 8 times as fast as the fused kernel
WASTE = 0.75  # a longer example joins a group when it fills at least this share of the group's length


@dataclass(frozen=True)
class Layout:
    """Where the examples of a flat micro-batch lie. `groups`: (take, examples, length): `take` (examples × length,)
    are positions in the micro-batch, row by row. `back` (tokens,): where each token is in all groups together."""

    groups: list[tuple[torch.Tensor, int, int]]
    back: torch.Tensor
    longest: int


def grouped(lengths: Any) -> list[Any]:
    """Indices of examples, in groups of similar length, longest first."""
    order = np.argsort(-lengths, kind="stable")
    groups: list[list[int]] = []
    for i in order:
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and (longest <= SHORT or lengths[i] >= WASTE * longest):
            groups[-1].append(i)
        else:
            groups.append([i])
    return [np.asarray(g) for g in groups]


def layout(lengths: Any, device: torch.device | str = "cpu") -> Layout:
    """The layout of examples of these lengths (examples,) that lie one after another."""
    starts = np.cumsum(lengths) - lengths
    back = np.empty(int(lengths.sum()), np.int64)
    groups, base = [], 0
    for members in grouped(lengths):
        longest = int(lengths[members[0]])
        take = starts[members][:, None] + np.arange(longest)
        real = np.arange(longest) < lengths[members][:, None]
        back[take[real]] = np.flatnonzero(real.ravel()) + base
        take[~real] = 0  # any token: what comes of it is not read
        groups.append((torch.from_numpy(take.ravel()).to(device), len(members), longest))
        base += take.size
    return Layout(groups, torch.from_numpy(back).to(device), int(lengths.max()))


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls. Shapes: see the module."""
    unknown = [k for k in ("s_aux", "softcap", "position_bias") if others.get(k) is not None]
    if layout is None or attention_mask is not None or unknown or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention with {unknown or 'a mask of its own'}")
    if sliding_window is not None and layout.longest > sliding_window:
        raise NotImplementedError("an example is longer than the attention window")
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # (tokens, heads, dim)
    scale = scaling if scaling is not None else q.shape[2] ** -0.5
    outputs = []
    for take, examples, length in layout.groups:
        qg, kg, vg = (_group(t, take, examples, length) for t in (q, k, v))
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and length <= PLAIN and not dropout:
            out = _plain(qg, kg, vg, scale)
        else:
            gqa = q.shape[1] != k.shape[1]
            out = scaled_dot_product_attention(
                qg, kg, vg, is_causal=True, scale=scale, dropout_p=dropout, enable_gqa=gqa
            )
        outputs.append(out.transpose(1, 2).reshape(examples * length, q.shape[1], v.shape[2]))
    flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return flat.index_select(0, layout.back)[None], None


def _group(x: torch.Tensor, take: torch.Tensor, examples: int, length: int) -> torch.Tensor:
    return x.index_select(0, take).view(examples, length, *x.shape[1:]).transpose(1, 2)


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention as two products around a softmax. Shapes: (examples, heads, length, dim)."""
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    later = torch.full((q.shape[2], q.shape[2]), -math.inf, dtype=q.dtype).triu(1)
    return torch.softmax((q * scale) @ k.transpose(2, 3) + later, dim=-1) @ v


def register() -> None:
    """Make it known to transformers. No mask function is registered with it, so models build no mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
