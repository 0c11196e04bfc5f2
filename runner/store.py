"""Committed results of stages in a store.

    <store>/artifacts/<stage>/<fingerprint>/<attempt>/<output>/…files…, artifact.json
    <store>/artifacts/<stage>/<fingerprint>/commit.json

An attempt writes its outputs into a folder of its own. Then `commit.json` is created, which only one writer can do: it
names the attempt whose outputs are the result. So whatever dies in between, and however many runners share a store, a
result is either there completely or not at all. A result that was damaged later is replaced by a new attempt.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.artifact import verify
from microstages.digest import cache_folder
from microstages.errors import DamagedError, UserError, from_os_error
from microstages.interface import Interface
from microstages.manifest import MANIFEST, Manifest

SCHEMA = 1


@dataclass(frozen=True)
class Output:
    """One artifact of a committed result."""

    uri: str
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.digest


@dataclass(frozen=True)
class Result:
    """What a stage run left in the store."""

    fingerprint: str
    attempt: str
    outputs: Mapping[str, Output]

    @property
    def metrics(self) -> dict[str, Any]:
        """The measured values of all outputs."""
        return {k: v for o in self.outputs.values() for k, v in o.manifest.metrics.items()}


@dataclass(frozen=True)
class Damaged:
    """A committed result that cannot be used any more, and why."""

    attempt: str
    why: str


class WrongResultError(UserError):
    """What an attempt wrote is not what its stage promises."""


def new_attempt() -> str:
    """A name that no other attempt has; names sort by time."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


class Store:
    """The results below one URI."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.path = storage.local_path(uri)

    def prepare(self) -> None:
        """Make a local store's folder. Raises UserError where that cannot be."""
        if self.path is None:
            return
        try:
            (self.path / "artifacts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, self.path) or UserError(str(error), where=self.path) from None
        if not os.access(self.path / "artifacts", os.W_OK):
            read_only = os.statvfs(self.path).f_flag & os.ST_RDONLY
            known = from_os_error(OSError(errno.EROFS if read_only else errno.EACCES, ""), self.path)
            raise known or UserError("the store cannot be written", where=self.path)

    def state_folder(self, pipeline_folder: Path) -> Path:
        """Where history and logs lie: the `.runner` folder that a local store is in, or one inside it; for a store
        elsewhere one beside the pipeline file."""
        if self.path is None:
            return pipeline_folder / ".runner"
        return self.path.parent if self.path.parent.name == ".runner" else self.path / ".runner"

    def output_uri(self, stage: str, fingerprint: str, attempt: str, output: str) -> str:
        return storage.join(self.uri, "artifacts", stage, fingerprint, attempt, output)

    def _commit_uri(self, stage: str, fingerprint: str) -> str:
        return storage.join(self.uri, "artifacts", stage, fingerprint, "commit.json")

    def look_up(self, stage: str, fingerprint: str) -> Result | Damaged | None:
        """The committed result of a stage run, checked: every file there, of its size, unaltered as far as its
        remembered hashes tell. None where there is none.

        Raises UserError where it cannot be told: access denied, a newer version's commit or manifest, a full disk.
        """
        data = storage.read(self._commit_uri(stage, fingerprint))
        if data is None:
            return None
        try:
            value = json.loads(data)
            attempt = str(value["attempt"])
            digests = {str(k): str(v["digest"]) for k, v in value["outputs"].items()}
            known = {
                str(k): {n: str(v.get(n, "")) for n in ("listing", "manifest")} for k, v in value["outputs"].items()
            }
            why, schema = str(value.get("damaged") or ""), value.get("schema")
        except (ValueError, TypeError, KeyError, AttributeError):
            return Damaged("", "commit.json cannot be read")
        if isinstance(schema, int) and schema > SCHEMA:
            what, fix = f"its schema {schema} is not known here", f"this version reads {SCHEMA}: use a newer one"
            raise UserError(what, where=storage.public(self._commit_uri(stage, fingerprint)), fix=fix)
        if why:
            return Damaged(attempt, why)
        try:
            outputs = {name: self._output(stage, fingerprint, attempt, name, known[name]) for name in digests}
        except DamagedError as error:
            return Damaged(attempt, f"{error.where}: {error.what}")
        for name, digest in digests.items():
            if outputs[name].digest != digest:
                return Damaged(attempt, f"{outputs[name].uri}: it is not what was committed")
        return Result(fingerprint, attempt, outputs)

    def _output(self, stage: str, fingerprint: str, attempt: str, name: str, known: Mapping[str, str]) -> Output:
        uri = self.output_uri(stage, fingerprint, attempt, name)
        data = storage.read(storage.join(uri, MANIFEST))
        if data is None:
            raise DamagedError(f"there is no {MANIFEST}", where=uri)
        if known["manifest"] not in ("", hashlib.sha256(data).hexdigest()):
            raise DamagedError("it is not the manifest that was committed", where=storage.join(uri, MANIFEST))
        manifest = Manifest.from_json(data, storage.join(uri, MANIFEST))
        if (folder := storage.local_path(uri)) is not None:
            verify(folder, manifest)
        else:
            _verify_remote(uri, manifest, known["listing"])
        return Output(uri, manifest)

    def attempt_outputs(self, interface: Interface, fingerprint: str, attempt: str) -> dict[str, Manifest] | None:
        """The manifests that an attempt wrote; None where it has not finished.

        Raises WrongResultError where an artifact is not of the kind that the interface promises.
        """
        manifests = {}
        for name, spec in interface.outputs.items():
            uri = storage.join(self.output_uri(interface.name, fingerprint, attempt, name), MANIFEST)
            data = storage.read(uri)
            if data is None:
                return None
            manifest = Manifest.from_json(data, uri)
            if manifest.kind != spec.kind:
                what = f"{interface.name} wrote {name!r} of kind {manifest.kind}, and promises {spec.kind}"
                raise WrongResultError(what, where=uri, fix="correct the stage or its interface.json")
            manifests[name] = manifest
        return manifests

    def whole(self, stage: str, fingerprint: str, attempt: str, manifests: Mapping[str, Manifest]) -> bool:
        """Whether the outputs of an attempt are what their manifests say; remote ones are read through for it."""
        try:
            for name, manifest in manifests.items():
                uri = self.output_uri(stage, fingerprint, attempt, name)
                if (folder := storage.local_path(uri)) is not None:
                    verify(folder, manifest)
                else:
                    _verify_remote(uri, manifest, "")
            return True
        except DamagedError:
            return False

    def committed(self, stage: str, fingerprint: str) -> str:
        """The attempt that the commit of a stage run names; empty where there is none."""
        with suppress(ValueError, TypeError, KeyError):
            return str(json.loads(storage.read(self._commit_uri(stage, fingerprint)) or b"{}")["attempt"])
        return ""

    def finished_outputs(self, stage: str, fingerprint: str, attempt: str) -> bool:
        """Whether an attempt finished at least one output; where its store cannot tell, that is assumed."""
        try:
            found = storage.entries(storage.join(self.uri, "artifacts", stage, fingerprint, attempt))
        except (UserError, OSError):
            return True
        return any(name.count("/") == 1 and name.endswith(f"/{MANIFEST}") for name in found)

    def commit(
        self, stage: str, fingerprint: str, attempt: str, manifests: Mapping[str, Manifest], replace: str | None
    ) -> Result:
        """Make an attempt's outputs the result, unless another attempt is it already; the result that counts.

        `replace`: the attempt that gives way, damaged or to be made anew; empty where its commit cannot be read. What
        another run has put into its place meanwhile, and is whole, stays.
        """
        value = {
            "schema": SCHEMA,
            "stage": stage,
            "fingerprint": fingerprint,
            "attempt": attempt,
            "outputs": {k: self._summary(stage, fingerprint, attempt, k, m) for k, m in manifests.items()},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        data = (json.dumps(value, indent=1) + "\n").encode()
        uri = self._commit_uri(stage, fingerprint)
        gives_way = replace is not None and self.committed(stage, fingerprint) == replace
        if gives_way or not storage.create(uri, data):
            other = None if gives_way else self.look_up(stage, fingerprint)
            if isinstance(other, Result):
                return other
            storage.replace(uri, data)
        outputs = {k: Output(self.output_uri(stage, fingerprint, attempt, k), m) for k, m in manifests.items()}
        return Result(fingerprint, attempt, outputs)

    def _summary(self, stage: str, fingerprint: str, attempt: str, name: str, manifest: Manifest) -> dict[str, Any]:
        """An output as commit.json names it. Raises UserError where a remote one is not whole."""
        uri = self.output_uri(stage, fingerprint, attempt, name)
        data = storage.read(storage.join(uri, MANIFEST)) or b""
        out = {"kind": manifest.kind, "digest": manifest.digest, "size": manifest.size}
        out["manifest"] = hashlib.sha256(data).hexdigest()
        if self.path is None:
            entries = storage.entries(uri)
            _check_sizes(uri, manifest, entries)
            out["listing"] = _listing(entries)
        return out

    def measured(
        self, stage: str, fingerprint: str, attempt: str, manifests: Mapping[str, Manifest], metrics: Mapping[str, Any]
    ) -> dict[str, Manifest]:
        """Add what was measured to the manifests of an attempt that is not committed yet."""
        out = {name: replace(manifest, metrics={**manifest.metrics, **metrics}) for name, manifest in manifests.items()}
        for name, manifest in out.items():
            uri = self.output_uri(stage, fingerprint, attempt, name)
            storage.replace(storage.join(uri, MANIFEST), manifest.to_json())
        return out

    def mark_damaged(self, stage: str, fingerprint: str, attempt: str, why: str) -> None:
        """Say that a committed result was found damaged by who read it: it is not reused, but made anew."""
        uri = self._commit_uri(stage, fingerprint)
        with suppress(ValueError, TypeError):
            value = json.loads(storage.read(uri) or b"null")
            if value is not None and value["attempt"] == attempt:
                storage.replace(uri, (json.dumps({**value, "damaged": why}, indent=1) + "\n").encode())

    def discard(self, stage: str, fingerprint: str, attempt: str) -> None:
        """Remove what a dead attempt left behind, never one that was committed. Where its store cannot be reached it
        stays until `runner gc`."""
        try:
            if not attempt or self.committed(stage, fingerprint) == attempt:
                return
        except (UserError, OSError):
            return
        if self.path is None:
            with suppress(UserError, OSError):
                storage.remove(storage.join(self.uri, "artifacts", stage, fingerprint, attempt))
            return
        folder = self.path / "artifacts" / stage / fingerprint
        shutil.rmtree(folder / attempt, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()  # only where nothing else is in it


def _listing(entries: Mapping[str, storage.Entry]) -> str:
    """What a remote folder looks like: changes whenever a file in it is written, added or removed. Empty where its
    store has no tags."""
    if not all(e.tag for e in entries.values()):
        return ""
    lines = "".join(f"{e.tag}  {e.size}  {name}\n" for name, e in sorted(entries.items()))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _check_sizes(uri: str, manifest: Manifest, entries: Mapping[str, storage.Entry]) -> None:
    for f in manifest.files:
        if f.path not in entries:
            raise DamagedError("this file of the artifact is missing", where=storage.join(uri, f.path))
        if entries[f.path].size != f.size:
            what = f"this file of the artifact was altered: {entries[f.path].size} bytes, not {f.size}"
            raise DamagedError(what, where=storage.join(uri, f.path))


def _verify_remote(uri: str, manifest: Manifest, committed: str) -> None:
    """Check a remote artifact: its files look as they did when it was committed, or else their bytes are read.

    Raises DamagedError naming the first file that differs.
    """
    entries = storage.entries(uri)
    _check_sizes(uri, manifest, entries)
    seen = _listing(entries)
    if seen and seen == committed:
        return
    # Something was written since, or the store was copied: only the bytes can tell. What they told is remembered.
    key = hashlib.sha256(f"{uri} {manifest.digest} {seen}".encode()).hexdigest()
    known = cache_folder() / "verified" / key
    if seen and known.exists():
        return
    hashes = storage.hashes(uri, {f.path: f.size for f in manifest.files})
    for f in manifest.files:
        if hashes[f.path] != f.sha256:
            what = "this file of the artifact was altered: its sha256 differs"
            raise DamagedError(what, where=storage.join(uri, f.path))
    with suppress(OSError):
        known.parent.mkdir(parents=True, exist_ok=True)
        known.touch()
