"""Encoded rows on disk until all are there; then duplicates are known, and sequences can be planned.

Memory holds a window of rows. Duplicates are found by a hash of 128 bits for each row: the hashes are dealt into
partitions of about a million by their value, so that equal ones meet in one, and each partition is sorted by itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microstages_prepare_data.encode import DROPPED, LABELS, ROW, EncodedSplit

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW_ROWS = 1 << 15
WINDOW_TOKENS = 1 << 22
PARTITION = 1 << 20  # keys sorted at once
_KEY = np.dtype([("key", "<u8", 2), ("row", "<i8")])


@dataclass(frozen=True)
class Window:
    """Neighbouring rows: their records, which of them are kept, and where their tokens lie in the spool."""

    first: int  # number of the first row
    rows: NDArray[Any]
    kept: NDArray[Any]
    begin: int  # token of the first row
    tokens: int

    @property
    def lengths(self) -> NDArray[Any]:
        """Tokens of the rows that are kept."""
        return self.rows["tokens"][self.kept]

    def pick(self, spooled: NDArray[Any], order: NDArray[Any] | None) -> NDArray[Any]:
        """Of the window's tokens those of the kept rows, in `order` (indices among them; None: as they stand)."""
        ends = np.cumsum(self.rows["tokens"], dtype=np.int64)[self.kept]
        starts = ends - self.lengths
        if order is None:
            if self.kept.all():
                return spooled
            order = np.arange(len(ends))
        pieces = [spooled[a:b] for a, b in zip(starts[order].tolist(), ends[order].tolist(), strict=True)]
        return np.concatenate(pieces) if pieces else spooled[:0]


class Spool:
    """The encoded rows of one split: `append` all, then `finish`, then read. Its files lie in `folder`."""

    def __init__(self, folder: Path, dtype: Any) -> None:
        self.folder, self.dtype = folder, np.dtype(dtype)
        folder.mkdir()
        self.rows = self.duplicates = 0
        self.labels: dict[str, int] | None = {}
        with ExitStack() as stack:
            names = ("rows", "ids", "trained", "texts")
            self._out = {n: stack.enter_context((folder / n).open("wb", buffering=1 << 20)) for n in names}
            self._files = stack.pop_all()

    def append(self, part: EncodedSplit) -> None:
        """Add the rows of a chunk."""
        rows = part.rows
        if self.labels is not None:
            if part.labels is None:
                self.labels = None
            else:
                codes = [self.labels.setdefault(name, len(self.labels)) for name in part.labels]
                rows["label"] = np.array(codes, np.int32)[rows["label"]]
                if len(self.labels) > LABELS:
                    self.labels = None
        self._out["rows"].write(rows.tobytes())
        self._out["ids"].write(part.ids.tobytes())
        self._out["trained"].write(part.trained.tobytes())
        self._out["texts"].writelines(part.texts)
        self.rows += len(rows)

    def finish(self, deduplicate: bool) -> None:
        """No more rows. Finds the duplicates."""
        self._files.close()
        with (self.folder / "duplicate").open("wb") as f:
            f.truncate(self.rows)
        if deduplicate and self.rows:
            self._find_duplicates()

    def _find_duplicates(self) -> None:
        parts = -(-self.rows // PARTITION)
        folder = self.folder / "keys"
        folder.mkdir()
        with ExitStack() as stack:
            files = [stack.enter_context((folder / str(p)).open("wb")) for p in range(parts)]
            for first, rows in self._records():
                keys = np.empty(len(rows), _KEY)
                keys["key"], keys["row"] = rows["key"], np.arange(first, first + len(rows))
                which = keys["key"][:, 0] % parts
                for p, file in enumerate(files):
                    file.write(keys[which == p].tobytes())
        mark = np.memmap(self.folder / "duplicate", np.uint8, "r+", shape=(self.rows,))
        for p in range(parts):
            keys = np.fromfile(folder / str(p), _KEY)
            order = np.lexsort((keys["key"][:, 1], keys["key"][:, 0]))  # stable: the first of equal ones stays first
            sorted_ = keys["key"][order]
            again = order[1:][(sorted_[1:] == sorted_[:-1]).all(axis=1)]
            mark[keys["row"][again]] = 1
            self.duplicates += len(again)
        del mark
        shutil.rmtree(folder)

    def leave_out(self, other: Spool) -> None:
        """Take for duplicates the rows that another split holds. Memory grows with the other split's keys."""
        theirs = {key for _, rows in other._records() for key in map(tuple, rows["key"].tolist())}
        if not theirs or not self.rows:
            return
        mark = np.memmap(self.folder / "duplicate", np.uint8, "r+", shape=(self.rows,))
        for first, rows in self._records():
            found = np.fromiter((key in theirs for key in map(tuple, rows["key"].tolist())), bool, len(rows))
            found &= mark[first : first + len(rows)] == 0
            mark[first : first + len(rows)][found] = 1
            self.duplicates += int(found.sum())

    def _records(self) -> Iterator[tuple[int, NDArray[Any]]]:
        with (self.folder / "rows").open("rb") as f:
            first = 0
            while len(rows := np.fromfile(f, ROW, WINDOW_ROWS)):
                yield first, rows
                first += len(rows)

    def windows(self) -> Iterator[Window]:
        """All rows in windows of at most WINDOW_ROWS rows and WINDOW_TOKENS tokens (one row at least)."""
        begin = 0
        with (self.folder / "duplicate").open("rb") as f:
            for first, rows in self._records():
                duplicate = np.fromfile(f, np.uint8, len(rows)).astype(bool)
                kept = ~duplicate & (rows["flags"] & DROPPED == 0)
                ends = np.cumsum(rows["tokens"], dtype=np.int64)
                a = 0
                while a < len(rows):
                    base = int(ends[a - 1]) if a else 0
                    b = max(a + 1, int(np.searchsorted(ends, base + WINDOW_TOKENS, "right")))
                    tokens = int(ends[b - 1]) - base
                    yield Window(first + a, rows[a:b], kept[a:b], begin, tokens)
                    begin += tokens
                    a = b

    def first_of_equal(self) -> Iterator[NDArray[Any]]:
        """The records of rows that are no duplicates, a block at a time."""
        with (self.folder / "duplicate").open("rb") as f:
            for _, rows in self._records():
                yield rows[np.fromfile(f, np.uint8, len(rows)) == 0]

    def tokens(self, name: str) -> Iterator[tuple[Window, NDArray[Any]]]:
        """Each window with its `ids` or `trained`."""
        dtype = self.dtype if name == "ids" else np.dtype(np.uint8)
        with (self.folder / name).open("rb") as f:
            for window in self.windows():
                yield window, np.fromfile(f, dtype, window.tokens)

    def texts(self) -> Iterator[bytes]:
        """The lines of text of the rows that are kept."""
        with (self.folder / "texts").open("rb") as f:
            for window in self.windows():
                for kept in window.kept.tolist():
                    line = f.readline()
                    if kept:
                        yield line

    def remove(self) -> None:
        """Delete the files."""
        self._files.close()
        shutil.rmtree(self.folder, ignore_errors=True)
