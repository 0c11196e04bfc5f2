"""What a weight became while it was quantized: bitsandbytes' 4-bit quantization, there and back, in numpy.

Bit by bit what bitsandbytes 0.50 computes (`quantize_4bit`, `dequantize_4bit`): blocks of 64 values along the flat
weight, each scaled by its largest magnitude and rounded to the nearest of 16 values (nf4, fp4). With double
quantization the scales, less their mean, go through an 8-bit code in blocks of 256; on a CPU that rounding looks up a
table of 65,536 entries, on a GPU it is exact. The mean of the scales is a sum whose last bit depends on the order of
adding, so on the machine; here it is computed in double precision, which leaves the weights in bf16 as they were but
for rare last bits.

Reference: Dettmers et al., QLoRA, https://arxiv.org/abs/2305.14314 (section 3 and appendix E).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
       0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # fmt: skip
FP4 = (0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)  # magnitudes, before they are divided by the largest
SCALES_BLOCK = 256


@cache
def values(kind: str) -> Array:
    """The 16 (fp4: 15) values that a block is rounded to, in ascending order."""
    if kind == "nf4":
        return np.array(NF4, np.float32)
    positive = np.array(FP4, np.float32) / np.float32(FP4[-1])
    return np.concatenate([-positive[:0:-1], positive])


def _between(sorted_values: Array) -> Array:
    return (sorted_values[:-1] + sorted_values[1:]) / np.float32(2)


def scales(weight: Array, block: int) -> Array:
    """The largest magnitude of each block of a flat fp32 weight; the last block may be shorter."""
    whole = len(weight) - len(weight) % block
    found = np.abs(weight[:whole]).reshape(-1, block).max(axis=1)
    if whole < len(weight):
        found = np.append(found, np.maximum(np.abs(weight[whole:]).max(), np.float32(1e-38)))
    return found


def round_trip(weight: Array, own: Array, used: Array, kind: str, block: int) -> Array:
    """Quantize and dequantize a flat fp32 weight: `own` are its `scales`, `used` what became of them."""
    whole = len(weight) - len(weight) % block
    levels = values(kind)
    scaled = np.empty_like(weight)
    body = own[: whole // block]
    inverse = np.float32(1) / np.maximum(body, np.float32(1e-38))
    np.multiply(weight[:whole].reshape(-1, block), inverse[:, None], out=scaled[:whole].reshape(-1, block))
    if whole < len(weight):
        np.divide(weight[whole:], own[-1], out=scaled[whole:])
    np.clip(scaled, -1, 1, out=scaled)
    out = levels[np.searchsorted(_between(levels), scaled)]
    out[:whole].reshape(-1, block)[...] *= used[: whole // block, None]
    out[whole:] *= used[-1]
    return out


@cache
def dynamic_code() -> Array:
    """The 256 values of the dynamic 8-bit type (https://arxiv.org/abs/1511.04561), ascending."""
    found = [0.0, 1.0]
    for i in range(7):
        edges = _linspace(2**i + 1)
        means = (edges[:-1] + edges[1:]) / np.float32(2)
        part = (np.float32(10.0 ** (i - 6)) * means).tolist()
        found += part + [-v for v in part]
    return np.array(sorted(found), np.float32)


def _linspace(n: int) -> Array:
    """torch.linspace(0.1, 1, n) in fp32: from both ends, each step one fused multiply-add."""
    start, end = np.float32(0.1), np.float32(1)
    step = np.float64((end - start) / np.float32(n - 1))
    i = np.arange(n)
    up = (np.float64(start) + step * i).astype(np.float32)
    down = (np.float64(end) - step * (n - 1 - i)).astype(np.float32)
    return np.where(i < n // 2, up, down)


@cache
def _table() -> Array:
    """The CPU's table: the code nearest to each of 65,536 values from -1 to 1."""
    at = np.arange(65536, dtype=np.float32) / np.float32(32767.5) - np.float32(1)
    return np.searchsorted(_between(dynamic_code()), at).astype(np.uint8)


def quantized_scales(own: Array, device: str, mean: float | None = None) -> Array:
    """The scales after double quantization on a `cpu` or `cuda` device. `mean`: where it is known to the last bit."""
    middle = np.float32(own.mean(dtype=np.float64) if mean is None else mean)
    rest, code = own - middle, dynamic_code()
    blocks = [rest[i : i + SCALES_BLOCK] for i in range(0, len(rest), SCALES_BLOCK)]
    out = np.empty_like(rest)
    for i, values_ in enumerate(blocks):
        largest = np.abs(values_).max()
        scaled = values_ * (np.float32(1) / largest) if largest else values_
        if device == "cpu":
            index = _table()[((scaled + np.float32(1)) * np.float32(32767.5) + np.float32(0.5)).astype(np.int64)]
        else:
            index = np.searchsorted(_between(code), scaled)
        out[i * SCALES_BLOCK : i * SCALES_BLOCK + len(values_)] = code[index] * largest
    return out + middle
