"""A spooled split becomes `train.safetensors` or `test.safetensors`, a window at a time.

The sequences are planned first, from the lengths alone. Then all sizes are known, and the file is written from its
header to its end in one go. The layout of the tensors: see `microstages.dataset`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from microstages_prepare_data.packing import pack
from microstages_prepare_data.sequences import Spans, Stream, batches
from microstages_prepare_data.spool import Spool

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAMES = {"uint16": "U16", "int32": "I32", "uint8": "U8"}
BLOCK = 1 << 20


@dataclass(frozen=True)
class Written:
    """What a split holds. `cut_off`: tokens at the end that fill no block (strategy join)."""

    rows: int
    examples: int
    bins: int
    tokens: int
    trained_tokens: int
    cut_off: int = 0

    def counts(self) -> dict[str, int]:
        """The counts of the metadata."""
        return {
            "rows": self.rows,
            "examples": self.examples,
            "bins": self.bins,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
        }


def write_split(spool: Spool, file: Path, strategy: str, max_length: int) -> Written:
    """Write a split. Nothing is written where it would hold no example."""
    if strategy == "join":
        return _write_blocks(spool, file, max_length)
    order_file, lengths_file, bins_file = (spool.folder / n for n in ("order", "lengths", "bins"))
    examples = bins = tokens = 0
    with order_file.open("wb") as order_out, lengths_file.open("wb") as lengths_out, bins_file.open("wb") as bins_out:
        for window in spool.windows():
            lengths = window.lengths
            if strategy == "pack":
                order, sizes = pack(lengths, max_length)
                order_out.write(order.astype(np.int32).tobytes())
                lengths = lengths[order]
            else:
                sizes = np.ones(len(lengths), np.int32)
            lengths_out.write(lengths.tobytes())
            bins_out.write(sizes.tobytes())
            examples, bins, tokens = examples + len(lengths), bins + len(sizes), tokens + int(lengths.sum())
    if not examples:
        return Written(0, 0, 0, 0, 0)

    def picked(name: str) -> Iterator[NDArray[Any]]:
        with order_file.open("rb") as f:
            for window, values in spool.tokens(name):
                order = np.fromfile(f, np.int32, len(window.lengths)) if strategy == "pack" else None
                yield window.pick(values, order)

    with file.open("wb") as out:
        _header(out, spool.dtype, examples, bins, tokens)
        for part in (lengths_file, bins_file):
            _copy(part, out)
        trained = _stream(out, picked("ids"), picked("trained"))
    return Written(examples, examples, bins, tokens, trained)


def _write_blocks(spool: Spool, file: Path, max_length: int) -> Written:
    """All kept rows one after another, cut into blocks of exactly `max_length`; what is left over is left out."""
    rows = total = 0
    for window in spool.windows():
        rows, total = rows + len(window.lengths), total + int(window.lengths.sum(dtype=np.int64))
    blocks = total // max_length
    if not blocks:
        return Written(rows, 0, 0, 0, 0, total)

    def whole(name: str) -> Iterator[NDArray[Any]]:
        at, end = 0, blocks * max_length
        for window, values in spool.tokens(name):
            picked = window.pick(values, None)[: max(0, end - at)]
            if name == "trained":
                picked[-at % max_length :: max_length] = 0  # the first of a block is never predicted
            at += len(picked)
            yield picked

    with file.open("wb") as out:
        _header(out, spool.dtype, blocks, blocks, blocks * max_length)
        for value in (max_length, 1):
            for left in range(blocks, 0, -BLOCK):
                out.write(np.full(min(left, BLOCK), value, np.int32).tobytes())
        trained = _stream(out, whole("ids"), whole("trained"))
    return Written(rows, blocks, blocks, blocks * max_length, trained, total - blocks * max_length)


def write_spans(stream: Stream, spans: Spans, file: Path, pad_id: int | None, max_length: int, rows: int) -> Written:
    """Write chosen sequences, each an example and a bin of its own. Nothing is written where there is none."""
    if not len(spans):
        return Written(rows, 0, 0, 0, 0, spans.cut_off)
    lengths = spans.lengths if pad_id is None else np.full(len(spans), max_length)
    tokens = int(lengths.sum())
    with file.open("wb") as out:
        _header(out, stream.ids.dtype, len(spans), len(spans), tokens)
        out.write(lengths.astype(np.int32).tobytes())
        out.write(np.ones(len(spans), np.int32).tobytes())
        trained = _stream(
            out,
            (ids for ids, _ in batches(stream, spans, pad_id, max_length)),
            (mask for _, mask in batches(stream, spans, pad_id, max_length)),
        )
    return Written(rows, len(spans), len(spans), tokens, trained, spans.cut_off)


def _header(out: BinaryIO, dtype: Any, examples: int, bins: int, tokens: int) -> None:
    """The header of safetensors: its length, and JSON padded with spaces to a multiple of 8. Wide types stand first."""
    specs = {
        "example_lengths": (np.dtype(np.int32), examples),
        "bin_lengths": (np.dtype(np.int32), bins),
        "input_ids": (dtype, tokens),
        "trained": (np.dtype(np.uint8), tokens),
    }
    header, at = {}, 0
    for name, (type_, count) in specs.items():
        end = at + count * type_.itemsize
        header[name] = {"dtype": _NAMES[type_.name], "shape": [count], "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)


def _stream(out: BinaryIO, ids: Iterator[NDArray[Any]], trained: Iterator[NDArray[Any]]) -> int:
    """Write both; returns how many tokens are trained."""
    for values in ids:
        out.write(values.data)
    count = 0
    for values in trained:
        out.write(values.data)
        count += int(values.sum(dtype=np.int64))
    return count


def _copy(file: Path, out: BinaryIO) -> None:
    with file.open("rb") as f:
        while block := f.read(BLOCK):
            out.write(block)
