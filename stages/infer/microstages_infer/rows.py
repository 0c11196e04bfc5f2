"""Answers in the making, side by side: rows that join and leave while the others go on (continuous batching).

A row has read its prompt and gets one token a step. All rows take a step together, in one pass through the model where
that is possible: the weights, whose reading is what a step costs, are then read once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from microstages_infer.decoding import Engine

ALIKE = 0.02  # how far logits may be from those of a row alone, as a share of their span: types round differently


class Rows(Protocol):
    """Rows are numbered from 0. Only one thread may use it."""

    together: bool  # whether a step is one pass through the model for all rows
    how: str  # what runs the model, and that, for people

    def join(self, ids: Sequence[int], room: int) -> Any:
        """A row more, which has read `ids` and may get `room` tokens; the logits that follow, (vocabulary,)."""

    def step(self, tokens: Sequence[int]) -> Any:
        """Each row reads its token; the logits that follow, (rows, vocabulary), float."""

    def leave(self, row: int) -> None:
        """A row ends; the last row takes its number."""

    def clear(self) -> None:
        """All rows end, also after an error."""


def rows_of(engine: Engine, most: int) -> Rows:
    """Rows for an engine, `most` of them at a time."""
    if engine.name == "transformers":
        from microstages_infer.torch_rows import TorchRows

        return TorchRows(engine)  # type: ignore[arg-type]
    from microstages_infer.onnx_rows import rows_for

    return rows_for(engine, most)  # type: ignore[arg-type]


def proved(rows: Rows, vocabulary: int) -> bool:
    """Whether two rows of unlike length say together what each says alone. Five passes of a few tokens."""
    import numpy as np

    random = np.random.default_rng(0)
    long, short = (random.integers(0, vocabulary, n).tolist() for n in (7, 3))
    rows.join(long[:-1], 2)
    rows.join(short[:-1], 2)
    got = np.array(rows.step([long[-1], short[-1]]), dtype=np.float64)
    for logits, ids in zip(got, (long, short), strict=True):
        rows.clear()
        alone = np.asarray(rows.join(ids, 2), dtype=np.float64)
        if not np.abs(logits - alone).max() <= ALIKE * np.ptp(alone):
            return False
    rows.clear()
    return True


def swap_out(values: list[Any], at: int) -> None:
    """Remove an element; the last one takes its place."""
    values[at] = values[-1]
    values.pop()
