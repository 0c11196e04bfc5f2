"""What the pods of a Job say, carried into the attempt's files: every line once and in order, whatever breaks.

A log is read with the times of its lines. Where a stream ends early (the API was restarted, a log was rotated, minutes
went by) it is opened again a little before its last line, and as many lines are passed over as were had of that time.
How far the words came is kept beside the log, so that another runner goes on there.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from microstages.errors import TemporaryError, UserError, from_os_error

from runner.executors import Attempt
from runner.executors.kubernetes.api import Cluster, MissingError, batches, interrupt
from runner.executors.secrets import Redactor

STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) ")
PIECE = 1 << 14  # bytes after which some engines begin a line anew, with a time before it
KEPT = 4  # seconds of which it is known how many lines there were
PAUSE, SAVED = 0.3, 0.5  # seconds between two tries to read, and two notes of how far it came
DRAINED = 120.0  # seconds that the last words of a pod may take


@dataclass
class Position:
    """How far the log of a pod was read: lines by the second that they are of."""

    counts: dict[int, int] = field(default_factory=dict)

    def saw(self, second: int) -> None:
        self.counts[second] = self.counts.get(second, 0) + 1
        while len(self.counts) > KEPT:
            del self.counts[min(self.counts)]

    @property
    def again(self) -> tuple[str, int]:
        """From when to read on, and how many lines of that are known."""
        if not self.counts:
            return "", 0
        since = sorted(self.counts)[-2:][0]
        text = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return text, sum(n for second, n in self.counts.items() if second >= since)


@dataclass
class _Container:
    """A container of a pod whose words are carried."""

    pod: str
    name: str
    key: str
    index: int
    position: Position
    ended: bool = False
    response: Any = None
    thread: threading.Thread | None = None


class Words:
    """The words of an attempt's pods. `fault`: why they cannot be written."""

    def __init__(self, attempt: Attempt, cluster: Cluster, redact: Redactor, resume: bool) -> None:
        self.attempt, self.cluster, self.redact = attempt, cluster, redact
        self.fault: UserError | None = None
        self.stopped = False
        self._lock = threading.Lock()
        self._containers: dict[str, _Container] = {}
        self._kept = attempt.log.with_name(f"{attempt.log.name}.position")
        self._told: set[str] = set()
        self._known: dict[str, dict[int, int]] = {}
        self._saved = 0.0
        self._times: dict[bytes, int] = {}
        if resume:
            self._resume()
        self._log = attempt.log.open("ab")
        self._events = self._log if attempt.events == attempt.log else attempt.events.open("ab")

    # --- for who watches ---

    def tell(self, text: str, once: str = "") -> None:
        """A line of the cluster's own. With `once`, a name of what it tells: only the first time."""
        if once and once in self._told:
            return
        if once:
            self._told.add(once)
        line = f"[kubernetes] {' '.join(text.split())}\n"
        self._write([(self._log, self.redact.clean(line.encode()))])

    def carry(self, pod: str, uid: str, name: str, index: int, ended: bool) -> None:
        """Carry a container's words from now on, after those of earlier ones of this index. `ended`: there are no
        more."""
        key = f"{uid}/{name}"
        c = self._containers.get(key)
        if c is None:
            before = [c.thread for c in self._containers.values() if c.index == index]
            c = self._containers[key] = _Container(pod, name, key, index, Position(self._known.get(key, {})))
            c.thread = threading.Thread(target=self._follow, args=(c, before), daemon=True)
            c.ended = ended
            c.thread.start()
        c.ended = c.ended or ended

    def finish(self) -> None:
        """Wait for the words of what has ended."""
        end = time.monotonic() + DRAINED
        for c in self._containers.values():
            c.ended = True
            if c.thread:
                c.thread.join(max(0.0, end - time.monotonic()))
                if c.thread.is_alive():
                    self.tell("the end of its log did not come")

    def stop(self) -> None:
        """Read no more, and keep how far it came."""
        self.stopped = True
        for c in self._containers.values():
            if c.response is not None:
                interrupt(c.response)
        for c in self._containers.values():
            if c.thread and c.thread is not threading.current_thread():
                c.thread.join(5)
        with self._lock:
            self._save(now=True)
            for file in {self._log, self._events}:
                with suppress(OSError, ValueError):
                    file.close()

    def drop(self) -> None:
        """Nobody will read on."""
        with suppress(OSError):
            self._kept.unlink(missing_ok=True)

    # --- reading ---

    def _follow(self, c: _Container, before: list[threading.Thread | None]) -> None:
        for thread in before:
            if thread:
                thread.join()
        try:
            while not self.stopped and not self._read(c):
                time.sleep(PAUSE)
        except UserError as error:
            self.fault = error
        except OSError as error:
            self.fault = from_os_error(error, self.attempt.log) or UserError(str(error), where=self.attempt.log)

    def _read(self, c: _Container) -> bool:
        """Read a container's log until the stream ends; whether that was all of it."""
        last = c.ended  # from here on nothing is added to it
        since, known = c.position.again
        try:
            c.response = self.cluster.words(c.pod, c.name, follow=not last, since=since)
        except MissingError:
            return True
        except TemporaryError:
            return False
        except UserError:  # it has not begun, or its node does not answer
            return last
        try:
            for batch in batches(c.response):
                known = self._take(c, batch, known, last)
                if self.stopped:
                    return True
        except TemporaryError:
            return False
        finally:
            c.response.close()
        return last

    def _take(self, c: _Container, batch: list[bytes], known: int, last: bool) -> int:
        """Write the lines that are new; how many are still known."""
        out: list[tuple[Any, bytes]] = []
        seconds: list[int] = []
        for line in batch:
            found = STAMP.match(line)
            if not found or not (last or line.endswith(b"\n")):  # the API's own words; a line that is not whole yet
                continue
            if known:
                known -= 1
                continue
            seconds.append(self._second(found))
            text = self.redact.clean(_whole(line[found.end() :]))
            out.append(self._placed(c, text if text.endswith(b"\n") else text + b"\n"))
        self._write(out, c.position, seconds)
        return known

    def _placed(self, c: _Container, line: bytes) -> tuple[Any, bytes]:
        """The file that a line belongs to."""
        if c.index:
            return self._log, f"[node {c.index}] ".encode() + line
        if line.startswith(b"{") and b'"event"' in line:
            with suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and "event" in value:
                    return self._events, line
        return self._log, line

    def _second(self, found: re.Match[bytes]) -> int:
        key = found[1] + found[2]
        if key not in self._times:
            self._times = {key: int(datetime.fromisoformat(key.decode()).timestamp())}
        return self._times[key]

    # --- writing ---

    def _write(
        self, lines: list[tuple[Any, bytes]], position: Position | None = None, seconds: Sequence[int] = ()
    ) -> None:
        with self._lock:
            if position:
                for second in seconds:
                    position.saw(second)
            try:
                for file, line in lines:
                    file.write(line)
                for file in {id(f): f for f in (self._log, self._events)}.values():
                    file.flush()
            except ValueError:  # closed: nobody wants it any more
                return
            except OSError as error:
                self.fault = from_os_error(error, self.attempt.log) or UserError(str(error), where=self.attempt.log)
                self.stopped = True
                return
            self._save()

    def _save(self, now: bool = False) -> None:
        if not now and time.monotonic() - self._saved < SAVED:
            return
        self._saved = time.monotonic()
        with suppress(OSError, ValueError):
            counts = {c.key: dict(c.position.counts) for c in self._containers.values()}
            value = {"log": self._log.tell(), "events": self._events.tell(), "told": sorted(self._told),
                     "containers": {**self._known, **counts}}  # fmt: skip
            beside = self._kept.with_name(f".{self._kept.name}")
            beside.write_text(json.dumps(value))
            os.replace(beside, self._kept)

    def _resume(self) -> None:
        """Go on where another runner stopped: what it wrote after its last note is read again."""
        value: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            value = json.loads(self._kept.read_text())
        for file, size in ((self.attempt.log, value.get("log", 0)), (self.attempt.events, value.get("events", 0))):
            with suppress(OSError):
                if file.stat().st_size > size:
                    os.truncate(file, size)
        self._told = set(value.get("told", []))
        self._known = {u: {int(k): n for k, n in c.items()} for u, c in value.get("containers", {}).items()}


def _whole(line: bytes) -> bytes:
    """A line without the times that stand between its pieces."""
    if len(line) <= PIECE:
        return line
    return b"".join(_pieces(line))


def _pieces(line: bytes) -> Iterator[bytes]:
    while line:
        yield line[:PIECE]
        line = line[PIECE:]
        if found := STAMP.match(line):
            line = line[found.end() :]
