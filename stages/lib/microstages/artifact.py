"""Artifacts: immutable folders of files at URIs, named by what is in them.

The protocol:

1. A writer gets a `Draft`: a folder that nobody else sees. It writes files there.
2. `commit` hashes them and writes `artifact.json`, the manifest, last; then the folder is moved into place at once
   (local) or its files are copied and the manifest after them (remote). Without a manifest there is no artifact.
3. A reader calls `open_artifact`: the manifest is checked, every file is there with its size and sha256, no path leaves
   the folder. Local artifacts are read in place; remote ones are copied once into a cache addressed by content.
4. The content digest covers the files' bytes and paths, not the provenance: equal bytes, equal digest.

Things from outside (a model folder, a data file) are opened the same way; their digest is computed from their bytes.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from microstages import storage
from microstages.digest import (
    TICK_NS,
    Memory,
    cache_folder,
    hash_files,
    hash_tree,
    recall,
    remember,
    tree_digest,
)
from microstages.errors import UserError
from microstages.manifest import MANIFEST, REMEMBERED, Manifest

# What tells a folder from outside apart, and the stage that makes such a thing.
MARKERS = {"model": "config.json", "adapter": "adapter_config.json", "onnx-model": "genai_config.json"}
WORTH_A_TICK = 20_000_000  # bytes: hashing them again takes longer than waiting
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Artifact:
    """Something to read: files that lie at `path` on this machine, with the digest that they were checked against.

    `manifest` is None for a thing from outside. `files` are the paths below `path` (a single file: its own name).
    """

    uri: str
    path: Path
    kind: str
    digest: str
    files: tuple[str, ...]
    manifest: Manifest | None = None

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.manifest.metadata if self.manifest else {}

    def file(self, name: str, fix: str = "check that this is the right folder") -> Path:
        """The path of one file in it. Raises UserError where there is none of this name."""
        path = self.path / name
        if not path.is_file():
            raise UserError(f"there is no {name} in it", where=self.uri, fix=fix)
        return path

    def paths(self) -> list[Path]:
        """The paths of all its files."""
        return [self.path] if self.path.is_file() else [self.path / name for name in self.files]


def open_artifact(uri: str, kinds: Iterable[str]) -> Artifact:
    """Open what lies at a URI for reading: verified, on this machine, of one of `kinds`.

    The kind `files` stands for any file, folder or glob pattern. Raises UserError where nothing is there, it is of
    another kind, or a file is missing or altered.
    """
    kinds = tuple(kinds)
    folder = storage.local_path(uri)
    if folder is None:
        return _open_remote(uri, kinds)
    if (folder / MANIFEST).is_file():
        return _open_local(uri, folder, kinds)
    return _open_outside(uri, folder, kinds)


def _open_local(uri: str, folder: Path, kinds: tuple[str, ...]) -> Artifact:
    manifest = Manifest.from_json((folder / MANIFEST).read_bytes(), folder / MANIFEST)
    _check_kind(uri, manifest.kind, kinds)
    verify(folder, manifest)
    return Artifact(uri, folder, manifest.kind, manifest.digest, tuple(f.path for f in manifest.files), manifest)


def verify(folder: Path, manifest: Manifest) -> None:
    """Check every file of a local artifact against its manifest. Raises UserError naming the first that differs."""
    fix = "the artifact is damaged: remove it and run again"
    for f in manifest.files:
        path = folder / f.path
        if not path.is_file():
            raise UserError("this file of the artifact is missing", where=path, fix=fix)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError("this file of the artifact is a link that leaves its folder", where=path, fix=fix)
        if path.stat().st_size != f.size:
            raise UserError(
                f"this file of the artifact was altered: {path.stat().st_size} bytes, not {f.size}", where=path, fix=fix
            )
    old = recall(folder / REMEMBERED)
    found, new = hash_files({f.path: folder / f.path for f in manifest.files}, old)
    for is_, should in zip(found, sorted(manifest.files, key=lambda f: f.path), strict=True):
        if is_ != should:
            raise UserError(
                "this file of the artifact was altered: its sha256 differs", where=folder / is_.path, fix=fix
            )
    if new != old:
        remember(folder / REMEMBERED, new)


def _open_remote(uri: str, kinds: tuple[str, ...]) -> Artifact:
    data = storage.read(storage.join(uri, MANIFEST))
    if data is not None:
        manifest = Manifest.from_json(data, storage.public(storage.join(uri, MANIFEST)))
        _check_kind(storage.public(uri), manifest.kind, kinds)
        target = cache_folder() / "artifacts" / manifest.digest.removeprefix("sha256:")
        if not (target / MANIFEST).is_file():
            with Draft(str(target)) as draft:
                storage.download(uri, draft.path, [f.path for f in manifest.files])
                verify(draft.path, manifest)
                draft.publish(manifest)
        verify(target, manifest)
        listed = tuple(f.path for f in manifest.files)
        return Artifact(storage.public(uri), target, manifest.kind, manifest.digest, listed, manifest)
    names = sorted(storage.listing(uri))
    if not names:
        raise UserError("nothing is there", where=storage.public(uri), fix="check the address and the credentials")
    single = names in ([""], [uri.rsplit("/", 1)[-1]]) and len(names) == 1
    incoming = cache_folder() / "incoming" / secrets.token_hex(8)
    incoming.mkdir(parents=True)
    if single:
        name = uri.rsplit("/", 1)[-1]
        storage.download(uri.rsplit("/", 1)[0], incoming, [name])
        return _open_outside(storage.public(uri), incoming / name, kinds)
    storage.download(uri, incoming, names)
    return _open_outside(storage.public(uri), incoming, kinds)


def outside_files(path: Path) -> tuple[Path, dict[str, Path]]:
    """The files of a thing from outside: its root, and name -> path. Hidden files do not belong to it.

    Raises UserError where there is nothing.
    """
    text = str(path)
    if path.is_file():
        return path, {path.name: path}
    if path.is_dir():
        found = {}
        for top, dirs, names in os.walk(path, followlinks=True):
            dirs[:] = sorted(d for d in dirs if not d.startswith(".") and d != "__pycache__")
            for n in names:
                if not n.startswith(".") and n != MANIFEST:
                    file = Path(top) / n
                    found[file.relative_to(path).as_posix()] = file
        if not found:
            raise UserError("the folder is empty", where=path, fix="check the path")
        return path, found
    if glob.has_magic(text):
        matches = [Path(m) for m in sorted(glob.glob(text, recursive=True)) if Path(m).is_file()]
        if not matches:
            raise UserError("no file matches this pattern", where=path, fix="check the pattern")
        root = Path(os.path.commonpath([m.parent for m in matches]))
        return root, {m.relative_to(root).as_posix(): m for m in matches}
    parent = path.parent
    siblings = os.listdir(parent) if parent.is_dir() else []
    from microstages.errors import nearest

    raise UserError(f"no such file or folder{nearest(path.name, siblings)}", where=path, fix="check the path")


def outside_digest(path: Path) -> str:
    """The content digest of a thing from outside: of a file its bytes, of a folder or pattern the tree."""
    root, files = outside_files(path)
    if root.is_file():
        return f"sha256:{hash_tree(root, files)[0].sha256}"
    # the memory of a pattern must not replace that of the folder
    entries = hash_tree(path if path.is_dir() else path.absolute(), files)
    return tree_digest(entries)


def _open_outside(uri: str, path: Path, kinds: tuple[str, ...]) -> Artifact:
    root, files = outside_files(path)
    kind = "files"
    if "files" not in kinds:
        if root.is_file():
            raise UserError(
                f"it is a file; a folder of kind {' or '.join(kinds)} is wanted", where=uri, fix="give the folder"
            )
        kind = next((k for k in kinds if k in MARKERS and MARKERS[k] in files), "")
        if not kind:
            is_ = next((k for k in reversed(MARKERS) if MARKERS[k] in files), None)
            marks = " or ".join(f"{MARKERS[k]} ({k})" for k in kinds if k in MARKERS) or f"{MANIFEST} ({kinds[0]})"
            if is_:
                raise UserError(
                    f"it is of kind {is_}; {' or '.join(kinds)} is wanted", where=uri, fix="give another folder"
                )
            raise UserError(f"there is no {marks} in it", where=uri, fix="check that this is the right folder")
        _refuse_pickles(uri, kind, files)
    return Artifact(uri, root, kind, outside_digest(path), tuple(files))


def _refuse_pickles(uri: str, kind: str, files: Mapping[str, Path]) -> None:
    weights = [n for n in files if n.endswith(".safetensors")]
    pickles = [n for n in files if n.endswith(PICKLES)]
    if kind in ("model", "adapter") and not weights:
        if pickles:
            raise UserError(
                f"its weights are pickled ({pickles[0]}), which can run code when loaded; only safetensors are read",
                where=uri,
                fix="convert them: model.save_pretrained(folder, safe_serialization=True) on a machine you trust",
            )
        raise UserError(
            "there are no weights (*.safetensors) in it", where=uri, fix="check that the download is complete"
        )


def _check_kind(uri: str, kind: str, kinds: tuple[str, ...]) -> None:
    if kind not in kinds and "files" not in kinds:
        raise UserError(f"it is of kind {kind}; {' or '.join(kinds)} is wanted", where=uri, fix="give another artifact")


class Draft:
    """An artifact being written. As a context manager it removes what was not committed.

        with Draft("out/adapter", "adapter") as draft:
            (draft.path / "adapter_config.json").write_text(…)
            draft.metadata["rank"] = 8
            draft.commit(provenance)

    Raises UserError where something lies at the URI already, or the place cannot be written.
    """

    def __init__(self, uri: str, kind: str = "") -> None:
        self.uri, self.kind = uri, kind
        self.metadata: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.known: Memory = {}  # hashes of files that were hashed while they were written
        self.manifest: Manifest | None = None
        self.target = storage.local_path(uri)
        if self.target is not None:
            if self.target.is_file() or (self.target.is_dir() and any(self.target.iterdir())):
                raise UserError(
                    "something lies there already",
                    where=uri,
                    fix="artifacts are immutable: choose a new folder, or remove this",
                )
            parent = self.target.absolute().parent
            parent.mkdir(parents=True, exist_ok=True)
            self.path = parent / f".{self.target.name}.{secrets.token_hex(4)}.partial"
        else:
            if storage.read(storage.join(uri, MANIFEST)) is not None:
                raise UserError("an artifact lies there already", where=storage.public(uri), fix="choose a new address")
            self.path = cache_folder() / "outgoing" / secrets.token_hex(8)
        self.path.mkdir(parents=True)

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def hashed(self, name: str, sha256: str) -> None:
        """Say the sha256 (hex) of a finished file, computed while it was written: `commit` need not read it again.

        It counts only while the file stays as it is now; a file that changes afterwards is hashed by `commit`.
        """
        s = (self.path / name).stat()
        self.known[name] = [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, 0, sha256]

    def commit(self, provenance: Mapping[str, Any]) -> Manifest:
        """Hash what was written and make it an artifact. Nothing of it can be seen before; all of it after."""
        self._check()
        names = sorted(p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())
        if not names:
            raise UserError("the stage wrote nothing", where=self.uri, fix="this is a bug of the stage")
        for top, _, files in os.walk(self.path):
            os.chmod(top, 0o755)
            for n in files:
                file = os.path.join(top, n)
                if (
                    not os.path.islink(file) and os.stat(file).st_mode & 0o777 != 0o644
                ):  # a needless chmod would make `known` hashes unusable
                    os.chmod(file, 0o644)
        youngest = max((r[2] for r in self.known.values() if r[0] > WORTH_A_TICK), default=0)
        if (left := youngest + 2 * TICK_NS - time.time_ns()) > 0:
            time.sleep(left / 1e9)  # hashes of files changed within this tick of the clock are not believed
        now = time.time_ns()
        known: Memory = {n: [*record[:4], now, record[5]] for n, record in self.known.items()}
        entries, memory = hash_files({n: self.path / n for n in names}, known)
        manifest = Manifest(self.kind, tree_digest(entries), tuple(entries), self.metadata, self.metrics, provenance)
        if self.target is not None:
            remember(self.path / REMEMBERED, memory)
        self.publish(manifest)
        return manifest

    def _check(self) -> None:
        """Only files and folders may lie here, and links that stay inside; no manifest but the one to come."""
        for name in (MANIFEST, REMEMBERED):
            if os.path.lexists(self.path / name):
                os.unlink(self.path / name)
        inside = self.path.resolve()
        for top, folders, files in os.walk(self.path):
            for path in (Path(top, n) for n in (*folders, *files)):
                mode = path.lstat().st_mode
                stays = stat.S_ISLNK(mode) and path.resolve().is_relative_to(inside)
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stays):
                    what = (
                        "a link that leads out of the output" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                    )
                    name = path.relative_to(self.path).as_posix()
                    raise UserError(
                        f"{name} is {what}", where=storage.public(self.uri), fix="write a file in its place"
                    )

    def publish(self, manifest: Manifest) -> None:
        """Move the folder into place (local), or copy it, the manifest last (remote)."""
        if self.target is None:
            storage.upload(self.path, self.uri, [f.path for f in manifest.files])
            if not storage.create(storage.join(self.uri, MANIFEST), manifest.to_json()):
                raise UserError(
                    "an artifact lies there already", where=storage.public(self.uri), fix="choose a new address"
                )
        else:
            (self.path / MANIFEST).write_bytes(manifest.to_json())
            try:
                os.rename(self.path, self.target)
            except OSError as error:
                if self.target.is_dir() and any(self.target.iterdir()):
                    raise UserError(
                        "something lies there already", where=self.uri, fix="choose a new folder"
                    ) from error
                raise
        self.manifest = manifest
