"""One of several training processes: `python -m microstages_training.worker job.json`, started by torchrun.

Rank 0 writes the adapter and the checkpoints. The first process of each node writes `outcome.json` beside the job file,
and its stdout carries events for the parent; a process that fails writes it where no other did. A process that stops
because it is told to ends with 0, or torchrun would take it for failed.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from microstages.errors import EXIT_TEMPORARY, EXIT_USER, Stopped, UserError
from microstages.reporting import Reporter

from microstages_training.distributed import Team
from microstages_training.stopping import SIGNALS, Leash, Stopping
from microstages_training.train import Job, run_job

WAIT = 1800  # seconds that a collective waits: rank 0 may be sending a checkpoint to its store meanwhile


def main(file: Path) -> int:
    import torch
    import torch.distributed as dist

    job = Job.from_json(file.read_text())
    rank, size, local = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    events = os.fdopen(os.dup(1), "w", encoding="utf-8") if local == 0 else None
    os.dup2(2, 1)
    words = sys.stderr if rank == 0 else open(os.devnull, "w")  # noqa: SIM115
    device = torch.device("cuda", local) if job.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    stopping = Stopping(
        signals=SIGNALS if job.keep is not None else (),
        insists=False,
        also=Leash(file.parent / "leash").pulled if local == 0 else lambda: False,
    )
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=WAIT))
        found = run_job(job, Team(rank, size, device), device, Reporter("train", events, words), stopping)
    except Stopped as stopped:
        found = {"stopped": str(stopped)}
    except UserError as error:
        found = {"error": {"what": error.what, "where": error.where, "fix": error.fix}}
    except RuntimeError as error:
        if not _of_the_network(error):
            raise
        found = {"lost": str(error).splitlines()[0]}
    failed = "error" in found or "lost" in found
    if local == 0 or failed:
        with suppress(FileExistsError, FileNotFoundError):  # the latter: the parent was killed, and its folder removed
            with (file.parent / "outcome.json").open("x" if failed else "w") as out:
                json.dump(found, out)
    if failed:
        sys.stdout.flush()
        os._exit(EXIT_USER if "error" in found else EXIT_TEMPORARY)  # nobody waits for the others any more
    dist.destroy_process_group()
    return 0


def _of_the_network(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone, or the network is."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
