"""Tags: names for results.

    <store>/tags/<name>.json        stage -> uses, fingerprint, attempt, outputs with digests; who, when

A tag says what it names even when the pipeline has changed since, and keeps it from `gc`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microstages import storage
from microstages.errors import UserError, nearest

from runner.inventory import Known, committed
from runner.runs import iso, read_many, stage_data, who
from runner.runs import names as files_in
from runner.store import Result, Store

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Tag:
    """One tag. `stages`: stage -> uses, fingerprint, attempt, outputs (kind, digest, size)."""

    name: str
    pipeline: str
    who: str
    when: str
    stages: Mapping[str, Mapping[str, Any]]


def _uri(store: Store, name: str) -> str:
    return storage.join(store.uri, "tags", f"{name}.json")


def read_all(store: Store) -> dict[str, Tag]:
    """Every tag by name. Raises UserError for one that cannot be read: what it names is not known then."""
    folder = storage.join(store.uri, "tags")
    files = [n for n in files_in(folder) if n.endswith(".json")]
    tags = {}
    for file, data in read_many(folder, files).items():
        if data is not None:  # it may have been removed just now
            name = file.removesuffix(".json")
            tags[name] = _parsed(name, data, storage.join(folder, file))
    return tags


def _parsed(name: str, data: bytes, where: str) -> Tag:
    try:
        v = json.loads(data)
        stages = {str(k): dict(s) for k, s in v["stages"].items()}
        for s in stages.values():
            _ = s["uses"], s["fingerprint"], s["attempt"], [o["digest"] for o in s["outputs"].values()]
        return Tag(name, str(v["pipeline"]), str(v["who"]), str(v["when"]), stages)
    except (ValueError, KeyError, TypeError, AttributeError):
        fix = f"make it anew: runner tag {name} --move, or remove it: runner tag --delete {name}"
        raise UserError("this tag cannot be read", where=storage.public(where), fix=fix) from None


def check_name(name: str, stages: Sequence[str]) -> None:
    """Raises UserError where a name cannot be a tag's."""
    if not NAME.fullmatch(name):
        what = f"{name!r} cannot be a tag's name"
        raise UserError(what, fix="up to 100 letters, digits, '.', '-' and '_', beginning with a letter or digit")
    if name in stages or name.partition(".")[0] in stages:
        fix = "choose a name that does not begin like a stage's"
        raise UserError(f"{name!r} would be taken for the stage {name.partition('.')[0]} of this pipeline", fix=fix)


def make(known: Known, name: str, stages: Sequence[str], move: bool) -> Tag:
    """Name the results of some stages, or of all. Raises UserError where one is not done, or the name is taken."""
    check_name(name, list(known.pipeline.stages))
    for stage in stages:
        if stage not in known.pipeline.stages:
            what = f"there is no stage {stage!r}{nearest(stage, known.pipeline.stages)}"
            raise UserError(what, where=known.pipeline.file, fix=f"stages: {', '.join(known.pipeline.stages)}")
    found = {stage: _whole(known, stage) for stage in stages or known.pipeline.stages}
    data = {s: stage_data(known.run_of(s)[0], r) for s, r in found.items()}
    tag = Tag(name, known.pipeline.name, who(), iso(time.time()), data)
    value = {"schema": SCHEMA, **tag.__dict__}
    written = (json.dumps(value, indent=1) + "\n").encode()
    uri = _uri(known.store, name)
    before = storage.read(uri)
    if before is not None and not move:
        fix = f"runner tag {name} --move lets it name these results; runner tag shows it"
        raise UserError(f"there is a tag {name!r} already", where=storage.public(uri), fix=fix)
    if before is None and not storage.create(uri, written):
        raise UserError(f"somebody else made the tag {name!r} just now", where=storage.public(uri), fix="runner tag")
    if before is not None:
        storage.replace(uri, written)
    # `gc` makes a result invisible before it reads the tags again: one that is still there now stays.
    for stage in found:
        uses, fingerprint = known.run_of(stage)
        if committed(known.store, uses, fingerprint) is None:
            storage.remove(uri) if before is None else storage.replace(uri, before)
            raise UserError(f"the result of {stage} was removed just now", fix="run it again: runner up")
    return tag


def _whole(known: Known, stage: str) -> Result:
    step = known.steps[stage]
    found = known.store.look_up(known.run_of(stage)[0], step.fingerprint) if step.result else None
    if isinstance(found, Result):
        return found
    why = f"its result is damaged: {found.why}" if found else step.reason
    raise UserError(f"the stage {stage} is not done: {why}", fix="run it first: runner up; or name the stages to tag")


def delete(store: Store, name: str) -> None:
    """Remove a tag. Raises UserError where there is none of this name."""
    there = [n.removesuffix(".json") for n in files_in(storage.join(store.uri, "tags"))]
    if name not in there:
        fix = f"tags: {', '.join(there)}" if there else "there are none: runner tag NAME makes one"
        raise UserError(f"there is no tag {name!r}{nearest(name, there)}", fix=fix)
    storage.remove(_uri(store, name))
