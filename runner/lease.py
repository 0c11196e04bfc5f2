"""Leases: of all runners that share a store, on whatever machines, one at a time makes a stage run.

    <store>/artifacts/<stage>/<fingerprint>/lease-<generation>.json

1. Who creates generation 1 holds the lease: create-if-absent, which every store does atomically. A listing afterwards
   shows whether a higher generation was there.
2. The holder's one thread changes the content again and again (`beat`). A lease whose content an observer has not seen
   change for 40 s of his own clock is dead: clocks are never compared. Where the holder was a process of this machine
   that has ended, it is dead at once.
3. To take a dead lease over is to create the next generation and then to remove the older ones. Where the dead one is
   not there any more as it was judged, the new one is given back: somebody else was faster.
4. A holder that was taken for dead goes on when it wakes. Which result counts, the commit decides (`Store.commit`).

So a lease spares work and decides nothing. MICROSTAGES_LEASE_SECONDS sets the 40 s (for tests); a quarter of it lies
between two beats.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from microstages import storage
from microstages.errors import TemporaryError, UserError, from_os_error

from runner.executors.processes import alive, host, machine, own_token

DEAD_AFTER = 40.0  # seconds
ROUNDS = 20  # times that others may be faster before it is looked at again later

_FILE = re.compile(r"lease-([0-9]{1,9})\.json")

Key = tuple[str, str]  # stage and fingerprint


def dead_after() -> float:
    """Seconds without a beat after which a lease is dead."""
    own = os.environ.get("MICROSTAGES_LEASE_SECONDS", "")
    return float(own) if own.replace(".", "", 1).isdigit() and float(own) else DEAD_AFTER


def user() -> str:
    """The name of this process's user; its number where it has no name."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: `runner` is its process's token, `who` is user@host, `since` seconds since 1970 there."""

    runner: str = ""
    who: str = ""
    pid: int = 0
    pipeline: str = ""
    attempt: str = ""
    since: float = 0.0

    @staticmethod
    def read(data: bytes) -> Holder:
        """What a lease's file says; a holder without a name where it says nothing."""
        try:
            v = json.loads(data)
            return Holder(
                str(v["runner"]), str(v["who"]), int(v["pid"]), str(v["pipeline"]), str(v["attempt"]), float(v["since"])
            )
        except (ValueError, TypeError, KeyError):
            return Holder()

    def ended(self) -> bool:
        """Whether its process ran on this machine and has ended. Of another machine's that cannot be told."""
        return bool(self.runner) and machine(self.runner) == machine(own_token()) and not alive(self.runner)

    def __str__(self) -> str:
        if not self.runner:
            return "another run is making it"
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"another run ({self.who}, pid {self.pid}) is making it since {since}"


@dataclass
class _Held:
    """A lease of this run. `owner`: its stage of this pipeline; two stages can be the same stage run."""

    holder: Holder
    owner: str
    generation: int
    beat: int = 0
    sure: float = 0.0  # when it was known to be ours
    lost: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def data(self) -> bytes:
        return (json.dumps({**self.holder.__dict__, "beat": self.beat}) + "\n").encode()


@dataclass
class _Seen:
    """Somebody else's lease under observation; `still`: seconds for which it was seen not to change."""

    generation: int
    data: bytes
    at: float = field(default_factory=time.monotonic)
    still: float = 0.0


class Leases:
    """The leases of one run. No method raises OSError; UserError and TemporaryError are the store's."""

    def __init__(self, store: str, pipeline: str) -> None:
        self.store, self.pipeline = store, pipeline
        self.dead_after = dead_after()
        self.every = self.dead_after / 4
        self._held: dict[Key, _Held] = {}
        self._seen: dict[Key, _Seen] = {}
        self.away = False  # the store did not answer the last time: it is not asked to take leases back
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, stage: str, fingerprint: str, owner: str, attempt: str) -> Holder | None:
        """Take the lease of a stage run for `owner`: None where it is his now, otherwise who has it."""
        key = stage, fingerprint
        if (mine := self._held.get(key)) and not mine.lost:
            if mine.owner == owner:
                mine.holder = Holder(**{**mine.holder.__dict__, "attempt": attempt})
                return None
            return mine.holder
        self._held.pop(key, None)
        for _ in range(ROUNDS):
            try:
                if seen := self._seen.get(key):
                    self._look(key, seen)
                elif self._create(key, 1, owner, attempt):
                    return None
                else:
                    self._meet(key)
                if (seen := self._seen.get(key)) is None:  # it is gone meanwhile
                    continue
                holder = Holder.read(seen.data)
                if seen.still < self.dead_after and not holder.ended():
                    return holder
                if self._create(key, seen.generation + 1, owner, attempt, seen):
                    return None
                self._meet(key)
            except FileNotFoundError:  # another runner removed the empty folder
                continue
            except OSError as error:
                raise from_os_error(error, self._uri(key)) or UserError(str(error), where=self._uri(key)) from None
        return Holder()

    def lost(self, stage: str, fingerprint: str) -> bool:
        """Whether somebody took our lease over. Where the store does not answer: not as far as is known."""
        key = stage, fingerprint
        held = self._held.get(key)
        if held is None:
            return False
        with suppress(UserError, OSError):
            highest = max(self._generations(key), default=0)
            held.lost = held.lost or highest != held.generation or not self._is_there(key, held)
        return held.lost

    def release(self, stage: str, fingerprint: str) -> None:
        """Give a lease back, where we have it."""
        key = stage, fingerprint
        held = self._held.pop(key, None)
        if held is None:
            return
        # A store that does not answer now: the lease dies by itself. One that may have been taken over is looked at
        # first: its name can be somebody else's by now.
        if self.away:
            return
        with held.lock, suppress(UserError, OSError):
            unsure = held.lost or time.monotonic() - held.sure > self.dead_after / 2
            if not unsure or self._is_there(key, held):
                self._remove(key, held.generation)

    def drop(self, owner: str) -> None:
        """Give back what is held for a stage of this pipeline."""
        for key in [key for key, held in self._held.items() if held.owner == owner]:
            self.release(*key)

    def close(self) -> None:
        """Give all leases back and end the thread."""
        self._stop.set()
        for key in list(self._held):
            self.release(*key)
        if self._thread:
            self._thread.join(self.every)

    # --- taking ---

    def _create(self, key: Key, generation: int, owner: str, attempt: str, dead: _Seen | None = None) -> bool:
        """Create a generation, the first or that after a `dead` one; whether it is there and counts."""
        holder = Holder(own_token(), f"{user()}@{host(own_token())}", os.getpid(), self.pipeline, attempt, time.time())
        held = _Held(holder, owner, generation)
        if not storage.create(self._uri(key, generation), held.data()):
            return False
        try:
            others = [n for n in self._generations(key) if n != generation]
            judged = storage.read(self._uri(key, dead.generation)) == dead.data if dead else not others
            if not judged or max(others, default=0) > generation:
                self._remove(key, generation)
                return False
            for old in others:
                storage.remove(self._uri(key, old))
        except TemporaryError:
            with suppress(UserError, OSError):
                self._remove(key, generation)
            raise
        self._held[key], held.sure, self.away = held, time.monotonic(), False
        self._seen.pop(key, None)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="leases")
            self._thread.start()
        return True

    def _meet(self, key: Key) -> None:
        """Begin to observe whoever holds a lease, if anybody does."""
        self._seen.pop(key, None)
        generation = max(self._generations(key), default=0)
        if generation and (data := storage.read(self._uri(key, generation))) is not None:
            self._seen[key] = _Seen(generation, data)

    def _look(self, key: Key, seen: _Seen) -> None:
        """Look again at a lease under observation; one that is gone is observed no more."""
        data, now = storage.read(self._uri(key, seen.generation)), time.monotonic()
        if data is None:
            del self._seen[key]
            return
        # What nobody looked at for long (we may have been stopped ourselves) can have changed unseen.
        seen.still = seen.still + min(now - seen.at, self.every) if data == seen.data else 0.0
        seen.data, seen.at = data, now

    # --- keeping ---

    def _run(self) -> None:
        pause = self.every
        while not self._stop.wait(pause):
            pause = self.every
            for key, held in list(self._held.items()):
                # Whatever a store says: the next beat may reach it, and if none does the lease is lost, nothing else.
                try:
                    self._beat(key, held)
                    self.away = False
                except Exception:
                    self.away, pause = True, self.every / 5

    def _beat(self, key: Key, held: _Held) -> None:
        with held.lock:
            if held.lost or self._held.get(key) is not held:
                return
            if not self._is_there(key, held):
                held.lost = True
                return
            held.beat += 1
            storage.replace(self._uri(key, held.generation), held.data())
            held.sure = time.monotonic()

    def _is_there(self, key: Key, held: _Held) -> bool:
        data = storage.read(self._uri(key, held.generation))
        return data is not None and Holder.read(data).runner == held.holder.runner

    # --- files ---

    def _uri(self, key: Key, generation: int = 0) -> str:
        name = [f"lease-{generation}.json"] if generation else []
        return storage.join(self.store, "artifacts", *key, *name)

    def _generations(self, key: Key) -> list[int]:
        folder = storage.local_path(self._uri(key))
        # `entries` looks at every file below, also at those of others that come and go
        names: Any = os.listdir(folder) if folder is not None else storage.entries(self._uri(key))
        return [int(m.group(1)) for name in names if (m := _FILE.fullmatch(name))]

    def _remove(self, key: Key, generation: int) -> None:
        storage.remove(self._uri(key, generation))
        if (folder := storage.local_path(self._uri(key))) is not None:
            with suppress(OSError):
                folder.rmdir()  # only where nothing else is in it
