"""Reads what lies at remote URIs: artifacts, and things from outside, through the local cache.

An artifact is what its manifest says, so it is fetched once by content, checked, and used by all. What a thing from
outside is, its store says: the sizes and tags (etags) of its files, the commit of a repository. That is its digest,
known without fetching it; where a store has no tags it is the digest of the bytes.
"""

from __future__ import annotations

import glob
import hashlib
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from microstages import cache, storage
from microstages.artifact import Artifact, check_kind, content_digest, outside_digest, outside_kind
from microstages.digest import TICK_NS, Memory, remember
from microstages.errors import DamagedError, UserError
from microstages.manifest import MANIFEST, REMEMBERED, Manifest
from microstages.storage import UNKNOWN, Entry


def open_remote(uri: str, kinds: tuple[str, ...]) -> Artifact:
    """See `artifact.open_artifact`."""
    from microstages.artifact import as_artifact, verify

    if uri.startswith("hf://"):
        from microstages.hub import open_repository

        return open_repository(uri, kinds)
    shown = storage.public(uri)
    manifest = _manifest(uri, kinds)
    if manifest is None:
        return _Thing.at(uri, kinds).fetched(kinds)
    key = manifest.digest.removeprefix("sha256:")
    for last in (False, True):
        folder = cache.entry("artifacts", key, manifest.size, lambda into: _fill(uri, into, manifest))
        try:
            verify(folder, manifest)
            break
        except DamagedError:  # the copy, not the artifact
            cache.drop("artifacts", key)
            if last:
                raise
    return as_artifact(shown, folder, manifest)


def identify_remote(uri: str, kinds: tuple[str, ...]) -> str:
    """The digest of what lies at a URI, without fetching it where its store can tell."""
    if uri.startswith("hf://"):
        from microstages.hub import identify_repository

        return identify_repository(uri, kinds)
    manifest = _manifest(uri, kinds)
    if manifest is not None:
        return content_digest(manifest)
    thing = _Thing.at(uri, kinds)
    return thing.digest or thing.fetched(kinds).digest


def _manifest(uri: str, kinds: tuple[str, ...]) -> Manifest | None:
    """The manifest of an artifact, None where there is none. By https only a URI that ends in / can be one."""
    if glob.has_magic(uri) or (re.match("https?:", uri) and not uri.endswith("/")):
        return None
    data = storage.read(storage.join(uri, MANIFEST))
    if data is None:
        return None
    manifest = Manifest.from_json(data, storage.public(storage.join(uri, MANIFEST)))
    check_kind(storage.public(uri), manifest.kind, kinds)
    return manifest


def _fill(uri: str, into: Path, manifest: Manifest) -> None:
    hashes = {f.path: f.sha256 for f in manifest.files}
    try:
        storage.download(uri, into, {f.path: f.size for f in manifest.files}, hashes)
    except DamagedError as error:
        error.artifact = uri
        raise
    settle(into, hashes)
    (into / MANIFEST).write_bytes(manifest.to_json())


def keep(folder: Path, manifest: Manifest) -> None:
    """Put what was just sent to a store into the cache: its next reader may be on this machine."""
    settle(folder, {f.path: f.sha256 for f in manifest.files})
    (folder / MANIFEST).write_bytes(manifest.to_json())
    cache.adopt(folder, "artifacts", manifest.digest.removeprefix("sha256:"))


def settle(folder: Path, hashes: Mapping[str, str]) -> None:
    """Remember the hashes (name -> sha256) of files that were just written and checked."""
    youngest = max(((folder / name).stat().st_ctime_ns for name in hashes), default=0)
    time.sleep(max(0.0, (youngest + 2 * TICK_NS - time.time_ns()) / 1e9))
    now = time.time_ns()
    memory: Memory = {}
    for name, sha256 in hashes.items():
        s = (folder / name).stat()
        memory[name] = [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, now, sha256]
    remember(folder / REMEMBERED, memory)


@dataclass(frozen=True)
class _Thing:
    """Something from outside: `files` below `root` (one file: `name` is its own). `digest` is empty without tags."""

    uri: str
    root: str
    name: str
    files: Mapping[str, Entry]
    digest: str
    kind: str

    @staticmethod
    def at(uri: str, kinds: tuple[str, ...]) -> _Thing:
        """What lies at a URI. Raises UserError where nothing does, or it is of another kind."""
        shown = storage.public(uri)
        root, pattern = _pattern(uri)
        found = storage.entries(root)
        single = PurePosixPath(shown).name if set(found) == {""} else ""
        files = {
            n: e for n, e in found.items() if single or (_belongs(n) and (pattern is None or re.fullmatch(pattern, n)))
        }
        if not files:
            what = "no file matches this pattern" if pattern else "nothing is there"
            raise UserError(what, where=shown, fix="check the address and the credentials")
        kind = outside_kind(shown, single, sorted(files), kinds)
        # a tag tells two versions of one address apart, not two addresses
        lines = [f"{storage.public(root)}\n", *(f"{e.tag}  {e.size}  {n}\n" for n, e in sorted(files.items()))]
        proven = all(e.tag for e in files.values())
        digest = f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}" if proven else ""
        return _Thing(shown, root, single, files, digest, kind)

    def fetched(self, kinds: tuple[str, ...]) -> Artifact:  # noqa: ARG002
        """The thing on this machine."""
        size = sum(max(0, e.size) for e in self.files.values())
        if self.digest:
            folder = cache.entry("outside", self.digest.removeprefix("sha256:"), size, self._fill)
            path = folder / self.name if self.name else folder
            return Artifact(self.uri, path, self.kind, self.digest, tuple(self._names()))
        partial, lock = cache.outgoing()  # nothing tells whether it is the one from before
        try:
            self._fill(partial)
            digest = outside_digest(partial / self.name if self.name else partial)

            def move(into: Path) -> None:
                shutil.copytree(partial, into, dirs_exist_ok=True)

            folder = cache.entry("outside", digest.removeprefix("sha256:"), size, move)
        finally:
            cache.ended(partial, lock)
        return Artifact(self.uri, folder / self.name if self.name else folder, self.kind, digest, tuple(self._names()))

    def _names(self) -> list[str]:
        return [self.name] if self.name else sorted(self.files)

    def _fill(self, into: Path) -> None:
        """Fetch the files. Raises UserError where they changed meanwhile; then nothing of them stays."""
        _clear_after_boot(into)
        self._fetch(into)
        now = storage.entries(self.root)
        if any(now.get(n) is None or now[n].tag != e.tag for n, e in self.files.items()):
            _empty(into)
            raise UserError("it changed while it was fetched", where=self.uri, fix="run again")

    def _fetch(self, into: Path) -> None:
        if self.name:
            above = self.root.rsplit("/", 1)[0]
            entry = self.files[""]
            if entry.size == UNKNOWN:
                storage.fetch_whole(self.root, into / self.name)
                return
            storage.download(above, into, {self.name: entry.size}, tags={self.name: entry.tag})
            return
        sizes, tags = ({n: getattr(e, k) for n, e in self.files.items()} for k in ("size", "tag"))
        storage.download(self.root, into, sizes, tags=tags)


def _clear_after_boot(folder: Path) -> None:
    """Empty a folder that was filled before this machine was started: what a disk holds after a power cut may not be
    what was written, and here no hash tells."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    now = boot.read_text() if boot.exists() else ""
    mark = folder / ".boot"
    if not mark.exists() or mark.read_text() != now:
        _empty(folder)
        mark.write_text(now)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _pattern(uri: str) -> tuple[str, str | None]:
    """A URI with a glob pattern as the folder that it begins with and a regular expression for the names below."""
    if re.match("https?:", uri) or not glob.has_magic(uri):
        return uri, None
    from fsspec.utils import glob_translate

    head = uri[: re.search(r"[*?[]", uri).start()].rpartition("/")[0]  # type: ignore[union-attr]
    return head, glob_translate(uri[len(head) + 1 :])


def _belongs(name: str) -> bool:
    """Hidden files do not belong to a thing, as on a disk."""
    parts = PurePosixPath(name).parts
    return not any(p.startswith(".") or p == "__pycache__" for p in parts) and parts[-1:] != (MANIFEST,)
