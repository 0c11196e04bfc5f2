"""Where attempts run. An executor starts one, says how it stands, hands out its words, stops it.

The protocol, for every executor:

- `submit` starts an attempt and returns a token: text by which it is found again. It is idempotent by the attempt's
  name where the place knows names (a container, a job).
- `find` takes up an attempt that another runner submitted; False where nothing is left of it.
- `poll` says how it stands, without waiting. `wake` is a file descriptor that becomes readable when it ends, or None
  where the scheduler has to ask from time to time.
- `read` returns what an attempt said since the last time; `ran_in` the image that it runs in, by its digest, empty
  where this machine's runner does not know one; `cancel` asks it to stop, or ends it at once.
- `forget` drops what is kept for an attempt that is over, and what it left running; with `leave` nothing that runs is
  touched.

No method raises for what an attempt does; a place that cannot be used is a UserError or TemporaryError.

A place that is `elsewhere` (a cluster) sees nothing of this machine's files: all that an attempt reads and writes has
an address that it reaches too. `address` says which place it is; where the pipeline says something else by then, `find`
knows it by the token, which is the address until `submit` has returned another. A place that `retries` tries an attempt
again by itself, as `Attempt.retry` wants it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from microstages.errors import UserError

from runner.retry import Retry
from runner.spec import Resources

LOST = -1000  # it ended, and nobody knows how


@dataclass(frozen=True)
class Carried:
    """What a place that is elsewhere must do for a plain command: bring what it reads, publish what it wrote. `orders`
    is JSON for `microstages.porter`, which the image of the stage `uses` with the identity `code` holds."""

    orders: str
    uses: str
    code: str


@dataclass(frozen=True)
class Attempt:
    """One start of a stage: what to run, where its words go. `events` is the file of stdout, `log` that of stderr.

    `command` starts the program on this machine, `arguments` follow it; `reads` are the addresses of its inputs,
    `writes` the local folders that it may write, `remote` all addresses elsewhere that it uses itself. `uses` and
    `code` name the stage and its code identity; `image` is the image that a pipeline or an interface names, and
    `code_folders` what a plain command needs in it. `carried` is there for a plain command that runs elsewhere: then
    `command` and `arguments` name paths there. `pipeline` is its pipeline's name. `retry`, `timeout` and `grace`
    (seconds) are for a place that keeps to them by itself, with or without a runner.
    """

    name: str
    stage: str
    command: tuple[str, ...]
    folder: Path
    log: Path
    events: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[int, ...] | None = None
    arguments: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[Path, ...] = ()
    remote: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    uses: str = ""
    code: str = ""
    image: str = ""
    code_folders: tuple[Path, ...] = ()
    carried: Carried | None = None
    pipeline: str = ""
    retry: Retry = field(default_factory=lambda: Retry(attempts=1))
    timeout: float | None = None
    grace: float = 30.0


class LateError(UserError):
    """It took longer than its timeout, says the place that kept it."""

    def __init__(self, seconds: float) -> None:
        what = f"it took longer than its timeout of {seconds:g} s"
        super().__init__(what, fix="give it a longer `timeout`, or less to do")


@dataclass(frozen=True)
class Status:
    """How an attempt stands. `code`: its exit code once it has ended (negative: the signal that ended it; LOST).
    `why`: what the place knows of its end and it could not say itself. `left`: the place cannot be reached, and the
    attempt may still run there."""

    running: bool
    code: int | None = None
    why: UserError | None = None
    left: bool = False


class Executor(Protocol):
    """A place where attempts run."""

    name: str
    elsewhere: bool
    retries: bool

    @property
    def address(self) -> str: ...

    def submit(self, attempt: Attempt) -> str: ...

    def find(self, attempt: Attempt, token: str) -> bool: ...

    def poll(self, attempt: Attempt) -> Status: ...

    def wake(self, attempt: Attempt) -> int | None: ...

    def read(self, attempt: Attempt) -> str: ...

    def ran_in(self, attempt: Attempt) -> str: ...

    def cancel(self, attempt: Attempt, now: bool = False) -> None: ...

    def forget(self, attempt: Attempt, leave: bool = False) -> None: ...
