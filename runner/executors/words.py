"""What attempts say, read from files as they grow."""

from __future__ import annotations

from pathlib import Path
from typing import IO


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
