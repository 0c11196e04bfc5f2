"""Where an artifact comes from: what made it, of what, back to the things from outside. It reads manifests only.

Each manifest names the inputs of its stage run, by address and content digest; so each artifact is a `Node` whose
`inputs` are nodes. Equal things are one node, wherever they are used again.

An input may lie elsewhere by now (a store was copied, an artifact was pulled). It is looked for, by the digest that was
recorded: at its address; at the same place in the store that is given; among what that store has committed. An address
in another store is not asked: a manifest must not make anybody send credentials to a place of its choosing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from microstages import storage
from microstages.artifact import MARKERS, content_digest, identify
from microstages.errors import DamagedError, UserError
from microstages.manifest import FILES, MANIFEST, Manifest

from runner.history import History
from runner.inventory import COMMIT, FINGERPRINT, Commit
from runner.named import Finder
from runner.runs import AT_ONCE, read_many
from runner.store import Store

MOST = 20_000  # artifacts of one lineage; more of them is no lineage but a fault
DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")
PLACE = re.compile(r"/artifacts/([^/]+)/([0-9a-f]{32})/(\d{8}T\d{6}-[0-9a-f]{8})/([^/]+)/?$")

State = Literal["made", "outside", "missing", "damaged", "elsewhere"]
Key = tuple[str, str]  # an address and the digest that was recorded for it (empty: any)


@dataclass(frozen=True, eq=False)
class Node:
    """One artifact, or a thing from outside.

    `state`: made (a stage made it), outside (nothing is known of how it was made), missing (it was made by a stage and
    is not found any more), damaged (its manifest cannot be believed), elsewhere (another store, which is not asked);
    `note` says more. Of what is not `made` only the address, the digest and perhaps the kind are known.
    `stage`: the name of the stage that made it (`uses`). `code`: that stage's code identity. Times are UTC, ISO 8601.
    """

    address: str
    digest: str
    state: State
    kind: str = ""
    size: int = 0  # bytes
    files: int = 0
    note: str = ""
    stage: str = ""
    version: str = ""
    fingerprint: str = ""
    code: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, Any] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    finished: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Node] = field(default_factory=dict)

    @property
    def image(self) -> str:
        """The container image that it was made in; empty where it was none."""
        return str(self.software.get("image") or "")

    @property
    def output(self) -> str:
        """Which output of its stage it is, as far as its address tells."""
        found = PLACE.search(self.address)
        return found[4] if found else ""


@dataclass(frozen=True)
class Root:
    """What somebody asked for: the name it was asked by, and the artifact."""

    name: str
    node: Node


def trace(wanted: Sequence[Key], store: Store | None = None) -> list[Node]:
    """The lineage of artifacts at addresses; `store`: where to look for what is not at its address any more.

    Raises UserError where one that is wanted is not there, or cannot be believed.
    """
    reader = _Reader(store, [uri for uri, _ in wanted])
    seen: dict[Key, _Seen] = {}
    level = list(dict.fromkeys(wanted))
    while level:
        for key, found in zip(level, reader.read(level, wanted=not seen), strict=True):
            seen[key] = found
        if len(seen) > MOST:
            raise UserError(f"there are more than {MOST:,} artifacts in it", where=storage.public(wanted[0][0]))
        level = list(dict.fromkeys(k for key in level for k in seen[key].inputs.values() if k not in seen))
    return _built(wanted, seen)


def ancestors(nodes: Sequence[Node]) -> Iterator[Node]:
    """These artifacts and everything that they were made of, each once, what was made of others after those."""
    done: set[int] = set()
    stack = list(reversed(nodes))
    while stack:
        node = stack[-1]
        todo = [] if id(node) in done else [n for n in node.inputs.values() if id(n) not in done]
        if todo:
            stack += reversed(todo)
            continue
        stack.pop()
        if id(node) not in done:
            done.add(id(node))
            yield node


def find(
    words: Sequence[str], finder: Finder, store: Store | None = None, note: Callable[[str], object] = bool
) -> list[tuple[str, str, str]]:
    """What words mean (see `named`), or the first characters of a digest: name, address, digest. `store`: where a
    digest is looked for; without it the pipeline's. A stage that is not done as it stands now means what it made last;
    `note` is told so. Raises UserError for a word that means nothing."""
    found: list[tuple[str, str, str]] = []
    for word in words:
        try:
            for name in _variants(finder, word):
                found += _current(finder, name, note)
        except UserError:
            match = DIGEST.fullmatch(word)
            if match is None:
                raise
            by_digest = _by_digest(match[1], store or finder.known.store)
            if not by_digest and not word.startswith("sha256:"):
                raise
            if not by_digest:
                fix = "give more or other characters of it, or the artifact's address"
                raise UserError(f"no artifact of this store has the digest {word}…", fix=fix) from None
            found += by_digest
    unique = {uri: (name, uri, digest) for name, uri, digest in reversed(found)}
    return list(reversed(unique.values()))


def _current(finder: Finder, name: str, note: Callable[[str], object]) -> list[tuple[str, str, str]]:
    try:
        return [(a.name, a.uri, a.digest) for a in finder.find([name]).artifacts]
    except UserError as error:
        stage, _, output = name.partition(".")
        if not finder.file.exists() or stage not in finder.known.pipeline.stages:
            raise
        pipeline = finder.known.pipeline
        history = History(finder.known.store.state_folder(pipeline.folder), create=False)
        try:
            last = history.last(pipeline.name).get(stage)
        finally:
            history.close()
        made = {k: v for k, v in ((last.outputs or {}) if last else {}).items() if output in ("", k)}
        if not last or not made:
            raise
        note(f"{error.what}; this is its result in run {last.run}")
        one = len(made) == 1 and not output
        return [(stage if one else f"{stage}.{k}", str(v["uri"]), str(v["digest"])) for k, v in made.items()]


def _variants(finder: Finder, word: str) -> list[str]:
    """A word, or the names of the variants of the stage with a matrix that it names."""
    stage, dot, output = word.partition(".")
    if "/" in word or not finder.file.exists() or stage in finder.known.pipeline.stages:
        return [word]
    names = [n for n in finder.known.pipeline.stages if n in finder.known.pipeline.named(stage)]
    return [f"{n}{dot}{output}" for n in names] or [word]


def _by_digest(prefix: str, store: Store) -> list[tuple[str, str, str]]:
    found = {d: uri for d, uri in committed_digests(store).items() if d.removeprefix("sha256:").startswith(prefix)}
    if len(found) > 1:
        names = ", ".join(d.removeprefix("sha256:")[: len(prefix) + 6] for d in list(found)[:5])
        raise UserError(
            f"{len(found)} artifacts have digests that begin with {prefix}", fix=f"give more of it: {names}"
        )
    return [(digest.removeprefix("sha256:")[:12], uri, digest) for digest, uri in found.items()]


def committed_digests(store: Store) -> dict[str, str]:
    """Every artifact that a store has committed: content digest -> address; of equal ones the newest."""
    root = storage.join(store.uri, "artifacts")
    commits = [
        f"{stage}/{run}/{COMMIT}" for stage in storage.folders(root)
        for run in storage.folders(storage.join(root, stage)) if FINGERPRINT.fullmatch(run)
    ]  # fmt: skip
    found: dict[str, tuple[str, str]] = {}
    for name, data in read_many(root, commits).items():
        commit = Commit.parse(data or b"")
        stage, run, _ = name.split("/")
        for output, said in commit.outputs.items():
            uri = store.output_uri(stage, run, commit.attempt, output)
            found[said["digest"]] = max(found.get(said["digest"], ("", "")), (commit.attempt, uri))
    return {digest: uri for digest, (_, uri) in sorted(found.items())}


@dataclass
class _Seen:
    """What was read of one artifact: the node without its inputs, and the keys of these."""

    values: dict[str, Any]
    inputs: dict[str, Key] = field(default_factory=dict)


class _Reader:
    """Reads manifests, those of a level side by side where they are far away."""

    def __init__(self, store: Store | None, roots: Sequence[str]) -> None:
        self._store = store
        self._places = {_place(uri) for uri in [*roots, *([store.uri] if store else [])]}
        self._digests: dict[str, str] | None = None

    def read(self, keys: Sequence[Key], wanted: bool) -> list[_Seen]:
        if all(storage.local_path(uri) is not None for uri, _ in keys) and not (self._store and not self._store.path):
            return [self._one(uri, digest, wanted) for uri, digest in keys]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda key: self._one(key[0], key[1], wanted), keys))

    def _one(self, uri: str, digest: str, wanted: bool) -> _Seen:
        told: _Seen | None = None
        for place in self._candidates(uri, digest):
            try:
                data = storage.read(storage.join(place, MANIFEST))
                if data is None:
                    continue
                manifest = Manifest.from_json(data, storage.public(storage.join(place, MANIFEST)))
            except UserError as error:
                if wanted:
                    raise
                state = "damaged" if isinstance(error, DamagedError) else "elsewhere"
                told = told or _unknown(place, digest, state, error.what)
                continue
            if digest in ("", content_digest(manifest), manifest.digest):
                return _of(manifest, place)
            what = f"what lies there now has another digest, {manifest.digest.removeprefix('sha256:')[:12]}"
            told = told or _unknown(place, digest, "missing", what)
        return told or self._without_manifest(uri, digest, wanted)

    def _candidates(self, uri: str, digest: str) -> Iterator[str]:
        """Where an artifact may lie."""
        if _place(uri) in self._places:
            yield uri
        if self._store is None:
            return
        match = PLACE.search(uri)
        if match and (there := self._store.output_uri(match[1], match[2], match[3], match[4])) != uri:
            yield there
        if match and digest:
            if self._digests is None:
                self._digests = committed_digests(self._store)
            if other := self._digests.get(digest):
                yield other

    def _without_manifest(self, uri: str, digest: str, wanted: bool) -> _Seen:
        """Of something that has no manifest: what can be told of it."""
        if wanted:  # raises where nothing is there
            return _unknown(uri, identify(uri, (FILES,)), "outside", "")
        if PLACE.search(uri):
            if _place(uri) in self._places:
                return _unknown(uri, digest, "missing", "it is not there any more")
            return _unknown(uri, digest, "elsewhere", "it lies in another store, which is not asked")
        return _unknown(uri, digest, "outside", "")


def _place(uri: str) -> str:
    """What must be asked for an address: this machine, or a store's host."""
    if storage.local_path(uri) is not None:
        return ""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"


def _unknown(uri: str, digest: str, state: str, note: str) -> _Seen:
    kind = ""
    if state == "outside" and (path := storage.local_path(uri)) is not None:
        with suppress(OSError):
            marks = [kind for kind, mark in MARKERS.items() if (path / mark).is_file()]
            kind = FILES if path.is_file() else next(reversed(marks), "")
    return _Seen({"address": storage.public(uri), "digest": digest, "state": state, "note": note, "kind": kind})


def _of(manifest: Manifest, uri: str) -> _Seen:
    """What a manifest tells. A thing from outside that was copied has one too, without provenance."""
    said = manifest.provenance
    values: dict[str, Any] = {
        "address": storage.public(uri), "digest": content_digest(manifest), "kind": manifest.kind,
        "size": manifest.size, "files": len(manifest.files), "metadata": manifest.metadata,
        "metrics": manifest.metrics, "state": "made" if said.get("stage") else "outside",
    }  # fmt: skip
    for name in ("stage", "version", "fingerprint", "code", "started", "finished"):
        values[name] = str(said.get(name) or "")
    for name in ("params", "software", "hardware"):
        values[name] = v if isinstance(v := said.get(name), dict) else {}
    inputs: dict[str, Key] = {}
    named = said.get("inputs")
    for name, it in named.items() if isinstance(named, dict) else ():
        if isinstance(it, dict) and isinstance(it.get("uri"), str):
            inputs[str(name)] = (it["uri"], str(it.get("digest") or ""))
    return _Seen(values, inputs)


def _built(wanted: Sequence[Key], seen: Mapping[Key, _Seen]) -> list[Node]:
    """The nodes, those that others are made of first. What names itself as its origin, nobody believes."""
    nodes: dict[Key, Node] = {}
    same: dict[tuple[str, str], Node] = {}
    under_way: set[Key] = set()
    stack = list(reversed(wanted))
    while stack:
        key = stack[-1]
        found = seen[key]
        todo = [k for k in found.inputs.values() if k not in nodes and k not in under_way and k != key]
        if key not in nodes and todo:
            under_way.add(key)
            stack += todo
            continue
        stack.pop()
        if key in nodes:
            continue
        inputs, note = {}, found.values.get("note") or ""
        for name, k in found.inputs.items():
            if k in nodes:
                inputs[name] = nodes[k]
            else:
                note = f"its manifest cannot be right: it was made of itself, by way of {name}"
        node = Node(**{**found.values, "note": note, "inputs": inputs})
        nodes[key] = same.setdefault((node.address, node.digest), node)
        under_way.discard(key)
    return [nodes[key] for key in wanted]


def as_data(roots: Sequence[Root]) -> dict[str, Any]:
    """The lineage as JSON: each artifact once, by address, what it was made of before it."""
    rows = []
    for node in ancestors([r.node for r in roots]):
        row = {k: v for k, v in node.__dict__.items() if k != "inputs"}
        rows.append({**row, "inputs": {k: {"address": n.address, "digest": n.digest} for k, n in node.inputs.items()}})
    named = [{"name": r.name, "address": r.node.address, "digest": r.node.digest} for r in roots]
    return json.loads(json.dumps({"roots": named, "artifacts": rows}, default=str))  # type: ignore[no-any-return]
