"""The runner, which dies (`kill -9`) before its n-th change below a folder: of a file, of its history, of a process.

python tests/chaos/dying.py N FOLDER up --json      # N = 0: it lives; its last word on stderr is how many there were
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from typing import Any

CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Countdown:
    """Counts changes, and ends this process at one of them."""

    def __init__(self, last: int, folder: str) -> None:
        self.last, self.folder, self.count = last, folder, 0

    def change(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: Python calls it before it does what the event names."""
        if event in CHANGES:
            hit = any(self.folder in str(a) for a in arguments[:2])
        elif event == "open":
            hit = self.folder in str(arguments[0]) and bool((arguments[2] or 0) & WRITING)
        else:
            hit = event == "subprocess.Popen"
        if hit:
            self.change()

    def connect(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        """As sqlite3.connect: every statement that writes is a change."""
        change = self.change

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
                if not sql.lstrip().startswith(("SELECT", "PRAGMA")):
                    change()
                return super().execute(sql, *values)

        return _connect(*arguments, **options, factory=Connection)


_connect = sqlite3.connect


def main() -> None:
    countdown = Countdown(int(sys.argv[1]), sys.argv[2])
    from runner.cli import main as runner

    sys.argv = ["runner", *sys.argv[3:]]
    sqlite3.connect = countdown.connect  # type: ignore[assignment]
    sys.addaudithook(countdown.hear)
    try:
        runner()
    finally:
        print(countdown.count, file=sys.stderr)


if __name__ == "__main__":
    main()
