"""A terminal for tests: a program on a pseudo-terminal, and the screen that a person would see, by pyte."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pyte

PATIENCE = 90.0  # seconds for which something is waited for; only a test that fails waits so long
# What would make a program take this terminal for another one.
OTHERS = ("CI", "NO_COLOR", "JPY_PARENT_PID", "MPLBACKEND", "TMUX", "TERM_PROGRAM", "VTE_VERSION", "WT_SESSION")


class Terminal:
    """A program on a terminal of its own. It is ended when the block ends."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], columns: int = 80, lines: int = 24
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self.drawn = b""
        self._stream = pyte.ByteStream(self.screen)
        self._far, near = pty.openpty()
        self._size(columns, lines)
        own = {k: v for k, v in os.environ.items() if k not in OTHERS} | {"TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            command, cwd=folder, env={**own, **{k: v for k, v in environment.items() if k not in OTHERS}},
            stdin=near, stdout=near, stderr=near, start_new_session=True,
        )  # fmt: skip
        os.close(near)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _where: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._far)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, without the empty lines below."""
        text = "\n".join(line.rstrip() for line in self.screen.display).rstrip()
        return text.split("\n")

    @property
    def text(self) -> str:
        """What stands on the screen and above it, where one can scroll to."""
        above = ["".join(row[x].data for x in range(self.screen.columns)).rstrip() for row in self.screen.history.top]
        return "\n".join([*above, *self.lines])

    def resize(self, columns: int, lines: int) -> None:
        """Make the window larger or smaller. What stands there is cut, not broken anew, as xterm does."""
        self._size(columns, lines)
        self.screen.resize(lines, columns)

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._far, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def send(self, data: bytes) -> None:
        os.write(self._far, data)

    def until(self, seen: str | Callable[[list[str]], object]) -> list[str]:
        """The lines of the screen as soon as a text stands there, or they are as a function wants them."""
        wanted = seen if callable(seen) else lambda lines: seen in "\n".join(lines)
        end = time.monotonic() + PATIENCE
        while not wanted(self.lines):
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"never seen: {seen}\n" + "\n".join(self.lines))
        return self.lines

    def end(self) -> int:
        """Read until the program is over; its exit code."""
        end = time.monotonic() + PATIENCE
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(max(1.0, end - time.monotonic()))

    def _read(self, seconds: float) -> bool:
        """Take in what was drawn; False where nothing comes any more."""
        if not select.select([self._far], [], [], max(0.0, seconds))[0]:
            return False
        try:
            data = os.read(self._far, 65536)
        except OSError:  # the other side is closed
            return False
        self.drawn += data
        self._stream.feed(data)
        return bool(data)
