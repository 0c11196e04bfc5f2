"""Who hears of transfers, and of stores that do not answer: nobody, unless a program says so in `watch.current`."""

from __future__ import annotations

import threading


class Watch:
    """Hears nothing; a program's own hears of one transfer after another, and of trouble."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def begin(self, label: str, total: int) -> None:
        """A transfer of `total` bytes begins."""

    def moved(self, size: int) -> None:
        """So many bytes more."""

    def end(self) -> None:
        """It is over."""


SILENT = Watch()
current = SILENT


def watching() -> Watch:
    """Who hears of what the main thread does; work in the background is silent."""
    return current if threading.current_thread() is threading.main_thread() else SILENT
