"""Cards of models, written where people ship them: beside the copy that `runner pull` makes, or where they ask for one.

An artifact is never altered: a card is a file beside it that belongs to nobody's digest. A card that is there is left
as it is; only who asks for one anew gets that, where the line MARK says that nobody made it his own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.errors import UserError
from microstages.manifest import Manifest

from runner.carry import Source
from runner.history import History, Record
from runner.lineage import Node, trace
from runner.named import Finder, Named
from runner.report import reading
from runner.report.card import MARK, SHIPPED, Measured, Parts, card
from runner.report.which import Shown
from runner.store import Store

README = "README.md"


def write_beside(finder: Finder, artifact: Named, source: Source, dest: str) -> Path | None:
    """The card of a model that was copied to a folder; None where it is no model, or has a card already.

    Raises UserError where what it would say cannot be read.
    """
    folder = storage.local_path(dest)
    if folder is None or source.manifest.kind not in SHIPPED:
        return None
    file = folder / README
    if file.exists():
        return None
    known = _readable(finder) or bool(artifact.run[0])
    name = artifact.name.replace("/", "-").replace(".", "-") if artifact.run[0] else folder.absolute().name
    title = f"{finder.known.pipeline.name}-{name}" if known and artifact.run[0] else name
    store = finder.known.store if known else None
    node = trace([(artifact.uri, source.manifest.digest)], store)[0]
    text = card(title, node, _answers(finder, artifact) if known else [], _rows(node))
    storage.replace(str(file.absolute()), text.encode("utf-8", "replace"))
    return file


def _readable(finder: Finder) -> bool:
    """Whether there is a pipeline at hand; an address needs none, so one that is wrong is no mistake here."""
    try:
        return finder.file.exists() and bool(finder.known)
    except (UserError, OSError):
        return False


def _answers(finder: Finder, artifact: Named) -> list[Measured]:
    """The predictions of the pipeline as it stands, of its stages' last runs here, and of the tag that the artifact was
    named by."""
    kinds = {
        (stage.name, output): spec.kind
        for stage in finder.known.pipeline.stages.values()
        for output, spec in stage.interface.outputs.items()
    }
    named = [a for a in finder.all_stages()[0] if kinds.get((a.name.partition(".")[0], a.output)) == "predictions"]
    tag = finder.tags.get(artifact.name.partition("/")[0]) if "/" in artifact.name else None
    if tag is not None:
        predicted = [
            f"{tag.name}/{stage}.{output}"
            for stage, said in tag.stages.items()
            for output, o in said["outputs"].items()
            if o.get("kind") == "predictions"
        ]
        named += [a for word in predicted for a in finder.find([word]).artifacts]
    uris = {a.uri: a.uri for a in named}
    history = History(finder.known.store.state_folder(finder.known.pipeline.folder), create=False)
    try:
        for stage, record in history.last(finder.known.pipeline.name).items():
            uris |= {o["uri"]: o["uri"] for k, o in (record.outputs or {}).items()
                     if kinds.get((stage, k)) == "predictions"}  # fmt: skip
    finally:
        history.close()
    found = reading.manifests(uris, lambda _: None)
    return [Measured(name, m) for name, m in found.items()]


def _rows(node: Node) -> Mapping[str, Any]:
    """What became of the rows of the data that a model was tuned on, as its report tells; nothing where none can be
    read."""
    data = Parts.of(node).data
    if data is None or data.state != "made":
        return {}
    for manifest in reading.manifests({"data": data.address}, lambda _: None).values():
        if manifest.digest == data.digest:
            report = reading.json_of(data.address, manifest, "report.json", lambda _: None) or {}
            rows = report.get("rows")
            return rows if isinstance(rows, dict) else {}
    return {}


def has_model(stages: Sequence[Record]) -> bool:
    """Whether one of these stages' results is a model or an adapter."""
    return any(m.kind in SHIPPED for m in reading.manifests(_outputs(stages), lambda _: None).values())


def _outputs(stages: Sequence[Record]) -> dict[str, str]:
    """Name -> address of the results of stages: a stage's name, with its output's where it has several."""
    uris = {}
    for s in stages:
        for output, o in (s.outputs or {}).items():
            uris[s.stage if len(s.outputs or {}) == 1 else f"{s.stage}.{output}"] = str(o["uri"])
    return uris


def write_all(folder: Path, store: Store, shown: Shown) -> list[Path]:
    """Cards of what a run is for: its ONNX models, or else its models, or else its adapters. One card lies in the
    folder itself; of several, each in a folder below it with its stage's name.

    Raises UserError where the run made no model, or where somebody's own README.md is there.
    """
    uris = _outputs(shown.stages)
    known = reading.manifests(uris, lambda _: None)
    unique = {m.digest: name for name, m in reversed(known.items())}
    for kind in reversed(SHIPPED):
        chosen = [name for name, m in known.items() if m.kind == kind and unique[m.digest] == name]
        if chosen:
            return _write(folder, store, shown.pipeline, chosen, uris, known)
    raise UserError(f"run {shown.name} made no model", fix="runner ps lists the runs")


def _write(
    folder: Path, store: Store, pipeline: str, chosen: Sequence[str], uris: dict[str, str], known: dict[str, Manifest]
) -> list[Path]:
    places = {name: folder / README if len(chosen) == 1 else folder / name / README for name in chosen}
    for file in places.values():
        if not _ours(file):
            fix = "choose another folder, or remove it"
            raise UserError("a README.md lies there that was not written here", where=file, fix=fix)
    measured = [Measured(name, m) for name, m in known.items() if m.kind == "predictions"]
    nodes = trace([(uris[name], known[name].digest) for name in chosen], store)
    for name, node in zip(chosen, nodes, strict=True):
        places[name].parent.mkdir(parents=True, exist_ok=True)
        text = card(f"{pipeline}-{name.replace('.', '-')}", node, measured, _rows(node))
        storage.replace(str(places[name].absolute()), text.encode("utf-8", "replace"))
    return list(places.values())


def _ours(file: Path) -> bool:
    """Whether a card may be written there: nothing is there, or a card that nobody made his own."""
    if not file.exists():
        return True
    with file.open(encoding="utf-8", errors="replace") as f:
        return MARK in f.read(4096)
