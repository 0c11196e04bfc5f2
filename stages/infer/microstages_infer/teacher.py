"""Teacher forcing: every form of a model reads the right answers, and says how likely it finds each of their tokens.

A row becomes the tokens that it had in training: those of the prompt, those of the completion, and the end token where
the data set names one. The model reads them in one pass; the logits in front of the completion's tokens are looked at,
batch after batch, and never kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from microstages.errors import UserError
from microstages.reporting import Reporter
from microstages.tokens import ModelText

from microstages_infer.decoding import Engine
from microstages_infer.prompts import Row

LOGITS_BYTES = 256 << 20  # the most memory that the logits of a batch take


@dataclass(frozen=True)
class Forced:
    """Token ids of a text; those from `start` on (1 or more) are predicted, each from all before it."""

    ids: list[int]
    start: int

    @property
    def targets(self) -> list[int]:
        return self.ids[self.start :]


Visit = Callable[[int, Any], None]  # number of the sequence, logits (targets, vocabulary), float32


def sequences(text: ModelText, rows: Sequence[Row], end: int | None) -> list[Forced | None]:
    """The rows as they are read; None where no completion is known, the prompt is empty, or nothing is to predict."""
    alone = _stands_alone(text)
    found: list[Forced | None] = []
    for row in rows:
        if row.reference is None:
            found.append(None)
            continue
        prompt = _ids(text, row.prompt)
        said = _ids(text, row.reference)
        if not alone:
            whole = _ids(text, row.prompt + row.reference)
            said = whole[len(prompt) :] if whole[: len(prompt)] == prompt else said
        ids = [*prompt, *said, *([] if end is None else [end])]
        found.append(Forced(ids, len(prompt)) if prompt and len(ids) > len(prompt) else None)
    return found


def _ids(text: ModelText, words: str) -> list[int]:
    return list(text.tokenizer.encode(words, add_special_tokens=False).ids)


def _stands_alone(text: ModelText) -> bool:
    """Whether a text that goes on is tokenized as one that begins, as `prepare-data` asks."""
    newline = _ids(text, "\n")
    return all(newline + _ids(text, word) == _ids(text, "\n" + word) for word in ("a", "Yes"))


def batches(engine: Engine, found: Sequence[Forced | None], most: int) -> list[list[int]]:
    """Numbers of the sequences to read, batch by batch, the longest first: of at most `most`, with logits of at most
    LOGITS_BYTES. What is longer than the model's context is left out; what padding would change is alone.
    """
    lengths = {i: len(f.ids) for i, f in enumerate(found) if f is not None}
    fits = [i for i, n in lengths.items() if engine.context is None or n <= engine.context]
    order = sorted(fits, key=lambda i: (-lengths[i], i))
    width = 4 * (engine.vocabulary or engine.text.tokenizer.get_vocab_size())
    made: list[list[int]] = []
    room = 0
    for i in order:
        alone = engine.together is not None and lengths[i] > engine.together
        if alone or not made or len(made[-1]) >= room:
            made.append([])
            room = 1 if alone else max(1, min(most, LOGITS_BYTES // (lengths[i] * width)))
        made[-1].append(i)
    return made


def read(report: Reporter, engine: Engine, found: Sequence[Forced | None], most: int, words: str, visit: Visit) -> None:
    """Read every sequence that fits the context; `visit` gets the logits in front of its targets.

    Raises UserError where the model has no row for a token, or gives no numbers.
    """
    import numpy as np

    if engine.vocabulary is not None:
        largest = max((max(f.ids) for f in found if f is not None), default=0)
        if largest >= engine.vocabulary:
            what = f"the tokenizer makes token {largest}, but the model has {engine.vocabulary} rows"
            raise UserError(what, where=engine.text.folder, fix="the tokenizer is not this model's: get it again")
    planned = batches(engine, found, most)
    with report.progress(words, sum(map(len, planned)), "rows") as bar:
        for batch in planned:
            chosen = [f for f in (found[i] for i in batch) if f is not None]
            for i, logits in zip(batch, engine.read([f.ids for f in chosen], [f.start for f in chosen]), strict=True):
                if not np.isfinite(logits).any(axis=1).all() or np.isnan(logits).any():
                    what = "the model's logits are no numbers"
                    raise UserError(what, where=engine.text.folder, fix="get or make the model again")
                visit(i, logits)
            bar.advance(len(batch))


def log_sums(logits: Any) -> Any:
    """log Σ exp of each row of logits, shape (rows, vocabulary) -> (rows,), float64."""
    import numpy as np

    most = logits.max(axis=1, keepdims=True)
    return most[:, 0].astype(np.float64) + np.log(np.exp(logits - most).sum(axis=1, dtype=np.float64))


def negative_log_likelihood(logits: Any, targets: Sequence[int]) -> Any:
    """-log p of each target in nats, float64. `logits`: shape (targets, vocabulary)."""
    import numpy as np

    at = np.asarray(targets, dtype=np.int64)
    return log_sums(logits) - logits[np.arange(len(at)), at].astype(np.float64)


class Losses:
    """Losses in nats: of each sequence its mean over its targets, of all the mean over all their targets."""

    def __init__(self, count: int) -> None:
        self.each: list[float | None] = [None] * count
        self.total, self.tokens = 0.0, 0

    def add(self, number: int, logits: Any, targets: Sequence[int]) -> None:
        nll = float(negative_log_likelihood(logits, targets).sum())
        self.each[number] = nll / len(targets)
        self.total += nll
        self.tokens += len(targets)

    def figures(self, prefix: str = "") -> dict[str, float]:
        """`loss`, `perplexity` and how many tokens and sequences they are of; empty where nothing was read."""
        if not self.tokens:
            return {}
        loss = self.total / self.tokens
        return {
            f"{prefix}loss": round(loss, 6),
            f"{prefix}perplexity": float(f"{math.exp(min(loss, 700.0)):.6g}"),
            f"{prefix}loss_tokens": self.tokens,
            f"{prefix}loss_rows": sum(x is not None for x in self.each),
        }
