"""What differs between two runs, tags or artifacts: what they were made with and of, and what was measured.

`compare` is pure: from two `Side`s, what is known of the stages of each, to a `Difference`. `read` makes a side of a
word: the number of a run, the name of somebody's run on the store (`ps --all`), a tag, or an artifact (see `named`), of
which the whole lineage is taken. Runs and tags are compared stage by stage; artifacts by what made them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from microstages import storage
from microstages.artifact import content_digest
from microstages.errors import UserError
from microstages.manifest import MANIFEST, Manifest
from microstages.reporting import number_of

from runner import lineage, runs
from runner.history import History, Record, RunRecord
from runner.named import Finder
from runner.store import Store

State = Literal["same", "same bytes", "changed", "only before", "only after"]


@dataclass(frozen=True)
class Made:
    """What is known of one stage. `outputs` and `inputs` are content digests; `data`: how much is in its data sets;
    `where`: the machine; `attempt`: who has the same one has the very same result. `status` is that of a run.

    `params` are all of them where they are `whole`, as a manifest has them; the history has only those that change the
    result. `counting`: those that are known to."""

    uses: str
    fingerprint: str = ""
    attempt: str = ""
    status: str = ""
    code: str = ""
    version: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = True
    counting: Set[str] = frozenset()
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, Any] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Side:
    """One of the two: its name, what is known of it as a whole (when, who, status), and its stages by name."""

    name: str
    kind: Literal["run", "tag", "artifact"]
    about: Mapping[str, Any]
    stages: Mapping[str, Made]


@dataclass(frozen=True)
class Change:
    """A value that is not the same; None where there is none. `difference`: of two numbers."""

    name: str
    before: Any
    after: Any

    @property
    def difference(self) -> float | None:
        if isinstance(self.before, bool) or isinstance(self.after, bool):
            return None
        if isinstance(self.before, (int, float)) and isinstance(self.after, (int, float)):
            return self.after - self.before
        return None


@dataclass(frozen=True)
class StageDifference:
    """One stage. `same`: the same fingerprint and outputs; `same bytes`: it was made otherwise, and became the same.
    `inputs` are those of which no stage before it is the reason; `results` are all that was measured on both sides."""

    stage: str
    state: State
    code: Change | None = None
    params: Sequence[Change] = ()
    inputs: Sequence[Change] = ()
    follows: Sequence[str] = ()  # inputs that changed because a stage before it did
    data: Sequence[Change] = ()
    software: Sequence[Change] = ()
    where: Sequence[Change] = ()
    outputs: Sequence[Change] = ()
    results: Sequence[Change] = ()
    status: Change | None = None
    seconds: Change | None = None


@dataclass(frozen=True)
class Difference:
    """Everything that differs."""

    before: Side
    after: Side
    stages: Sequence[StageDifference]


def compare(before: Side, after: Side) -> Difference:
    """What differs, stage by stage, in the order of the second side."""
    names = [*after.stages, *(n for n in before.stages if n not in after.stages)]
    made = [{d for m in side.stages.values() for d in m.outputs.values()} for side in (before, after)]
    found = []
    for name in names:
        a, b = before.stages.get(name), after.stages.get(name)
        if a is None or b is None:
            found.append(StageDifference(name, "only after" if a is None else "only before"))
        else:
            found.append(_stage(name, a, b, made))
    return Difference(before, after, found)


def _stage(name: str, a: Made, b: Made, made: Sequence[set[str]]) -> StageDifference:
    inputs = _changes(a.inputs, b.inputs) if a.inputs and b.inputs else []
    own = [c for c in inputs if not (c.before in made[0] and c.after in made[1])]
    outputs = _changes(a.outputs, b.outputs)
    state: State = "changed"
    if a.outputs and not outputs:
        state = "same" if a.fingerprint == b.fingerprint else "same bytes"
    elif not a.outputs and not b.outputs and a.fingerprint and a.fingerprint == b.fingerprint and a.status == b.status:
        state = "same"
    known, both = "" not in (a.code, b.code), a.params and b.params  # of results that are gone little is known
    return StageDifference(
        name, state,
        code=Change(f"code of {b.uses}", a.code, b.code) if known and a.code != b.code else None,
        params=[*_changes({"uses": a.uses}, {"uses": b.uses}), *(_params(a, b) if both else [])],
        inputs=own, follows=[c.name for c in inputs if c not in own], data=_changes(a.data, b.data),
        software=_changes({"version": a.version, **a.software}, {"version": b.version, **b.software})
        if a.software and b.software else [],
        where=_changes(a.where, b.where) if a.where and b.where else [],
        outputs=outputs,
        results=[Change(k, a.metrics.get(k), b.metrics.get(k)) for k in {**a.metrics, **b.metrics}],
        status=Change("status", a.status, b.status) if a.status != b.status else None,
        seconds=None if a.seconds is None or b.seconds is None or a.attempt == b.attempt
        else Change("seconds", a.seconds, b.seconds),
    )  # fmt: skip


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    return [Change(k, a.get(k), b.get(k)) for k in {**a, **b} if a.get(k) != b.get(k)]


def _params(a: Made, b: Made) -> list[Change]:
    """Of what is on one side alone only what the other would have noted."""

    def unsaid(name: str, side: Made, other: Made) -> bool:
        return name not in other.params and not other.whole and name not in side.counting

    return [c for c in _changes(a.params, b.params) if not (unsaid(c.name, a, b) or unsaid(c.name, b, a))]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their paths, `outer.inner`; lists are left out."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        elif not isinstance(value, (list, tuple)):
            out[f"{prefix}{key}"] = value
    return out


# --- reading ---


class Reader:
    """Makes sides of words. `store`: where the results of tags and runs lie; `history`: this machine's runs of it."""

    def __init__(self, finder: Finder, history: Callable[[], History], store: Callable[[], Store]) -> None:
        self._finder, self._history, self._store = finder, history, store

    def read(self, words: Sequence[str]) -> tuple[Side, Side]:
        """The two sides that words mean; without words the last run that made something, behind the done run before it
        that is most like it, with one that and the last such run. Raises UserError."""
        if len(words) > 2:
            raise UserError("two things are compared", where="diff", fix="runner diff [A] [B]")
        if len(words) < 2:
            words = self._with_last(words)
        a, b = (self.side(w) for w in words)
        if (a.kind == "artifact") != (b.kind == "artifact"):
            one, other = (a, b) if a.kind == "artifact" else (b, a)
            what = f"{one.name} is an artifact, and {other.name} is a {other.kind}"
            raise UserError(what, fix="compare two runs or tags, or two artifacts, such as TAG/STAGE and STAGE")
        return a, b

    def _with_last(self, words: Sequence[str]) -> list[str]:
        """A run in which all was reused, or which failed before it made anything, differs from none in what it made: it
        is compared only where it is named, or where there are no others. Before the last one stands the one that
        `History.like` finds."""
        history = self._history()
        known = [r.id for r in history.runs_of(self._finder.file)]
        if len(known) < 2 - len(words):
            known = [r.id for r in history.runs()]
        if len(known) < 2 - len(words):
            raise UserError("there are not two runs to compare", fix="runner ps lists them; runner diff A B")
        made = history.productive()
        chosen = [n for n in known if n in made]
        if words:
            given = int(words[0]) if words[0].isdigit() else 0
            return [words[0], str(chosen[0] if chosen and chosen[0] > given else known[0])]
        after, before = (chosen if len(chosen) > 1 else known)[:2]
        return [str(history.like(after) or before), str(after)]

    def side(self, word: str) -> Side:
        """What one word means."""
        if word.isdigit():
            history = self._history()
            found = next((r for r in history.runs() if r.id == int(word)), None)
            if found is None:
                raise UserError(f"there is no run {word}", fix="runner ps lists them")
            return of_run(history, found)
        if runs.NAME.fullmatch(f"{word}.json"):
            store = self._store()
            for run in runs.read_all(store):
                if run.name == f"{word}.json":
                    about = {"pipeline": run.pipeline, "who": run.who, "status": run.status,
                             "when": runs.iso(run.started)}  # fmt: skip
                    return Side(word, "run", about, _of_stages(store, run.stages))
            raise UserError(f"there is no run {word} on this store", fix="runner ps --all --json lists them")
        if self._finder.file.exists() and word in self._finder.tags:
            tag = self._finder.tags[word]
            about = {"pipeline": tag.pipeline, "who": tag.who, "when": tag.when}
            return Side(f"tag {word}", "tag", about, _of_stages(self._finder.known.store, tag.stages))
        known = self._store() if self._finder.file.exists() else None
        try:
            found_ = lineage.find([word], self._finder, known)
        except UserError as error:
            if (error.fix or "").startswith("stages: "):  # it is nothing that is known
                error.fix = f"give the number of a run (runner ps), or one of these; {error.fix}"
            raise
        if len(found_) != 1:
            names = ", ".join(name for name, _, _ in found_[:5])
            raise UserError(f"{word!r} means {number_of(len(found_), 'artifact')}", fix=f"name one of them: {names}")
        name, uri, digest = found_[0]
        return of_artifact(lineage.trace([(uri, digest)], known)[0], name)


def of_run(history: History, run: RunRecord) -> Side:
    """A run as the history knows it, and what its artifacts say where they are still there."""
    about: dict[str, Any] = {"pipeline": run.pipeline, "status": run.status, "when": runs.iso(run.started)}
    about |= {"seconds": round(run.finished - run.started, 1)} if run.finished else {}
    return Side(f"run {run.id}", "run", about, {r.stage: _of_record(r) for r in history.stages(run.id)})


def _of_record(r: Record) -> Made:
    outputs = {k: (str(o["uri"]), str(o["digest"])) for k, o in (r.outputs or {}).items()}
    said = _of_manifests(outputs)
    base: dict[str, Any] = {
        "uses": r.uses, "fingerprint": r.fingerprint, "attempt": r.attempt, "status": _ended(r.status),
        "code": said.get("code") or r.code, "params": {**said.get("params", {}), **(r.params or {})},
        "whole": bool(said), "counting": frozenset(r.params or {}), "inputs": r.inputs or {},
        "outputs": {k: d for k, (_, d) in outputs.items()}, "metrics": flat(r.metrics or {}),
    }  # fmt: skip
    if r.started and r.finished and r.status == "done":
        base["seconds"] = round(r.finished - r.started, 2)
    return Made(**{**said, **base, "data": said.get("data", {})})


def _ended(status: str) -> str:
    """Whether a result was made in a run or taken from an earlier one makes no difference to what it is."""
    return "done" if status == "reused" else status


def _of_stages(store: Store, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Made]:
    """Stages as tags and records on a store name them."""
    found = {}
    for name, s in stages.items():
        run = str(s["uses"]), str(s["fingerprint"]), str(s["attempt"])
        outputs = {k: (store.output_uri(*run, k), str(o["digest"])) for k, o in s["outputs"].items()}
        said = _of_manifests(outputs)
        known = {"uses": run[0], "fingerprint": run[1], "attempt": run[2], "status": _ended(s.get("status", "done"))}
        found[name] = Made(**{**said, **known, "outputs": {k: d for k, (_, d) in outputs.items()}})
    return found


def _of_manifests(outputs: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """What the manifests of a stage's outputs tell, where they are still there."""
    found: dict[str, Any] = {}
    for uri, digest in outputs.values():
        with suppress(UserError, OSError):
            data = storage.read(storage.join(uri, MANIFEST))
            manifest = Manifest.from_json(data, storage.public(uri)) if data is not None else None
            if manifest is not None and digest in (manifest.digest, content_digest(manifest)):
                found = _merged(found, _said(manifest.provenance, manifest.kind, manifest.metadata, manifest.metrics))
    return found


def _merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    both: dict[str, Any] = {k: {**a[k], **b[k]} for k in ("metrics", "data") if k in a and k in b}
    return {**a, **b, **both}


def _said(
    provenance: Mapping[str, Any], kind: str, metadata: Mapping[str, Any], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    hardware = provenance.get("hardware") or {}
    software = dict(provenance.get("software") or {})
    image = {"image": software.pop("image")} if "image" in software else {}
    digests = {k: str(i.get("digest", "")) for k, i in (provenance.get("inputs") or {}).items()}
    data = {k: v for k, v in flat(metadata).items() if isinstance(v, int) and "." in k} if kind == "dataset" else {}
    return {
        "code": str(provenance.get("code") or ""), "version": str(provenance.get("version") or ""),
        "params": provenance.get("params") or {}, "inputs": digests, "software": software, "data": data,
        "where": {**{k: v for k, v in hardware.items() if k != "memory_bytes"}, **image}, "metrics": flat(metrics),
    }  # fmt: skip


def of_artifact(node: lineage.Node, name: str) -> Side:
    """An artifact: the stages of its lineage, by what they use; of several that use the same, by their inputs too."""
    made: dict[int, tuple[str, Made]] = {}
    names: set[str] = set()
    level = [("", node)]
    while level:
        following = []
        for path, n in level:
            if id(n) in made or n.state != "made":
                continue
            key = n.stage if n.stage not in names else f"{n.stage} ({path})"
            names.add(key)
            took = [runs.seconds(t) for t in (n.started, n.finished)]
            said = _said({**n.__dict__, "inputs": {}}, n.kind, n.metadata, n.metrics)
            one = Made(**{
                **said, "uses": n.stage, "fingerprint": n.fingerprint, "attempt": n.address, "status": "done",
                "inputs": {k: i.digest for k, i in n.inputs.items()}, "outputs": {n.output or n.kind: n.digest},
                "seconds": took[1] - took[0] if took[0] is not None and took[1] is not None else None,
            })  # fmt: skip
            made[id(n)] = key, one
            following += [(f"{path}.{k}".lstrip("."), i) for k, i in n.inputs.items()]
        level = following
    about = {"address": node.address, "digest": node.digest, "kind": node.kind}
    about |= {"when": node.started} if node.started else {}
    stages = dict(made[id(n)] for n in lineage.ancestors([node]) if id(n) in made)
    return Side(name, "artifact", about, stages)


def as_data(d: Difference) -> dict[str, Any]:
    """The difference as JSON."""

    def change(c: Change) -> dict[str, Any]:
        more = {"difference": c.difference} if c.difference is not None else {}
        return {"name": c.name, "before": c.before, "after": c.after, **more}

    stages = []
    for s in d.stages:
        row: dict[str, Any] = {"stage": s.stage, "state": s.state}
        for name in ("code", "status", "seconds"):
            value = getattr(s, name)
            row[name] = change(value) if value else None
        for name in ("params", "inputs", "data", "software", "where", "outputs", "results"):
            row[name] = [change(c) for c in getattr(s, name)]
        stages.append({**row, "follows": list(s.follows)})
    sides = [{"name": s.name, "kind": s.kind, **s.about} for s in (d.before, d.after)]
    return {"before": sides[0], "after": sides[1], "stages": stages, "compared": runs.iso(time.time())}
