"""When a stage that failed is tried again: how often, after which ends, and with what pauses.

Pauses grow and are drawn at random between half of their length and the whole: those who failed together do not come
back together.
"""

from __future__ import annotations

import random
from collections.abc import Set
from dataclasses import dataclass

from microstages.errors import EXIT_TEMPORARY, EXIT_USER

TIMEOUT = "timeout"  # stands beside exit codes for an attempt that took too long
KILLED = 137  # 128 + SIGKILL: what a shell calls the end of a process that was killed


def exit_code(code: int) -> int:
    """An exit code as a shell tells it: 128 + n for the signal n; KILLED where nobody knows how it ended."""
    from runner.executors import LOST

    return KILLED if code == LOST else 128 - code if code < 0 else code


@dataclass(frozen=True)
class Retry:
    """How often a stage is tried and after which ends; times in seconds. `on`: exit codes, and TIMEOUT."""

    attempts: int = 3
    backoff: float = 0.5
    max_backoff: float = 60.0
    on: Set[int | str] = frozenset({EXIT_TEMPORARY})

    def wanted(self, code: int, timed_out: bool, tries: int) -> bool:
        """Whether an attempt that ended so is followed by another; `tries` came before it."""
        end = TIMEOUT if timed_out else exit_code(code)
        return tries + 1 < self.attempts and end != EXIT_USER and end in self.on

    def pause(self, tries: int) -> float:
        """Seconds to wait after that many failures."""
        return drawn(min(self.max_backoff, self.backoff * 2.0 ** min(tries - 1, 60)))


def drawn(seconds: float) -> float:
    """A time at random, between the half and the whole."""
    return seconds * random.uniform(0.5, 1.0)
