"""What a stage says while it runs: one JSON event a line on stdout, words and progress on stderr.

Events: `progress` (label, done, total, unit, and values such as loss), `metric`, `checkpoint`, `artifact`, `error`,
`log`. On a terminal stdout is silent (people read stderr) and progress is a line that redraws itself; elsewhere it is
a plain line now and then. Programs that print to stdout cannot disturb the events: file descriptor 1 is led to stderr
as long as a stage runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from microstages.watch import Watch

if TYPE_CHECKING:
    from microstages.mlflow import Run

EVERY = 0.2  # seconds between two progress events
PLAIN_EVERY = 5.0  # seconds between two plain lines


class Reporter:
    """Speaks for one stage. Every method may be called from any place in the stage; values must be JSON."""

    def __init__(self, stage: str, events: TextIO | None, words: TextIO) -> None:
        self.stage, self._events, self._words = stage, events, words
        self._line = ""  # the redrawn line that stands on the terminal now
        self.terminal = words.isatty()
        self.tracking: Run | None = None  # where measured values go as well

    def event(self, kind: str, **values: Any) -> None:
        """One JSON line on stdout."""
        if self._events is not None:
            value = {"event": kind, "stage": self.stage, "time": round(time.time(), 3), **values}
            try:
                self._events.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
                self._events.flush()
            except BrokenPipeError:  # nobody listens any more; the work goes on
                self._events = None

    def log(self, text: str) -> None:
        """A line for people."""
        self._clear()
        self.say(f"{text}\n")
        self.event("log", text=text)

    def say(self, text: str) -> None:
        """Text for people as it stands; nothing where nobody listens any more."""
        try:
            self._words.write(text)
            self._words.flush()
        except BrokenPipeError:
            self._words = open(os.devnull, "w")  # noqa: SIM115

    def warn(self, text: str) -> None:
        """A line for people about something that they may want to change."""
        self.log(f"warning: {text}")

    def metric(self, **values: Any) -> None:
        """Measured values, such as `loss=1.2, step=10`."""
        self.event("metric", **values)
        if self.tracking:
            step = values.get("step")
            self.tracking.metrics({k: v for k, v in values.items() if k != "step"}, step)

    @contextmanager
    def progress(self, label: str, total: float | None = None, unit: str = "", start: float = 0) -> Iterator[Progress]:
        """Progress over `total` units (None: unknown), of which `start` were done before."""
        bar = Progress(self, label, total, unit, start)
        yield bar
        bar.finish()

    def _draw(self, text: str) -> None:
        width = _width()
        self._line = text[: width - 1]
        self.say("\r" + self._line + "\x1b[K")

    def _clear(self) -> None:
        if self._line:
            self.say("\r\x1b[K")
            self._line = ""


class Progress:
    """`update(done)` as often as you like; it speaks at a readable pace."""

    def __init__(self, reporter: Reporter, label: str, total: float | None, unit: str, start: float = 0) -> None:
        self._r, self.label, self.total, self.unit = reporter, label, total, unit
        self.done = self._start = float(start)
        self._began = time.monotonic()
        self._event_at = self._plain_at = 0.0
        self._values: dict[str, Any] = {}

    def update(self, done: float, **values: Any) -> None:
        """`done` units so far; `values` stand beside the bar, such as `loss="1.20"`."""
        self.done, self._values = done, values
        now = time.monotonic()
        if now - self._event_at >= EVERY:
            self._event_at = now
            self._event()
            if self._r.terminal:
                self._r._draw(self._text(now))
            elif now - self._plain_at >= PLAIN_EVERY and now - self._began >= 1:
                self._plain_at = now
                self._r.say(self._text(now) + "\n")

    def advance(self, by: float = 1, **values: Any) -> None:
        """`by` units more."""
        self.update(self.done + by, **values)

    def finish(self) -> None:
        """The last word: where it ended."""
        self._event()
        self._r._clear()

    def _event(self) -> None:
        self._r.event(
            "progress", label=self.label, done=self.done, total=self.total, unit=self.unit,
            seconds=round(time.monotonic() - self._began, 2), **self._values,
        )  # fmt: skip

    def _text(self, now: float) -> str:
        seconds = now - self._began
        rate = (self.done - self._start) / seconds if seconds > 0 else 0.0
        parts = [self.label]
        if self.total:
            share = min(1.0, self.done / self.total)
            if self._r.terminal:
                full = int(share * 20)
                parts.append("━" * full + "╌" * (20 - full))
            parts.append(f"{share:4.0%}")
            parts.append(f"{_count(self.done)}/{_count(self.total)} {self.unit}".rstrip())
            if rate and share < 1:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        else:
            parts.append(f"{_count(self.done)} {self.unit}".rstrip())
        parts += [f"{k} {v}" for k, v in self._values.items()]
        return "  ".join(parts)


class Transfers(Watch):
    """Shows transfers as progress, in MB."""

    def __init__(self, reporter: Reporter) -> None:
        self._r = reporter
        self._bar: Progress | None = None
        self._moved = 0

    def note(self, text: str) -> None:
        self._r.log(text)

    def begin(self, label: str, total: int) -> None:
        self._bar, self._moved = Progress(self._r, label, total / 1e6, "MB"), 0

    def moved(self, size: int) -> None:
        if self._bar is not None:
            self._moved += size
            self._bar.update(self._moved / 1e6)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.finish()
        self._bar = None


def _count(n: float) -> str:
    return f"{n:,.0f}" if float(n).is_integer() or n >= 100 else f"{n:.1f}"


def number_of(n: int, noun: str, nouns: str = "") -> str:
    """`1 file`, `3 files`, `1,200 addresses`."""
    return f"{n:,} {noun if n == 1 else nouns or noun + 's'}"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def size(n: float) -> str:
    """`812 B`, `1.4 MB`: bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 80


@contextmanager
def reporting(stage: str) -> Iterator[Reporter]:
    """A reporter whose events own stdout; whatever else prints to stdout lands on stderr."""
    sys.stdout.flush()
    try:
        own = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # no such descriptors (a test that captures): events go nowhere
        yield Reporter(stage, None, sys.stderr)
        return
    events = os.fdopen(own, "w", encoding="utf-8")
    try:
        yield Reporter(stage, None if events.isatty() else events, sys.stderr)
    finally:
        sys.stdout.flush()
        os.dup2(own, 1)
        events.close()
