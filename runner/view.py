"""What people see while a pipeline runs: on a terminal a live picture (`live`), elsewhere plain lines; and what
programs are told (`EventsView`).

Both print one line for each stage that is through, in the same words. Plain lines have no control codes.

No run ends because nobody can be told of it: what cannot be printed is not (`Stream`).
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

from microstages.reporting import duration
from microstages.watch import Watch

from runner.events import number

PLAIN_EVERY = 10.0  # seconds between two plain lines of progress of a stage
TAIL_BYTES = 64 << 10
TAIL = 6  # lines of a log that are shown for a stage that failed without a word


class View(Protocol):
    """Is told what happens. `every`: how often it wants `tick`, in seconds."""

    every: float
    took: dict[str, float]  # seconds of each stage that was made

    def begun(self, run: int) -> None: ...

    def started(self, stage: str, reason: str) -> None: ...

    def event(self, stage: str, event: dict[str, Any]) -> None: ...

    def again(self, stage: str, text: str) -> None: ...

    def ended(self, stage: str, state: str, text: str, seconds: float | None = None) -> None: ...

    def note(self, text: str) -> None: ...

    def stopping(self, signals: int) -> None: ...

    def tick(self) -> None: ...

    def close(self) -> None: ...


def say(text: str, out: TextIO) -> None:
    """Print a line; never raises."""
    stream = Stream(out)
    stream.write(text + "\n")
    stream.flush()


def colored(out: TextIO) -> bool:
    """Whether colours are wanted: on a terminal that has some, unless $NO_COLOR says no (no-color.org)."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Stream:
    """A stream that never raises. Where nobody reads any more (`runner up | head`, a terminal that was closed, a full
    disk) everything goes to /dev/null from then on, and the work goes on."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        try:
            self._out.write(text)
        except UnicodeEncodeError:
            known = self._out.encoding or "ascii"
            self.write(text.encode(known, "replace").decode(known))
        except (OSError, ValueError):
            self._end()
        return len(text)

    def flush(self) -> None:
        try:
            self._out.flush()
        except (OSError, ValueError):
            self._end()

    def _end(self) -> None:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._out.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


def failure_lines(text: str, log: Path | None, told: bool) -> str:
    """The words for a failed stage: what it said, or the end of its log, and where the log lies."""
    lines = text.split("\n")
    if log is not None and not told:
        try:
            with log.open("rb") as f:
                f.seek(max(0, f.seek(0, os.SEEK_END) - TAIL_BYTES))
                tail = f.read(TAIL_BYTES).decode(errors="replace").splitlines()[-TAIL:]
        except OSError:
            tail = []
        lines += [f"  | {plain(line)[:200]}" for line in tail]
    if log is not None:
        lines.append(f"  log: {short(log)}")
    return "\n".join(lines)


_CODES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[ -/]*[0-~])")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """A program's words without what steers a terminal; tabs become spaces."""
    return _CONTROL.sub("", _CODES.sub("", text)).expandtabs(4)


def one_line(value: Any) -> str:
    """A value that a program told, as words that neither steer a terminal nor break a line."""
    return " ".join(plain(str(value)).split())


def last_line(text: str) -> str:
    """The last line of a program's words that says something; of one that was drawn over again its last state."""
    for line in reversed(re.split(r"[\r\n]", text[-TAIL_BYTES:])):
        if said := plain(line).strip():
            return said
    return ""


def short(path: Path) -> str:
    """A path as short as it can be written from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def progress_text(event: dict[str, Any]) -> str:
    """`training 42 %  12/30 steps  loss 1.20` for a progress event."""
    done, total, unit = number(event.get("done")), number(event.get("total")), one_line(event.get("unit") or "")
    parts = [one_line(event.get("label") or "")]
    if done is not None:
        if total is not None and total > 0:
            parts.append(f"{min(1.0, done / total):.0%}")
            parts.append(f"{done:,.0f}/{total:,.0f} {unit}".rstrip())
        else:
            parts.append(f"{done:,.0f} {unit}".rstrip())
    return "  ".join(p for p in [*parts, values_text(event)] if p)


def values_text(event: dict[str, Any]) -> str:
    """The values that stand beside a bar."""
    known = ("event", "stage", "time", "label", "done", "total", "unit", "seconds")
    return "  ".join(f"{one_line(k)} {value_text(v)}" for k, v in event.items() if k not in known and v is not None)


def value_text(v: Any) -> str:
    """A value beside a bar."""
    return f"{v:,.4g}" if isinstance(v, float) else one_line(v)[:40]


_WORDS = {"done": "done", "failed": "failed", "stopped": "stopped", "not run": "not run"}
_COLORS = {"done": "32", "failed": "31", "stopped": "33", "not run": "33", "reused": "2"}


class Told(Watch):
    """Lets a view say what a store's trouble is; its transfers are the stages' own to show."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def note(self, text: str) -> None:
        self._note(text)


class PlainView:
    """Lines of text, for files and pipes: no control codes."""

    every = 2.0

    def __init__(self, stages: Sequence[str], out: TextIO | None = None, color: bool = False) -> None:
        self.out, self.stages = out or sys.stdout, tuple(stages)
        self.run = 0  # its number
        self.took: dict[str, float] = {}  # seconds of each stage that was made
        self.width = max([len(s) for s in stages], default=0)
        self.color = color
        self._spoke: dict[str, float] = {}

    def line(self, stage: str, text: str, state: str = "") -> None:
        first, *rest = plain(text).split("\n")
        head = first
        if self.color and state.split(",", maxsplit=1)[0] in _COLORS:
            head = f"\x1b[{_COLORS[state.split(',', maxsplit=1)[0]]}m{first}\x1b[0m"
        self.print(f"{stage:<{self.width}}  {head}")
        for more in rest:
            self.print(f"{'':<{self.width}}  {more}")

    def print(self, text: str) -> None:
        say(text, self.out)

    def begun(self, run: int) -> None:
        self.run = run

    def started(self, stage: str, reason: str) -> None:
        self._spoke[stage] = time.monotonic()
        self.line(stage, f"running  ({reason})")

    def event(self, stage: str, event: dict[str, Any]) -> None:
        if event["event"] == "progress" and time.monotonic() - self._spoke.get(stage, 0.0) >= PLAIN_EVERY:
            self._spoke[stage] = time.monotonic()
            self.line(stage, progress_text(event))

    def again(self, stage: str, text: str) -> None:
        self.line(stage, f"again: {text}")

    def ended(self, stage: str, state: str, text: str, seconds: float | None = None) -> None:
        if state == "done" and seconds is not None:
            self.took[stage] = seconds
        after = "" if seconds is None else f" {'in' if state == 'done' else 'after'} {duration(seconds)}"
        self.line(stage, f"{_WORDS.get(state, state)}{after}" + (f": {text}" if text else ""), state)

    def note(self, text: str) -> None:
        self.print(text)

    def stopping(self, signals: int) -> None:
        if signals == 1:
            self.note("stopping: each stage may save what is worth keeping (again to end them at once)")

    def tick(self) -> None: ...

    def close(self) -> None: ...


class QuietView(PlainView):
    """Only what went wrong."""

    every = 60.0

    def started(self, stage: str, reason: str) -> None: ...

    def event(self, stage: str, event: dict[str, Any]) -> None: ...

    def again(self, stage: str, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def ended(self, stage: str, state: str, text: str, seconds: float | None = None) -> None:
        if state == "failed":
            super().ended(stage, state, text, seconds)
        elif state == "done" and seconds is not None:
            self.took[stage] = seconds


class EventsView:
    """Tells a program what happens, as it happens: one JSON object a line. What stages say is passed on as they say it,
    under the stage's name in the pipeline. Everything else is the view's that it wraps."""

    def __init__(self, view: View, out: TextIO) -> None:
        self._view, self._out, self.every, self.took = view, out, view.every, view.took

    def tell(self, event: str, /, **values: Any) -> None:
        """Of what a stage says, its own `time` is passed on where it is one."""
        import json

        said = number(values.get("time"))
        own = {"event": event, "time": round(time.time(), 3) if said is None else said}
        value = {**own, **values, **own}
        say(json.dumps(value, ensure_ascii=False, default=str), self._out)

    def begun(self, run: int) -> None:
        self._view.begun(run)
        self.tell("run", run=run, stages=list(getattr(self._view, "stages", ())))

    def started(self, stage: str, reason: str) -> None:
        self._view.started(stage, reason)
        self.tell("started", stage=stage, reason=reason)

    def event(self, stage: str, event: dict[str, Any]) -> None:
        self._view.event(stage, event)
        self.tell(event["event"], **{**event, "stage": stage})

    def again(self, stage: str, text: str) -> None:
        self._view.again(stage, text)
        self.tell("again", stage=stage, reason=text)

    def ended(self, stage: str, state: str, text: str, seconds: float | None = None) -> None:
        self._view.ended(stage, state, text, seconds)
        self.tell("ended", stage=stage, state=state, text=text, seconds=seconds)

    def note(self, text: str) -> None:
        self._view.note(text)
        self.tell("note", text=text)

    def stopping(self, signals: int) -> None:
        self._view.stopping(signals)
        self.tell("stopping", signals=signals)

    def tick(self) -> None:
        self._view.tick()

    def close(self) -> None:
        self._view.close()


def draws(out: TextIO) -> bool:
    """Whether lines can be drawn over again there: a terminal that can, before which somebody sits. The cells of a
    notebook are terminals too, and show everything that was ever written; so do the logs of CI systems."""
    told = os.environ
    notebook = "JPY_PARENT_PID" in told or told.get("MPLBACKEND", "").startswith("module://")
    return out.isatty() and told.get("TERM", "dumb") != "dumb" and not notebook and not told.get("CI")


def make_view(stages: Sequence[str], quiet: bool = False, out: TextIO | None = None) -> View:
    """The view that fits where the words go."""
    out = out or sys.stdout
    if quiet:
        return QuietView(stages, out)
    if draws(out):
        from runner.live import LiveView

        return LiveView(stages, out)
    return PlainView(stages, out)
