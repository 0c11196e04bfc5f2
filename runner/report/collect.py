"""Everything that the report of a run shows, as one plain value: what `runner report --json` prints.

run            name, pipeline, status, started, finished, who, and `now`, when this was put together
stages         one for each stage, in order: what became of it, what it was made of, by what, where, and what it made
edges          pairs of stages, the second of which takes from the first
training       curves of the stages that train
data           reports of the data sets, with token lengths
quantization   what building each ONNX model cost
compare        the forms that were measured, as `runner compare --json` prints them; null without any
notes          what is not shown, and why

Times are seconds since 1970.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.errors import UserError
from microstages.manifest import Manifest

from runner.history import Record
from runner.named import Named
from runner.pipeline import Pipeline
from runner.report import reading
from runner.report.which import Shown
from runner.runs import seconds
from runner.spec import Ref
from runner.store import Store


@dataclass(frozen=True)
class Made:
    """One artifact of the run. `name`: its stage, with the output's name where there are several."""

    name: str
    stage: str
    output: str
    uri: str
    manifest: Manifest


class Collector:
    """Reads what a run left behind."""

    def __init__(self, pipeline: Pipeline | None, store: Store, shown: Shown) -> None:
        self.pipeline, self.store, self.shown = pipeline, store, shown
        folder = shown.folder or (pipeline.folder if pipeline else None)
        self.folder = folder.resolve() if folder else None
        self.clean = reading.Cleaner(self.folder)
        self.notes: list[str] = []
        self.made: list[Made] = []
        uris, whose, digests = {}, {}, {}
        for s in shown.stages:
            for output, o in (s.outputs or {}).items():
                name = s.stage if len(s.outputs or {}) == 1 else f"{s.stage}.{output}"
                uris[name], whose[name] = str(o["uri"]), (s.stage, output)
                digests[name] = str(o["digest"])
        for name, manifest in reading.manifests(uris, self.note).items():
            if manifest.digest == digests[name]:
                self.made.append(Made(name, *whose[name], uris[name], manifest))
            else:
                self.note(f"{name} is not what it was: something else lies there now")

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def noting(self, name: str) -> reading.Note:
        return lambda text: self.note(f"{name}: {text}")

    def of(self, kind: str) -> list[Made]:
        """The artifacts of a kind, each once: a `select` names what another stage made."""
        found = {m.uri: m for m in reversed(self.made) if m.manifest.kind == kind}
        return [m for m in self.made if found.get(m.uri) is m]

    def place(self, uri: str) -> str:
        """Where something lies, as other people may read it: below the store or the pipeline's folder, or its name."""
        for root in (self.store.uri, str(self.store.path or "")):
            if root and uri.startswith(root.rstrip("/") + "/"):
                return uri[len(root.rstrip("/")) + 1 :]
        path = storage.local_path(uri)
        if path is None:
            return storage.public(uri)
        if self.folder:
            for p in (path, path.resolve()):
                with suppress(ValueError):
                    return str(p.relative_to(self.folder))
        return path.name


def as_data(pipeline: Pipeline | None, store: Store, shown: Shown) -> dict[str, Any]:
    """The value that is shown: see the module."""
    if pipeline is not None and pipeline.name != shown.pipeline:
        pipeline = None
    c = Collector(pipeline, store, shown)
    stages = [_stage(c, s) for s in shown.stages]
    run = {"name": shown.name, "pipeline": shown.pipeline, "status": shown.status, "code": shown.code,
           "started": shown.started, "finished": shown.finished, "who": shown.who, "now": time.time()}  # fmt: skip
    return {
        "run": run,
        "stages": stages,
        "edges": _edges(c, stages),
        "training": _training(c),
        "data": _data(c),
        "quantization": [_quantization(c, m) for m in c.of("onnx-model")],
        "compare": _compared(c),
        "notes": [c.clean(n) for n in c.notes],
    }


def _stage(c: Collector, s: Record) -> dict[str, Any]:
    made = [m for m in c.made if m.stage == s.stage]
    provenance = dict(made[0].manifest.provenance) if made else {}
    known = c.pipeline.stages.get(s.stage) if c.pipeline else None
    if known is not None and known.interface.name != s.uses:
        known = None
    metrics = s.metrics or {k: v for m in made for k, v in m.manifest.metrics.items()}
    before = c.shown.made.get(s.stage)
    began, ended = s.started, s.finished
    if s.status == "running":
        ended = None
    out: dict[str, Any] = {
        "name": s.stage,
        "uses": s.uses,
        "status": s.status,
        "reason": c.clean(s.reason),
        "started": began,
        "finished": ended,
        "made": None,
        "fingerprint": s.fingerprint,
        "attempt": s.attempt,
        "code": s.code or str(provenance.get("code") or ""),
        "version": str(provenance.get("version") or ""),
        "exit_code": s.exit_code,
        "error": c.clean(s.error),
        "log": c.clean.tail(s.log) if s.status in ("failed", "died", "stopped") else [],
        "progress": _progress(s),
        "params": dict(s.params) if s.params is not None else dict(provenance.get("params") or {}),
        "defaults": {k: p.default for k, p in known.interface.params.items() if not p.required} if known else {},
        "select": bool(known and known.select),
        "inputs": _inputs(c, s, provenance),
        "outputs": [
            {"name": m.output, "artifact": m.name, "kind": m.manifest.kind, "digest": m.manifest.digest,
             "size": m.manifest.size, "files": len(m.manifest.files), "place": c.place(m.uri)}
            for m in made
        ],
        "metrics": metrics,
        "software": dict(provenance.get("software") or {}),
        "hardware": dict(provenance.get("hardware") or {}),
    }  # fmt: skip
    if s.status == "reused":
        first, last = (seconds(provenance.get(k)) for k in ("started", "finished"))
        out["made"] = {"run": before.run if before else None,
                       "started": (before.started if before else None) or first,
                       "finished": (before.finished if before else None) or last}  # fmt: skip
    elif s.started is None and made:  # another one's run: only its artifacts tell
        out["started"], out["finished"] = (seconds(provenance.get(k)) for k in ("started", "finished"))
    return out


def _progress(s: Record) -> str:
    from runner.view import progress_text

    if s.status != "running":
        return ""
    last = next((e for e in reversed(reading.told(s.log)) if e["event"] == "progress"), None)
    return progress_text(last) if last else ""


def _inputs(c: Collector, s: Record, provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each input: its name and digest, the artifact of the run that it is, or else the place where it was."""
    said = {str(k): v for k, v in dict(provenance.get("inputs") or {}).items() if isinstance(v, dict)}
    digests = {**{k: str(v.get("digest") or "") for k, v in said.items()}, **(s.inputs or {})}
    refs = {}
    if c.pipeline and (stage := c.pipeline.stages.get(s.stage)) and stage.interface.name == s.uses:
        refs = {k: v for k, v in stage.inputs.items() if isinstance(v, Ref)}
    out = []
    for name in dict.fromkeys([*digests, *refs]):
        digest, uri = digests.get(name, ""), str(said.get(name, {}).get("uri") or "")
        same = [m.name for m in c.made if m.manifest.digest == digest]
        ref = refs.get(name)
        by_ref = [m.name for m in c.made if ref and (m.stage, m.output) == (ref.stage, ref.output)]
        found = next((n for n in by_ref if n in same or not digest), same[0] if same else "")
        maker = next((m.stage for m in c.made if m.name == found), ref.stage if ref and not digest else "")
        out.append({"name": name, "digest": digest, "artifact": found, "stage": maker,
                    "place": "" if found or not uri else c.place(uri)})  # fmt: skip
    return out


def _edges(c: Collector, stages: list[dict[str, Any]]) -> list[list[str]]:
    """By the digests that were taken; of stages that were not reached, and of a `select`, by the pipeline file."""
    names = {s["name"] for s in stages}
    edges = []
    for s in stages:
        takes = [i["stage"] for i in s["inputs"] if i["stage"]]
        if c.pipeline and s["select"]:
            takes = list(c.pipeline.stages[s["name"]].upstream)
        edges += [[up, s["name"]] for up in dict.fromkeys(takes) if up in names and up != s["name"]]
    return edges


def _training(c: Collector) -> list[dict[str, Any]]:
    found = []
    for m in c.of("adapter"):
        log = reading.json_of(m.uri, m.manifest, "training.json", c.noting(m.name))
        if log is not None:
            curve = reading.curve_of(_list(log.get("steps")), _list(log.get("evaluations")))
            if curve:
                found.append({"stage": m.stage, "finished": True, "curve": curve, "metrics": dict(m.manifest.metrics)})
    for s in c.shown.stages:
        if not s.outputs and s.started is not None:
            left_out: list[str] = []
            curve = reading.curve_told(reading.told(s.log, left_out.append))
            if curve:
                found.append({"stage": s.stage, "finished": False, "curve": curve, "metrics": {}})
                for text in left_out:
                    c.noting(s.stage)(text)
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _data(c: Collector) -> list[dict[str, Any]]:
    found = []
    for m in c.of("dataset"):
        report = reading.json_of(m.uri, m.manifest, "report.json", c.noting(m.name))
        lengths = reading.histogram(m.uri, m.manifest, c.noting(m.name))
        if report is not None or lengths is not None:
            found.append({"stage": m.stage, "artifact": m.name, "report": report or {}, "lengths": lengths,
                          "max_length": m.manifest.metadata.get("max_length")})  # fmt: skip
    return found


def _quantization(c: Collector, m: Made) -> dict[str, Any]:
    """An ONNX model beside the model that it was built from, and the accuracy of both where both answered."""
    meta = m.manifest.metadata
    source = next((o for o in c.made if o.manifest.digest == meta.get("source_digest")), None)
    return {
        "stage": m.stage,
        "artifact": m.name,
        "source": source.name if source else "",
        **{k: meta.get(k) for k in ("precision", "execution_provider", "algorithm", "verified",
                                    "not_verified_because", "weights", "options")},
        "metrics": dict(m.manifest.metrics),
        "accuracy": _accuracy(c, m.manifest.digest),
        "source_accuracy": _accuracy(c, str(meta.get("source_digest"))),
    }  # fmt: skip


def _accuracy(c: Collector, model: str) -> float | None:
    for m in c.of("predictions"):
        inputs = m.manifest.provenance.get("inputs") or {}
        if inputs.get("model", {}).get("digest") == model and not inputs.get("adapter"):
            value = m.manifest.metrics.get("accuracy")
            if isinstance(value, (int, float)):
                return float(value)
    return None


def _compared(c: Collector) -> dict[str, Any] | None:
    from runner.compare import collect

    forms = []
    for m in c.of("predictions"):
        entry = next((f for f in m.manifest.files if f.path == collect.FILE), None)
        if entry is not None and entry.size > reading.FETCHED:
            c.note(f"{m.name}: {collect.FILE} is too large for a page")
            continue
        try:
            forms.append(collect.read_form(Named(m.name, "", m.uri), m.manifest))
        except (UserError, OSError) as error:
            c.note(f"{m.name}: {reading.first_line(error)}")
    if not forms:
        return None
    data = collect.as_data(c.shown.pipeline, forms, {})
    return {**data, "forms": [{k: v for k, v in f.items() if k != "uri"} for f in data["forms"]]}


def read_pipeline(file: Path | None, settings: list[str]) -> Pipeline | None:
    """A pipeline as its file stands now, where it can be read: what a run did does not depend on it."""
    from runner.pipeline import read

    if file is None or not file.exists():
        return None
    try:
        return read(file, settings, commands=False)
    except (UserError, OSError):
        return None
