"""What training asks of the machine: cores that are free, memory that is kept, the precision that is fast."""

from __future__ import annotations

import ctypes
import os
import resource
import time
from typing import Any

from microstages import machine

_TICKS = os.sysconf("SC_CLK_TCK")


class FreeCores:
    """Measures, between its making and `count`, how many cores other programs leave free.

    Threads beyond the free cores slow matrix products down far below one thread's speed.
    """

    def __init__(self) -> None:
        self._at, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def count(self) -> int:
        """Free cores, at least one. Programs of low priority (nice) count as idle."""
        cores, seconds = machine.cores(), time.monotonic() - self._at
        busy = _busy_seconds()
        if busy is None or self._busy is None or seconds < 0.2:
            return cores
        others = max(0.0, busy - self._busy - (_own_seconds() - self._own)) / seconds
        return max(1, min(cores, round((os.cpu_count() or cores) - others)))


def _busy_seconds() -> float | None:
    try:
        with open("/proc/stat") as f:
            user, _nice, system = (int(v) for v in f.readline().split()[1:4])
        return (user + system) / _TICKS
    except (OSError, ValueError):
        return None


def _own_seconds() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def set_threads(wanted: int, free: FreeCores, before: int = 0) -> int:
    """Give torch its threads: `wanted`, or OMP_NUM_THREADS, or the free cores.

    A run that goes on takes as many as `before`, unless the machine is more than twice as large or small: another
    number rounds differently in fp32.
    """
    import torch

    count = wanted or (torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS") else free.count())
    if not wanted and count <= 2 * before <= 4 * count:
        count = before
    torch.set_num_threads(count)
    return count


def keep_memory() -> None:
    """Let glibc keep freed memory instead of returning it at once: a sixth faster, as the same large tensors come again
    in every step. Nothing happens where the C library knows no such call."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 1 << 30)
    except (OSError, AttributeError, TypeError):
        pass


def resolve_precision(wanted: str, device: Any) -> str:
    """`auto` as `bf16` where the device multiplies it in hardware, else `fp32`."""
    import torch

    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
