"""The writing side of artifacts; see `artifact`."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from microstages import cache, storage
from microstages.digest import TICK_NS, FileEntry, Memory, hash_files, remember, still_known, tree_digest
from microstages.errors import UserError
from microstages.manifest import MANIFEST, REMEMBERED, Manifest

WORTH_A_TICK = 20_000_000  # bytes: hashing them again takes longer than waiting
ATTEMPT = "MICROSTAGES_ATTEMPT"  # the name of the attempt that this process is, in its environment
WRITING = ".writing"  # lies beside what is being sent to a store, so that two writers do not mix


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
        self._lock: int | None = None  # says that a draft in the cache is alive
        self._token = secrets.token_hex(16).encode()  # by which it knows its own mark in a store again
        self.target = storage.local_path(uri)
        # a cluster may start an attempt once more: what its forerunner left is in nobody's way
        self._again = os.environ.get(ATTEMPT, "/") in uri.split("/")
        if self.target is not None:
            if self._again:
                shutil.rmtree(self.target, ignore_errors=True)
            if self.target.is_file() or (self.target.is_dir() and any(self.target.iterdir())):
                raise UserError(
                    "something lies there already",
                    where=uri,
                    fix="artifacts are immutable: choose a new folder, or remove this",
                )
            parent = self.target.absolute().parent
            try:
                parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                file = next(p for p in (parent, *parent.parents) if p.exists() and not p.is_dir())
                what = f"no folder can be made there: {file.name} is a file"
                raise UserError(what, where=uri, fix="choose a place where no file stands in the way") from None
            self.path = parent / f".{self.target.name}.{secrets.token_hex(4)}.partial"
        else:
            if storage.read(storage.join(uri, MANIFEST)) is not None and not self._again:
                raise UserError("an artifact lies there already", where=storage.public(uri), fix="choose a new address")
            self.path, self._lock = cache.outgoing()
            return
        self.path.mkdir(parents=True)

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            cache.ended(self.path, self._lock)
            self._lock = None

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
        if self.target is None:
            return self._send(names, known, provenance)
        entries, memory = hash_files({n: self.path / n for n in names}, known)
        manifest = Manifest(self.kind, tree_digest(entries), tuple(entries), self.metadata, self.metrics, provenance)
        remember(self.path / REMEMBERED, memory)
        self._move(manifest)
        return manifest

    def _send(self, names: Sequence[str], known: Memory, provenance: Mapping[str, Any]) -> Manifest:
        """Copy the files to their store, hashing them on the way, the manifest last."""
        mark = storage.join(self.uri, WRITING)
        if self._again:
            storage.remove(self.uri)
        if not storage.create(mark, self._token):
            what = "somebody else is writing there, or was ended in the middle of it"
            raise UserError(what, where=storage.public(self.uri), fix="choose a new address, or remove what lies there")
        try:
            return self._send_all(names, known, provenance)
        finally:
            with suppress(UserError):
                storage.remove(mark)

    def _send_all(self, names: Sequence[str], known: Memory, provenance: Mapping[str, Any]) -> Manifest:
        if storage.read(storage.join(self.uri, MANIFEST)) is not None:
            raise UserError(
                "an artifact lies there already", where=storage.public(self.uri), fix="choose a new address"
            )
        sizes = {n: (self.path / n).stat().st_size for n in names}
        hashes = storage.upload(self.path, self.uri, names, still_known({n: self.path / n for n in names}, known))
        entries = tuple(FileEntry(n, sizes[n], hashes[n]) for n in names)
        manifest = Manifest(self.kind, tree_digest(entries), entries, self.metadata, self.metrics, provenance)
        if not storage.create(storage.join(self.uri, MANIFEST), manifest.to_json()):
            what = "an artifact lies there already"
            raise UserError(what, where=storage.public(self.uri), fix="choose a new address")
        self.manifest = manifest
        if self.kind != "checkpoint":  # who reads it next may be on this machine
            from microstages.elsewhere import keep

            keep(self.path, manifest)
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

    def _move(self, manifest: Manifest) -> None:
        (self.path / MANIFEST).write_bytes(manifest.to_json())
        assert self.target is not None
        try:
            os.rename(self.path, self.target)
        except OSError as error:
            if self.target.is_dir() and any(self.target.iterdir()):
                raise UserError("something lies there already", where=self.uri, fix="choose a new folder") from error
            raise
        self.manifest = manifest
