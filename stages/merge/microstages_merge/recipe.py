"""How each tensor of the merged model is made: plain values, decided by `plan`, carried out by `compute`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from microstages.tensors import BITS, Tensor


@dataclass(frozen=True)
class Lora:
    """scale · B·A, added to a weight as it lies in the file.

    Not transposed: the weight is (out, in), as in nn.Linear; the sum is B·A. Transposed: the weight is (in, out), as in
    GPT-2's Conv1D, or an embedding (rows, width); the sum is (B·A)ᵀ. `magnitude` (DoRA): its length is `out`.
    """

    a: Tensor
    b: Tensor
    scale: float
    transposed: bool
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Quantization:
    """The 4-bit quantization of bitsandbytes that a base weight went through while the adapter was trained.

    `compute` is the type (BF16, F16, F32) that the weight was loaded in and dequantized to; `device`, cpu or cuda,
    where that was (see `quantize`).
    """

    kind: str
    double: bool
    compute: str
    block: int = 64
    device: str = "cuda"


@dataclass(frozen=True)
class Recipe:
    """One tensor of the output: `source`, perhaps through 4 bits, plus a sum, with some rows replaced, as `dtype`."""

    name: str
    dtype: str
    source: Tensor
    quantization: Quantization | None = None
    lora: Lora | None = None
    bias: tuple[Tensor, float] | None = None  # a vector times a number, added
    rows: tuple[tuple[int, ...], Tensor] | None = None  # which rows, and what stands there instead

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def nbytes(self) -> int:
        """Of the output."""
        return self.source.count * BITS[self.dtype] // 8

    @property
    def is_copy(self) -> bool:
        """Whether the bytes stay as they are."""
        changed = self.quantization or self.lora or self.bias or self.rows
        return not changed and self.dtype == self.source.dtype


@dataclass(frozen=True)
class Plan:
    """The output: its files with their tensors in order, what changes in `config.json`, and rows of the embeddings."""

    files: Mapping[str, tuple[Recipe, ...]]
    config: Mapping[str, object]
    vocabulary: int | None

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return tuple(r for recipes in self.files.values() for r in recipes)

    def counts(self) -> dict[str, int]:
        """How many tensors are made in which way."""
        return {
            "adapted": sum(r.lora is not None or r.bias is not None for r in self.recipes),
            "replaced": sum(r.source.name != r.name for r in self.recipes),
            "with_new_rows": sum(r.rows is not None for r in self.recipes),
            "dequantized": sum(r.quantization is not None for r in self.recipes),
            "copied": sum(r.is_copy for r in self.recipes),
        }
