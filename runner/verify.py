"""Reads artifacts through, every byte: what is missing, altered or of the wrong size. Remembered hashes do not count.

A result that is found damaged is afterwards seen as damaged by whoever looks it up, so that `runner up` makes it again:
of a local one the remembered hashes are removed; of one in a store elsewhere, where mostly only the listing is looked
at, its commit says it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from microstages import storage
from microstages.digest import hash_files
from microstages.errors import UserError
from microstages.manifest import MANIFEST, REMEMBERED, Manifest

from runner.inventory import COMMIT, Commit, Folder, stage_run_uri
from runner.named import Named
from runner.runs import StageRun
from runner.store import Store


@dataclass
class Finding:
    """What was found of one artifact. `wrong`: file -> what is wrong with it ('' stands for the artifact itself).
    `extra`: files that its manifest does not name, which harm nobody."""

    name: str
    uri: str
    files: int = 0
    size: int = 0
    wrong: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def state(self) -> Literal["ok", "damaged"]:
        return "damaged" if self.wrong else "ok"


def check(artifact: Named, store: Store | None = None) -> Finding:
    """Read one artifact through; where it is a damaged result of `store`, see to it that everybody finds that.

    Raises TemporaryError where its store does not answer.
    """
    found = Finding(artifact.name, storage.public(artifact.uri))
    _read(artifact, found)
    if found.wrong:
        try:
            if (folder := storage.local_path(artifact.uri)) is not None:
                (folder / REMEMBERED).unlink(missing_ok=True)
            elif store is not None and artifact.attempt:
                name, what = next(iter(found.wrong.items()))
                store.mark_damaged(*artifact.run, artifact.attempt, f"{artifact.output}/{name}: {what}")
        except (OSError, UserError) as error:
            found.note = f"runner up may not notice it: {str(error).split(chr(10))[0]}"
    return found


def _read(artifact: Named, found: Finding) -> None:
    data = storage.read(storage.join(artifact.uri, MANIFEST))
    if data is None:
        found.wrong[MANIFEST] = "missing"
        return
    try:
        manifest = Manifest.from_json(data, MANIFEST)
    except UserError as error:
        found.wrong[MANIFEST] = error.what
        return
    if artifact.digest and manifest.digest != artifact.digest:
        found.wrong[MANIFEST] = f"it is not the artifact that was committed ({artifact.digest[:19]}…)"
    found.files, found.size = len(manifest.files), manifest.size
    folder = storage.local_path(artifact.uri)
    if folder is None:
        _read_remote(artifact.uri, manifest, found)
    else:
        _read_local(folder, manifest, found)


def _read_local(folder: Path, manifest: Manifest, found: Finding) -> None:
    right: dict[str, Path] = {}
    for f in manifest.files:
        path = folder / f.path
        try:
            if not path.is_file():
                found.wrong[f.path] = "missing"
            elif not path.resolve().is_relative_to(folder.resolve()):
                found.wrong[f.path] = "a link that leaves its folder"
            elif path.stat().st_size != f.size:
                found.wrong[f.path] = f"{path.stat().st_size} bytes, not {f.size}"
            elif not os.access(path, os.R_OK):
                found.wrong[f.path] = "it may not be read"
            else:
                right[f.path] = path
        except OSError as error:
            found.wrong[f.path] = (error.strerror or str(error)).lower()
    _compare(manifest, _hashes(right, found), found)
    names = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if not p.is_dir())
    found.extra = _extra(names, manifest)


def _hashes(files: dict[str, Path], found: Finding) -> dict[str, str | None]:
    """name -> sha256; a file that cannot be read is told, and the others are read all the same."""
    try:
        return {f.path: f.sha256 for f in hash_files(files)[0]}
    except (OSError, UserError):
        out: dict[str, str | None] = {}
    for name, path in files.items():
        try:
            out[name] = hash_files({name: path})[0][0].sha256
        except UserError as error:
            found.wrong[name] = error.what
        except OSError as error:
            found.wrong[name] = (error.strerror or str(error)).lower()
    return out


def _read_remote(uri: str, manifest: Manifest, found: Finding) -> None:
    sizes = storage.listing(uri)
    right = {}
    for f in manifest.files:
        if f.path not in sizes:
            found.wrong[f.path] = "missing"
        elif sizes[f.path] != f.size:
            found.wrong[f.path] = f"{sizes[f.path]} bytes, not {f.size}"
        else:
            right[f.path] = f.size
    _compare(manifest, storage.hashes(uri, right), found)
    found.extra = _extra(sizes, manifest)


def _compare(manifest: Manifest, hashes: dict[str, str | None], found: Finding) -> None:
    for f in manifest.files:
        if f.path in hashes and hashes[f.path] is None:
            found.wrong[f.path] = "missing"
        elif f.path in hashes and hashes[f.path] != f.sha256:
            found.wrong[f.path] = "altered: its sha256 differs"


def _extra(names: Iterable[str], manifest: Manifest) -> list[str]:
    known = {f.path for f in manifest.files} | {MANIFEST, REMEMBERED}
    return sorted(n for n in names if n not in known)


def everything(store: Store, folders: dict[StageRun, Folder]) -> tuple[list[Named], list[Finding]]:
    """The artifacts of every commit in a store, and the commits that cannot be read."""
    artifacts, broken = [], []
    for (uses, fingerprint), folder in sorted(folders.items()):
        if folder.commit is None:
            continue
        commit = Commit.parse(folder.commit)
        if not commit.outputs:
            uri = storage.public(stage_run_uri(store, uses, fingerprint))
            broken.append(Finding(f"{uses}/{fingerprint[:8]}", uri, wrong={COMMIT: "it cannot be read"}))
        for output, said in commit.outputs.items():
            name = f"{uses}/{fingerprint[:8]}" + (f".{output}" if len(commit.outputs) > 1 else "")
            uri = store.output_uri(uses, fingerprint, commit.attempt, output)
            key = uses, fingerprint
            artifacts.append(Named(name, name, uri, said["digest"], key, commit.attempt, output))
    return artifacts, broken
