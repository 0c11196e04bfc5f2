"""What this process may use of the machine, and what it used."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def cores() -> int:
    """Cores that this process may really use: OMP_NUM_THREADS, else the affinity mask under the container's quota.

    More threads than these only wait for each other.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(free, _quota()))


def _quota() -> int:
    """Whole cores of the control group's quota (cpu.max, or version 1's cfs files); many where there is none."""
    group = Path("/sys/fs/cgroup")
    try:
        if (file := group / "cpu.max").is_file():
            quota, period = file.read_text().split()
        else:
            quota, period = ((group / "cpu" / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
        return -(-int(quota) // int(period)) if int(quota) > 0 else 1 << 16
    except (OSError, ValueError):  # no such files, or the quota is `max`
        return 1 << 16


def peak_memory() -> dict[str, int]:
    """The most bytes in use so far: of the process (resident), and of the GPU where torch holds some."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"peak_memory_bytes": peak}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["peak_gpu_memory_bytes"] = int(torch.cuda.max_memory_allocated())
    return found
