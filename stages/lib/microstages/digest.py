"""sha256 of files and trees, in parallel, remembered as long as the files provably did not change.

A remembered hash is used again only while size, modification time, change time and inode of its file are the same and
the change time lies clearly before the hashing. Writing to a file always moves its change time, which no program can
set back, so an edit of equal size with a restored modification time is noticed. What is remembered never decides what
a digest is, only whether bytes are read again.

The digest of a tree is the sha256 over its files in the order of their paths, a line each: `sha256  size  path`.
Equal bytes under equal names have equal digests, wherever and whenever they were made. The digest of a single file is
the sha256 of its bytes alone: its name does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages.errors import UserError

# Two writes within one tick of the file system's clock leave the same change time: younger hashes are not remembered.
TICK_NS = 20_000_000

Memory = dict[str, list[Any]]  # path -> [size, mtime_ns, ctime_ns, inode, hashed_at_ns, sha256]


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact: its path below the folder (posix), size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


def tree_digest(files: Iterable[FileEntry]) -> str:
    """`sha256:<hex>` over the files' hashes, sizes and paths, in the order of the paths."""
    h = hashlib.sha256()
    for f in sorted(files, key=lambda f: f.path):
        h.update(f"{f.sha256}  {f.size}  {f.path}\n".encode())
    return f"sha256:{h.hexdigest()}"


def hash_files(files: Mapping[str, Path], memory: Memory | None = None) -> tuple[list[FileEntry], Memory]:
    """Hash files (name -> where it lies), all cores; unchanged ones are taken from `memory`.

    Returns the entries in the order of the names, and what to remember for the next time.
    Raises UserError where a file cannot be read or changes while it is read.
    """
    memory = memory or {}
    names = sorted(files)
    stats = {name: _stat(files[name]) for name in names}
    todo = [n for n in names if not _unchanged(stats[n], memory.get(n))]
    at = time.time_ns()
    todo.sort(key=lambda n: -stats[n].st_size)
    if len(todo) > 1 and sum(stats[n].st_size for n in todo) > 4 << 20:
        with ThreadPoolExecutor(min(len(todo), os.cpu_count() or 1, 16)) as pool:
            hashes = dict(zip(todo, pool.map(lambda n: _hash(files[n], stats[n]), todo), strict=True))
    else:
        hashes = {n: _hash(files[n], stats[n]) for n in todo}
    entries: list[FileEntry] = []
    remembered: Memory = {}
    for n in names:
        s, old = stats[n], memory.get(n)
        if n in hashes:
            remembered[n] = [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, at, hashes[n]]
        elif old is not None:
            remembered[n] = old
        entries.append(FileEntry(n, s.st_size, remembered[n][5]))
    return entries, remembered


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise UserError("no such file", where=path, fix="check the path") from None


def _unchanged(s: os.stat_result, old: list | None) -> bool:
    return (
        old is not None
        and old[:4] == [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]
        and s.st_ctime_ns < old[4] - TICK_NS
    )


def still_known(files: Mapping[str, Path], memory: Memory) -> dict[str, str]:
    """Name -> sha256 of the files that are as they were when they were hashed."""
    return {n: memory[n][5] for n, path in files.items() if _unchanged(_stat(path), memory.get(n))}


def _hash(path: Path, before: os.stat_result) -> str:
    with path.open("rb", buffering=0) as f:
        value = hashlib.file_digest(f, "sha256").hexdigest()
        after = os.fstat(f.fileno())
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise UserError(
            "the file changed while it was read", where=path, fix="wait until it is written, then run again"
        )
    return value


def cache_folder() -> Path:
    """Where this user's caches lie: $MICROSTAGES_CACHE, or the platform's cache folder."""
    if own := os.environ.get("MICROSTAGES_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "microstages"


def _memory_file(key: str) -> Path:
    return cache_folder() / "hashes" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def recall(file: Path) -> Memory:
    """The remembered hashes of a file; nothing where there is none or it cannot be understood (then all is hashed)."""
    try:
        # never through a link, never waiting: what a stage left under this name is not trusted
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as f:
            value = json.loads(f.read())
        return {str(k): list(v) for k, v in value.items() if len(v) == 6 and all(isinstance(n, int) for n in v[:5])}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def remember(file: Path, memory: Memory) -> None:
    """Keep remembered hashes; where the place cannot be written they are simply not kept."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fd, new = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}.")
        try:
            with open(fd, "w") as f:
                f.write(json.dumps(memory))
            os.chmod(new, 0o644)
            os.replace(new, file)
        except OSError:
            os.unlink(new)
    except OSError:
        pass


def hash_tree(root: Path, files: Mapping[str, Path]) -> list[FileEntry]:
    """As `hash_files`, for a tree of the user's own; the memory is kept in this user's cache folder."""
    file = _memory_file(str(root.resolve()))
    old = recall(file)
    entries, new = hash_files(files, old)
    if new != old:
        remember(file, new)
    return entries
