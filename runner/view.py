"""What people see while a pipeline runs: on a terminal a live picture, elsewhere plain lines.

Both print one line for each stage that is through. The live view adds, below these, a line for each stage that runs:
its bar, its values and its time. `rich` is loaded only when there is something to draw.

No run ends because nobody can be told of it: what cannot be printed is not (`Stream`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from microstages.reporting import duration
from microstages.watch import Watch

PLAIN_EVERY = 10.0  # seconds between two plain lines of progress of a stage
TAIL_BYTES = 64 << 10
TAIL = 6  # lines of a log that are shown for a stage that failed without a word


class View(Protocol):
    """Is told what happens. `every`: how often it wants `tick`, in seconds."""

    every: float

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
        lines += [f"  | {line[:200]}" for line in tail]
    if log is not None:
        lines.append(f"  log: {short(log)}")
    return "\n".join(lines)


def short(path: Path) -> str:
    """A path as short as it can be written from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def progress_text(event: dict[str, Any]) -> str:
    """`training 42 %  12/30 steps  loss 1.20` for a progress event."""
    done, total, unit = event.get("done"), event.get("total"), event.get("unit") or ""
    parts = [str(event.get("label") or "")]
    if isinstance(done, (int, float)):
        if isinstance(total, (int, float)) and total > 0:
            parts.append(f"{min(1.0, done / total):.0%}")
            parts.append(f"{done:,.0f}/{total:,.0f} {unit}".rstrip())
        else:
            parts.append(f"{done:,.0f} {unit}".rstrip())
    return "  ".join(p for p in [*parts, values_text(event)] if p)


def values_text(event: dict[str, Any]) -> str:
    """The values that stand beside a bar."""
    known = ("event", "stage", "time", "label", "done", "total", "unit", "seconds")
    return "  ".join(f"{k} {_value(v)}" for k, v in event.items() if k not in known and v is not None)


def _value(v: Any) -> str:
    return f"{v:,.4g}" if isinstance(v, float) else str(v)[:40]


_WORDS = {"done": "done", "failed": "failed", "stopped": "stopped", "not run": "not run"}
_COLORS = {"done": "32", "failed": "31", "stopped": "33", "not run": "33", "reused": "2"}


class Told(Watch):
    """Lets a view say what a store's trouble is; its transfers are the stages' own to show."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def note(self, text: str) -> None:
        self._note(text)


class PlainView:
    """Lines of text, for files and pipes."""

    every = 2.0

    def __init__(self, stages: Sequence[str], out: TextIO | None = None, color: bool = False) -> None:
        self.out = out or sys.stdout
        self.width = max([len(s) for s in stages], default=0)
        self.color = color
        self._spoke: dict[str, float] = {}

    def line(self, stage: str, text: str, state: str = "") -> None:
        first, *rest = text.split("\n")
        head = first
        if self.color and state.split(",", maxsplit=1)[0] in _COLORS:
            head = f"\x1b[{_COLORS[state.split(',', maxsplit=1)[0]]}m{first}\x1b[0m"
        self.print(f"{stage:<{self.width}}  {head}")
        for more in rest:
            self.print(f"{'':<{self.width}}  {more}")

    def print(self, text: str) -> None:
        say(text, self.out)

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


@dataclass
class _Row:
    began: float = field(default_factory=time.monotonic)
    text: str = ""
    event: dict[str, Any] = field(default_factory=dict)


class LiveView(PlainView):
    """A line for each running stage, redrawn in place, below the lines of what is through."""

    every = 0.1

    def __init__(self, stages: Sequence[str], out: TextIO | None = None) -> None:
        super().__init__(stages, out, color=True)
        self._rows: dict[str, _Row] = {}
        self._live: Any = None

    def print(self, text: str) -> None:
        if self._live is None:
            super().print(text)
        else:
            from rich.text import Text

            self._live.console.print(Text.from_ansi(text), soft_wrap=True)

    def started(self, stage: str, reason: str) -> None:
        self._rows[stage] = _Row(text=reason)
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=cast(TextIO, Stream(self.out)), highlight=False, force_terminal=True)
            self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False,
                              redirect_stderr=False)  # fmt: skip
            self._live.start()
        self.tick()

    def event(self, stage: str, event: dict[str, Any]) -> None:
        if stage in self._rows and event["event"] in ("progress", "metric"):
            row = self._rows[stage]
            row.event = event if event["event"] == "progress" else {**row.event, **event, "event": "progress"}

    def again(self, stage: str, text: str) -> None:
        self._rows.pop(stage, None)
        super().again(stage, text)

    def ended(self, stage: str, state: str, text: str, seconds: float | None = None) -> None:
        self._rows.pop(stage, None)
        super().ended(stage, state, text, seconds)
        self.tick()

    def tick(self) -> None:
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=self.width, no_wrap=True)
        table.add_column(width=20)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        now = time.monotonic()
        for name, row in self._rows.items():
            e = row.event
            done, total = e.get("done"), e.get("total")
            known = isinstance(done, (int, float)) and isinstance(total, (int, float)) and total > 0
            bar = ProgressBar(total=total or None, completed=done or 0, width=20, pulse=not known, animation_time=now)
            words = progress_text(e) if e else f"({row.text})"
            table.add_row(Text(name, style="bold"), bar, duration(now - row.began), Text(words))
        return table

    def close(self) -> None:
        if self._live is not None:
            self._live.update("", refresh=True)
            self._live.stop()
            self._live = None


def make_view(stages: Sequence[str], quiet: bool = False, out: TextIO | None = None) -> View:
    """The view that fits where the words go."""
    out = out or sys.stdout
    if quiet:
        return QuietView(stages, out)
    return LiveView(stages, out) if out.isatty() else PlainView(stages, out)
