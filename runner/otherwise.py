"""What a command line that names no `--set` should know: that the last run had another result of a stage."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from sqlite3 import Error
from typing import Any

from microstages.errors import UserError

from runner.history import History, Record
from runner.inventory import Known
from runner.plan import both


def tell(known: Known, stages: Iterable[str]) -> None:
    """Say on stderr which of these stages are not what the last run made."""
    for text in notes(known, stages):
        print(f"note: {text}", file=sys.stderr)


def notes(known: Known, stages: Iterable[str]) -> list[str]:
    """A line for each stage whose newest record is of another result than the one that is meant."""
    found = []
    last = _last(known)
    for stage in dict.fromkeys(stages):
        record, result = last.get(stage), known.steps[stage].result
        if record is None or result is None or record.fingerprint in ("", result.fingerprint):
            continue
        if _digests(record.outputs) == {o.digest for o in result.outputs.values()}:
            continue
        text = f"{stage} of run {record.run}, the last one, is another{_how(known, stage, record)}"
        given = "; for that give the same --set" if _how(known, stage, record) else ""
        found.append(f"{text}. This is that of {known.pipeline.file} as it is called here{given}")
    return found


def made(known: Known, stage: str) -> str:
    """Which run has a result of a stage that is not done as it is called here; the empty string where none has."""
    record = _last(known).get(stage)
    return f"run {record.run} made another{_how(known, stage, record)}: give the same --set for that" if record else ""


def _last(known: Known) -> Mapping[str, Record]:
    with suppress(UserError, OSError, Error):
        history = History(known.store.state_folder(known.pipeline.folder), create=False)
        try:
            return history.last(known.pipeline.name)
        finally:
            history.close()
    return {}


def _digests(outputs: Mapping[str, Any] | None) -> set[str]:
    return {str(o.get("digest") if isinstance(o, dict) else o) for o in (outputs or {}).values()}


def _how(known: Known, stage: str, record: Record) -> str:
    """What differs, in brackets: parameters of the stage itself, or what lies before it."""
    now, then = known.pipeline.stages[stage].params, record.params or {}

    def told(name: str) -> str:
        before, after = both(then[name], now[name])
        return f"{name} {before}, not {after}"

    if changed := [n for n in now if n in then and now[n] != then[n]]:
        return f" ({', '.join(told(n) for n in changed[:3])})"
    return " (something before it was not the same)" if known.pipeline.stages[stage].upstream else ""
