"""Attempts as processes of this machine, each in a process group of its own.

stdout and stderr go to files, not through the runner: so a stage outlives a runner that is killed, loses no word, and
the next runner takes it up. Ctrl-C on the terminal reaches the runner alone, which passes it on as SIGTERM.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from microstages.draft import ATTEMPT
from microstages.errors import UserError, from_os_error

from runner.executors import LOST, Attempt, Status
from runner.executors.processes import alive, token
from runner.executors.words import Reader


@dataclass
class _Running:
    pid: int
    token: str
    child: subprocess.Popen[bytes] | None  # None: another runner started it
    pidfd: int | None
    events: Reader


class ProcessExecutor:
    """Runs attempts as local processes."""

    name = "process"
    elsewhere = False
    retries = False
    address = ""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}

    def submit(self, attempt: Attempt) -> str:
        """Start the process. Raises UserError where its program cannot be started."""
        environment = {**os.environ, **attempt.environment, ATTEMPT: attempt.name}
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            log = os.open(attempt.log, flags, 0o644)
            events = log if attempt.events == attempt.log else os.open(attempt.events, flags, 0o644)
        except OSError as error:
            raise from_os_error(error, attempt.log) or UserError(str(error), where=attempt.log) from None
        try:
            child = subprocess.Popen(
                [*attempt.command, *attempt.arguments], cwd=attempt.folder, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=events, stderr=log,
            )  # fmt: skip
        except OSError as error:
            fix = "check that it is a program for this machine, and its first line if it is a script"
            if error.errno == 7:
                fix = "its parameters are too long for a command line: give long text as a file"
            why = (error.strerror or str(error)).lower()
            raise UserError(f"it cannot be started: {why}", where=attempt.command[0], fix=fix) from None
        finally:
            os.close(log)
            if events != log:
                os.close(events)
        running = _Running(child.pid, token(child.pid), child, _pidfd(child.pid), Reader(attempt.events))
        self._running[attempt.name] = running
        return running.token

    def find(self, attempt: Attempt, token: str) -> bool:
        token = token or _by_name(attempt.name)
        if not alive(token):
            return False
        pid = int(token.partition(":")[0])
        pidfd = _pidfd(pid)
        if not alive(token):  # it ended while we took hold of it
            if pidfd is not None:
                os.close(pidfd)
            return False
        self._running[attempt.name] = _Running(pid, token, None, pidfd, Reader(attempt.events))
        return True

    def poll(self, attempt: Attempt) -> Status:
        running = self._running[attempt.name]
        if running.child is not None:
            code = running.child.poll()
            return Status(code is None, code)
        return Status(True) if alive(running.token) else Status(False, LOST)

    def wake(self, attempt: Attempt) -> int | None:
        return self._running[attempt.name].pidfd

    def read(self, attempt: Attempt) -> str:
        """Whole lines of its stdout since the last time."""
        return self._running[attempt.name].events.read()

    def ran_in(self, attempt: Attempt) -> str:  # noqa: ARG002 - on this machine as it is
        return ""

    def cancel(self, attempt: Attempt, now: bool = False) -> None:
        """Signal the whole group: SIGTERM, or SIGKILL at once."""
        running = self._running[attempt.name]
        if running.child is None and not alive(running.token):
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(running.pid, signal.SIGKILL if now else signal.SIGTERM)

    def forget(self, attempt: Attempt, leave: bool = False) -> None:
        """Drop what is kept, and end what the stage may have left running in its group."""
        running = self._running.pop(attempt.name)
        if running.child is not None and not leave:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(running.pid, signal.SIGKILL)
        running.events.close()
        if running.pidfd is not None:
            os.close(running.pidfd)


def _by_name(name: str) -> str:
    """The token of the process that an attempt was started as, where its runner died before it could note it."""
    mark = f"{ATTEMPT}={name}".encode()
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc/self") else ()):
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as f:
            if os.getpgid(int(pid)) == int(pid) and mark in f.read().split(b"\0"):
                return token(int(pid))
    return ""


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or it has ended
        return None
