"""An attempt that a thread beside the scheduler watches: how it stands, what it said, and a descriptor to wait on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from microstages.errors import UserError

from runner.executors import Attempt, Status
from runner.executors.words import Reader


@dataclass(kw_only=True)
class Watched:
    """`code` is set when it has ended; `woken` becomes readable then. `left`: let go of; it may still run:
    it is another runner's, or its place is away."""

    attempt: Attempt
    code: int | None = None
    why: UserError | None = None
    left: bool = False
    reader: Reader = field(init=False)
    woken: int = field(init=False)
    _wake: int = field(init=False)
    thread: threading.Thread | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.reader = Reader(self.attempt.events)
        self.woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def status(self) -> Status:
        return Status(self.code is None, self.code, self.why, self.left)

    def follow(self, work: Callable[[Any], None]) -> None:
        """Start the thread: `work` gets this, and calls `ended` as the last thing it does."""
        self.thread = threading.Thread(target=work, args=(self,), daemon=True)
        self.thread.start()

    def ended(self, code: int, why: UserError | None) -> None:
        """It is over; who waits for it is woken."""
        self.why = why  # first: who sees a code takes the reason that stands there
        self.code = code
        os.close(self._wake)

    def join(self, seconds: float | None = None) -> None:
        """Wait for the thread."""
        if self.thread:
            self.thread.join(seconds)

    def close(self) -> None:
        """Nobody asks for it any more."""
        os.close(self.woken)
        self.reader.close()
