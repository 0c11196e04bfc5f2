"""`runner check`: all that can be told of a pipeline without running, fetching or changing anything.

The file, the stages' interfaces and programs, references and kinds; then what lies on this machine: inputs, the fields
of their rows, secrets that targets name, the store's place; and where a stage is to run in Docker, the engine and its
image. What lies elsewhere (`abfs://…`, a cluster) is not asked: `runner plan` and `runner doctor` do that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.errors import UserError
from microstages.reporting import number_of

from runner import columns
from runner.document import Node, PipelineError, Place, Problem, Problems
from runner.pipeline import External, Pipeline, Stage, look
from runner.spec import Spec


@dataclass(frozen=True)
class Report:
    """What was found. `pipeline` is None where the file is none."""

    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    pipeline: Pipeline | None = None
    elsewhere: int = 0  # inputs that do not lie on this machine

    def summary(self) -> str:
        """One line of what is fine."""
        assert self.pipeline is not None
        stages = self.pipeline.stages.values()
        outside = {v.uri for s in stages for v in s.inputs.values() if isinstance(v, External)}
        places = sorted({s.where.name for s in stages})
        there = f"{number_of(len(outside) - self.elsewhere, 'input')} there"
        if self.elsewhere:
            there += f", {number_of(self.elsewhere, 'address', 'addresses')} not looked at"
        on = f"{number_of(len(stages), 'stage')} on {', '.join(places)}"
        return f"{self.pipeline.file}: {on}, {there}: nothing is wrong"


def check(file: Path, settings: Sequence[str] = (), target: str | None = None) -> Report:
    """Check a pipeline file; never raises for what is wrong with it."""
    problems = Problems()
    try:
        pipeline, spec = look(file, settings, target, True, problems)
    except PipelineError as error:
        return Report(error.problems, ())
    elsewhere = _inputs(pipeline, problems)
    columns.check(pipeline, spec, problems, whole=True)
    _store(pipeline, spec, problems)
    _secrets(pipeline, spec, target, problems)
    _images(pipeline, spec, target, problems)
    warnings = tuple(
        Problem(place, f"the parameter {name!r} is not used", "remove it, or refer to it as ${{ params." + name + " }}")
        for name, place in spec.unused
        if place.line and not settings
    )
    found = PipelineError(problems.found).problems
    return Report(found, warnings, pipeline, elsewhere)


def as_data(report: Report) -> list[dict[str, Any]]:
    """The mistakes for an editor. Lines and columns count from 1, in characters; `end_column` is after the last one. A
    mistake in a `--set` has the option in place of a file, and no line."""
    rows = []
    for severity, found in (("error", report.problems), ("warning", report.warnings)):
        for p in found:
            at: dict[str, Any] = {"file": None, "option": p.place.file}
            if not p.place.file.startswith("--"):
                at = {"file": p.place.file, "option": None}
            line, column = p.place.line or None, p.place.column or None
            end = p.place.column + p.place.width if p.place.column else None
            rows.append({**at, "line": line, "column": column, "end_column": end, "severity": severity,
                         "message": p.what, "fix": p.fix})  # fmt: skip
    return rows


# --- what lies on this machine


def _inputs(pipeline: Pipeline, problems: Problems) -> int:
    """Look whether the inputs are there and of their kinds, by names and sizes; how many lie elsewhere."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    far: set[str] = set()
    for stage in pipeline.stages.values():
        for name, value in stage.inputs.items():
            if not isinstance(value, External):
                continue
            kinds = stage.interface.inputs[name].kinds
            path = storage.local_path(value.uri)
            try:
                if path is None:
                    far.add(value.uri)
                    _driver(value.uri)
                elif (value.uri, kinds) not in seen:
                    _there(value.uri, path, kinds)
                    seen.add((value.uri, kinds))
            except UserError as error:
                where = f"{error.where}: " if error.where else ""
                value.wrong(problems, f"input {name} of stage {stage.name}", where + error.what, error.fix)
            except OSError as error:
                why = (error.strerror or str(error)).lower()
                problems.add(value.place, f"input {name} of stage {stage.name}: {value.uri}: {why}", "check the path")
    return len(far)


def _there(uri: str, path: Path, kinds: tuple[str, ...]) -> None:
    """Raises UserError where there is nothing of these kinds. Contents are not read: that may take long."""
    from microstages.artifact import check_kind, outside_files, outside_kind
    from microstages.manifest import MANIFEST, Manifest

    if (path / MANIFEST).is_file():
        manifest = Manifest.from_json((path / MANIFEST).read_bytes(), path / MANIFEST)
        check_kind(uri, manifest.kind, kinds)
        for f in manifest.files:
            file = path / f.path
            if not file.is_file():
                raise UserError("this file of the artifact is missing", where=file, fix="make the artifact anew")
            if file.stat().st_size != f.size:
                what = f"this file of the artifact has {file.stat().st_size} bytes, not {f.size}"
                raise UserError(what, where=file, fix="make the artifact anew")
        return
    root, files = outside_files(path)
    outside_kind(uri, root.name if root.is_file() else "", tuple(files), kinds)
    for file in files.values():
        if not os.access(file, os.R_OK):
            raise UserError("permission denied", where=file, fix="check who owns it and its mode")


_DRIVERS = {"abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


def _driver(uri: str) -> None:
    """Raises UserError where nothing is installed that reaches an address."""
    import importlib.util

    protocol = uri.partition("://")[0]
    driver = _DRIVERS.get(protocol)
    if driver and importlib.util.find_spec(driver) is None:
        raise UserError(
            f"no driver for {protocol}:// is installed", where=storage.public(uri), fix=f"pip install {driver}"
        )


def _store(pipeline: Pipeline, spec: Spec, problems: Problems) -> None:
    place = spec.store.place
    path = storage.local_path(pipeline.store) if pipeline.store else None
    try:
        if not pipeline.store:
            return
        if path is None:
            _driver(pipeline.store)
            return
    except UserError as error:
        problems.add(place, f"the store: {error.what}", error.fix)
        return
    there = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
    if not there.is_dir():
        what = f"{there.name} is a file, so it cannot hold the store {path}"
        problems.add(place, what, "give a folder that is not below a file")
    elif not os.access(there, os.W_OK):
        problems.add(place, f"the store {path} cannot be written", "check who owns it and its mode")


# --- what targets name


def _used(pipeline: Pipeline, spec: Spec, target: str | None) -> Iterator[tuple[Stage, Place]]:
    """Each stage, and the place that says where it runs."""
    for stage in pipeline.stages.values():
        own = spec.stages[stage.name].target
        place = Place("--target") if target else (own or spec.target).place
        yield stage, place


def _secrets(pipeline: Pipeline, spec: Spec, target: str | None, problems: Problems) -> None:
    """Variables and files that the targets in use name must be there."""
    from runner.executors.secrets import read

    for name in dict.fromkeys(stage.where.name for stage, _ in _used(pipeline, spec, target)):
        known = spec.targets.get(name)
        node = known.nodes.get("secrets") if known else None
        if node is None or not isinstance(node.value, list) or known is None or known.type == "azureml":
            continue
        for entry in node.value:
            value = entry.plain()
            if isinstance(value, dict) and set(value) != {"name", "file"}:
                continue  # it lies in the cluster
            try:
                read([value], pipeline.folder)
            except UserError as error:
                where = f"{error.where}: " if error.where else ""
                problems.add(_inner(entry), f"target {name}: {where}{error.what}", error.fix)


def _inner(entry: Node) -> Place:
    if isinstance(entry.value, dict) and "file" in entry.value:
        place: Place = entry.value["file"].place
        return place
    return entry.place


def _images(pipeline: Pipeline, spec: Spec, target: str | None, problems: Problems) -> None:
    """Where Docker is asked for by name, an engine must answer and have the stages' images."""
    wanted = [(s, p) for s, p in _used(pipeline, spec, target) if s.where.kind == "docker" and not s.select]
    if not wanted:
        return
    from runner.executors import engine

    try:
        client = engine.connect()
    except UserError as error:
        for place in dict.fromkeys(place for _, place in wanted):
            problems.add(place, f"{error.what} {error.where}".strip(), error.fix)
        return
    told: set[str] = set()
    for stage, place in wanted:
        if stage.found.identity or stage.interface.name in told:
            continue
        told.add(stage.interface.name)
        try:
            if stage.found.image:
                engine.image_named(client, stage.found.image)
            else:
                flavor = str(stage.where.options.get("flavor") or ("cuda" if stage.resources.gpus else "cpu"))
                engine.image_of(client, stage.interface.name, stage.found.code_identity(), flavor)
        except UserError as error:
            problems.add(place, f"stage {stage.name}: {error.what}", error.fix)
