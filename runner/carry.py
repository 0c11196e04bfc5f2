"""Copies an artifact from one place to another: the same bytes, the same manifest, checked on the way.

- Nothing is an artifact at its new place before all of it is there: a local copy grows in a hidden folder beside it and
  is renamed; a remote one gets its manifest last.
- A copy that was cut off is continued by making it again. A local one goes on in its hidden folder, file by file. A
  remote place holds `artifact.json.partial` until it is whole, so that nothing else is taken for a copy that was cut
  off; what this machine sent there, and nobody has changed since, is not sent again.
- What lies at the new place already is never changed: the same artifact is left as it is, anything else is an error
  (but for `pull --replace`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.artifact import open_artifact
from microstages.digest import cache_folder, hash_files
from microstages.errors import TemporaryError, UserError, from_os_error
from microstages.manifest import MANIFEST, REMEMBERED, Manifest

MARK = f"{MANIFEST}.partial"  # at a remote place: a copy is not whole yet, and of what
BATCH = 1 << 30  # bytes sent between two notes of what has arrived
BATCH_FILES = 256


@dataclass(frozen=True)
class Source:
    """An artifact to copy: its manifest as it lies there, byte for byte."""

    uri: str
    data: bytes
    manifest: Manifest


def source(uri: str, digest: str = "") -> Source:
    """The artifact at a URI. Raises UserError where there is none, or not the one with this digest."""
    data = storage.read(storage.join(uri, MANIFEST))
    where = storage.public(uri)
    if data is None:
        fix = "name an artifact that a stage or `runner push` made" if not digest else "runner up makes it again"
        raise UserError(f"no artifact is there (no {MANIFEST})", where=where, fix=fix)
    manifest = Manifest.from_json(data, storage.join(where, MANIFEST))
    if digest and manifest.digest != digest:
        raise UserError("it is not what was committed", where=where, fix="runner up makes it again")
    return Source(uri, data, manifest)


def copy(artifact: Source, dest: str, replace: Sequence[str] | None = None) -> bool:
    """Copy an artifact to a new place; False where it is there already.

    Raises UserError where something else is there, or a file of the artifact is missing or altered; TemporaryError
    where another copy is being made there, or a store does not answer. With `replace` an artifact in a folder of this
    machine gives way, unless files lie there that are neither its own nor of these names.
    """
    folder = storage.local_path(dest)
    return _to_store(artifact, dest) if folder is None else _to_folder(artifact, folder.absolute(), replace)


# --- to this machine ---


def _to_folder(artifact: Source, dest: Path, replace: Sequence[str] | None = None) -> bool:
    try:
        if old := None if replace is None else _old(artifact, dest, replace):
            return _exchange(artifact, dest, old)
        if _same_folder(artifact, dest):
            return False
        short = artifact.manifest.digest.removeprefix("sha256:")[:12]
        with _locked(dest.parent / f".{dest.name}.{short}.partial") as partial:
            if _same_folder(artifact, dest):  # another copy was faster
                shutil.rmtree(partial)
                return False
            _fill(artifact, partial)
            (partial / MANIFEST).write_bytes(artifact.data)
            os.rename(partial, dest)
        return True
    except OSError as error:
        raise from_os_error(error, dest) or UserError(str(error), where=dest) from None


def _old(artifact: Source, dest: Path, others: Sequence[str]) -> Manifest | None:
    """The artifact in a folder that is to give way; None where none is there, or this one as it should be. Raises
    UserError where that cannot be removed: it is no artifact, or somebody else's files lie in it."""
    data = storage.read(storage.join(str(dest), MANIFEST)) if dest.is_dir() and not dest.is_symlink() else None
    if data is None:
        return None
    there = Manifest.from_json(data, dest / MANIFEST)
    with suppress(UserError):
        if _same_folder(artifact, dest):
            return None
    own = {f.path for f in there.files} | {MANIFEST, REMEMBERED, *others}
    strange = sorted(n for p in dest.rglob("*") if not p.is_dir() and (n := p.relative_to(dest).as_posix()) not in own)
    if strange:
        what = f"{len(strange)} files that are no part of the artifact lie there, such as {strange[0]}"
        what = what if len(strange) > 1 else f"{strange[0]} lies there, which is no part of the artifact"
        raise UserError(what, where=dest, fix="--replace removes an artifact only: move what is yours elsewhere")
    return there


def _exchange(artifact: Source, dest: Path, old: Manifest) -> bool:
    """Fill a folder beside the old one, then let them change places; one that is whole is there but for a moment."""
    short = artifact.manifest.digest.removeprefix("sha256:")[:12]
    gone = dest.parent / f".{dest.name}.{old.digest.removeprefix('sha256:')[:12]}.replaced"
    with _locked(dest.parent / f".{dest.name}.{short}.partial") as partial:
        _fill(artifact, partial)
        (partial / MANIFEST).write_bytes(artifact.data)
        shutil.rmtree(gone, ignore_errors=True)  # of one that was cut off
        os.rename(dest, gone)
        try:
            os.rename(partial, dest)
        except OSError:
            os.rename(gone, dest)
            raise
        shutil.rmtree(gone)
    return True


def _same_folder(artifact: Source, dest: Path) -> bool:
    """Whether the artifact is at a local place already. Raises UserError where something else is."""
    there = sorted(os.listdir(dest)) if dest.is_dir() else None
    if there is None and not os.path.lexists(dest):
        return False
    if there == []:
        return False
    data = storage.read(storage.join(str(dest), MANIFEST)) if there else None
    sizes = {n: (dest / n).stat().st_size for n in (f.path for f in artifact.manifest.files) if (dest / n).is_file()}
    return _same(artifact, str(dest), data, sizes, "or take `runner pull --replace`")


def _same(artifact: Source, where: str, data: bytes | None, sizes: dict[str, int], fix: str = "or remove it") -> bool:
    if data is None:
        raise UserError("something else lies there", where=where, fix="choose a new place, or remove it")
    there = Manifest.from_json(data, storage.join(where, MANIFEST))
    if there.digest != artifact.manifest.digest:
        what = f"another artifact lies there ({there.kind}, {there.digest[:19]}…)"
        raise UserError(what, where=where, fix=f"artifacts are immutable: choose a new place, {fix}")
    for f in artifact.manifest.files:
        if sizes.get(f.path) != f.size:
            what = "the same artifact lies there, but this file of it is missing or altered"
            remedy = "remove the folder and copy it again" + (f", {fix}" if "pull" in fix else "")
            raise UserError(what, where=storage.join(where, f.path), fix=remedy)
    return True


@contextmanager
def _locked(partial: Path) -> Iterator[Path]:
    """A folder that one process at a time fills. It stays where that process dies."""
    partial.mkdir(parents=True, exist_ok=True)
    fd = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
    except BlockingIOError:
        raise TemporaryError("another copy is being made there now", where=partial, fix="wait for it") from None
    finally:
        os.close(fd)


def _fill(artifact: Source, partial: Path) -> None:
    """Bring every file into a folder, and check it. What is there already from an earlier time is kept."""
    files = {f.path: f for f in artifact.manifest.files}
    for name in (MANIFEST, REMEMBERED):
        (partial / name).unlink(missing_ok=True)
    for name in _different(artifact, partial):
        (partial / name).unlink(missing_ok=True)
    missing = [n for n in files if not os.path.lexists(partial / n)]
    origin = storage.local_path(artifact.uri)
    if origin is None:
        sizes = {n: files[n].size for n in missing}
        storage.download(artifact.uri, partial, sizes, {n: files[n].sha256 for n in missing})
    else:
        for name in missing:
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(origin / name, target)
            except FileNotFoundError:
                raise _damaged(f"{origin / name}", "is missing") from None
        for name in _different(artifact, partial, missing):
            raise _damaged(f"{origin / name}", "was altered")
    extra = {p.relative_to(partial).as_posix() for p in partial.rglob("*") if not p.is_dir()} - set(files)
    for name in extra:
        (partial / name).unlink()


def _different(artifact: Source, folder: Path, names: list[str] | None = None) -> list[str]:
    """The files in a folder that are not those of the artifact, every byte read."""
    wanted = {f.path: f for f in artifact.manifest.files if names is None or f.path in names}
    there = {n: folder / n for n in wanted if (folder / n).is_file() and not (folder / n).is_symlink()}
    right = {n: p for n, p in there.items() if p.stat().st_size == wanted[n].size}
    found = hash_files(right)[0]
    good = {f.path for f in found if f == wanted[f.path]}
    return sorted(n for n in wanted if os.path.lexists(folder / n) and n not in good)


def _damaged(where: str, what: str) -> UserError:
    fix = "the artifact is damaged: runner verify names all of it, runner up makes a result again"
    return UserError(f"this file of the artifact {what}", where=where, fix=fix)


# --- to a store ---


def _to_store(artifact: Source, dest: str) -> bool:
    where = storage.public(dest)
    have = storage.entries(dest)
    if MANIFEST in have:
        data = storage.read(storage.join(dest, MANIFEST))
        same = _same(artifact, where, data, {n: e.size for n, e in have.items()})
        storage.remove(storage.join(dest, MARK))
        return not same
    digest = artifact.manifest.digest
    mark = storage.join(dest, MARK)
    if MARK not in have:
        if have:
            raise UserError("something else lies there", where=where, fix="choose a new address, or remove it")
        storage.create(mark, f"{digest}\n".encode())
    if (storage.read(mark) or b"").decode().strip() != digest:
        what = "a copy of another artifact was begun there, and is not whole"
        raise UserError(what, where=where, fix="choose a new address, or remove it")
    sent = Sent(dest, digest)
    folder = _on_this_machine(artifact)
    left = [f for f in artifact.manifest.files if not sent.still(f.path, f.size, have.get(f.path))]
    for batch in _batches(left):
        _send(folder, dest, batch)
        sent.note([f.path for f in batch], storage.entries(dest))
    have = storage.entries(dest)
    for f in artifact.manifest.files:
        if f.path not in have or have[f.path].size != f.size:
            raise TemporaryError("this file did not arrive whole", where=storage.join(where, f.path), fix="run again")
    made = storage.create(storage.join(dest, MANIFEST), artifact.data)
    if not made:  # another copy was faster
        _same(artifact, where, storage.read(storage.join(dest, MANIFEST)), {n: e.size for n, e in have.items()})
    storage.remove(mark)
    sent.forget()
    return made


def _on_this_machine(artifact: Source) -> Path:
    """The folder whose files are sent: the artifact itself, or a remote one's copy in the cache, verified."""
    return storage.local_path(artifact.uri) or open_artifact(artifact.uri, [artifact.manifest.kind]).path


def _send(folder: Path, dest: str, batch: list[Any]) -> None:
    """Send files, hashed on the way."""
    for f in batch:
        if not (folder / f.path).is_file():
            raise _damaged(f"{folder / f.path}", "is missing")
        if (folder / f.path).stat().st_size != f.size:
            raise _damaged(f"{folder / f.path}", "was altered")
    hashes = storage.upload(folder, dest, [f.path for f in batch], resume=True)
    for f in batch:
        if hashes[f.path] != f.sha256:
            storage.remove(storage.join(dest, f.path))
            raise _damaged(f"{folder / f.path}", "was altered")


def _batches(files: list[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for f in files:
        batch.append(f)
        if len(batch) == BATCH_FILES or sum(b.size for b in batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class Sent:
    """What this machine has sent to a place: name -> size and tag. It only spares sending it again."""

    def __init__(self, dest: str, digest: str) -> None:
        key = hashlib.sha256(f"{dest} {digest}".encode()).hexdigest()[:32]
        self.file = cache_folder() / "sent" / f"{key}.json"
        self.known: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError):
            self.known = dict(json.loads(self.file.read_bytes()))

    def still(self, name: str, size: int, entry: Any) -> bool:
        """Whether a file lies there just as it was sent. Where the store has no tags that is not known."""
        return entry is not None and bool(entry.tag) and self.known.get(name) == [size, entry.tag]

    def note(self, names: list[str], entries: dict[str, Any]) -> None:
        self.known |= {n: [entries[n].size, entries[n].tag] for n in names if n in entries}
        with suppress(OSError):
            storage.replace(str(self.file), json.dumps(self.known).encode())

    def forget(self) -> None:
        with suppress(OSError):
            self.file.unlink()
