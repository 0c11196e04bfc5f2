"""What lies in a store: each stage run with its commit, its attempts, its checkpoints and its leases. Only looks.

Names that this version does not know are left out, and so left alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.errors import DamagedError
from microstages.manifest import MANIFEST, Manifest

from runner.facts import gather
from runner.history import History
from runner.pipeline import Pipeline, read
from runner.plan import Choice, Step, plan
from runner.runs import StageRun, read_many, seconds
from runner.store import Damaged, Output, Result, Store

FINGERPRINT = re.compile(r"[0-9a-f]{32}")
ATTEMPT = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}")
LEASE = re.compile(r"lease-\d+\.json")
COMMIT = "commit.json"
STATE = "state"


@dataclass(frozen=True)
class Commit:
    """What `commit.json` says. `damaged`: why it cannot be used, as far as that is known without reading files."""

    attempt: str
    outputs: Mapping[str, Mapping[str, Any]]
    finished: float | None = None
    damaged: str = ""

    @staticmethod
    def parse(data: bytes) -> Commit:
        try:
            v = json.loads(data)
            outputs = {str(k): {**o, "digest": str(o["digest"])} for k, o in v["outputs"].items()}
            return Commit(str(v["attempt"]), outputs, seconds(v.get("finished")), str(v.get("damaged") or ""))
        except (ValueError, TypeError, KeyError, AttributeError):
            return Commit("", {}, None, f"{COMMIT} cannot be read")

    def as_result(self, store: Store, uses: str, fingerprint: str, measured: bool = False) -> Result:
        """The result as it was committed. Its manifests name no files: nothing was read but the commit, and with
        `measured` the manifests that are there."""
        outputs = {}
        for name, said in self.outputs.items():
            uri = store.output_uri(uses, fingerprint, self.attempt, name)
            manifest = Manifest(str(said.get("kind")), said["digest"], ())
            with suppress(DamagedError):
                if measured and (data := storage.read(storage.join(uri, MANIFEST))) is not None:
                    manifest = Manifest.from_json(data, storage.public(uri))
            outputs[name] = Output(uri, manifest)
        return Result(fingerprint, self.attempt, outputs)


def stage_run_uri(store: Store, uses: str, fingerprint: str, *more: str) -> str:
    return storage.join(store.uri, "artifacts", uses, fingerprint, *more)


def committed(store: Store, uses: str, fingerprint: str) -> Commit | None:
    """The commit of a stage run, None where there is none."""
    data = storage.read(stage_run_uri(store, uses, fingerprint, COMMIT))
    return None if data is None else Commit.parse(data)


@dataclass(frozen=True)
class Known:
    """A pipeline as it stands, and what of it is committed, whether or not the files are still whole."""

    pipeline: Pipeline
    store: Store
    steps: Mapping[str, Step]
    claims: Set[StageRun]  # what runners of this machine left that were killed; a process of theirs may go on

    def run_of(self, stage: str) -> StageRun:
        """Which stage run a stage is now; its fingerprint is empty where that is not known yet."""
        return self.pipeline.stages[stage].interface.name, self.steps[stage].fingerprint


def look(file: Path, settings: list[str]) -> Known:
    """Plan a pipeline by what is committed. Its stages' programs need not be installed. Raises UserError."""
    pipeline = read(file, settings, commands=False)
    store = Store(pipeline.store)
    history = History(store.state_folder(pipeline.folder), create=False)

    # of these a `select` wants to know what was measured
    looked_at = {pipeline.stages[up].interface.name for s in pipeline.stages.values() if s.select for up in s.upstream}

    def look_up(uses: str, fingerprint: str) -> Result | Damaged | None:
        commit = committed(store, uses, fingerprint)
        if commit is None:
            return None
        if not commit.outputs:
            return Damaged("", commit.damaged)
        return commit.as_result(store, uses, fingerprint, measured=uses in looked_at)

    try:
        facts = replace(gather(pipeline, store, history), look_up=look_up)
        return Known(pipeline, store, plan(pipeline, facts, Choice(set(pipeline.stages))), _claims(store, history))
    finally:
        history.close()


def _claims(store: Store, history: History) -> set[StageRun]:
    place = store.uri if store.path is None else os.path.realpath(store.path)
    found = set()
    for claim in history.orphans():
        where, _, name = claim.key.rpartition(" ")
        if where == place:
            uses, _, fingerprint = name.partition("/")
            found.add((uses, fingerprint))
    return found


@dataclass
class Part:
    """A folder or file of a stage run: bytes in it, and when it was written last (None: not known)."""

    size: int = 0
    written: float | None = None
    artifacts: set[str] = field(default_factory=set)  # outputs whose manifest is there

    def add(self, size: int, written: float | None) -> None:
        self.size += size
        if written is not None:
            self.written = max(self.written or 0.0, written)


@dataclass
class Folder:
    """Everything of one stage run."""

    commit: bytes | None = None
    written: float | None = None  # when the commit was
    attempts: dict[str, Part] = field(default_factory=dict)
    leases: dict[str, Part] = field(default_factory=dict)
    state: Part | None = None
    others: dict[str, Part] = field(default_factory=dict)  # hidden files that killed writers left


def scan(store: Store) -> dict[StageRun, Folder]:
    """Everything below `artifacts`."""
    root = storage.join(store.uri, "artifacts")
    found: dict[StageRun, Folder] = {}
    for path, size, written in files_below(root):
        uses, _, rest = path.partition("/")
        fingerprint, _, rest = rest.partition("/")
        if FINGERPRINT.fullmatch(fingerprint):
            folder = found.setdefault((uses, fingerprint), Folder())
            if rest:
                _put(folder, rest, size, written)
    keys = {f"{uses}/{fingerprint}/{COMMIT}": (uses, fingerprint) for (uses, fingerprint), f in found.items()
            if f.commit is not None}  # fmt: skip
    for name, data in read_many(root, list(keys)).items():
        found[keys[name]].commit = data
    return found


def _put(folder: Folder, rest: str, size: int, written: float | None) -> None:
    name, _, inside = rest.partition("/")
    if rest == COMMIT:
        folder.commit, folder.written = b"", written
    elif LEASE.fullmatch(rest):
        folder.leases.setdefault(name, Part()).add(size, written)
    elif ATTEMPT.fullmatch(name):
        part = folder.attempts.setdefault(name, Part())
        part.add(size, written)
        if inside.endswith(f"/{MANIFEST}") and inside.count("/") == 1:
            part.artifacts.add(inside.partition("/")[0])
    elif name == STATE:
        folder.state = folder.state or Part()
        folder.state.add(size, written)
    elif rest.startswith(".") and not inside:
        folder.others.setdefault(rest, Part()).add(size, written)


def files_below(root: str) -> Iterator[tuple[str, int, float | None]]:
    """Path below a place, bytes, time of the last writing; of a local place its folders as well, with a slash."""
    top = storage.local_path(root)
    if top is None:
        for name, entry in storage.entries(root).items():
            yield name, entry.size, getattr(entry, "written", None)
        return
    for folder, folders, files in os.walk(top):
        below = Path(folder).relative_to(top).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in folders + files:
            try:
                s = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:  # it vanishes while we look
                continue
            inner = name in folders and not os.path.islink(os.path.join(folder, name))
            yield f"{prefix}{name}{'/' if inner else ''}", 0 if inner else s.st_size, s.st_mtime
