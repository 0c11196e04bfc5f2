"""Carries out recipes: block after block of rows, in fp32, each result rounded once.

A result never depends on the number of threads: blocks are cut by the tensor's shape alone, each is computed by one
thread with a single-threaded BLAS and written by it, and they are hashed in order. Memory is a few blocks a thread plus
the factors of the tensors in work, whatever the size of the model.

The sum is PEFT's default merge: `W + (B @ A) * scale` in fp32, rounded to nearest even. Bit by bit, where the product
of both adds its terms one after another with fused multiply-add: torch's MKL does up to rank 192, and OpenBLAS with
AVX-512 for products that are not small. Elsewhere some differ in the last bit of fp32, which rarely survives rounding
to 16 bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from math import gcd
from threading import local
from typing import Any

import ml_dtypes
import numpy as np
from microstages.errors import UserError
from microstages.tensors import Tensor, Weights, numpy_type

from microstages_merge import quantize
from microstages_merge.recipe import Recipe

Array = np.ndarray[Any, Any]
Piece = bytearray | memoryview
Write = Callable[[int, Piece], None]
BLOCK = 1 << 19  # elements in a block of rows
SMALL = 1_000_000  # multiplications up to which OpenBLAS takes another kernel, with another order of adding
COPY = 1 << 20  # bytes in a piece that is only copied
AHEAD = 32 << 20  # bytes that are computed before they are hashed
TYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}


def product(left: Array, right: Array, out: Array) -> Array:
    """left @ right, (m, k) and (k, n), whose bits do not depend on how the rows were cut into blocks; in `out` or in
    another array."""
    (m, k), n = left.shape, right.shape[1]
    rows = max(m, SMALL // (k * n) + 1, 2)
    if rows == m:
        return np.matmul(left, right, out=out)
    padded = np.zeros((rows, k), np.float32)
    padded[:m] = left
    return (padded @ right)[:m]


class Scratch(local):
    """A thread's own arrays, used again for block after block: fresh memory costs more than most of the arithmetic."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def get(self, use: str, count: int, dtype: Any = np.float32) -> Array:
        """`count` numbers, flat. What they were is undefined, and what they are until the next `get` for this use."""
        found = self._arrays.get(use)
        if found is None or found.size < count or found.dtype != dtype:
            found = self._arrays[use] = np.empty(count, dtype)
        return found[:count]


SCRATCH = Scratch()


class Sources:
    """The tensors of base and adapter, read by whoever holds them."""

    def __init__(self, *weights: Weights) -> None:
        self._by_file = {shard.file: w for w in weights for shard in w.shards}

    def fp32(self, t: Tensor, start: int = 0, stop: int | None = None) -> Array:
        return self._by_file[t.file].read(t, start, stop).astype(np.float32)

    def block(self, t: Tensor, start: int, stop: int) -> Array:
        """As `fp32`, in this thread's scratch."""
        raw, w = SCRATCH.get("raw", stop - start, numpy_type(t)), SCRATCH.get("w", stop - start)
        self._by_file[t.file].read_into(t, start, raw)
        np.copyto(w, raw)
        return w

    def matrix(self, t: Tensor) -> Array:
        return self.fp32(t).reshape(t.shape)

    def bytes(self, t: Tensor, start: int, stop: int) -> bytearray:
        return self._by_file[t.file].read_bytes(t, start, stop)


class Work:
    """One tensor that is not a copy. `prepare` once, then `block` for each range of rows, in any thread."""

    def __init__(self, recipe: Recipe, sources: Sources) -> None:
        self.recipe, self.sources = recipe, sources
        shape = recipe.shape
        self.rows, self.cols = (shape[0], recipe.source.count // max(shape[0], 1)) if len(shape) > 1 else (1, shape[0])
        step = max(1, BLOCK // max(self.cols, 1))
        if recipe.quantization is not None:  # a block of rows begins where a block of scales does
            unit = recipe.quantization.block // gcd(recipe.quantization.block, self.cols)
            step = -(-step // unit) * unit
        self.ranges = [(i, min(i + step, self.rows)) for i in range(0, self.rows, step)]

    def prepare(self) -> None:
        """What every block needs: the factors, and what is known only from the whole tensor."""
        with np.errstate(all="ignore"):  # `block` says what is not finite
            self._prepare()

    def _prepare(self) -> None:
        r = self.recipe
        if r.quantization is not None:
            own = [quantize.scales(self._loaded(i, j), r.quantization.block) for i, j in self.ranges]
            self.own_scales = np.concatenate(own)
            self.scales = self.own_scales
            if r.quantization.double:
                self.scales = quantize.quantized_scales(self.own_scales, r.quantization.device)
        if r.lora is not None:
            self.a, self.b = self.sources.matrix(r.lora.a), self.sources.matrix(r.lora.b)
            if r.lora.magnitude is not None:
                self.magnitude = self.sources.matrix(r.lora.magnitude)
                if r.lora.transposed:  # the norms run across all rows
                    squares = np.zeros(self.cols, np.float64)
                    for i, j in self.ranges:
                        squares += np.square(self._sum(i, j), dtype=np.float64).sum(axis=0)
                    self.factor = self.magnitude / np.sqrt(squares).astype(np.float32)
        if r.bias is not None:
            self.bias = self.sources.matrix(r.bias[0]) * np.float32(r.bias[1])
        if r.rows is not None:
            self.new_rows = self.sources.matrix(r.rows[1])

    def _loaded(self, i: int, j: int) -> Array:
        """Rows as training had loaded them before it quantized them: in the compute type; flat fp32."""
        assert self.recipe.quantization is not None
        w = self.sources.fp32(self.recipe.source, i * self.cols, j * self.cols)
        return w.astype(TYPES[self.recipe.quantization.compute]).astype(np.float32)

    def _weight(self, i: int, j: int) -> Array:
        """Rows of the weight that the sum starts from, (rows, cols) fp32."""
        q = self.recipe.quantization
        if q is None:
            flat = self.sources.block(self.recipe.source, i * self.cols, j * self.cols)
        else:
            part = slice(i * self.cols // q.block, -(-j * self.cols // q.block))
            flat = quantize.round_trip(self._loaded(i, j), self.own_scales[part], self.scales[part], q.kind, q.block)
            flat = flat.astype(TYPES[q.compute]).astype(np.float32)
        return flat.reshape(j - i, self.cols)

    def _sum(self, i: int, j: int) -> Array:
        """W + scale · B·A."""
        w, lora = self._weight(i, j), self.recipe.lora
        assert lora is not None
        left, right = (self.a[:, i:j].T, self.b.T) if lora.transposed else (self.b[i:j], self.a)
        delta = product(left, right, SCRATCH.get("delta", w.size).reshape(w.shape))
        if lora.scale != 1:
            delta *= np.float32(lora.scale)
        return np.add(w, delta, out=w)

    def block(self, i: int, j: int) -> Piece:
        """The finished bytes of rows i to j. Raises UserError where a number is not finite."""
        r = self.recipe
        with np.errstate(all="ignore"):
            w = self._sum(i, j) if r.lora is not None else self._weight(i, j)
            if r.lora is not None and r.lora.magnitude is not None:
                # DoRA (https://arxiv.org/abs/2402.09353): the sum at its trained length
                if r.lora.transposed:
                    w *= self.factor
                else:
                    norm = np.sqrt(np.einsum("ij,ij->i", w, w, dtype=np.float64)).astype(np.float32)
                    w *= (self.magnitude[i:j] / norm)[:, None]
            if r.bias is not None:
                w += self.bias.reshape(w.shape)
            if r.rows is not None:
                for index, new in zip(r.rows[0], self.new_rows, strict=True):
                    if i <= index < j:
                        w[index - i] = new.reshape(-1)
            out = np.empty(w.shape, TYPES[r.dtype])
            np.copyto(out, w, casting="unsafe")
            # a dot product is cheap and not finite where any number is not; only then each is looked at
            narrow, flat = r.dtype == "F16", w.reshape(-1)
            if (narrow or not np.isfinite(np.dot(flat, flat))) and not np.isfinite(out if narrow else w).all():
                self._not_finite(w)
        return out.reshape(-1).view(np.uint8).data

    def _not_finite(self, w: Array) -> None:
        r = self.recipe
        if np.isfinite(w).all():
            raise UserError(
                f"{r.name} holds {float(np.abs(w).max()):.3g}, which fp16 cannot hold",
                where=r.source.file,
                fix="use --dtype bf16 or fp32",
            )
        raise UserError(
            f"{r.name} would hold NaN or infinity",
            where=r.source.file,
            fix="the base model's weights are damaged, or the adapter diverged",
        )


def run(recipes: Sequence[Recipe], sources: Sources, threads: int, start: int, write: Write) -> Iterator[Piece]:
    """The bytes of all recipes, in order, piece by piece, each written already (`write(offset, bytes)`, in any thread)
    where it belongs, the first at `start`; a few are computed ahead."""
    pending: deque[Future[Piece]] = deque()
    done = start
    with _pool(threads) as pool:
        for size, job in _jobs(recipes, sources, pool):
            pending.append(pool.submit(_written, job, start, write))
            start += size
            while start - done > AHEAD and len(pending) > threads:
                piece = pending.popleft().result()
                done += len(piece)
                yield piece
        while pending:
            yield pending.popleft().result()


def _written(job: Callable[[], Piece], start: int, write: Write) -> Piece:
    piece = job()
    write(start, piece)
    return piece


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _jobs(
    recipes: Sequence[Recipe], sources: Sources, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, Callable[[], Piece]]]:
    """What makes the pieces, each with the bytes that it will have."""
    for recipe, work, prepared in _prepared(recipes, sources, pool):
        if work is None or prepared is None:
            for start in range(0, recipe.source.nbytes, COPY):
                stop = min(start + COPY, recipe.source.nbytes)
                yield stop - start, partial(sources.bytes, recipe.source, start, stop)
        else:
            row = recipe.nbytes // work.rows if work.rows else 0
            for i, j in work.ranges:
                yield (j - i) * row, partial(_when_prepared, prepared, work, i, j)


def _when_prepared(prepared: Future[None], work: Work, i: int, j: int) -> Piece:
    prepared.result()
    return work.block(i, j)


def _prepared(
    recipes: Sequence[Recipe], sources: Sources, pool: ThreadPoolExecutor
) -> Iterator[tuple[Recipe, Work | None, Future[None] | None]]:
    """Each tensor is prepared while the one before it is computed.

    The pool is first in, first out, so a block that waits for its preparation waits for something that runs.
    """
    coming: tuple[Recipe, Work | None, Future[None] | None] | None = None
    for recipe in recipes:
        work = None if recipe.is_copy else Work(recipe, sources)
        prepared = pool.submit(work.prepare) if work is not None else None
        if coming is not None:
            yield coming
        coming = recipe, work, prepared
    if coming is not None:
        yield coming
