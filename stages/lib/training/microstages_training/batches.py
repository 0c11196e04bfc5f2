"""What is trained when: bins of the data set become optimizer steps, and a micro-batch becomes tensors.

The order is a pure function of the data, the seed and the step, so a run can go on from any step:

* in each epoch the bins are shuffled; consecutive bins fill micro-batches of at most `batch_tokens` tokens, or of
  `batch_size` bins, and `accumulation` micro-batches make an optimizer step;
* with several processes each takes its share of a step's bins: what a step is made of does not depend on their number.

A micro-batch is flat: whole examples one after another, no padding. Tokens that no trained token depends on (after an
example's last one) are left out; the loss and the gradients are the same without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from microstages.dataset import Split
from microstages.errors import UserError


@dataclass(frozen=True)
class MicroBatch:
    """Examples one after another.

    input_ids   (tokens,)    int64
    positions   (tokens,)    int64, restart at each example
    lengths     (examples,)  int64, sum = tokens
    rows        (trained,)   int64: where in `input_ids` a trained token is predicted
    targets     (trained,)   int64: the tokens to predict there
    """

    input_ids: Any
    positions: Any
    lengths: Any
    rows: Any
    targets: Any


class Examples:
    """One split of a data set, seen as bins of examples."""

    def __init__(self, split: Split) -> None:
        self._ids, self._trained = split.input_ids, split.trained
        self.example_lengths = np.asarray(split.example_lengths, np.int64)
        self._example_starts = _starts(self.example_lengths)
        self._bin_examples = np.asarray(split.bin_lengths, np.int64)
        self._bin_first = _starts(self._bin_examples)
        self.bin_tokens = np.add.reduceat(self.example_lengths, self._bin_first) if len(self) else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._bin_examples)

    def micro_batch(self, bins: Any) -> MicroBatch:
        """The tensors of some bins."""
        ids, positions, lengths, rows, targets = [], [], [], [], []
        at = 0
        for b in bins:
            first = self._bin_first[b]
            for example in range(first, first + self._bin_examples[b]):
                start, length = self._example_starts[example], self.example_lengths[example]
                trained = np.flatnonzero(self._trained[start + 1 : start + length])
                if len(trained) == 0:
                    continue
                needed = trained[-1] + 1
                tokens = self._ids[start : start + needed + 1].astype(np.int64)
                ids.append(tokens[:needed])
                positions.append(np.arange(needed))
                lengths.append(needed)
                rows.append(trained + at)
                targets.append(tokens[trained + 1])
                at += needed
        if not lengths:
            nothing = np.zeros(0, np.int64)
            return MicroBatch(nothing, nothing, nothing, nothing, nothing)
        return MicroBatch(
            np.concatenate(ids), np.concatenate(positions), np.asarray(lengths),
            np.concatenate(rows), np.concatenate(targets),
        )  # fmt: skip


def _starts(lengths: Any) -> Any:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)[:-1]]) if len(lengths) else lengths


def fill(tokens: Any, capacity: int) -> list[slice]:
    """Consecutive bins of `tokens` (bins,) as slices of at most `capacity` tokens each (next fit)."""
    ends = np.cumsum(tokens)
    slices, first, before = [], 0, 0
    while first < len(tokens):
        last = int(np.searchsorted(ends, before + capacity, side="right"))
        last = max(last, first + 1)
        slices.append(slice(first, last))
        first, before = last, int(ends[last - 1])
    return slices


@dataclass(frozen=True, eq=False)
class Plan:
    """Which bins each optimizer step trains. Raises UserError where a bin does not fit a micro-batch."""

    bin_tokens: Any
    batch_tokens: int
    accumulation: int
    seed: int
    epochs: float
    steps: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        longest = int(self.bin_tokens.max())
        if longest > self.batch_tokens and self.batch_size is None:
            raise UserError(
                f"a micro-batch of {self.batch_tokens:,} tokens cannot hold a sequence of {longest:,}",
                where="--batch-tokens",
                fix=f"give at least {longest}, or prepare the data with a smaller max_length",
            )

    def fill(self, bins: Any) -> list[slice]:
        """Consecutive bins as slices, each a micro-batch."""
        if self.batch_size is None:
            return fill(self.bin_tokens[bins], self.batch_tokens)
        return [slice(at, min(at + self.batch_size, len(bins))) for at in range(0, len(bins), self.batch_size)]

    @lru_cache(maxsize=2)  # noqa: B019  (a plan lives as long as the process)
    def epoch(self, number: int) -> tuple[Any, list[list[slice]]]:
        """The order of the bins in an epoch, and its steps as micro-batches of that order."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.bin_tokens))
        micro = self.fill(order)
        return order, [micro[i : i + self.accumulation] for i in range(0, len(micro), self.accumulation)]

    @cached_property
    def total(self) -> int:
        """Optimizer steps in all."""
        if self.steps is not None:
            return self.steps
        whole = int(self.epochs)
        steps = sum(len(self.epoch(e)[1]) for e in range(whole))
        if part := self.epochs - whole:
            steps += max(1, round(part * len(self.epoch(whole)[1])))
        return steps

    def walk(self, start: int = 0) -> Iterator[tuple[float, list[Any]]]:
        """From step `start` on: epochs done after the step, and the bins of each of its micro-batches."""
        step, number, total = 0, 0, self.total
        while step < total:
            order, steps = self.epoch(number)
            for i, micro in enumerate(steps):
                if step >= total:
                    return
                if step >= start:
                    yield number + (i + 1) / len(steps), [order[s] for s in micro]
                step += 1
            number += 1

    def share(self, micro: list[Any], rank: int, processes: int) -> list[Any]:
        """The micro-batches that one of several processes trains: bins dealt out so that all have about equal work."""
        if processes == 1:
            return micro
        bins = np.concatenate(micro)
        bins = bins[np.argsort(-self.bin_tokens[bins], kind="stable")]
        loads = [0] * processes
        mine = []
        for b in bins:
            taker = loads.index(min(loads))
            loads[taker] += int(self.bin_tokens[b])
            if taker == rank:
                mine.append(b)
        own = np.asarray(mine, dtype=np.int64)
        return [own[s] for s in self.fill(own)]
