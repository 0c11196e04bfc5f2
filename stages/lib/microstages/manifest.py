"""`artifact.json`, the manifest of an artifact: what it says, and the checks that it has to pass to be believed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from microstages.digest import FileEntry, tree_digest
from microstages.errors import DamagedError, UserError, json_mistake, nearest

MANIFEST = "artifact.json"
REMEMBERED = ".verified.json"  # the local memory of hashes beside a manifest; no part of the artifact
SCHEMA = 1
FILES = "files"  # whatever lies somewhere; only copies of things from outside have a manifest of this kind
KINDS = ("dataset", "adapter", "model", "onnx-model", "predictions", "checkpoint")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_CHECKSUM = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n}\n\Z')
_KEYS = {"schema", "kind", "digest", "files", "metadata", "metrics", "provenance", "checksum"}


@dataclass(frozen=True)
class Manifest:
    """What `artifact.json` says. `digest` is the content digest of `files`; the rest describes and explains."""

    kind: str
    digest: str
    files: tuple[FileEntry, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)

    def to_json(self) -> bytes:
        value = {
            "schema": SCHEMA,
            "kind": self.kind,
            "digest": self.digest,
            "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in self.files],
            "metadata": self.metadata,
            "metrics": self.metrics,
            "provenance": self.provenance,
        }
        body = json.dumps(value, indent=1, ensure_ascii=False).encode().removesuffix(b"\n}")
        return body + b',\n "checksum": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()

    @staticmethod
    def from_json(data: bytes, where: object) -> Manifest:
        """Parse and check a manifest. Raises DamagedError naming what is wrong in it, UserError for a schema of
        another version.

        The manifests written here end with a checksum of all that stands before it; one without is taken as it is.
        """

        def broken(what: str, fix: str = "the artifact is damaged: make it again", at: str = "") -> DamagedError:
            return DamagedError(f"this manifest {what}", where=f"{where}{at}", fix=fix)

        try:
            value = json.loads(data)
        except ValueError as error:
            at, what = json_mistake(error)
            raise broken(f"is not JSON: {what}", at=at) from None
        if not isinstance(value, dict):
            raise broken("is not a JSON object")
        if value.get("schema") != SCHEMA:
            raise UserError(
                f"manifest schema {value.get('schema')!r} is not known here",
                where=where,
                fix=f"this version reads schema {SCHEMA}: use the version that wrote it, or make the artifact again",
            )
        try:
            files = tuple(FileEntry(f["path"], f["size"], f["sha256"]) for f in value["files"])
            kind, digest = value["kind"], value["digest"]
            parts = [value.get(k, {}) for k in ("metadata", "metrics", "provenance")]
        except (KeyError, TypeError) as error:
            raise broken(f"lacks {error}") from None
        if kind not in (*KINDS, FILES):
            fix = f"kinds: {', '.join((*KINDS, FILES))}; correct its `kind`, or make the artifact again"
            raise broken(f"has the unknown kind {kind!r}{nearest(kind, (*KINDS, FILES))}", fix)
        if not all(isinstance(p, dict) for p in parts):
            raise broken("has metadata, metrics or provenance that is not an object")
        for f in files:
            if not isinstance(f.path, str):
                raise broken(f"has a file whose path is no text: {f.path!r}")
            if not isinstance(f.size, int) or f.size < 0:
                raise broken(f"gives {f.path!r} the size {f.size!r}, which is no number of bytes")
            if not isinstance(f.sha256, str) or not _SHA256.match(f.sha256):
                raise broken(f"has no sha256 for {f.path!r}")
            if not safe_path(f.path):
                raise broken(f"names a path outside its folder: {f.path!r}")
        if len({f.path for f in files}) != len(files):
            raise broken("names a file twice")
        if tree_digest(files) != digest:
            raise broken("was altered: its digest is not that of the files that it lists")
        if unknown := set(value) - _KEYS:
            raise broken(f"has the unknown key {min(unknown)!r}")
        end = _CHECKSUM.search(data)
        if "checksum" in value and (not end or hashlib.sha256(data[: end.start()]).hexdigest() != end[1].decode()):
            raise broken("was altered: its checksum differs")
        return Manifest(kind, digest, files, *parts)


def safe_path(path: str) -> bool:
    """Whether a manifest's path stays in its folder on every system, and is no file of our own."""
    p = PurePosixPath(path)
    odd = path in ("", ".") or "\\" in path or "\0" in path or ":" in path or path in (MANIFEST, REMEMBERED)
    return not odd and not p.is_absolute() and ".." not in p.parts and str(p) == path
