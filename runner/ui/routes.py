"""Which address is answered by what. Names stand in them quoted, each a word of its own between two slashes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.ui import artifacts, live
from runner.ui.answers import Answers
from runner.ui.logs import piece
from runner.ui.reading import MissingError

# The addresses of pages: all are the same page, which draws what its address says.
PAGE = re.compile(r"/|/runs/\d{1,15}(/stages/[^/]{1,400}(/outputs/[^/]{1,400})?)?|/compare/\d{1,15}/\d{1,15}")
# What a token may lead to at once.
ENTRANCE = re.compile(rf"{PAGE.pattern}|/runs/\d{{1,15}}/report")
# A report brings its own scripts, and says itself which: it gets no part in this place and can ask it nothing.
REPORT = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline'; img-src data:"
)
PICTURE = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


@dataclass(frozen=True)
class Answer:
    """What is sent: a value as JSON, or a body as it stands, or a stream of events."""

    value: Any = None
    body: bytes | None = None
    media: str = "application/json"
    head: Mapping[str, str] = field(default_factory=dict)
    events: Callable[[], Iterable[live.Event]] | None = None


def answer(
    answers: Answers, words: Sequence[str], query: Mapping[str, str], wait: Callable[[float], bool]
) -> Answer | None:
    """The answer to an address, None where there is none. Raises UserError."""
    match words:
        case ["runs", number, "report"] if _is_number(number):
            return _report(answers, int(number))
        case ["api", "runs"]:
            return Answer(answers.runs(min(500, _number(query, "last", 50)), _number(query, "before", 0)))
        case ["api", "live"]:
            last = min(500, _number(query, "last", 50))
            return Answer(events=lambda: live.runs(answers, last, wait))
        case ["api", "compare", a, b] if _is_number(a) and _is_number(b):
            from runner.ui.changes import compared

            return Answer(compared(answers, int(a), int(b)))
        case ["api", "runs", number, *rest] if _is_number(number):
            return _run(answers, int(number), rest, query, wait)
    return None


def _run(
    answers: Answers, number: int, words: Sequence[str], query: Mapping[str, str], wait: Callable[[float], bool]
) -> Answer | None:
    if words == ["live"]:
        names = {k: query.get(k, "") for k in ("stage", "attempt", "log")}
        at = _number(query, "at", -1)
        seen = answers.seen(number)  # what is not there is no stream
        if names["stage"]:
            answers.record(seen, names["stage"])
        return Answer(events=lambda: live.run(answers, number, wait, **names, at=at))
    found = answers.seen(number)
    match words:
        case []:
            return Answer(answers.run(found))
        case ["stages", stage]:
            return Answer(answers.stage(found, stage))
        case ["stages", stage, "curves"]:
            return Answer(answers.curves(found, stage))
        case ["stages", stage, "log"]:
            log = answers.log(found, stage, query.get("attempt", ""))
            ended = answers.record(found, stage).status != "running"
            start = _number(query, "start", -1)
            stop = _number(query, "stop", -1)
            try:
                part = piece(log, start if start >= 0 else None, stop if stop >= 0 else None, ended)
            except FileNotFoundError:
                raise MissingError(f"the log of {stage} is gone", where=log) from None
            return Answer({"name": log.name, **part.__dict__})
        case ["stages", stage, "outputs", output]:
            return Answer(answers.artifact(found, stage, output))
        case ["stages", stage, "outputs", output, "preview"]:
            uri = answers.address(found, stage, output)
            shown = artifacts.preview(uri, artifacts.read_manifest(uri), query.get("file", ""))
            return Answer(shown.__dict__)
        case ["stages", stage, "outputs", output, "picture"]:
            uri = answers.address(found, stage, output)
            media, data = artifacts.picture(uri, artifacts.read_manifest(uri), query.get("file", ""))
            return Answer(body=data, media=media, head={"Content-Security-Policy": PICTURE})
    return None


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, "")
    return int(text) if _is_number(text) else default


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\d{1,15}", text, re.ASCII))


def _report(answers: Answers, run: int) -> Answer:
    """The report of a run."""
    from runner.report.collect import as_data, read_pipeline
    from runner.report.page import page_of
    from runner.report.which import meant

    found = answers.seen(run)
    with answers.history() as history:
        pipeline = read_pipeline(Path(found.run.file), [])
        text = page_of(as_data(pipeline, answers.store, meant(answers.store, history, str(run))))
    return Answer(body=text.encode(), media="text/html", head={"Content-Security-Policy": REPORT})
