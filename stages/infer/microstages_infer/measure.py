"""What is measured beside the answers, where it is asked for: loss, agreement with another form, forgetting.

It comes after the answers and after the clock and the memory were read, so those figures stay what they are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microstages.artifact import Artifact
from microstages.errors import UserError
from microstages.reporting import Reporter

from microstages_infer import neutral as forgetting
from microstages_infer.agreement import FILE, Agreement, Keeper, Kept, rows_digest
from microstages_infer.decoding import Answer, Engine
from microstages_infer.prompts import Row, Wrap
from microstages_infer.teacher import Forced, Losses, read, sequences


@dataclass(frozen=True)
class Wish:
    """What is asked for, as the flags say it. `window` and `most` are of the neutral text, in tokens."""

    loss: str
    keep_scores: bool
    neutral: Artifact | None
    window: int
    most: int
    reference: Artifact | None

    @property
    def reads(self) -> bool:
        """Whether the right answers are read. `auto`: where something else is measured that compares forms, so that a
        run that only answers costs no second pass."""
        more = self.keep_scores or self.reference is not None or self.neutral is not None
        return self.loss == "yes" or (self.loss == "auto" and more)

    def check(self, rows: bool) -> None:
        """Raises UserError where flags do not go together. `rows`: a data set or prompts are answered."""
        given = {"--loss": self.loss == "yes", "--keep-scores": self.keep_scores, "--neutral": self.neutral is not None,
                 "--reference": self.reference is not None}  # fmt: skip
        wanted = [flag for flag, is_ in given.items() if is_]
        if wanted and not rows:
            raise UserError("there are no rows to measure on", where=wanted[0], fix="give --dataset or --prompts")
        scored = [flag for flag in ("--keep-scores", "--reference") if given[flag]]
        if self.loss == "no" and scored:
            raise UserError(
                "the scores come from reading the right answers, as the loss does",
                where=scored[0],
                fix="leave --loss no out",
            )


@dataclass
class Measured:
    """`losses`: each row's, None where it has none; empty where none were asked for."""

    losses: list[float | None] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


class Measure:
    """What is asked for, checked before the model is loaded. Raises UserError where it cannot be done."""

    def __init__(self, wish: Wish, wrap: Wrap, rows: Sequence[Row], dataset: Artifact | None) -> None:
        self._wish, self._wrap = wish, wrap
        end = dataset.metadata.get("end_token_id") if dataset is not None else None
        self._found: list[Forced | None] = sequences(wrap.text, rows, end) if wish.reads else []
        if wish.loss == "yes" and not any(self._found):
            what = "no row has a completion, so there is no loss"
            raise UserError(what, where="--loss", fix="give rows with a completion, or leave --loss out")
        self.digest = rows_digest(rows)
        self._kept = Kept.open(wish.reference) if wish.reference is not None else None
        if self._kept is not None:
            self._kept.check(self.digest, self._found)
        if wish.neutral is not None:
            forgetting.text_of(wish.neutral)  # says what is wrong with it

    def run(
        self, report: Reporter, engine: Engine, answers: Sequence[Answer], batch_size: int, folder: Path
    ) -> Measured:
        """Measure, and write the scores into `folder` where they are to be kept."""
        wish, made = self._wish, Measured()
        began = time.perf_counter()
        if wish.reads:
            losses = Losses(len(self._found))
            keeper = Keeper(self._found) if wish.keep_scores else None
            agreement = Agreement(self._kept) if self._kept is not None else None

            def visit(number: int, logits: Any) -> None:
                f = self._found[number]
                assert f is not None
                losses.add(number, logits, f.targets)
                if keeper is not None:
                    keeper.add(number, logits)
                if agreement is not None:
                    agreement.add(number, logits)

            read(report, engine, self._found, batch_size, "reading the right answers", visit)
            made.losses = losses.each
            made.figures |= losses.figures()
            if keeper is not None:
                keeper.write(folder / FILE, answers)
            if agreement is not None:
                made.figures |= agreement.figures(answers)
        if wish.neutral is not None:
            made.figures |= forgetting.measure(
                report, engine, self._wrap, wish.neutral, wish.window, wish.most, batch_size
            )
        if wish.reads or wish.neutral is not None:
            made.figures["measuring_seconds"] = round(time.perf_counter() - began, 3)
        return made
