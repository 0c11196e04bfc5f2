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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.digest import hash_files, hash_tree, recall, remember, tree_digest
from microstages.draft import ATTEMPT, WRITING, Draft
from microstages.errors import DamagedError, UserError
from microstages.manifest import MANIFEST, REMEMBERED, Manifest

__all__ = [
    "ATTEMPT", "WRITING", "Artifact", "Draft", "as_artifact", "content_digest", "identify", "open_artifact", "outside",
    "outside_digest", "outside_files", "outside_kind", "verify",
]  # fmt: skip
# What tells a folder from outside apart, and the stage that makes such a thing.
# What makes an artifact of a kind, for who gave one of another.
MADE_BY = {
    "dataset": "prepare-data makes one",
    "adapter": "train-lora and train-qlora make one",
    "model": "merge makes one, and transformers' save_pretrained",
    "onnx-model": "build-onnx makes one",
    "predictions": "infer makes one",
}
MARKERS = {"model": "config.json", "adapter": "adapter_config.json", "onnx-model": "genai_config.json"}
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
        from microstages.elsewhere import open_remote

        return open_remote(uri, kinds)
    if (folder / MANIFEST).is_file():
        return _open_local(uri, folder, kinds)
    return _open_outside(uri, folder, kinds)


def identify(uri: str, kinds: Iterable[str]) -> str:
    """The digest of what lies at a URI: as `open_artifact(uri, kinds).digest`, and nothing remote is fetched for it
    where the store can tell."""
    if storage.local_path(uri) is None:
        from microstages.elsewhere import identify_remote

        return identify_remote(uri, tuple(kinds))
    return open_artifact(uri, kinds).digest


def _open_local(uri: str, folder: Path, kinds: tuple[str, ...]) -> Artifact:
    manifest = Manifest.from_json((folder / MANIFEST).read_bytes(), folder / MANIFEST)
    check_kind(uri, manifest.kind, kinds)
    verify(folder, manifest)
    return as_artifact(uri, folder, manifest)


def as_artifact(uri: str, folder: Path, manifest: Manifest) -> Artifact:
    """What a manifest describes, in a local folder. The copy of a thing from outside is as that thing is."""
    names = tuple(f.path for f in manifest.files)
    if not manifest.metadata.get("outside"):
        return Artifact(uri, folder, manifest.kind, manifest.digest, names, manifest)
    single = str(manifest.metadata.get("file", ""))
    return Artifact(uri, folder / single if single else folder, manifest.kind, content_digest(manifest), names)


def outside(single: str = "") -> dict[str, Any]:
    """The metadata of the manifest of a copy of a thing from outside. `single`: it is one file, of that name."""
    return {"outside": True, **({"file": single} if single else {})}


def content_digest(manifest: Manifest) -> str:
    """By what an artifact is identified: its digest; the copy of a single file from outside by the file's sha256."""
    if manifest.metadata.get("outside") and manifest.metadata.get("file") and len(manifest.files) == 1:
        return f"sha256:{manifest.files[0].sha256}"
    return manifest.digest


def verify(folder: Path, manifest: Manifest) -> None:
    """Check every file of a local artifact against its manifest. Raises DamagedError naming the first that differs."""
    for f in manifest.files:
        path = folder / f.path
        if not path.is_file():
            raise _damaged(folder, "this file of the artifact is missing", where=path)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise _damaged(folder, "this file of the artifact is a link that leaves its folder", where=path)
        if (size := path.stat().st_size) != f.size:
            raise _damaged(folder, f"this file of the artifact was altered: {size} bytes, not {f.size}", where=path)
    old = recall(folder / REMEMBERED)
    found, new = hash_files({f.path: folder / f.path for f in manifest.files}, old)
    for is_, should in zip(found, sorted(manifest.files, key=lambda f: f.path), strict=True):
        if is_ != should:
            what = "this file of the artifact was altered: its sha256 differs"
            raise _damaged(folder, what, where=folder / is_.path)
    if new != old:
        remember(folder / REMEMBERED, new)


def _damaged(folder: Path, what: str, where: Path) -> DamagedError:
    fix = "the artifact is damaged: run the pipeline again and it is made anew, or remove it"
    error = DamagedError(what, where=where, fix=fix)
    error.artifact = str(folder)
    return error


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
            raise UserError("no file matches this pattern", where=path, fix=_there(path))
        root = Path(os.path.commonpath([m.parent for m in matches]))
        return root, {m.relative_to(root).as_posix(): m for m in matches}
    parent = path.parent
    siblings = os.listdir(parent) if parent.is_dir() else []
    from microstages.errors import nearest

    raise UserError(f"no such file or folder{nearest(path.name, siblings)}", where=path, fix="check the path")


def _there(pattern: Path) -> str:
    """What to do about a pattern that nothing matches: what lies where it begins."""
    folder = pattern.parent
    while glob.has_magic(str(folder)):
        folder = folder.parent
    if not folder.is_dir():
        return f"there is no folder {folder}: correct the pattern"
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
    shown = ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
    return f"correct the pattern; the folder has {shown}" if names else f"the folder {folder} is empty"


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
    kind = outside_kind(uri, root.name if root.is_file() else "", tuple(files), kinds)
    return Artifact(uri, root, kind, outside_digest(path), tuple(sorted(files)))


def outside_kind(uri: str, single: str, names: Sequence[str], kinds: tuple[str, ...]) -> str:
    """Of which of `kinds` a thing from outside is, by the names of its files (`single`: it is a file of that name).

    Raises UserError where it is of none of them, or has no weights that can be read.
    """
    if "files" in kinds:
        return "files"
    if single:
        what = f"it is a file; a folder of kind {' or '.join(kinds)} is wanted"
        raise UserError(what, where=uri, fix="give the folder")
    kind = next((k for k in kinds if k in MARKERS and MARKERS[k] in names), "")
    if not kind:
        is_ = next((k for k in reversed(MARKERS) if MARKERS[k] in names), None)
        marks = " or ".join(f"{MARKERS[k]} ({k})" for k in kinds if k in MARKERS) or f"{MANIFEST} ({kinds[0]})"
        if is_:
            raise _other_kind(uri, is_, kinds)
        raise UserError(f"there is no {marks} in it", where=uri, fix="check that this is the right folder")
    _refuse_pickles(uri, kind, names)
    return kind


def _refuse_pickles(uri: str, kind: str, files: Sequence[str]) -> None:
    weights = [n for n in files if n.endswith(".safetensors")]
    pickles = [n for n in files if n.endswith(PICKLES)]
    if kind in ("model", "adapter") and not weights:
        if pickles:
            raise UserError(
                f"its weights are pickled ({pickles[0]}), which can run code when loaded; only safetensors are read",
                where=uri,
                fix="convert them: model.save_pretrained(folder, safe_serialization=True) on a machine you trust",
            )
        if kind == "adapter":
            what = "there are no weights (adapter_model.safetensors) in it"
            raise UserError(what, where=uri, fix="get it again, or train the adapter again")
        fix = "the download is not complete: get the rest of it"
        raise UserError("there are no weights (*.safetensors) in it", where=uri, fix=fix)


def check_kind(uri: str, kind: str, kinds: tuple[str, ...]) -> None:
    """Raises UserError where an artifact is not of one of `kinds`."""
    if kind not in kinds and "files" not in kinds:
        raise _other_kind(uri, kind, kinds)


def _other_kind(uri: str, kind: str, kinds: Sequence[str]) -> UserError:
    made = "; ".join(f"{MADE_BY[k]} ({k})" if len(kinds) > 1 else MADE_BY[k] for k in kinds if k in MADE_BY)
    wanted = " or ".join(kinds)
    fix = f"give one of kind {wanted}" + (f": {made}" if made else "")
    return UserError(f"it is of kind {kind}; {wanted} is wanted", where=uri, fix=fix)
