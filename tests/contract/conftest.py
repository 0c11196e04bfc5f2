"""The places of the executor contract: each can make an executor and an attempt that runs a shell script there."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from contract import places

from runner.executors import Attempt, Executor, Status

NAMES = ("process", "docker", "kubernetes", "kubernetes-command", "azureml")
WITHIN = 120.0  # seconds that anything here may take


@dataclass
class Place:
    """Somewhere to run attempts. `options`: what a target of this kind is given; `count`: how many of an attempt the
    place knows (jobs, containers), None where it keeps no books."""

    name: str
    folder: Path
    make: Callable[[], Executor]
    base: Attempt
    count: Callable[[Attempt], int] | None = None
    knows_codes: bool = True  # the place tells a program's exit code
    stopped: tuple[int, ...] = (143,)  # what it may say of a program that was told to stop, and did with 143
    last_words: bool = True  # what is said after SIGTERM is still heard
    other: str = ""  # what lines of events say that are not the program's
    executors: list[Executor] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def executor(self) -> Executor:
        """A new one, as a new runner has it."""
        self.executors.append(self.make())
        return self.executors[-1]

    def attempt(self, script: str, environment: Mapping[str, str] | None = None, **more: Any) -> Attempt:
        number = next(self._numbers)
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{number:02x}{int(time.time() * 1e6) & 0xFFFFFF:06x}"
        return replace(
            self.base, name=name, command=("sh", "-c", script), log=self.folder / f"{number}.log",
            events=self.folder / f"{number}.events", environment=dict(environment or {}), **more,
        )  # fmt: skip


@dataclass
class Ended:
    """How an attempt ended, and what it had said by then."""

    status: Status
    events: str
    log: str


@pytest.fixture(params=NAMES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each place once. One that is not there is left out loudly, or fails where it is required."""
    with places.PLACES[request.param](request, tmp_path) as made:
        yield made


@pytest.fixture
def finished(place: Place) -> Callable[[Executor, Attempt], Ended]:
    """`finished(executor, attempt)`: wait for its end, read its words, forget it."""

    def wait(executor: Executor, attempt: Attempt) -> Ended:
        end = time.monotonic() + WITHIN
        while (status := executor.poll(attempt)).running:
            assert time.monotonic() < end, f"it still runs: {attempt.log.read_text()[-500:]}"
            time.sleep(0.05)
        executor.read(attempt)
        executor.forget(attempt)
        lines = _text(attempt.events).splitlines(keepends=True)
        own = [line for line in lines if not place.other or place.other not in line]
        return Ended(status, "".join(own), _text(attempt.log))

    return wait


def _text(file: Path) -> str:
    return file.read_bytes().decode() if file.exists() else ""
