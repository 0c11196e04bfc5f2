"""What attempts say, read from files as they grow, and carried from one place to another without secrets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

HIDDEN = b"***"
SHORT = 4  # characters; shorter secrets would take ordinary words with them


class Reader:
    """Whole lines of a file that another one writes."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._open: IO[bytes] | None = None
        self._rest = b""

    def read(self) -> str:
        """The lines since the last time."""
        if self._open is None:
            try:
                self._open = self.file.open("rb")
            except OSError:
                return ""
        whole, newline, self._rest = (self._rest + self._open.read()).rpartition(b"\n")
        return (whole + newline).decode(errors="replace")

    def close(self) -> None:
        if self._open is not None:
            self._open.close()


class Redactor:
    """Puts `***` in the place of secrets, in a stream of bytes that may be cut anywhere."""

    def __init__(self, secrets: Iterable[str]) -> None:
        lines = {part.encode() for s in secrets for part in s.splitlines() if len(part) >= SHORT}
        self._secrets = sorted(lines, key=len, reverse=True)

    def clean(self, data: bytes) -> bytes:
        """The bytes without secrets."""
        for secret in self._secrets:
            data = data.replace(secret, HIDDEN)
        return data

    def stream(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, held back to whole lines where there is something to hide."""
        if not self._secrets:
            yield from chunks
            return
        rest = b""
        for chunk in chunks:
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                yield self.clean(whole + newline)
        if rest:
            yield self.clean(rest)
