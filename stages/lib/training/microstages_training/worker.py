"""One of several training processes: `python -m microstages_training.worker job.json`, started by torchrun.

Rank 0 writes the adapter, checkpoints, and `outcome.json` beside the job file; its stdout carries events for the
parent. A process that stops because it is told to ends with 0, or torchrun would take it for failed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from microstages.errors import EXIT_USER, Stopped, UserError
from microstages.reporting import Reporter

from microstages_training.distributed import Team
from microstages_training.stopping import SIGNALS, Leash, Stopping
from microstages_training.train import Job, run_job


def main(file: Path) -> int:
    import torch
    import torch.distributed as dist

    job = Job.from_json(file.read_text())
    rank, size, local = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    events = os.fdopen(os.dup(1), "w", encoding="utf-8") if rank == 0 else None
    os.dup2(2, 1)
    words = sys.stderr if rank == 0 else open(os.devnull, "w")  # noqa: SIM115
    device = torch.device("cuda", local) if job.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    stopping = Stopping(
        signals=SIGNALS if job.keep is not None else (),
        insists=False,
        also=Leash(file.parent / "leash").pulled if rank == 0 else lambda: False,
    )
    try:
        found = run_job(job, Team(rank, size, device), device, Reporter("train", events, words), stopping)
    except Stopped as stopped:
        found = {"stopped": str(stopped)}
    except UserError as error:
        found = {"error": {"what": error.what, "where": error.where, "fix": error.fix}}
    if rank == 0 and file.parent.is_dir():  # else the parent was killed, and its folder removed
        (file.parent / "outcome.json").write_text(json.dumps(found))
    dist.destroy_process_group()
    return EXIT_USER if "error" in found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
