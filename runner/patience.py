"""Asks again what does not answer for a moment: a store, an engine."""

from __future__ import annotations

import time
from collections.abc import Hashable

from runner.lease import dead_after
from runner.retry import drawn


class Patience:
    """For how long something is asked again: with growing pauses, some two minutes in all."""

    def __init__(self) -> None:
        self.length = 3 * dead_after()
        self._since: dict[Hashable, tuple[float, int]] = {}

    def ask(self, what: Hashable) -> None:
        """It is asked now: the time until it answers counts from the first question."""
        self._since.setdefault(what, (time.monotonic(), 0))

    def pause(self, what: Hashable) -> float | None:
        """Seconds until it is to be asked again; None where it has not answered for too long."""
        now = time.monotonic()
        since, tries = self._since.get(what, (now, 0))
        if now - since > self.length:
            del self._since[what]
            return None
        self._since[what] = since, tries + 1
        return drawn(min(15.0, 2.0**tries))

    def first(self, what: Hashable) -> bool:
        """Whether it has failed just once so far."""
        return self._since.get(what, (0.0, 0))[1] == 1

    def answered(self, what: Hashable) -> None:
        """It answered: the next failure is a new one."""
        self._since.pop(what, None)
