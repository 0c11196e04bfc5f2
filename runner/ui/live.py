"""What goes on, as it happens: the events of one page's stream. They end with the run.

A page has one stream and no more, because a browser opens few connections to one place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from microstages.errors import UserError

from runner.ui.answers import Answers
from runner.ui.logs import piece
from runner.ui.reading import MissingError, Seen

EVERY = 0.4  # seconds between two looks
CURVES_EVERY = 2.0
BEAT = 10.0  # seconds: so often something is said, so that a reader that has gone is noticed
Event = tuple[str, Any]


@dataclass
class _Told:
    """What a stream has told last, so that nothing is told twice."""

    what: dict[str, Any]
    log: str = ""
    at: int = 0
    curves_at: float = float("-inf")

    def new(self, name: str, value: Any) -> bool:
        if self.what.get(name) == value:
            return False
        self.what[name] = value
        return True


def trouble(error: UserError) -> dict[str, str]:
    """An error as pages are told it."""
    return {"what": error.what, "where": error.where, "fix": error.fix}


def runs(answers: Answers, last: int, wait: Callable[[float], bool]) -> Iterator[Event]:
    """The list of the runs whenever it changed, for as long as somebody listens. `wait` says when all is over."""
    told = _Told({})
    yield "time", {"now": time.time()}
    while True:
        try:
            value = answers.runs(last)
            if told.new("runs", value):
                yield "runs", value
        except UserError as error:
            if told.new("runs", str(error)):
                yield "trouble", trouble(error)
        yield "beat", None
        if wait(EVERY * 2):
            return


def run(
    answers: Answers,
    number: int,
    wait: Callable[[float], bool],
    *,
    stage: str = "",
    attempt: str = "",
    log: str = "",
    at: int = -1,
) -> Iterator[Event]:
    """A run as it goes, to its end; with a stage also that stage, its curves and its log, or that of a former attempt.
    `log` and `at`: up to which byte of which log the page has it (-1: its last piece is wanted)."""
    told = _Told({}, log, at)
    yield "time", {"now": time.time()}
    while True:
        try:
            found = answers.seen(number)
            if told.new("run", value := answers.run(found)):
                yield "run", value
            if stage:
                yield from _stage(answers, found, stage, attempt, told)
            if not found.going:
                yield "end", {"status": found.run.status}
                return
        except UserError as error:
            if told.new("run", str(error)):
                yield "trouble", trouble(error)
            if isinstance(error, MissingError) and stage and "stage" in told.what:
                return
        yield "beat", None
        if wait(EVERY):
            return


def _stage(answers: Answers, found: Seen, stage: str, attempt: str, told: _Told) -> Iterator[Event]:
    if told.new("stage", value := answers.stage(found, stage)):
        yield "stage", value
    over = answers.record(found, stage).status != "running"
    if over or time.monotonic() - told.curves_at >= CURVES_EVERY:
        told.curves_at = time.monotonic()
        if told.new("curves", curves := answers.curves(found, stage)):
            yield "curves", curves
    while True:
        try:
            log = answers.log(found, stage, attempt)
            name = log.name
            if name != told.log:
                told.log, told.at = name, told.at if not told.log or told.at < 0 else 0
            ended = over or bool(attempt)
            part = piece(log, None if told.at < 0 else told.at, ended=ended)
        except (MissingError, OSError):
            return  # no word yet, or not any more
        if part.size < part.start or (part.size < told.at):
            told.at = 0  # it was begun anew
            continue
        first = told.at < 0
        told.at = part.stop
        if part.text or first:
            yield "log", {"name": name, **part.__dict__}
        if part.stop >= part.size or part.stop == part.start:
            return
