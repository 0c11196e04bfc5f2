"""Records of runs in the store: what everybody who shares a store can see of each other's runs.

    <store>/runs/<UTC time, to the millisecond>-<8 hex digits>.json

`up` writes one when it begins to act, with the stage runs that it may use, and again at its end. `gc` reads them: what
a run under way names, it leaves alone. For that to hold at any moment a run first names a stage run in its record and
then looks whether its result is there; `gc` first makes a result invisible and then reads the records once more.

A run that only reused what is there writes once, at its end, in place of an earlier record that says the same; where
the newest record says it already, nothing is written. So to run again and again piles up nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from microstages import storage
from microstages.errors import UserError

from runner.executors.processes import alive, host, machine, own_token
from runner.lease import user
from runner.pipeline import Pipeline
from runner.plan import Facts, Step
from runner.store import Damaged, Result, Store

if TYPE_CHECKING:
    from runner.execute import Outcome

SCHEMA = 1
NAME = re.compile(r"(\d{8}T\d{9})-([0-9a-f]{8})\.json")
LONGEST = 7 * 86400.0  # seconds for which another machine's run without an end is taken to be under way
AT_ONCE = 8  # small files read side by side

StageRun = tuple[str, str]  # a stage's name (`uses`) and a fingerprint


@dataclass(frozen=True)
class Run:
    """One record. `needs`: the stage runs that it uses or makes. `stages`: stage -> uses, status, fingerprint, attempt,
    outputs with their digests. Times are seconds since 1970 by the clock of the machine that ran it."""

    name: str
    pipeline: str
    who: str
    runner: str
    started: float
    finished: float | None
    status: str
    needs: Set[StageRun]
    stages: Mapping[str, Mapping[str, Any]]

    @property
    def under_way(self) -> bool:
        """Whether it may still go on. Of this machine's runs that is known; of another one's it is assumed."""
        if self.status != "running":
            return False
        if machine(self.runner) == machine(own_token()):
            return alive(self.runner)
        return time.time() - self.started < LONGEST


def who() -> str:
    """`user@host`."""
    return f"{user()}@{host(own_token())}"


def iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def seconds(text: object) -> float | None:
    """The time that `iso` wrote, in seconds since 1970."""
    import calendar

    try:
        return float(calendar.timegm(time.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        return None


def stage_data(uses: str, result: Result) -> dict[str, Any]:
    """A result as records and tags name it."""
    outputs = {
        k: {"kind": o.manifest.kind, "digest": o.digest, "size": o.manifest.size} for k, o in result.outputs.items()
    }
    return {"uses": uses, "fingerprint": result.fingerprint, "attempt": result.attempt, "outputs": outputs}


def names(uri: str) -> list[str]:
    """The names of the files directly below a folder, sorted."""
    if (path := storage.local_path(uri)) is not None:
        found = os.listdir(path) if path.is_dir() else []
    else:
        found = list(storage.listing(uri))
    return sorted(n for n in found if "/" not in n and not n.startswith("."))


def read_many(uri: str, files: Sequence[str]) -> dict[str, bytes | None]:
    """Small files below a folder, read side by side where they are far away."""
    uris = [storage.join(uri, n) for n in files]
    if storage.local_path(uri) is not None:
        return dict(zip(files, map(storage.read, uris), strict=True))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(files, pool.map(storage.read, uris), strict=True))


def folder(store: Store) -> str:
    return storage.join(store.uri, "runs")


def read_all(store: Store) -> list[Run]:
    """Every record, newest first. What is not one is left out."""
    found = [n for n in names(folder(store)) if NAME.fullmatch(n)]
    return sorted(parse(read_many(folder(store), found)), key=lambda r: r.name, reverse=True)


def parse(files: Mapping[str, bytes | None]) -> list[Run]:
    """The records in files (name -> bytes). What is not one is left out."""
    runs = []
    for name, data in files.items():
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            runs.append(_parsed(name, json.loads(data or b"")))
    return runs


def _parsed(name: str, v: dict[str, Any]) -> Run:
    stages = {str(k): dict(s) for k, s in v["stages"].items()}
    needs = {(str(uses), str(fingerprint)) for uses, fingerprint in v["needs"]}
    needs |= {(s["uses"], s["fingerprint"]) for s in stages.values() if s.get("fingerprint")}
    began = seconds(v["started"]) or 0.0
    return Run(
        name, str(v["pipeline"]), str(v["who"]), str(v["runner"]), began, seconds(v["finished"]), str(v["status"]),
        needs, stages,
    )  # fmt: skip


class RunLog:
    """The record of a run of this process: `begin`, then `end` or, where it did not come to its end, `close`."""

    def __init__(
        self, store: Store, pipeline: Pipeline, steps: Mapping[str, Step], forced: Set[str] = frozenset()
    ) -> None:
        self.store, self.pipeline = store, pipeline
        self.idle = not forced and all(s.action == "reuse" for s in steps.values())
        self.started = time.time()
        self.name = f"{_stamp(self.started)}-{secrets.token_hex(4)}.json"
        self.planned = {
            (pipeline.stages[s.stage].interface.name, s.fingerprint): s.result for s in steps.values() if s.fingerprint
        }
        self.needs: set[StageRun] = set(self.planned)
        self.stages: dict[str, dict[str, Any]] = {
            s.stage: self._stage(s.stage, "waiting", s.result, s.fingerprint) for s in steps.values()
        }
        self.ended = True  # nothing is written yet that needs an end

    def begin(self, facts: Facts) -> Facts:
        """Name what the run may use, before it acts. The facts from now on: each stage run is named before it is looked
        up, also one that is known only later. Raises UserError where the store cannot be written."""
        if self.idle:
            return facts
        self._write("running", None)
        self.ended = False
        from runner.inventory import committed

        known: dict[StageRun, Result | Damaged | None] = {}

        def look_up(stage: str, fingerprint: str) -> Result | Damaged | None:
            key = (stage, fingerprint)
            if isinstance(found := known.get(key), Result):
                return found
            if key not in self.needs:
                self.needs.add(key)
                self._try_to_write("running", None)
            elif isinstance(before := self.planned.get(key), Result) and key not in known:
                commit = committed(self.store, stage, fingerprint)
                if commit is not None and commit.attempt == before.attempt and not commit.damaged:
                    known[key] = before  # looked at when it was planned, and still there now that it is named
                    return before
            known[key] = self.store.look_up(stage, fingerprint)
            return known[key]

        return replace(facts, look_up=look_up)

    def end(self, outcome: Outcome) -> None:
        """Write how it ended. A store that cannot be written now changes nothing of that."""
        self.ended = True
        for name in self.pipeline.stages:
            result = outcome.results.get(name)
            before = self.stages.get(name, {}).get("fingerprint", "")
            self.stages[name] = self._stage(name, outcome.states.get(name, "not run"), result, before)
            if result is not None:
                self.needs.add((self.pipeline.stages[name].interface.name, result.fingerprint))
        if self.idle and set(outcome.states.values()) == {"reused"}:
            with suppress(OSError, UserError):
                self._write_once(outcome.status)
        else:
            self._try_to_write(outcome.status, time.time())

    def close(self) -> None:
        """The run is over, whatever happened."""
        if not self.ended:
            self.ended = True
            self._try_to_write("failed", time.time())

    def _stage(self, name: str, status: str, result: Result | None, fingerprint: str) -> dict[str, Any]:
        uses = self.pipeline.stages[name].interface.name
        found: dict[str, Any] = {"uses": uses, "fingerprint": fingerprint, "attempt": "", "outputs": {}}
        return {"status": status, **(stage_data(uses, result) if result else found)}

    def _data(self, status: str, finished: float | None) -> bytes:
        value = {
            "schema": SCHEMA, "pipeline": self.pipeline.name, "who": who(), "runner": own_token(),
            "started": iso(self.started), "finished": iso(finished) if finished else None, "status": status,
            "stages": self.stages, "needs": sorted(self.needs),
        }  # fmt: skip
        return (json.dumps(value, indent=1) + "\n").encode()

    def _write(self, status: str, finished: float | None) -> None:
        storage.replace(storage.join(folder(self.store), self.name), self._data(status, finished))

    def _try_to_write(self, status: str, finished: float | None) -> None:
        try:
            self._write(status, finished)
        except (OSError, UserError) as error:
            from runner.view import say

            say(f"warning: the record of this run cannot be written: {error}".split("\n", maxsplit=1)[0], sys.stderr)

    def _write_once(self, status: str) -> None:
        same = hashlib.sha256(json.dumps([self.pipeline.name, self.stages], sort_keys=True).encode()).hexdigest()[:8]
        found = [m for n in names(folder(self.store)) if (m := NAME.fullmatch(n))]
        if found and found[-1][2] == same:
            return
        self.name = f"{_stamp(self.started)}-{same}.json"
        self._write(status, time.time())
        for match in found:
            if match[2] == same and match[0] != self.name:
                storage.remove(storage.join(folder(self.store), match[0]))


def _stamp(seconds: float) -> str:
    """UTC, to the millisecond: names sort by time."""
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds)) + f"{int(seconds * 1000) % 1000:03d}"
