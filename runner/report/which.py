"""The run that a report is about: one of this history, by its number, or one of everybody's on the store, by the name
of its record (`runner ps --all --json`). Both become the same value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from microstages.errors import UserError, nearest

from runner.history import History, Record
from runner.store import Store

# What a runner that was killed left behind is not going on.
GONE = {"running": "died", "waiting": "not run", "pending": "not run"}


@dataclass(frozen=True)
class Made:
    """The run that made what another one reused, and when; seconds since 1970."""

    run: int
    started: float | None
    finished: float | None


@dataclass(frozen=True)
class Shown:
    """A run. `name`: its number, or its record's name. `folder`: the pipeline file's, where that is known. `made`:
    stage -> the run that made what was reused."""

    name: str
    pipeline: str
    started: float
    finished: float | None
    status: str
    code: int | None
    stages: Sequence[Record]
    who: str = ""
    folder: Path | None = None
    file: Path | None = None
    made: Mapping[str, Made] = field(default_factory=dict)

    @property
    def under_way(self) -> bool:
        return self.status == "running"


def meant(
    store: Store, history: History, word: str = "", note: Callable[[str], None] = lambda _: None,
    file: Path | None = None, has_model: Callable[[Sequence[Record]], bool] | None = None,
) -> Shown:  # fmt: skip
    """The run that a word means; without one the newest of this pipeline `file` that made something or is under way, or
    else the newest. Where it is meant for its model, `has_model` tells whether these stages have one: the newest that
    does. Raises UserError where there is none."""
    runs = {str(r.id): r for r in (history.runs_of(file) if file and not word else history.runs())}
    if word and not word.isdigit():
        return _everybodys(store, word.removesuffix(".json"))
    if not runs:
        fix = "runner up makes one; those of others on this store: runner ps --all --json, and the name of one"
        raise UserError("there are no runs yet", fix=fix)
    number = str(int(word)) if word else next(iter(runs))
    if not word and has_model is not None:
        newest = next((n for n in runs if has_model(history.stages(int(n)))), None)
        if newest is None:
            raise UserError("no run made a model yet", fix="runner up makes one; runner ps lists the runs")
        if newest != number:
            note(f"run {number} made no model: this is run {newest}")
            number = newest
    elif not word:
        productive = history.productive()
        telling = [n for n, r in runs.items() if r.id in productive or r.status == "running"]
        if telling and telling[0] != number:
            note(f"run {number} made nothing ({runs[number].status}): this is run {telling[0]}; "
                 f"the other: runner report {number}")  # fmt: skip
            number = telling[0]
    if number not in runs:
        raise UserError(f"there is no run {number}", fix=f"the last one is {next(iter(runs))}; see runner ps")
    run = runs[number]
    stages = history.stages(run.id)
    if run.status == "died":
        stages = [replace(s, status=GONE.get(s.status, s.status)) for s in stages]
    made = {}
    for s in stages:
        found = history.made(s.attempt) if s.status == "reused" and s.attempt else None
        if found is not None and found.run != run.id:
            made[s.stage] = Made(found.run, found.started, found.finished)
    file = Path(run.file) if run.file else None
    return Shown(
        number, run.pipeline, run.started, run.finished, run.status, run.code, stages,
        folder=file.parent if file else None, file=file, made=made,
    )  # fmt: skip


def _everybodys(store: Store, name: str) -> Shown:
    from runner.runs import NAME, read_all

    found = {r.name.removesuffix(".json"): r for r in read_all(store)}
    if name not in found:
        what = f"there is no run {name!r}{nearest(name, found)}"
        fix = "a run is a number (runner ps), or a name of runner ps --all --json"
        raise UserError(what, fix=fix) from None
    run = found[name]
    assert NAME.fullmatch(run.name)
    status = "died" if run.status == "running" and not run.under_way else run.status
    gone = GONE if status == "died" else {}
    stages = []
    for stage, s in run.stages.items():
        uses, fingerprint, attempt = (str(s.get(k, "")) for k in ("uses", "fingerprint", "attempt"))
        outputs = {
            str(o): {"uri": store.output_uri(uses, fingerprint, attempt, str(o)), "digest": str(v.get("digest"))}
            for o, v in dict(s.get("outputs") or {}).items()
        }
        was = str(s.get("status", "not run"))
        stages.append(Record(0, stage, uses, gone.get(was, was), fingerprint=fingerprint, attempt=attempt,
                             outputs=outputs or None))  # fmt: skip
    return Shown(name, run.pipeline, run.started, run.finished, status, None, stages, who=run.who)
