"""Checkpoints made while training goes on.

The training path only copies tensors in memory (`state.Camera`); a thread of low priority writes, hashes and commits
the copy, and removes checkpoints that are no longer needed. There is one copy at most: where the thread is still busy
when a checkpoint is due, it is made after the first step at which the thread is free.

A kill loses no more than the interval that was asked for: checkpoints are begun twice as often, and where the newest
saved one is a whole interval old, training waits for the thread. A checkpoint that cannot be saved is told and lost;
training goes on.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from microstages import storage
from microstages.provenance import hardware, software
from microstages.reporting import Reporter, duration, size
from microstages.state import Place

from microstages_training.model import Model
from microstages_training.state import Camera, Snapshot, State

LOW_PRIORITY = 10  # nice: training needs the cores more


@dataclass(frozen=True)
class Outcome:
    """How the saving of one checkpoint ended."""

    step: int
    uri: str
    size: int = 0
    seconds: float = 0.0
    problem: str = ""
    warning: str = ""


class Keeper:
    """Saves the state of one training run at its place. A context: what is being saved when it ends is completed."""

    def __init__(
        self, place: Place, model: Model, report: Reporter, *, every: int, minutes: float, kept: int, total: int,
        found: str = "",
    ) -> None:  # fmt: skip
        """At most `every` steps, and `minutes`, are ever lost (0: no such limit); the newest `kept` checkpoints stay.
        `found`: the URI of the one that training goes on from."""
        self._place, self._model, self._report, self._total, self._found = place, model, report, total, found
        self._every, self._seconds, self._kept = every, minutes * 60, kept
        self._camera = Camera()
        self._taken = self._safe = (0, time.monotonic())  # step and time of the newest copy, and of the newest saved
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self._saved: int | None = None  # step of the newest checkpoint
        self._provenance = {"fingerprint": place.fingerprint, "software": software(), "hardware": hardware()}

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):  # else it is told to stop at once
            self._wait()

    def resumed(self, state: State) -> None:
        """Say that training goes on from the checkpoint that was found."""
        self._saved = state.step
        self._taken = self._safe = (state.step, time.monotonic())
        self._report.event("checkpoint", uri=self._found, step=state.step, total=self._total, resumed=True)
        self._report.log(f"goes on from the checkpoint of step {state.step:,} of {self._total:,}")

    def after(self, state: State) -> None:
        """Make a checkpoint where one is due. For the moment between two steps."""
        if self._thread is not None and not self._thread.is_alive():
            self._wait()
        if self._thread is None and self._past(self._taken, state.step, 0.5):
            self._begin(state, LOW_PRIORITY)
        if self._thread is not None and self._past(self._safe, state.step, 1.0):
            self._wait()

    def _past(self, since: tuple[int, float], step: int, share: float) -> bool:
        """Whether a share of the interval has passed."""
        steps, seconds = step - since[0], time.monotonic() - since[1]
        return (bool(self._every) and steps >= self._every * share) or (
            bool(self._seconds) and seconds >= self._seconds * share
        )

    def at_once(self, state: State) -> str:
        """Make a checkpoint now and wait for it; says how that went."""
        self._wait()
        if state.step and self._saved != state.step:
            self._begin(state, 0)
            self._wait()
        if self._saved == state.step:
            return "a checkpoint is saved"
        if not state.step:
            return "there is nothing to save yet"
        last = f"the last one is of step {self._saved:,}" if self._saved else "there is none"
        return f"no checkpoint could be saved, {last}"

    def _begin(self, state: State, priority: int) -> None:
        self._taken = (state.step, time.monotonic())
        try:
            snapshot = self._camera.take(self._model, state)
        except (RuntimeError, MemoryError) as error:  # torch's word for no memory
            self._report.warn(f"no checkpoint of step {state.step:,}: {error}")
            return
        self._thread = threading.Thread(target=self._save, args=(snapshot, priority), name="checkpoint", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        """Wait for the thread, and tell how it went."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread, done = None, self._outcome
        assert done is not None
        if done.problem:
            self._safe = self._taken  # nothing can be done about it: no wait before the next one
            self._report.warn(f"no checkpoint of step {done.step:,}, training goes on: {done.problem}")
            return
        self._saved, self._safe = done.step, self._taken
        self._report.event("checkpoint", uri=done.uri, step=done.step, total=self._total, size=done.size)
        took = f"{size(done.size)} in {duration(done.seconds)}"
        self._report.log(f"checkpoint at step {done.step:,} of {self._total:,}: {took}")
        if done.warning:
            self._report.warn(done.warning)

    def _save(self, snapshot: Snapshot, priority: int) -> None:
        """In the thread: write, hash, commit, then remove what is no longer needed."""
        began, uri = time.monotonic(), storage.public(self._place.uri)
        if priority and sys.platform == "linux":
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), priority)
        try:
            with self._place.draft(snapshot.step) as draft:
                uri = storage.public(draft.uri)
                snapshot.write(draft)
                manifest = draft.commit(self._provenance)
        except Exception as error:  # whatever a store's driver raises: the run is worth more than a checkpoint
            self._outcome = Outcome(snapshot.step, uri, problem=_words(error))
            return
        warning = ""
        try:
            self._place.prune(self._kept)
        except Exception as error:
            warning = f"old checkpoints could not be removed: {_words(error)}"
        self._outcome = Outcome(snapshot.step, uri, manifest.size, time.monotonic() - began, warning=warning)


def _words(error: Any) -> str:
    text = str(error)
    return text if text and not isinstance(error, (KeyError, TypeError)) else f"{type(error).__name__} {text}".strip()


def interval(every: float, total: int) -> int:
    """Steps: `every` below 1 is a share of `total`, else steps; 0: none."""
    return max(1, round(every * total)) if 0 < every < 1 else int(every)
