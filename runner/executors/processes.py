"""Processes named so that they are known again: a token is process id, start time, boot and process space, host name.

A process id alone is given to another process sooner or later.
"""

from __future__ import annotations

import functools
import os
import subprocess


@functools.cache
def _boot() -> str:
    """What tells apart two boots, and two containers that have the same host name: each counts its own processes."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as f:
            return f"{f.read(8)}.{os.readlink('/proc/self/ns/pid').strip('pid:[]')}"
    except OSError:
        return "boot"


def _start(pid: int) -> str | None:
    """When a process started, None where there is none; a zombie has ended."""
    if os.path.isdir("/proc/self"):
        try:
            with open(f"/proc/{pid}/stat", "rb") as f:
                fields = f.read().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip().replace(":", ".") or None


def token(pid: int) -> str:
    """The token of a running process, empty where it has ended already."""
    start = _start(pid)
    return f"{pid}:{start}:{_boot()}:{os.uname().nodename}" if start else ""


def host(text: str) -> str:
    """The machine of a token."""
    return text.rpartition(":")[2]


def machine(text: str) -> str:
    """The boot, process space and host of a token: within it, whether a process runs can be told."""
    return ":".join(text.split(":")[-2:])


def own_token() -> str:
    """The token of this process."""
    return token(os.getpid())


def alive(text: str) -> bool:
    """Whether the process of a token still runs, on this machine."""
    pid, _, rest = text.partition(":")
    return pid.isdigit() and token(int(pid)) == f"{pid}:{rest}"
