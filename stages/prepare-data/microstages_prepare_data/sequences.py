"""Sequences chosen one by one: drawn, overlapping, limited in number, padded, or split when they are done.

All kept rows of a split lie one behind another as a stream of tokens. A sequence is a span of it, so everything here is
arithmetic on where spans begin; tokens move when they are written, a batch at a time. Memory grows by some bytes a row.

* join, join-sliding: spans of `max_length` tokens, the next one a stride further, as long as one fits. With
  `group_rows` so many rows are joined at once: behind the last span of a group the next one begins without overlap.
* line: each row. join-random, line-random: rows drawn with Python's `random.Random(seed).randint`; a span begins with
  the row. A draw that gives too few tokens is repeated; line-random takes the last one as it is.
* A split of finished sequences is that of `datasets.Dataset.train_test_split(shuffle=True)`: numpy's
  `default_rng(seed).permutation`, the first ones held out, both parts in its order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from microstages.errors import UserError

from microstages_prepare_data.settings import LINES, Settings
from microstages_prepare_data.spool import Spool

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 1 << 20  # tokens written at once


@dataclass(frozen=True)
class Stream:
    """The kept rows one behind another. `ends` (rows,): the token behind each row."""

    ids: NDArray[Any]
    trained: NDArray[Any]
    ends: NDArray[Any]

    @staticmethod
    def of(spool: Spool) -> Stream:
        """Of a finished spool; copies the tokens where not all rows are kept."""
        lengths, whole = [np.zeros(0, np.int64)], True
        for window in spool.windows():
            lengths.append(window.lengths.astype(np.int64))
            whole = whole and bool(window.kept.all())
        ends = np.cumsum(np.concatenate(lengths))
        arrays = []
        for name, dtype in (("ids", spool.dtype), ("trained", np.dtype(np.uint8))):
            file = spool.folder / name
            if not whole:
                file = spool.folder / f"{name}-kept"
                with file.open("wb") as out:
                    for window, values in spool.tokens(name):
                        out.write(window.pick(values, None).tobytes())
            empty = not len(ends) or not ends[-1]
            arrays.append(np.zeros(0, dtype) if empty else np.memmap(file, dtype, "r"))
        return Stream(arrays[0], arrays[1], ends)

    @property
    def starts(self) -> NDArray[Any]:
        return np.concatenate((np.zeros(1, np.int64), self.ends[:-1])) if len(self.ends) else self.ends

    @property
    def tokens(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0


@dataclass(frozen=True)
class Spans:
    """Sequences of a stream: where each begins, its tokens, and its row where it is one (else -1).

    The first `context` tokens of each are not trained. `cut_off`: tokens at the end that no sequence has.
    """

    begins: NDArray[Any]
    lengths: NDArray[Any]
    rows: NDArray[Any]
    context: int = 0
    cut_off: int = 0

    def __len__(self) -> int:
        return len(self.begins)

    def take(self, which: NDArray[Any]) -> Spans:
        """Some of them, in this order."""
        return Spans(self.begins[which], self.lengths[which], self.rows[which], self.context, self.cut_off)


def choose(stream: Stream, settings: Settings, max_length: int) -> Spans:
    """The sequences that the parameters ask for."""
    if settings.strategy in LINES:
        rows = np.arange(len(stream.ends))
        lengths = np.diff(stream.ends, prepend=0)
        if settings.strategy == "line-random":
            rows = _drawn_lines(lengths, settings, max_length)
        elif settings.max_sequences is not None:
            rows = rows[: settings.max_sequences]
        if not settings.pad:
            rows = rows[lengths[rows] > 0]
        return Spans(stream.starts[rows], lengths[rows], rows)
    context, cut_off = 0, 0
    if settings.strategy == "join-random":
        begins = _drawn_blocks(stream, settings, max_length)
    else:
        stride = settings.stride or max_length
        context = max_length - stride
        begins = windows(stream.ends, max_length, stride, settings.keep_last_full, settings.group_rows)
        begins = begins[: settings.max_sequences]
        cut_off = stream.tokens - (int(begins[-1]) + max_length if len(begins) else 0)
    count = len(begins)
    return Spans(begins, np.full(count, max_length, np.int64), np.full(count, -1), context, cut_off)


def windows(
    ends: NDArray[Any], length: int, stride: int, keep_last_full: bool, group_rows: int | None = None
) -> NDArray[Any]:
    """Where windows of `length` tokens begin, `stride` apart, in groups of rows that end at `ends`.

    Without `keep_last_full` a window that would end with its group is left to the next one, or out.
    """
    groups = [*ends[group_rows - 1 :: group_rows].tolist(), *ends[-1:].tolist()] if group_rows else ends[-1:].tolist()
    begins, at = [np.zeros(0, np.int64)], 0
    for end in groups:
        places = end - at - length + keep_last_full
        if places > 0:
            begins.append(np.arange(at, at + places, stride))
            at = int(begins[-1][-1]) + length
    return np.concatenate(begins)


def _drawn_blocks(stream: Stream, settings: Settings, max_length: int) -> NDArray[Any]:
    draw, starts, found = random.Random(settings.draw_seed), stream.starts, []
    for _ in range(settings.max_sequences or 0 if len(starts) else 0):
        for _ in range(settings.draws):
            begin = int(starts[draw.randint(0, len(starts) - 1)])
            if stream.tokens - begin >= max_length:
                found.append(begin)
                break
    return np.array(found, np.int64)


def _drawn_lines(lengths: NDArray[Any], settings: Settings, max_length: int) -> NDArray[Any]:
    draw, found = random.Random(settings.draw_seed), []
    for _ in range(settings.max_sequences or 0 if len(lengths) else 0):
        row = -1
        for _ in range(settings.draws):
            row = draw.randint(0, len(lengths) - 1)
            if settings.short_rows == "keep" or lengths[row] >= max_length:
                break
        found.append(row)
    return np.array(found, np.int64)


def split(count: int, held_out: float, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Which of `count` sequences are trained, and which are held out: a share below 1, or a number.

    Raises UserError where a part would be empty.
    """
    size = math.ceil(held_out * count) if held_out < 1 else int(held_out)
    if not 0 < size < count:
        raise UserError(
            f"{size} of {count} sequences to hold out leave {'none' if size else 'all'} to train on",
            where="--test-sequences",
            fix="give another share or number, a smaller --max-length, or more rows",
        )
    order = np.random.default_rng(seed).permutation(count)
    return order[size:], order[:size]


def batches(
    stream: Stream, spans: Spans, pad_id: int | None, max_length: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """The tokens of the sequences and whether each is trained, some sequences at a time.

    Its first token never is, nor the context, nor what fills it up to `max_length` with `pad_id` (None: nothing).
    """
    ends = np.cumsum(spans.lengths if pad_id is None else np.full(len(spans), max_length))
    at = 0
    while at < len(spans):
        before = int(ends[at - 1]) if at else 0
        count = max(1, int(np.searchsorted(ends, before + BATCH, "right")) - at)
        lengths = spans.lengths[at : at + count]
        position = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        where = np.repeat(spans.begins[at : at + count], lengths) + position
        ids, trained = stream.ids[where], stream.trained[where]
        trained[position < max(spans.context, 1)] = 0
        if pad_id is not None:
            filled = np.arange(max_length) < lengths[:, None]
            all_ids, all_trained = np.full(filled.shape, pad_id, ids.dtype), np.zeros(filled.shape, np.uint8)
            all_ids[filled], all_trained[filled] = ids, trained
            ids, trained = all_ids.ravel(), all_trained.ravel()
        yield ids, trained
        at += count


def texts(spool: Spool, spans: Spans) -> list[bytes]:
    """The lines of text of the rows that the sequences are, in their order; none where they are no rows."""
    wanted = set(spans.rows.tolist()) - {-1}
    found = {n: line for n, line in enumerate(spool.texts() if wanted else ()) if n in wanted}
    return [found[n] for n in spans.rows.tolist() if n in found]


def shortage(stream: Stream, settings: Settings, max_length: int) -> UserError:
    """The error where there is no sequence: how many tokens there are, and how many are needed."""
    joined, rows = stream.tokens, len(stream.ends)
    if not joined:
        return UserError(f"all {rows:,} rows are empty", where="--empty-rows keep", fix="name other fields")
    what = f"all {rows:,} rows together have {joined:,} tokens, and a block needs {max_length:,}"
    if joined >= max_length and settings.strategy in ("join", "join-sliding"):
        what += f", with --no-keep-last-full {max_length + 1:,}"
    elif joined >= max_length:
        what = f"none of {settings.draws} draws from {rows:,} rows began with {max_length:,} tokens still to come"
    return UserError(what, where=f"--strategy {settings.strategy}",
                     fix="give a smaller --max-length, more rows, or --strategy pack")  # fmt: skip
