"""The live picture of a run on a terminal: below the lines of what is through, a few that are drawn again in place.

    adapter  ━━━━━━━━╌╌╌╌   42%  6 min 10 s  loss 0.016  203 tokens/s  5 min 2 s left  290/688 steps
             epoch 3: held-out loss 0.41
    run 12: 2 of 7 stages, 6 min 20 s; next: merged, onnx, tuned, quantized

A line never wraps: what matters less is left out where the terminal is narrow, and what is too long is cut. Each
picture is one write, over the last one; nothing is left on the screen when it ends, and nothing needs to be undone
where it is killed. Terminals that break long lines anew when they become narrower are known by their variables.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from microstages.reporting import duration, number_of

from runner.events import number
from runner.view import PlainView, Stream, colored, last_line, one_line, value_text

BAR = 20  # columns of a bar; half of it below ROOMY
ROOMY, TIGHT = 90, 56  # columns; a terminal narrower than TIGHT has no bars
WIDEST = 100  # columns of a line: long ones break where a terminal becomes narrower, and then cannot all be taken back
LOG_LINES = 12  # stages at once; where more run, their last words are left out
WINDOW = 30.0  # seconds over which speed is averaged
REFLOWS = ("TMUX", "VTE_VERSION", "KITTY_WINDOW_ID", "ALACRITTY_WINDOW_ID", "KONSOLE_VERSION", "WT_SESSION",
           "TERM_PROGRAM", "WEZTERM_PANE", "GHOSTTY_RESOURCES_DIR")  # fmt: skip

Piece = tuple[str, str]  # text and its SGR code, or none


def cells(text: str) -> int:
    """The columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, width: int) -> str:
    """A text as far as it fits into so many columns."""
    if cells(text) <= width:
        return text
    used, kept = 0, ""
    for c in text:
        if (used := used + cells(c)) > width - 1:
            break
        kept += c
    return f"{kept}…" if width > 0 else ""


@dataclass
class Row:
    """A stage that runs."""

    reason: str
    began: float = field(default_factory=time.monotonic)
    progress: Mapping[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    said: str = ""
    points: list[tuple[float, float]] = field(default_factory=list)  # when, and how much was done

    def heard(self, event: Mapping[str, Any], now: float) -> None:
        """Take in an event."""
        kind = event["event"]
        if kind == "progress":
            if event.get("label") != self.progress.get("label"):
                self.points = []
            self.progress = event
            if (done := number(event.get("done"))) is not None:
                self.points = [p for p in self.points if now - p[0] <= WINDOW and p[1] <= done]
                self.points.append((now, done))
        elif kind == "metric":
            values = {k: v for k, v in event.items() if k not in KNOWN}  # also nan: a loss that is none is worth a word
            self.metrics |= {k: float(v) for k, v in values.items() if isinstance(v, float) or number(v) is not None}
        elif kind == "log":
            self.said = last_line(str(event.get("text") or "")) or self.said

    @property
    def share(self) -> float | None:
        """How much is done, 0 to 1; None where that is not known."""
        done, total = number(self.progress.get("done")), number(self.progress.get("total"))
        return min(1.0, max(0.0, done / total)) if done is not None and total else None

    @property
    def speed(self) -> float | None:
        """Units a second, of late."""
        (t0, first), (t1, last) = self.points[0] if self.points else (0, 0), self.points[-1] if self.points else (0, 0)
        return (last - first) / (t1 - t0) if t1 - t0 >= 1.0 and last > first else None

    def words(self) -> list[str]:
        """What there is to say, the most telling first: a value such as the loss, the speed, the time that is left, how
        much of how much, the rest."""
        values = {k: v for k, v in self.progress.items() if k not in KNOWN and v is not None}
        fast = [_speed(k, v) for k, v in values.items() if _is_speed(k, v)]
        rest = [f"{one_line(k)} {value_text(v)}" for k, v in values.items() if not _is_speed(k, v)]
        measured = {k: v for k, v in self.metrics.items() if k not in values and not _is_speed(k, v)}
        rest += [f"{one_line(k)} {value_text(v)}" for k, v in list(measured.items())[: 1 if rest else 3]]
        unit, total = one_line(self.progress.get("unit") or ""), number(self.progress.get("total"))
        done, speed = number(self.progress.get("done")), self.speed
        if speed and not fast and unit:
            fast.append(f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.1f} {unit}/s")
        time_left = number((total - done) / speed) if speed and total and done is not None else None
        left = [f"{duration(time_left)} left"] if time_left is not None else []
        much = []
        if done is not None:
            much = [f"{done:,.0f}/{total:,.0f} {unit}".rstrip() if total else f"{done:,.0f} {unit}".rstrip()]
        if not total:  # how far it is says more than a share of nothing
            rest = much + rest
            much = []
        label = one_line(self.progress.get("label") or "")
        told = [*rest[:1], *fast[:1], *left, *much, *rest[1:], *([label] if label else [])]
        return told or [f"({self.reason})"]


KNOWN = ("event", "stage", "time", "label", "done", "total", "unit", "seconds", "step")


def _is_speed(name: str, value: Any) -> bool:
    return name in ("speed", "rate") or name.endswith(("/s", "_per_s", "_per_second")) or str(value).endswith("/s")


def _speed(name: str, value: Any) -> str:
    text = value_text(value)
    unit = one_line(name).replace("_per_second", "/s").replace("_per_s", "/s")
    return text if text.endswith("/s") else f"{text} {unit}"


class Region:
    """Some lines at the bottom of a terminal that are drawn over again. The cursor stands below them, at the left."""

    def __init__(self, out: TextIO, color: bool) -> None:
        self._out, self._color = out, color
        self._drawn: list[int] = []  # the columns of each line that stands there
        self._columns = 0
        self._last = ""
        self._reflows = any(os.environ.get(name) for name in REFLOWS)

    def size(self) -> tuple[int, int]:
        """Columns and lines now."""
        try:
            columns, lines = os.get_terminal_size(self._out.fileno())
        except (OSError, ValueError):
            columns, lines = 80, 24
        return columns or 80, lines or 24

    def draw(self, lines: Sequence[Sequence[Piece]], above: str = "") -> None:
        """Draw lines in place of those that stand there; `above` goes before them for good."""
        columns, _ = self.size()
        made = [self._painted(pieces, columns - 1) for pieces in lines]
        text = "".join(f"{line}\x1b[K\n" for line, _ in made)
        if not above and text == self._last and columns == self._columns:
            return
        rows = sum(self._rows(width, columns) for width in self._drawn)
        up = f"\x1b[{rows}A" if rows else ""
        before = "".join(f"{line}\x1b[K\n" for line in above.split("\n")) if above else ""
        self._out.write(f"\r{up}{before}{text}\x1b[J" if rows or not before or text else before.replace("\x1b[K", ""))
        self._out.flush()
        self._drawn, self._columns, self._last = [width for _, width in made], columns, text

    def _rows(self, width: int, columns: int) -> int:
        """The rows that a line which was drawn takes by now."""
        return -(-width // columns) or 1 if self._reflows and columns < self._columns else 1

    def _painted(self, pieces: Sequence[Piece], room: int) -> tuple[str, int]:
        out, used = "", 0
        for text, code in pieces:
            shown = cut(text, room - used)
            used += cells(shown)
            out += f"\x1b[{code}m{shown}\x1b[0m" if code and self._color and shown else shown
        return out, used


class LiveView(PlainView):
    """Lines for the stages that run, drawn in place below the lines of what is through."""

    every = 0.2

    def __init__(self, stages: Sequence[str], out: TextIO | None = None) -> None:
        super().__init__(stages, out)
        self.color = colored(self.out)
        self.began = time.monotonic()
        self._rows: dict[str, Row] = {}
        self._through: set[str] = set()
        self._region: Region | None = None
        self._stopping = False
        wide = "utf" in str(getattr(self.out, "encoding", "") or "ascii").lower()
        self._bar = ("━", "╌") if wide else ("#", "-")

    def print(self, text: str) -> None:
        if self._region is None:
            super().print(text)
        else:
            self._region.draw(self._picture(), above=text)

    def started(self, stage: str, reason: str) -> None:
        self._rows[stage] = Row(reason)
        if self._region is None:
            self._region = Region(Stream(self.out), self.color)  # type: ignore[arg-type]
        self.tick()

    def event(self, stage: str, event: dict[str, Any]) -> None:
        if stage in self._rows:
            self._rows[stage].heard(event, time.monotonic())

    def again(self, stage: str, text: str) -> None:
        self._rows.pop(stage, None)
        super().again(stage, text)

    def ended(self, stage: str, state: str, text: str, seconds: float | None = None) -> None:
        self._rows.pop(stage, None)
        self._through.add(stage)
        super().ended(stage, state, text, seconds)

    def stopping(self, signals: int) -> None:
        self._stopping = True
        super().stopping(signals)

    def tick(self) -> None:
        if self._region is not None:
            self._region.draw(self._picture())

    def close(self) -> None:
        if self._region is not None:
            self._region.draw([])
            self._region = None

    # --- the picture ---

    def _picture(self) -> list[list[Piece]]:
        if self._region is None or not self._rows:
            return []
        columns, height = self._region.size()
        now = time.monotonic()
        room = max(1, height - 3)
        shown = list(self._rows.items())[: room if len(self._rows) <= room else max(1, room - 1)]
        words = len(shown) <= LOG_LINES and 2 * len(shown) <= room
        lines: list[list[Piece]] = []
        room = min(columns - 1, WIDEST)
        took = {name: duration(now - row.began) for name, row in shown}
        widest = max(map(len, took.values()))
        for name, row in shown:
            lines.append(self._line(name, row, room, took[name].rjust(widest)))
            if words and row.said:
                indent = self._name_width(room) + 2
                lines.append([(" " * indent, ""), (cut(row.said, room - indent), "2")])
        if len(shown) < len(self._rows):
            lines.append([(f"… and {len(self._rows) - len(shown)} more", "2")])
        return [*lines, [(cut(self._footer(now), room), "2")]]

    def _name_width(self, columns: int) -> int:
        return min(self.width, max(8, columns // 4))

    def _line(self, name: str, row: Row, room: int, took: str) -> list[Piece]:
        """A stage: its name, its bar, its time, and what there is to say as far as it fits."""
        width = self._name_width(room)
        title = cut(name, width)
        pieces: list[Piece] = [(title + " " * (width - cells(title)) + "  ", "1")]
        bar = 0 if room < TIGHT else BAR if room >= ROOMY else BAR // 2
        share = row.share
        if share is not None and bar:
            full = int(share * bar)
            pieces += [(self._bar[0] * full, "36"), (self._bar[1] * (bar - full) + "  ", "2")]
        elif bar:
            at = int(time.monotonic() * 5) % bar  # it lives, and nobody knows how far it is
            pieces += [(self._bar[1] * at, "2"), (self._bar[0], "36"), (self._bar[1] * (bar - at - 1) + "  ", "2")]
        pieces += [("      " if share is None else f"{share:4.0%}  ", ""), (f"{took}  ", "")]
        free = room - sum(cells(text) for text, _ in pieces)
        said: list[str] = []
        for word in row.words():
            if (needed := cells(word) + (2 if said else 0)) <= free:
                said.append(word)
                free -= needed
            elif not said and share is None:
                said, free = [cut(word, free)], 0
        return [*pieces, ("  ".join(said), "")]

    def _footer(self, now: float) -> str:
        waiting = [s for s in self.stages if s not in self._through and s not in self._rows]
        run = f"run {self.run}: " if self.run else ""
        ends = f"{run}{len(self._through)} of {number_of(len(self.stages), 'stage')}, {duration(now - self.began)}"
        if self._stopping:
            return f"{ends}; stopping"
        return f"{ends}; next: {', '.join(waiting)}" if waiting else ends
