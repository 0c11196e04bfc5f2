"""What a job says, as Azure ML keeps it: one growing file that its stdout and stderr share.

Lines that are events of the stage go into the attempt's file of events, all others into its log. A file that grows is
read from where it was read to. Who takes a job up reads it from the start, and passes over what is in the files
already: the same bytes fall into the same lines. No line is lost, none is there twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from microstages.arm import RefusedError, Rest
from microstages.errors import UserError, from_os_error

from runner.executors import Attempt
from runner.executors.secrets import Redactor

PIECE = 4 << 20  # bytes of one request
FIRST = re.compile(r"user_logs/std_log(_process_0+)?\.txt$")  # of several nodes: the first one's
EXIT = re.compile(rb'\{"event": "exit", "exit_code": (\d+)\}\r?\n?$')  # see body.END


class Lines:
    """Puts the bytes of a log into an attempt's files. `exit_code`: what the job's own last line says."""

    def __init__(self, attempt: Attempt, redact: Redactor) -> None:
        self.exit_code: int | None = None
        self._redact = redact
        self._rest = b""
        self._same = attempt.events == attempt.log
        self._files = {path: _opened(path) for path in {attempt.events, attempt.log}}
        self._known = {path: file.tell() for path, file in self._files.items()}
        self._attempt = attempt

    def feed(self, data: bytes) -> None:
        """More bytes, cut anywhere."""
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        self._put((whole + newline).splitlines(keepends=True))

    def end(self) -> None:
        """There is nothing more: a last line without an end is one too."""
        rest, self._rest = self._rest, b""
        self._put([rest] if rest else [])

    def close(self) -> None:
        for file in self._files.values():
            with suppress(OSError):
                file.close()

    def _put(self, lines: list[bytes]) -> None:
        out: dict[Path, list[bytes]] = {path: [] for path in self._files}
        for line in lines:
            kept = line
            if found := EXIT.search(line):
                self.exit_code, kept = int(found.group(1)), line[: found.start()]
            event = not self._same and _is_event(kept)
            out[self._attempt.events if event else self._attempt.log].append(self._redact.clean(kept))
        for path, pieces in out.items():
            data = b"".join(pieces)
            skip = min(self._known[path], len(data))
            self._known[path] -= skip
            try:
                self._files[path].write(data[skip:])
            except OSError as error:
                raise from_os_error(error, path) or UserError(str(error), where=path) from None


class Log:
    """The file of a job's words, wherever Azure ML says that it is now."""

    def __init__(self, rest: Rest, lines: Lines) -> None:
        self._rest, self._lines = rest, lines
        self._at = 0

    @staticmethod
    def there(files: Mapping[str, str]) -> str:
        """The name of the file, where a job has one: its program has said something."""
        return next((name for name in sorted(files) if FIRST.search(name)), "")

    def read(self, files: Mapping[str, str]) -> bool:
        """Read on, to the end that it has now; whether anything came. `files`: name -> address, as run history has it.

        Raises TemporaryError where it does not answer.
        """
        name = self.there(files)
        if not name:
            return False
        began = self._at
        while data := self._piece(files[name]):
            self._at += len(data)
            self._lines.feed(data)
            if len(data) < PIECE:
                break
        return self._at > began

    def _piece(self, url: str) -> bytes:
        """The next bytes; none where there are none yet. The address is signed: no token goes there."""
        span = f"bytes={self._at}-{self._at + PIECE - 1}"
        try:
            answer = self._rest.ask("GET", url, signed=True, span=span, where="the job's log")
        except RefusedError as error:
            if error.status in (403, 404, 416):  # not written yet, its signature is too old, or nothing new
                size = error.span.rpartition("/")[2]
                if size.isdigit() and int(size) < self._at:  # the job lost its machine, and was begun anew
                    self._lines.end()
                    self._at = 0
                return b""
            raise
        if answer.status == 206:
            return answer.data
        return answer.data[self._at : self._at + PIECE]  # a server that knows no ranges


def _is_event(line: bytes) -> bool:
    if not line.startswith(b"{"):
        return False
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and isinstance(found.get("event"), str)


def _opened(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    except OSError as error:
        raise from_os_error(error, path) or UserError(str(error), where=path) from None
