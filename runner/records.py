"""The history for people, `ps` and `logs`; and everybody's runs on a store, as its records tell."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from microstages.errors import UserError, nearest
from microstages.reporting import duration

from runner.document import Problems, load
from runner.history import History, Record, RunRecord
from runner.pipeline import full_uri
from runner.settings import override
from runner.spec import Spec, parse_spec
from runner.store import Store
from runner.summary import table

FOLLOW_EVERY = 0.2  # seconds
STATES = ("done", "reused", "running", "waiting", "pending", "failed", "stopped", "died", "not run")


def open_spec(file: Path, settings: Sequence[str]) -> Spec:
    """A pipeline file as it is. Only what it says of its store has to be right."""
    problems = Problems()
    spec = parse_spec(override(load(file), settings), file, problems)
    if not (isinstance(spec.store.value, str) and spec.store.value):
        problems.check()
    return spec


def open_store(file: Path, settings: Sequence[str]) -> Store:
    """A pipeline's store."""
    return Store(full_uri(str(open_spec(file, settings).store.value), file.resolve().parent))


def open_history(file: Path, settings: Sequence[str]) -> History:
    """The history of a pipeline's store."""
    return History(open_store(file, settings).state_folder(file.resolve().parent), create=False)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def stages_of(history: History, run: RunRecord) -> list[Record]:
    """The stages of a run; what a dead runner left running is not running."""
    gone = {"running": "died", "waiting": "not run", "pending": "not run"} if run.status == "died" else {}
    return [replace(r, status=gone.get(r.status, r.status)) for r in history.stages(run.id)]


def counts(states: Iterable[str]) -> str:
    """`3 done, 4 reused`: how many there are of each state, in the order of STATES."""
    found = Counter(states)
    known = [s for s in STATES if s in found]
    return ", ".join(f"{found[s]} {s}" for s in [*known, *sorted(found.keys() - known)])


def _took(history: History, run: RunRecord) -> str:
    """How long a run took so far; one that died, until its last sign of life."""
    end = run.finished if run.finished is not None else time.time() if run.status == "running" else None
    if run.status == "died":
        end = history.heard(run)
    return "–" if end is None else duration(end - run.started)


def runs_as_text(history: History, last: int) -> str:
    """A table of the runs, newest first."""
    rows = [["run", "when", "pipeline", "status", "stages", "took"]]
    for run in history.runs(last):
        stages = counts(r.status for r in stages_of(history, run))
        rows.append([str(run.id), _when(run.started), run.pipeline, run.status, stages, _took(history, run)])
    return table(rows, left=5) if len(rows) > 1 else "no runs yet"


def runs_as_data(history: History, last: int) -> list[dict[str, Any]]:
    """The runs with their stages."""
    return [{**asdict(run), "stages": [asdict(r) for r in stages_of(history, run)]} for run in history.runs(last)]


def everybodys(store: Store, last: int) -> list[dict[str, Any]]:
    """The runs on a store, newest first; `last` of them, or all."""
    from runner import runs

    found = runs.read_all(store)
    status = {r.name: "died" if r.status == "running" and not r.under_way else r.status for r in found}
    return [
        {
            "run": r.name.removesuffix(".json"), "pipeline": r.pipeline, "who": r.who, "started": r.started,
            "finished": r.finished, "status": status[r.name], "stages": r.stages,
        }
        for r in (found[:last] if last else found)
    ]  # fmt: skip


def everybodys_as_text(store: Store, last: int) -> str:
    """A table of everybody's runs."""
    rows = [["when", "who", "pipeline", "status", "stages", "took"]]
    for run in everybodys(store, last):
        took = "–" if run["finished"] is None else duration(run["finished"] - run["started"])
        stages = counts(s["status"] for s in run["stages"].values())
        rows.append([_when(run["started"]), run["who"], run["pipeline"], run["status"], stages, took])
    return table(rows, left=5) if len(rows) > 1 else "no runs yet"


def print_logs(history: History, words: Sequence[str], follow: bool) -> None:
    """Print the logs that `[RUN] [STAGE]` means. Raises UserError where there are none."""
    run, stage = _meant(history, words)
    shown: dict[str, int] = {}
    last = ""
    while True:
        going = next((r.status == "running" for r in history.runs() if r.id == run.id), False)
        for record in history.stages(run.id):
            if stage in ("", record.stage):
                last = _print_new(history, record, shown, last, one=bool(stage))
        if not (follow and going):
            break
        time.sleep(FOLLOW_EVERY)
    if not shown:
        names = [r.stage for r in history.stages(run.id)]
        what = f"run {run.id} has no log" + (f" of {stage}" if stage else "")
        raise UserError(what, fix=f"its stages: {', '.join(names)}" if names else "see runner ps")


def _meant(history: History, words: Sequence[str]) -> tuple[RunRecord, str]:
    runs = {str(r.id): r for r in history.runs()}
    if not runs:
        raise UserError("there are no runs yet", fix="runner up makes one")
    if len(words) > 2:
        raise UserError("too many words", where="logs", fix="runner logs [RUN] [STAGE]")
    number = words[0] if words and words[0].isdigit() else next(iter(runs))
    if number not in runs:
        raise UserError(f"there is no run {number}", fix=f"the last one is {next(iter(runs))}; see runner ps")
    rest = [w for w in words if not w.isdigit()]
    stages = [r.stage for r in history.stages(runs[number].id)]
    for name in rest:
        if name not in stages:
            what = f"run {number} has no stage {name!r}{nearest(name, stages)}"
            raise UserError(what, fix=f"its stages: {', '.join(stages)}")
    return runs[number], rest[0] if rest else ""


def _print_new(history: History, record: Record, shown: dict[str, int], last: str, one: bool) -> str:
    """Print what a stage's log has beyond what was shown; the stage whose words stand last on the screen."""
    source: Record | None = record
    if record.status == "reused" and record.attempt:
        source = history.made(record.attempt)
    if source is None or not source.log:
        return last
    try:
        with open(source.log, "rb") as f:
            f.seek(shown.get(record.stage, 0))
            data = f.read()
    except OSError:
        return last
    new = record.stage not in shown
    shown[record.stage] = shown.get(record.stage, 0) + len(data)
    if not one and (data or new) and last != record.stage:
        of = f", made in run {source.run}" if source.run != record.run else ""
        print(f"--- {record.stage} ({record.status}{of})")
    sys.stdout.write(data.decode(errors="replace"))
    sys.stdout.flush()
    return record.stage if data or new else last
