"""Being told to stop (SIGTERM, SIGINT) in training: first kindly, so that a checkpoint can be saved, then at once."""

from __future__ import annotations

import fcntl
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from microstages.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """As a context: the first of `signals` makes `asked` true and calls `at_first`, the second raises Stopped.

    Without `insists` every signal is like the first: for a process whose parent decides when it takes too long. `also`
    is another way of being asked.
    """

    def __init__(
        self,
        at_first: Callable[[], None] = lambda: None,
        *,
        signals: Sequence[signal.Signals] = SIGNALS,
        insists: bool = True,
        also: Callable[[], bool] = lambda: False,
    ) -> None:
        self._at_first, self._signals, self._insists, self._also = at_first, signals, insists, also
        self._heard = False
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether training is to stop."""
        return self._heard or self._also()

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._hear) for n in self._signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        if self._heard and self._insists:
            raise Stopped()
        self._heard = True
        self._at_first()


class Leash:
    """How a parent tells its training processes to stop: a file that it holds locked.

    The parent writes into it to tell them; where the lock is free the parent has died. Neither needs a signal, which
    torchrun would turn into an error.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def hold(self) -> Any:
        """In the parent: the lock, held until what is returned is closed."""
        held = self.file.open("wb")
        fcntl.flock(held, fcntl.LOCK_EX)
        return held

    def pull(self) -> None:
        """In the parent: tell the processes to stop."""
        self.file.write_bytes(b"stop")

    def pulled(self) -> bool:
        """In a process: whether it is to stop."""
        try:
            with self.file.open("rb") as file:
                if file.read(1):
                    return True
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
        except BlockingIOError:
            return False
        except OSError:  # the parent has removed it
            return True
