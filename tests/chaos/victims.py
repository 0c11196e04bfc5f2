"""What dies in a round, and how. Each returns whether there was something to strike at."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from chaos.places import BOTH, CUT, ENGINE, RUNNER, SPOILED, STAGE, STORE_KILLED, STORE_STOPPED, Place
from chaos.trial import Trial, Up
from stores.proxy import Plan

SPOIL = Plan(drop=0.06, lose=0.06, delay=0.1, truncate=0.06, seconds=0.5)
AWAY = (0.3, 3.0)  # seconds that a store, a network or an engine is away
# Of these an `up` may end; from everything else it must recover by itself.
ENDING = (RUNNER, STAGE, BOTH, STORE_KILLED, ENGINE)


def strike(victim: str, trial: Trial, up: Up, draw: random.Random) -> bool:
    """Let a victim die, and come back where it is to come back."""
    struck = _STRIKES[victim](trial, up, draw)
    if struck:
        up.strikes.append(victim)
        trial.forgetful |= victim == STORE_KILLED
    return struck


def _runner(trial: Trial, up: Up, draw: random.Random) -> bool:  # noqa: ARG001
    if up.code is not None:
        return False
    up.process.kill()
    up.process.wait()
    return True


def _stage(trial: Trial, up: Up, draw: random.Random) -> bool:
    """One process of a stage, or a container's."""
    end = time.monotonic() + 5
    while up.code is None and time.monotonic() < end:
        running = sorted(pid for pid, stage in trial.processes().items() if stage)
        running = running or sorted(pid for pid in trial.containers().values() if pid)
        if running:
            with suppress(ProcessLookupError):
                os.kill(draw.choice(running), signal.SIGKILL)
                return True
        time.sleep(0.02)
    return False


def _both(trial: Trial, up: Up, draw: random.Random) -> bool:
    """The runner, and everything that it started: what a power cut does."""
    if not _runner(trial, up, draw):
        return False
    for pid in [*trial.processes(), *trial.containers().values()]:
        with suppress(ProcessLookupError):
            if pid:
                os.kill(pid, signal.SIGKILL)
    return True


def _store(end: Callable[[Place], None]) -> Callable[[Trial, Up, random.Random], bool]:
    def work(trial: Trial, up: Up, draw: random.Random) -> bool:
        store = trial.place.store
        if up.code is not None or store is None:
            return False
        end(trial.place)
        time.sleep(draw.uniform(*AWAY))
        store.start()
        return True

    return work


def _killed(place: Place) -> None:
    assert place.store is not None
    place.store.kill()


def _stopped(place: Place) -> None:
    """It stops when its last connection is closed: who talks to it is cut off."""
    assert place.store is not None and place.store.server.process is not None and place.proxy is not None
    process = place.store.server.process
    process.terminate()
    place.proxy.off()
    place.proxy.on()
    process.wait(60)  # told twice, Azurite would not save what it was told


def _spoiled(trial: Trial, up: Up, draw: random.Random) -> bool:
    """Some seconds of a much worse network."""
    if up.code is not None:
        return False
    trial.place.follow(replace(SPOIL, seed=draw.randrange(1 << 30)))
    end = time.monotonic() + 2 * draw.uniform(*AWAY)
    while up.code is None and time.monotonic() < end:
        time.sleep(0.05)
    trial.place.follow(trial.place.usual)
    return True


def _cut(trial: Trial, up: Up, draw: random.Random) -> bool:
    """No network at all for some seconds."""
    if up.code is not None or trial.place.proxy is None:
        return False
    trial.place.proxy.off()
    time.sleep(draw.uniform(*AWAY))
    trial.place.proxy.on()
    return True


def _engine(trial: Trial, up: Up, draw: random.Random) -> bool:
    if up.code is not None or trial.place.engine is None:
        return False
    trial.place.engine.kill()
    time.sleep(draw.uniform(*AWAY))
    trial.place.engine.start()
    return True


_STRIKES: dict[str, Callable[[Trial, Up, random.Random], bool]] = {
    RUNNER: _runner, STAGE: _stage, BOTH: _both, STORE_KILLED: _store(_killed), STORE_STOPPED: _store(_stopped),
    SPOILED: _spoiled, CUT: _cut, ENGINE: _engine,
}  # fmt: skip
