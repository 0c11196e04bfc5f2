"""Several processes that train one adapter, one for each GPU, started by torchrun.

Only the adapter's gradients cross between them, in one sum per step, so the base model needs no wrapper. A step's bins
are the same however many processes share them (`batches.Plan.share`): the result is that of one, within rounding.

The parent starts torchrun with a job file, passes rank 0's events on, and turns a failed job into its error. When the
parent is told to stop while they train and keep checkpoints, it tells rank 0 through a leash (`stopping.Leash`); all
processes agree on the step, rank 0 saves, all end. Else, and when it is told twice, it ends the whole process group.
Processes whose parent was killed stop in the same way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from microstages.errors import Stopped, UserError
from microstages.reporting import Reporter

from microstages_training.stopping import SIGNALS, Leash, Stopping

PATIENCE = 10  # seconds that processes get to end before they are killed


@dataclass(frozen=True)
class Team:
    """This process's number and how many there are. Sums are over all processes, and the same in each."""

    rank: int = 0
    size: int = 1
    device: Any = None

    def sum(self, tensor: Any) -> Any:
        """The tensor summed over all processes."""
        if self.size == 1:
            return tensor
        import torch.distributed as dist

        moved = tensor.to(self.device)
        dist.all_reduce(moved)
        return moved.to(tensor.device)

    def agree(self, said: bool) -> bool:
        """Whether any process said so."""
        if self.size == 1:
            return said
        import torch

        return bool(self.sum(torch.tensor(float(said))) > 0)

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        """Sum the gradients of all processes in place; a process that had no micro-batch counts as zero."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        parameters = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
        dist.all_reduce(flat)
        at = 0
        for p in parameters:
            p.grad = flat[at : at + p.numel()].view_as(p)
            at += p.numel()


def launch(job: Any, processes: int, report: Reporter) -> dict[str, Any]:
    """Run a job in several processes under torchrun; returns what rank 0 found out (`metadata`, `metrics`)."""
    with tempfile.TemporaryDirectory(prefix="train-") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(asdict(job)))
        leash, training = Leash(Path(folder) / "leash"), False

        def told() -> None:
            if not training:  # nothing to save yet: end at once
                raise Stopped()
            leash.pull()

        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
                   "-m", "microstages_training.worker", str(file)]  # fmt: skip
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        with (
            leash.hold(),
            Stopping(told, signals=SIGNALS if job.keep is not None else ()),
            subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
            ) as child,
        ):
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    event = _event(line)
                    training = training or event.get("event") == "progress"
                    _pass_on(line, event, report)
                code = child.wait()
            finally:
                _end(child)
        outcome = Path(folder) / "outcome.json"
        value = json.loads(outcome.read_text()) if outcome.is_file() else {}
        if "error" in value:
            raise UserError(value["error"]["what"], where=value["error"]["where"], fix=value["error"]["fix"])
        if "stopped" in value:
            raise Stopped(value["stopped"])
        if code or not value:
            raise RuntimeError(f"a training process ended with code {code}; what it said stands above")
        return value


def _event(line: str) -> dict[str, Any]:
    """The event that a line holds; empty where it holds none."""
    try:
        event = json.loads(line)
        return event if isinstance(event, dict) and "event" in event else {}
    except ValueError:
        return {}


def _pass_on(line: str, event: dict[str, Any], report: Reporter) -> None:
    if not event:
        print(line, end="", file=sys.stderr)
        return
    values = {k: v for k, v in event.items() if k not in ("event", "stage", "time")}
    report.event(str(event["event"]), **values)


def _end(child: subprocess.Popen[str]) -> None:
    """End what is left of the process group: kindly, then not."""
    if child.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(PATIENCE)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return
