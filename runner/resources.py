"""Shares out this machine's cores, memory and GPUs among stages that run side by side.

A stage that names no `cpus` takes an equal part of what is free for those that could start now, so a stage alone takes
the whole machine. Threads are told through OMP_NUM_THREADS: more threads than cores make everything slower.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from runner.spec import Resources

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True)
class Share:
    """What one stage may use. `slots` counts against `--jobs`. One that runs elsewhere takes nothing of this machine;
    `threads` are its own."""

    slots: int
    memory: int
    gpus: tuple[int, ...] | None
    threads: int = 0


def elsewhere(wanted: Resources) -> Share:
    """The share of a stage that runs on another machine."""
    return Share(0, 0, None, threads=math.ceil(wanted.cpus or 0))


class Pool:
    """The machine. `jobs`: how many stages may run side by side (0: one for each core)."""

    def __init__(self, jobs: int = 0) -> None:
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.slots = self.free = jobs or self.cores
        self.memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.gpus = list(range(_gpus()))
        self.all_gpus = len(self.gpus)

    def take(self, wanted: Resources, others: int, idle: bool) -> Share | None:
        """A share for one of `others` stages that could start now, None where it has to wait.

        When nothing runs (`idle`) a stage gets a share whatever it asks for: then it is the machine that is too small,
        and the stage will say so better.
        """
        if wanted.cpus is not None:
            slots = min(self.slots, max(1, round(wanted.cpus * self.slots / self.cores)))
        else:
            slots = max(1, self.free // max(1, others))
        memory = wanted.memory or 0
        gpus: tuple[int, ...] | None = None
        count = min(wanted.gpus, self.all_gpus)
        if self.all_gpus:
            gpus = tuple(self.gpus[:count])
        fits = slots <= self.free and memory <= self.memory and len(gpus or ()) == (count if self.all_gpus else 0)
        if not fits and not idle:
            return None
        self.free -= slots
        self.memory -= memory
        self.gpus = self.gpus[count:]
        return Share(slots, memory, gpus)

    def give(self, share: Share) -> None:
        """A stage has ended."""
        self.free += share.slots
        self.memory += share.memory
        self.gpus = sorted([*self.gpus, *(share.gpus or ())])

    def environment(self, share: Share) -> dict[str, str]:
        """The variables that keep a stage within its share."""
        if not share.slots:
            return {name: str(share.threads) for name in _THREADS} if share.threads else {}
        threads = max(1, self.cores * share.slots // self.slots)
        out = {}
        for name in _THREADS:
            own = os.environ.get(name, "")
            out[name] = str(min(threads, int(own)) if own.isdigit() and int(own) else threads)
        if share.gpus and self.all_gpus > 1:
            out["CUDA_VISIBLE_DEVICES"] = ",".join(visible_gpus()[i] for i in share.gpus)
        return out


def visible_gpus() -> list[str]:
    """The names of the GPUs that may be used."""
    own = os.environ.get("CUDA_VISIBLE_DEVICES")
    if own is not None:
        return [name for name in own.split(",") if name.strip()]
    try:
        return [str(i) for i in range(len(os.listdir("/proc/driver/nvidia/gpus")))]
    except OSError:
        return []


def _gpus() -> int:
    return len(visible_gpus())
