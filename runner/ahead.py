"""Hashes the files of a plain command's outputs while the command still runs.

The kernel tells when a file was closed after writing (inotify). Then it is hashed beside the command, on a core that
would be idle, and the draft is told; what changes afterwards is noticed by its change time and hashed again when the
draft is committed. So what is remembered here never decides what a digest is, only whether bytes are read twice. Where
there is no inotify everything is hashed at the end.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from microstages.artifact import Draft
from microstages.digest import TICK_NS, hash_files
from microstages.errors import UserError

SMALL = 8 << 20  # bytes; smaller files are hashed at the end, that costs nothing
_CLOSE_WRITE, _MOVED_TO, _CREATE, _ISDIR = 0x8, 0x80, 0x100, 0x40000000
_EVENT = struct.Struct("iIII")


class Ahead:
    """Watches the folders of some drafts. `stop` before they are committed or dropped."""

    def __init__(self, drafts: Iterable[Draft]) -> None:
        self._folders: dict[int, tuple[Draft, Path]] = {}
        self._stopping, self._stop = os.pipe()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._waiting: dict[Path, Draft] = {}
        if self._fd >= 0:  # before the command begins, so that none of its files is met half-written
            for draft in drafts:
                self._add(draft, draft.path)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self, wait: bool = True) -> None:
        """End the watching; `wait` for a file that is being hashed."""
        if self._stop >= 0:
            os.close(self._stop)
            self._stop = -1
        if wait:
            self._thread.join()

    def _run(self) -> None:
        try:
            if self._fd >= 0:
                poller = select.poll()
                poller.register(self._fd, select.POLLIN)
                poller.register(self._stopping, select.POLLHUP)
                while not any(fd == self._stopping for fd, _ in poller.poll(0 if self._waiting else None)):
                    self._listen()
                    if self._waiting:
                        path = next(iter(self._waiting))
                        self._hash(self._waiting.pop(path), path)
        finally:
            for fd in (self._fd, self._stopping):
                if fd >= 0:
                    os.close(fd)

    def _add(self, draft: Draft, folder: Path) -> None:
        """Watch a folder and those in it. What lies there already may be finished: it is looked at."""
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(folder), _CLOSE_WRITE | _MOVED_TO | _CREATE)
        if number < 0:
            return
        self._folders[number] = (draft, folder)
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    self._add(draft, Path(entry.path))
                else:
                    self._waiting[Path(entry.path)] = draft

    def _listen(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._fd, 65536)
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                at += _EVENT.size + length
                if number in self._folders:
                    draft, folder = self._folders[number]
                    path = folder / os.fsdecode(name)
                    if mask & _ISDIR:
                        self._add(draft, path)
                    elif mask & (_CLOSE_WRITE | _MOVED_TO):
                        self._waiting[path] = draft

    def _hash(self, draft: Draft, path: Path) -> None:
        # A file that is gone again, or written to meanwhile, is left to the end.
        with suppress(OSError, UserError):
            status = path.stat()
            if status.st_size < SMALL or path.is_symlink():
                return
            # Only a file older than a tick of the clock shows any later change by its change time.
            time.sleep(max(0.0, (status.st_ctime_ns + 2 * TICK_NS - time.time_ns()) / 1e9))
            name = path.relative_to(draft.path).as_posix()
            draft.known.update(hash_files({name: path})[1])
