"""What attempts said: pieces of their logs, and of their events the newest progress and the curves.

Only files below the history's own `logs` folder are read, whatever a record says.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from runner.events import event_of, number
from runner.history import Record

PIECE = 256 << 10  # bytes of a log in one answer
POINTS = 2000  # of a curve; a longer one is thinned out
SERIES = 24  # curves of one stage
LINE = 64 << 10  # bytes: a longer line is no event
STEP = 1 << 20  # bytes
KNOWN = 200  # attempts whose events are remembered
UNREAD = 64 << 20  # bytes of events that are read at once; of more only the end is
Point = tuple[float, float]
_NAME = re.compile(r"[^/\\\0]+\.log")
# Escape sequences (colours, titles, cursor), as ECMA-48 has them, and control characters but tab and line ends.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)


def plain(text: str) -> str:
    """Text without what a terminal would take for orders. Carriage returns stay: the lines that they begin anew are
    the reader's to overwrite."""
    return _ESCAPES.sub("", text.replace("\r\n", "\n"))


@dataclass(frozen=True)
class Piece:
    """A piece of a log: its text, which bytes of the file it is, how many there are."""

    text: str
    start: int
    stop: int
    size: int


def log_file(folder: Path, record: Record) -> Path | None:
    """Where the words of a record's attempt lie: below `folder/logs`, also if the store was moved since."""
    said = Path(record.log)
    if not record.log or not _NAME.fullmatch(said.name) or not re.fullmatch(r"\d+", said.parent.name):
        return None
    return folder / "logs" / said.parent.name / said.name


def attempts(log: Path) -> list[Path]:
    """The logs of all attempts that a run made of a stage, in order, by the log of the last."""
    stage = log.name.split(".")[0]
    found = []
    for path in log.parent.glob("*.log"):
        m = re.fullmatch(rf"{re.escape(stage)}(?:\.(\d+))?\.log", path.name)
        if m:
            found.append((int(m[1] or 1), path))
    return [path for _, path in sorted(found)]


def events_file(log: Path) -> Path:
    """A stage that writes its own manifest has its events apart; a plain command's words hold them too."""
    apart = log.with_suffix(".events")
    return apart if apart.exists() else log


def piece(log: Path, start: int | None = None, stop: int | None = None, ended: bool = True) -> Piece:
    """Bytes `start` to `stop` of a log, at most `PIECE` of them, whole lines where there are any. Where both are left
    out it is the end, where only `stop` is given what stands before it. Of a log that goes on, a line that is not
    complete is left for later. Raises OSError."""
    with log.open("rb") as f:
        size = f.seek(0, os.SEEK_END)
        last = size if stop is None else max(0, min(stop, size))
        if start is None:
            first = max(0, last - PIECE)
        else:
            first = max(0, min(start, size))
            last = max(first, min(last, first + PIECE))
        f.seek(first)
        data = f.read(last - first)
    last = first + len(data)
    if start is None and first > 0 and (cut := data.find(b"\n")) >= 0:
        data, first = data[cut + 1 :], first + cut + 1
    if last < size or not ended:
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not cut and len(data) >= PIECE:  # one line longer than a piece: cut between characters
            cut = _characters(data)
        data = data[:cut]
    return Piece(plain(data.decode("utf-8", "replace")), first, first + len(data), size)


def _characters(data: bytes) -> int:
    """How many bytes hold whole characters: the last one of UTF-8 may go on behind the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            return len(data) - back if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else len(data)
        if byte < 0x80:
            break
    return len(data)


@dataclass
class Told:
    """What the events of one attempt have told so far. `began`: the first word of what `progress` is the last of, to
    know its pace: work that was taken up again does not begin at 0. `curves`: name -> points (step, value). `resumed`:
    the step of the checkpoint that it went on from."""

    offset: int = 0
    progress: dict[str, Any] | None = None
    began: dict[str, Any] | None = None
    resumed: float | None = None
    metric: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[Point]] = field(default_factory=dict)
    every: dict[str, int] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Told:
        """As it is now, for who reads it while more is heard."""
        curves = {name: list(points) for name, points in self.curves.items()}
        return replace(self, metric=dict(self.metric), curves=curves)

    @property
    def left(self) -> float | None:
        """Seconds until the work of `progress` is done, at the pace so far."""
        first, last = self.began or {}, self.progress or {}
        done, seconds = ([number(e.get(k)) for e in (first, last)] for k in ("done", "seconds"))
        total = number(last.get("total"))
        if total is None or None in (*done, *seconds):
            return None
        made, took = done[1] - done[0], seconds[1] - seconds[0]  # type: ignore[operator]
        left = (total - done[1]) * took / made if made > 0 < took and total > done[1] else None  # type: ignore[operator]
        return number(left)

    def hear(self, line: bytes) -> None:
        if not line.startswith(b"{") or len(line) > LINE:
            return
        event = event_of(line)
        if event is None:
            return
        if event.get("event") == "progress":
            before, self.progress = self.progress, event
            if before is None or any(before.get(k) != event.get(k) for k in ("label", "total")):
                self.began = event
        elif event.get("event") == "checkpoint" and event.get("resumed") is True:
            self.resumed = number(event.get("step"))
        elif event.get("event") == "metric":
            values = {k: v for k, v in event.items() if k not in ("event", "stage", "time")}
            self.metric.update((str(k)[:80], v) for k, v in values.items() if number(v) is not None)
            for name, value in values.items():
                if name not in ("step", "epoch") and (y := number(value)) is not None:
                    self._point(str(name)[:80], number(event.get("step")), y)

    def _point(self, name: str, x: float | None, y: float) -> None:
        if name not in self.curves and len(self.curves) >= SERIES:
            return
        curve = self.curves.setdefault(name, [])
        seen, every = self.count.get(name, 0), self.every.get(name, 1)
        self.count[name] = seen + 1
        if seen % every == 0:
            curve.append((x if x is not None else float(seen), y))
        if len(curve) > POINTS:
            curve[:] = curve[::2]
            self.every[name] = every * 2


def joined(tries: Sequence[Told]) -> tuple[dict[str, list[Point]], list[float]]:
    """The curves of work that several attempts did, in order, and the steps of the checkpoints that they went on from.
    Of an attempt counts what came before the checkpoint; one that began anew has nothing before it."""
    curves: dict[str, list[Point]] = {}
    resumed: set[float] = set()
    for told in reversed(tries):
        until = min(resumed, default=math.inf)
        for name, points in told.curves.items():
            after = curves.get(name, [])
            first = after[0][0] if after else math.inf
            curves[name] = [p for p in points if p[0] <= until and p[0] < first] + after
        if told.resumed is not None:
            resumed.add(told.resumed)
        elif told.curves:
            break
    return curves, sorted(resumed)


class Listener:
    """Reads the events of many attempts, each byte once. For any number of threads."""

    def __init__(self) -> None:
        self._told: dict[Path, Told] = {}
        self._lock = threading.Lock()

    def told(self, log: Path) -> Told:
        """What an attempt has told by now; nothing where its events cannot be read."""
        file = events_file(log)
        with self._lock:
            told = self._told.pop(file, None) or Told()
            with suppress(OSError), file.open("rb") as f:
                size = f.seek(0, os.SEEK_END)
                if size < told.offset:
                    told = Told()
                told.offset = max(told.offset, size - UNREAD)
                _read(f, told)
            self._told[file] = told  # the newest come last
            while len(self._told) > KNOWN:
                self._told.pop(next(iter(self._told)))
            return told.copy()


def _read(f: BinaryIO, told: Told) -> None:
    """Hear whole lines from where the last one ended."""
    f.seek(told.offset)
    while data := f.read(STEP):
        whole = data.rfind(b"\n") + 1 or (STEP if len(data) == STEP else 0)  # no event is that long
        for line in data[:whole].splitlines():
            told.hear(line)
        told.offset += whole
        if not whole or len(data) < STEP:
            return
        f.seek(told.offset)
