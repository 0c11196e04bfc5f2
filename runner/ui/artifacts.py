"""One artifact for a page: what its manifest says, and previews of its small files.

Only files that the manifest names are shown, and of a local store only what really lies in the artifact's folder: a
link that leads out of it is refused.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.errors import UserError
from microstages.manifest import MANIFEST, Manifest

from runner.ui.logs import plain
from runner.ui.reading import MissingError

PREVIEW = 128 << 10  # bytes of a text that are shown
WHOLE = 4 << 20  # bytes: larger files of a store elsewhere, and larger pictures, are not fetched for a preview
PICTURES = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


@dataclass(frozen=True)
class Preview:
    """The beginning of a file as text; of binary data nothing. `whole`: that was all of it."""

    text: str
    binary: bool
    whole: bool


def read_manifest(uri: str) -> Manifest:
    """The manifest of an artifact. Raises UserError where it is gone or not to be believed."""
    where = storage.public(uri)
    data = storage.read(storage.join(uri, MANIFEST))
    if data is None:
        raise MissingError("this artifact is gone", where=where, fix="`runner up` makes it again")
    return Manifest.from_json(data, where)


def as_data(uri: str, manifest: Manifest) -> dict[str, Any]:
    """An artifact for its page."""
    files = [
        {"path": f.path, "size": f.size, "sha256": f.sha256, "picture": Path(f.path).suffix.lower() in PICTURES}
        for f in manifest.files
    ]
    return {
        "uri": storage.public(uri), "kind": manifest.kind, "digest": manifest.digest, "size": manifest.size,
        "files": files, "metadata": manifest.metadata, "metrics": manifest.metrics, "provenance": manifest.provenance,
    }  # fmt: skip


def content(uri: str, manifest: Manifest, name: str, limit: int) -> bytes:
    """The first `limit` bytes of a file of an artifact. Raises UserError where it is none, is gone, or leads out."""
    entry = next((f for f in manifest.files if f.path == name), None)
    where = storage.join(storage.public(uri), name)
    if entry is None:
        raise MissingError("no such file in the artifact's manifest", where=where)
    folder = storage.local_path(uri)
    if folder is None:
        if entry.size > WHOLE:
            raise UserError("it is too large to be fetched for a preview", where=where, fix="runner pull copies it")
        data = storage.read(storage.join(uri, name))
        if data is None:
            raise MissingError("this file of the artifact is missing", where=where)
        return data[:limit]
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise MissingError("this file of the artifact is missing, or is no file", where=where)
    with path.open("rb") as f:
        return f.read(limit)


def preview(uri: str, manifest: Manifest, name: str) -> Preview:
    """The beginning of a file, JSON on lines of its own. Raises UserError as `content` does."""
    data = content(uri, manifest, name, PREVIEW + 1)
    whole, data = len(data) <= PREVIEW, data[:PREVIEW]
    if b"\0" in data[:8192]:
        return Preview("", True, whole)
    try:
        text = data.decode("utf-8", "strict" if whole else "ignore")
    except UnicodeDecodeError:
        return Preview("", True, whole)
    if whole and name.endswith(".json") and "\n" not in text.strip():
        with suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
    return Preview(plain(text), False, whole)


def picture(uri: str, manifest: Manifest, name: str) -> tuple[str, bytes]:
    """A picture with its media type. Raises UserError for what is none."""
    media = PICTURES.get(Path(name).suffix.lower())
    size = next((f.size for f in manifest.files if f.path == name), 0)
    if media is None or size > WHOLE:
        raise MissingError("this is no picture that can be shown", where=storage.join(storage.public(uri), name))
    return media, content(uri, manifest, name, WHOLE)
