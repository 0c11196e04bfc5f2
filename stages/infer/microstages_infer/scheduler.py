"""Who generates when: requests wait in line, join the rows that are in the making, and leave when they are done.

One thread drives the model. Between two steps it takes at most one waiting request in, so that reading a prompt holds
the others up for no longer than that. What is said goes to each request's own queue.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from microstages_infer.decoding import Answer, Engine, Limits, Making
from microstages_infer.rows import Rows, swap_out
from microstages_infer.sampling import Sampler, Sampling


class FullError(Exception):
    """As many requests wait as may."""


class ClosedError(Exception):
    """It takes nothing any more."""


@dataclass(frozen=True)
class Said:
    """What comes of one job: a piece of text, its end, or why it failed. `stopped`: because the server ends."""

    job: Job
    text: str = ""
    answer: Answer | None = None
    failure: str = ""
    stopped: bool = False


@dataclass(eq=False)
class Job:
    """One prompt to answer. `heard` gets what is said; `number` seeds its draws; `index` is the caller's."""

    ids: Sequence[int]
    limits: Limits
    sampling: Sampling
    heard: SimpleQueue[Said]
    number: int = 0
    index: int = 0
    streams: bool = False
    began: float = field(default_factory=time.perf_counter)
    cancelled: bool = False


class _Going:
    """A job that has a row."""

    def __init__(self, job: Job, engine: Engine) -> None:
        self.job = job
        said = (lambda text: job.heard.put(Said(job, text))) if job.streams else None
        self.making = Making(engine, job.ids, job.limits, said)
        self.sampler = None if job.sampling.plain else Sampler(job.sampling, job.number, job.ids)
        self.token = -1

    def take(self, logits: Any) -> bool:
        """Take the token that follows; whether it was the last one."""
        self.token = int(logits.argmax()) if self.sampler is None else self.sampler.pick(logits)
        answer = self.making.answer
        self.making.take(self.token, self.job.began)
        answer.first = answer.first or time.perf_counter() - self.job.began
        return self.making.done


class Scheduler:
    """`most` rows at once, `line` more may wait. `wrong` is told of an error of the model, as a traceback."""

    def __init__(self, engine: Engine, rows: Rows, most: int, line: int, wrong: Callable[[str], None]) -> None:
        self._engine, self._rows, self._most, self._line, self._wrong = engine, rows, most, line, wrong
        self._lock = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._going: list[_Going] = []
        self._joining = 0
        self._closed = self._ended = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> tuple[int, int]:
        """How many jobs are running, and how many wait."""
        return len(self._going) + self._joining, len(self._waiting)

    @property
    def works(self) -> bool:
        """Whether there is still somebody who asks the model."""
        return self._thread.is_alive()

    @property
    def closed(self) -> bool:
        """Whether it takes nothing any more."""
        return self._closed

    def submit(self, jobs: Sequence[Job]) -> None:
        """Put jobs in line, all or none. Raises FullError or ClosedError."""
        with self._lock:
            if self._closed:
                raise ClosedError
            if sum(self.counts) + len(jobs) > self._most + self._line:
                raise FullError
            self._waiting.extend(jobs)
            self._lock.notify_all()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for these any more."""
        with self._lock:
            for job in jobs:
                job.cancelled = True
                if job in self._waiting:
                    self._waiting.remove(job)

    def close(self, grace: float) -> int:
        """Take nothing more and let what runs end, for `grace` seconds at most; how many were cut off then."""
        with self._lock:
            self._closed = True
            for job in self._waiting:
                job.heard.put(Said(job, failure="the server is stopping", stopped=True))
            self._waiting.clear()
            self._lock.notify_all()
            self._lock.wait_for(lambda: sum(self.counts) == 0, grace)
            self._ended, cut = True, sum(self.counts)
            self._lock.notify_all()
        self._thread.join(10)
        return cut

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._waiting or self._going or self._ended)
                if self._ended:
                    self._fail("the server is stopping", stopped=True)
                    return
                job = self._waiting.popleft() if self._waiting and len(self._going) < self._most else None
                self._joining = int(job is not None)
            if job is not None:
                self._join(job)
            if self._going:
                self._step()

    def _join(self, job: Job) -> None:
        try:
            going = _Going(job, self._engine)
            ended = going.take(self._rows.join(job.ids, going.making.room))
            with self._lock:
                self._joining = 0
                self._going.append(going)
                if ended:
                    self._leave(len(self._going) - 1)
        except Exception as error:
            with self._lock:
                self._joining = 0
                known = any(g.job is job for g in self._going)
                self._fail(self._words(error), also=None if known else job)  # the rows may be half of something

    def _step(self) -> None:
        try:
            with self._lock:
                for row in reversed(range(len(self._going))):
                    if self._going[row].job.cancelled:
                        self._leave(row)
            if not self._going:
                return
            logits = self._rows.step([g.token for g in self._going])
            ended = [g.take(line) for g, line in zip(self._going, logits, strict=True)]
            with self._lock:
                for row in reversed(range(len(ended))):
                    if ended[row]:
                        self._leave(row)
        except Exception as error:
            with self._lock:
                self._fail(self._words(error))

    def _leave(self, row: int) -> None:
        going = self._going[row]
        self._rows.leave(row)
        swap_out(self._going, row)
        going.job.heard.put(Said(going.job, answer=going.making.answer))
        self._lock.notify_all()

    def _fail(self, why: str, *, also: Job | None = None, stopped: bool = False) -> None:
        for job in [*(g.job for g in self._going), *([also] if also else [])]:
            job.heard.put(Said(job, failure=why, stopped=stopped))
        self._going.clear()
        self._rows.clear()
        self._lock.notify_all()

    def _words(self, error: Exception) -> str:
        if isinstance(error, MemoryError):
            self._wrong("there was not enough memory for a request; those that ran were given up")
            return "there is not enough memory for this"
        self._wrong(traceback.format_exc())
        return "the model failed"
