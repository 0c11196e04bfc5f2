"""Best-fit bin packing: rows of different lengths into sequences of one length, almost without gaps.

The longest row goes first, each into the fullest bin that still has room (best-fit decreasing). Done by histogram:
all bins with equal room left take rows of one length at once, so the cost grows with the number of different lengths,
not of rows. That a bin takes several rows of a length one after another is what best fit does: after the first it is
the fullest bin with room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pack(lengths: NDArray[Any], capacity: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pack `lengths` (rows,), each from 1 to `capacity`, into bins.

    Returns `order` (rows,), the indices of the rows one bin after another, and `bin_lengths` (bins,), how many rows
    each bin has. Rows in a bin, and bins by their first row, stand in the order of the rows.
    """
    if not len(lengths):
        return np.zeros(0, np.int64), np.zeros(0, np.int32)
    groups = _bins(*np.unique(lengths, return_counts=True), capacity)
    by_length = np.argsort(lengths, kind="stable")
    values, starts = np.unique(lengths[by_length], return_index=True)
    next_ = dict(zip(values.tolist(), starts.tolist(), strict=True))
    bin_of = np.empty(len(lengths), np.int64)
    bins = 0
    for count, content in groups:
        numbers = np.arange(bins, bins + count)
        for length, times in content:
            at = next_[length]
            bin_of[by_length[at : at + count * times]] = np.repeat(numbers, times)
            next_[length] = at + count * times
        bins += count
    first = np.full(bins, len(lengths))
    np.minimum.at(first, bin_of, np.arange(len(lengths)))
    rank = np.empty(bins, np.int64)
    rank[np.argsort(first)] = np.arange(bins)
    bin_of = rank[bin_of]
    return np.argsort(bin_of, kind="stable"), np.bincount(bin_of, minlength=bins).astype(np.int32)


Content = tuple[tuple[int, int], ...]  # (length, times), …


def _bins(values: NDArray[Any], counts: NDArray[Any], capacity: int) -> list[tuple[int, Content]]:
    """Groups of equal bins: how many, and what each holds."""
    room: dict[int, list[tuple[int, Content]]] = {}  # room left -> groups of bins
    for length, rows in zip(values.tolist()[::-1], counts.tolist()[::-1], strict=True):
        left = rows
        new: list[tuple[int, int, Content]] = []  # room left then, count, content
        for free in sorted(r for r in room if r >= length):
            groups = room[free]
            while groups and left:
                count, content = groups.pop()
                left = _fill(new, free, (count, content), length, left)
            if not groups:
                del room[free]
            if not left:
                break
        if left:
            left = _fill(new, capacity, (-(-left // (capacity // length)), ()), length, left)
        for free, count, content in new:
            room.setdefault(free, []).append((count, content))
    return [group for free in sorted(room) for group in room[free]]


def _fill(out: list[tuple[int, int, Content]], free: int, bins: tuple[int, Content], length: int, left: int) -> int:
    """Put up to `left` rows of `length` into equal `bins` with `free` room, one bin full after another.

    Returns how many rows remain.
    """
    count, content = bins
    times = free // length
    full = min(count, left // times)
    rest = left - full * times if full < count else 0
    if full:
        out.append((free - times * length, full, (*content, (length, times))))
    if rest:
        out.append((free - rest * length, 1, (*content, (length, rest))))
    if untouched := count - full - (rest > 0):
        out.append((free, untouched, content))
    return left - full * times - rest
