"""The local cache of what comes from, and goes to, stores elsewhere: addressed by content, safe for several processes.

    <cache>/artifacts/<digest>/    whole artifacts, as in a local store
    <cache>/outside/<identity>/    things from outside, named by what their store says they are
    <cache>/…/.<key>.partial/      one being fetched; a fetch that was cut off goes on from there
    <cache>/outgoing/<random>/     drafts on their way to a store
    <cache>/locks/                 locks; they end with the process that holds them, however it ends

An entry is fetched by one process, the others wait for it. Whoever uses an entry holds a lock on it as long as it
lives, and what is in use is never removed. When the cache is larger than $MICROSTAGES_CACHE_SIZE (50 GB), or the disk
is full, what was not used for longest goes.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from microstages.digest import cache_folder
from microstages.errors import UserError, from_os_error
from microstages.watch import watching

GROUPS = ("artifacts", "outside")
LIMIT = "50GB"
SPARE = 256 << 20  # bytes that are left free on the disk
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_used: dict[Path, int] = {}  # entry -> descriptor of the lock that this process holds on it


def limit() -> int:
    """Bytes that the cache may take. Raises UserError where $MICROSTAGES_CACHE_SIZE is not a size."""
    text = os.environ.get("MICROSTAGES_CACHE_SIZE") or LIMIT
    found = re.fullmatch(r"(?i)\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text)
    if found is None:
        raise UserError(f"{text!r} is no size", where="MICROSTAGES_CACHE_SIZE", fix="give one such as 20GB")
    return int(float(found[1]) * _UNITS[(found[2] or "").lower()])


def entry(group: str, key: str, size: int, fill: Callable[[Path], None]) -> Path:
    """The folder of an entry, fetched by `fill` where it is not there, and kept as long as this process lives.

    `fill` writes into a folder that may hold what an earlier call left; `size`: bytes that it will take.
    """
    folder = cache_folder() / group / key
    try:
        _hold(folder)
        if not folder.is_dir():
            with _fetching(folder):
                if not folder.is_dir():
                    partial = folder.with_name(f".{key}.partial")
                    partial.mkdir(parents=True, exist_ok=True)
                    make_room(size, but=folder)
                    fill(partial)
                    try:
                        os.rename(partial, folder)
                    except OSError:
                        if not folder.is_dir():
                            raise
                        shutil.rmtree(partial, ignore_errors=True)  # `adopt` was faster
    except OSError as error:
        raise from_os_error(error, folder) or error from None
    return folder


def drop(group: str, key: str) -> None:
    """Remove a damaged entry, so that it is fetched again. Who has its files open may read on."""
    folder = cache_folder() / group / key
    with _fetching(folder):
        _remove(folder)


def _remove(folder: Path) -> None:
    """A folder vanishes at once, then its files are removed."""
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.gone")
    with suppress(OSError):
        os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def outgoing() -> tuple[Path, int]:
    """A new folder for a draft, and the descriptor of the lock that says that it is alive: close it at the end."""
    with suppress(UserError):  # a full disk is told by who writes
        make_room(0)
    folder = cache_folder() / "outgoing" / secrets.token_hex(8)
    fd = _open_lock(folder)
    fcntl.flock(fd, fcntl.LOCK_EX)
    folder.mkdir(parents=True)
    return folder, fd


def ended(folder: Path, fd: int) -> None:
    """A draft is over: its folder goes, and its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    _lock_file(folder).unlink(missing_ok=True)
    os.close(fd)


def adopt(folder: Path, group: str, key: str) -> None:
    """Make a folder an entry, where there is none; otherwise it stays where it is."""
    target = cache_folder() / group / key
    with suppress(OSError, UserError):
        target.parent.mkdir(parents=True, exist_ok=True)
        _hold(target)
        os.rename(folder, target)
        make_room(0, but=target)


# --- room ---


@dataclass(frozen=True)
class Item:
    """Something in the cache: where it lies, its size in bytes, when it was last used (seconds since 1970), and whether
    a process that lives uses it. `left`: a remainder of a process that died."""

    path: Path
    size: int
    used: float
    in_use: bool
    left: bool


def contents() -> list[Item]:
    """What is in the cache, least lately used first."""
    root = cache_folder()
    items = []
    for group in (*GROUPS, "outgoing"):
        with suppress(OSError):
            for place in os.scandir(root / group):
                path = Path(place.path)
                hidden = re.fullmatch(r"\.(\w+)\.(partial|\w+\.gone)", path.name)
                held = path.with_name(hidden[1]) if hidden else path
                used = _lock_file(held).stat().st_mtime if _lock_file(held).exists() else place.stat().st_mtime
                items.append(Item(path, _size(path), used, _in_use(held), bool(hidden) or group == "outgoing"))
    return sorted(items, key=lambda i: i.used)


def discard(item: Item) -> bool:
    """Remove something of the cache unless a process uses it now; whether it is gone."""
    hidden = re.fullmatch(r"\.(\w+)\.(partial|\w+\.gone)", item.path.name)
    held = item.path.with_name(hidden[1]) if hidden else item.path
    fd = _open_lock(held)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if hidden:
            with _fetching(held, wait=False):
                shutil.rmtree(item.path, ignore_errors=True)
        else:
            _remove(item.path)
            if item.path.parent.name == "outgoing":
                _lock_file(held).unlink(missing_ok=True)
        return not item.path.exists()
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def make_room(size: int, but: Path | None = None) -> None:
    """Remove what was not used for longest until `size` more bytes fit the limit and the disk.

    Raises UserError where they do not fit the disk even so.
    """
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    items = contents()
    total, most = sum(i.size for i in items), limit()
    mine: set[Path] = {but, but.with_name(f".{but.name}.partial")} if but else set()
    for item in items:
        abandoned = item.left and not item.path.name.endswith(".partial")
        full = total + size > most or shutil.disk_usage(root).free < size + SPARE
        if (full or abandoned) and not item.in_use and item.path not in mine and discard(item):
            total -= item.size
    have = sum(map(_size, mine))
    if shutil.disk_usage(root).free < size - have:
        what = f"the disk is full: {size / 1e9:.1f} GB are wanted, {shutil.disk_usage(root).free / 1e9:.1f} GB are free"
        raise UserError(what, where=root, fix="free some space, or choose another place with MICROSTAGES_CACHE")


def _size(path: Path) -> int:
    total = 0
    with suppress(OSError):
        for place in os.scandir(path):
            if place.is_dir(follow_symlinks=False):
                total += _size(Path(place.path))
            else:
                total += place.stat(follow_symlinks=False).st_blocks * 512
    return total


# --- locks ---


def _lock_file(folder: Path) -> Path:
    return cache_folder() / "locks" / f"{folder.parent.name}-{folder.name}"


def _open_lock(folder: Path, what: str = "") -> int:
    file = _lock_file(folder).with_name(_lock_file(folder).name + what)
    file.parent.mkdir(parents=True, exist_ok=True)
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _hold(folder: Path) -> None:
    """Say that this process uses an entry, until it ends."""
    if folder not in _used:
        fd = _open_lock(folder)
        fcntl.flock(fd, fcntl.LOCK_SH)
        _used[folder] = fd
    os.utime(_used[folder])


def _in_use(folder: Path) -> bool:
    if not _lock_file(folder).exists():
        return False
    fd = _open_lock(folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


@contextmanager
def _fetching(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of the one process that may make an entry."""
    fd = _open_lock(folder, ".fetch")
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            watching().note("another process is fetching the same; waiting for it")
            while True:  # short looks, so that a signal is seen
                with suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.1)
        yield
    finally:
        os.close(fd)
