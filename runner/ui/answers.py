"""What the pages are told, as data: the runs, a run, a stage of it, its curves, its artifacts, two runs compared.

Raises UserError (`MissingError` for what is not there); nothing here changes anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.errors import UserError

from runner.events import number
from runner.history import Record, RunRecord
from runner.records import stages_of
from runner.store import Store
from runner.ui import artifacts
from runner.ui.graph import graph
from runner.ui.logs import KNOWN, Listener, Point, attempts, joined, log_file, plain
from runner.ui.reading import MissingError, Reading, Seen, reading, seen

SHOWN = 400  # points of a curve in one answer
CURVE_FILE = "training.json"  # of an adapter: what its training measured
LONGEST = 4000  # characters of an error
Curves = dict[str, list[Point]]


class Answers:
    """Answers for one store and its history."""

    def __init__(self, name: str, store: Store, folder: Path) -> None:
        self.name, self.store, self.folder = name, store, folder
        self.listener = Listener()
        self._curves: dict[str, Curves] = {}  # address of an artifact -> what it keeps
        self._was_there = False

    @contextmanager
    def history(self) -> Iterator[Reading]:
        """The history for a moment. Raises UserError where it cannot be read, or was there and is gone."""
        with reading(self.folder) as history:
            if self._was_there and history.fresh:
                fix = "where its disk is away, bring it back; otherwise `runner up` begins a new one"
                raise UserError("the history is gone", where=history.file, fix=fix)
            self._was_there = not history.fresh
            yield history

    # --- runs ---

    def runs(self, last: int = 50, before: int = 0) -> dict[str, Any]:
        """A page of the runs, newest first; `before`: older than this one."""
        with self.history() as history:
            found = [r for r in history.runs() if not before or r.id < before]
            rows = [self._row(history, r) for r in found[:last]]
        return {"pipeline": self.name, "store": storage.public(self.store.uri), "runs": rows,
                "more": len(found) > last}  # fmt: skip

    def _row(self, history: Reading, run: RunRecord) -> dict[str, Any]:
        """`heard`: the last sign of life of a run that died."""
        stages = stages_of(history, run)
        return {
            "id": run.id, "pipeline": run.pipeline, "status": run.status, "code": run.code, "started": run.started,
            "finished": run.finished, "heard": history.heard(run) if run.status == "died" else None,
            "stages": [[r.stage, r.status] for r in stages],
            "why": next((plain(r.error)[:300] for r in stages if r.status == "failed"), ""),
        }  # fmt: skip

    # --- one run ---

    def seen(self, run: int) -> Seen:
        """A run. Raises MissingError."""
        with self.history() as history:
            found = seen(history, run)
            if found is None:
                raise MissingError(f"there is no run {run}", fix="see the list of runs")
            return found

    def run(self, found: Seen) -> dict[str, Any]:
        """A run for its page: how its stages stand, and its graph."""
        run = found.run
        return {
            "id": run.id, "pipeline": run.pipeline, "file": run.file, "status": run.status, "code": run.code,
            "started": run.started, "finished": run.finished, "before": found.before,
            "graph": graph(found.stages, run.file), "stages": [self._stage(found, r) for r in found.stages],
        }  # fmt: skip

    def _stage(self, found: Seen, record: Record) -> dict[str, Any]:
        made = found.made[record.stage]
        data = {
            "stage": record.stage, "uses": record.uses, "status": record.status, "reason": record.reason,
            "started": record.started, "finished": record.finished, "exit_code": record.exit_code,
            "error": plain(record.error)[:LONGEST], "metrics": _numbers(record.metrics or {}),
            "made_in": made.run if made.run != record.run else None, "outputs": list(record.outputs or {}),
            "took": made.finished - made.started if made.finished and made.started else None,
        }  # fmt: skip
        log = log_file(self.folder, record)
        if record.status == "running" and log is not None:
            told = self.listener.told(log)
            data["progress"], data["metric"] = _progress(told.progress, told.left), dict(told.metric)
        if log is not None and ".log" in log.name and log.name != f"{record.stage}.log":
            data["tries"] = len(attempts(log))
        return data

    def stage(self, found: Seen, name: str) -> dict[str, Any]:
        """A stage of a run, with all that is known of it."""
        record = self.record(found, name)
        made = found.made[name]
        givers = {str(o.get("digest")): r.stage for r in reversed(found.stages) for o in (r.outputs or {}).values()}
        log = log_file(self.folder, made)
        return {
            **self._stage(found, record),
            "attempt": record.attempt, "fingerprint": record.fingerprint, "code": record.code,
            "params": record.params or {},
            "inputs": {k: {"digest": d, "stage": givers.get(d)} for k, d in (record.inputs or {}).items()},
            "results": {
                k: {"digest": o.get("digest"), "uri": storage.public(str(o.get("uri", "")))}
                for k, o in (record.outputs or {}).items()
            },
            "logs": [p.name for p in attempts(log)] if log is not None else [],
            "all_metrics": record.metrics or {},
        }  # fmt: skip

    def record(self, found: Seen, name: str) -> Record:
        """The record of a stage. Raises MissingError."""
        record = found.stage(name)
        if record is None:
            raise MissingError(f"run {found.run.id} has no stage {name!r}")
        return record

    def log(self, found: Seen, name: str, attempt: str = "") -> Path:
        """The log of a stage, of its last attempt or of the one named. Raises MissingError."""
        self.record(found, name)
        last = log_file(self.folder, found.made[name])
        known = attempts(last) if last is not None else []
        log = next((p for p in known if p.name == attempt), None) if attempt else last
        if log is None or log not in known:
            raise MissingError(f"run {found.run.id} has no log of {name}")
        return log

    def curves(self, found: Seen, name: str) -> dict[str, Any]:
        """What a stage measured while it ran, in all its attempts. `lines`: name -> points [step, value]; `resumed`:
        steps of the checkpoints that it went on from. A training's artifact keeps its whole curves; before it is made,
        and where there is none, the events tell."""
        self.record(found, name)
        made = found.made[name]
        told, resumed = joined([self.listener.told(log) for log in self._logs(made)])
        lines = {k: points for k, points in {**told, **self._kept(made)}.items() if len(points) > 1}
        last = number((made.metrics or {}).get("resumed_from_step"))
        steps = {*resumed, *([last] if last is not None else [])}
        return {"lines": {k: _thinned(points) for k, points in lines.items()}, "resumed": sorted(steps)}

    def _logs(self, record: Record) -> list[Path]:
        """The logs of all attempts, of this run and those before it, to make what a record's last attempt makes."""
        with self.history() as history:
            found = [log for r in history.tries(record) if (log := log_file(self.folder, r)) is not None]
        return list(dict.fromkeys(p for log in found for p in (*attempts(log), log)))

    def _kept(self, record: Record) -> Curves:
        """The curves that an artifact keeps. They are read once: an artifact does not change."""
        for output in (record.outputs or {}).values():
            uri = str(output.get("uri"))
            if uri not in self._curves:
                with suppress(UserError, OSError):
                    self._curves[uri] = _read_curves(uri)
                    if len(self._curves) > KNOWN:
                        self._curves.pop(next(iter(self._curves)), None)
            if curves := self._curves.get(uri):
                return curves
        return {}

    # --- artifacts ---

    def address(self, found: Seen, stage: str, output: str) -> str:
        """Where an output of a stage lies. Raises MissingError."""
        outputs = self.record(found, stage).outputs or {}
        if output not in outputs:
            raise MissingError(f"{stage} of run {found.run.id} has no output {output!r}")
        return str(outputs[output].get("uri", ""))

    def artifact(self, found: Seen, stage: str, output: str) -> dict[str, Any]:
        """An output of a stage, with what made it, and which stage and output of the run gave what it was made of."""
        uri = self.address(found, stage, output)
        made = {
            str(o.get("digest")): [r.stage, k] for r in reversed(found.stages) for k, o in (r.outputs or {}).items()
        }
        data = artifacts.as_data(uri, artifacts.read_manifest(uri))
        given = data["provenance"].get("inputs")
        digests = {k: str(v.get("digest")) for k, v in given.items() if isinstance(v, dict)} if given else {}
        return {**data, "from": {k: made[d] for k, d in digests.items() if d in made}}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The values that are numbers."""
    return {k: v for k, v in metrics.items() if number(v) is not None}


def _progress(event: Mapping[str, Any] | None, left: float | None) -> dict[str, Any] | None:
    """A progress event in the form that the page draws."""
    if event is None:
        return None
    known = ("event", "stage", "time", "label", "done", "total", "unit", "seconds")
    values = {
        str(k)[:40]: v if number(v) is not None else plain(str(v))[:40] for k, v in event.items() if k not in known
    }
    return {
        "label": plain(str(event.get("label") or ""))[:80], "unit": plain(str(event.get("unit") or ""))[:20],
        **{k: number(event.get(k)) for k in ("done", "total")}, "left": left, "values": values,
    }  # fmt: skip


def _thinned(points: Sequence[Point]) -> list[list[float]]:
    """A curve with few enough points; the last one stays."""
    every = max(1, -(-len(points) // SHOWN))
    kept = list(points[::every])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return [list(p) for p in kept]


def _read_curves(uri: str) -> Curves:
    """The curves among the files of an artifact; none where it has none. Raises UserError and OSError where it cannot
    be read now."""
    manifest = artifacts.read_manifest(uri)
    if not any(f.path == CURVE_FILE for f in manifest.files):
        return {}
    try:
        return _of_training(json.loads(artifacts.content(uri, manifest, CURVE_FILE, artifacts.WHOLE)))
    except (ValueError, RecursionError):
        return {}


def _of_training(value: Any) -> Curves:
    curves: Curves = {}
    for part, prefix in (("steps", ""), ("evaluations", "eval_")):
        for row in value.get(part, []) if isinstance(value, dict) else []:
            for k, v in row.items() if isinstance(row, dict) else ():
                x, y = number(row.get("step")), number(v)
                if k not in ("step", "epoch") and x is not None and y is not None:
                    curves.setdefault(f"{prefix}{k}", []).append((x, y))
    return curves
