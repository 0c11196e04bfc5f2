"""Several processes that train one adapter, one for each GPU of one or more nodes, started by torchrun.

Only the adapter's gradients cross between them, in one sum per step. A step's bins are the same however many processes
share them (`batches.Plan.share`): the result is that of one, within rounding.

On each node the parent, which is the stage program, starts torchrun with a job file and turns a failed job into its
error; node 0 passes rank 0's events on. When a parent is told to stop while they train and keep checkpoints, it tells
its first process through a leash (`stopping.Leash`); all processes agree on the step, rank 0 saves, all end. Else, and
when it is told twice, it ends the whole process group. Processes whose parent was killed stop in the same way.

Where another node ends too early (`microstages.nodes`), the parents of the others pull the leash, wait for a while,
and end what is left: a collective that waits for the dead never holds them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from microstages.errors import EXIT_STOPPED, Stopped, TemporaryError, UserError
from microstages.nodes import Nodes
from microstages.reporting import Reporter

from microstages_training.stopping import SIGNALS, Leash, Stopping

PATIENCE = 10  # seconds that processes get to end before they are killed
WORKERS = 5  # of these, what torchrun gives its workers
SAVING = 600  # seconds that processes get to save and end when another node was told to stop
ALONE = 30  # the same where another node failed or is lost
NEWS = 15  # seconds to hear of a node that failed before, when processes here lost theirs


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

    def most(self, count: int) -> int:
        """The greatest of the counts of all processes."""
        if self.size == 1:
            return count
        import torch
        import torch.distributed as dist

        greatest = torch.tensor(count, device=self.device)
        dist.all_reduce(greatest, dist.ReduceOp.MAX)
        return int(greatest)

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


@dataclass(frozen=True)
class Meeting:
    """Where the processes of several nodes meet: node 0's address, and a port that is free there."""

    nodes: Nodes
    port: int

    def options(self) -> list[str]:
        """What torchrun is told."""
        n = self.nodes
        return ["--nnodes", str(n.size), "--node-rank", str(n.rank), "--master-addr", n.address,
                "--master-port", str(self.port)]  # fmt: skip


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def launch(job: Any, processes: int, report: Reporter, meeting: Meeting | None = None) -> dict[str, Any]:
    """Run a job in so many processes of this node under torchrun; returns what was found out (`metadata`, `metrics`).

    Raises the error of the processes, or that of another node.
    """
    nodes = meeting.nodes if meeting is not None else Nodes()
    with tempfile.TemporaryDirectory(prefix="train-") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(asdict(job)))
        leash = Leash(Path(folder) / "leash")
        guard = _Guard(leash, nodes)

        def told() -> None:
            if not guard.training:  # nothing to save yet: end at once
                raise Stopped()
            leash.pull()

        options = meeting.options() if meeting is not None else ["--standalone"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node", str(processes),
                   "--shutdown-timeout", str(WORKERS), "-m", "microstages_training.worker", str(file)]  # fmt: skip
        environment = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}
        if processes > 1:
            environment.setdefault("OMP_NUM_THREADS", "1")
        with (
            leash.hold(),
            Stopping(told, signals=SIGNALS if job.keep is not None else ()),
            subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
            ) as child,
        ):
            guard.child = child
            try:
                assert child.stdout is not None
                nodes.on_end(guard.ended)
                for line in child.stdout:
                    event = _event(line)
                    guard.training = guard.training or event.get("event") == "progress"
                    _pass_on(line, event, report)
                code = child.wait()
            finally:
                nodes.on_end(None)
                guard.cancel()
                _end(child)
        outcome = Path(folder) / "outcome.json"
        value = json.loads(outcome.read_text()) if outcome.is_file() else {}
        return _found(value, code, nodes)


def _found(value: dict[str, Any], code: int, nodes: Nodes) -> dict[str, Any]:
    """What the processes of this node found, or the error that they, or another node, ended with."""
    if "metadata" in value and (nodes.several or not code):  # a helper that is lost afterwards takes nothing away
        return value
    if "error" in value:
        raise UserError(value["error"]["what"], where=value["error"]["where"], fix=value["error"]["fix"])
    if "stopped" in value and (nodes.end is None or nodes.end.code == EXIT_STOPPED):
        raise Stopped(value["stopped"])
    if nodes.several:
        nodes.check(NEWS)
    if "lost" in value:
        fix = "see what was said above, and run again"
        raise TemporaryError(f"the training processes lost each other: {value['lost']}", fix=fix)
    raise RuntimeError(f"a training process ended with code {code}; what it said stands above")


class _Guard:
    """Ends the processes of this node when another node has ended: first through the leash, then all of them."""

    def __init__(self, leash: Leash, nodes: Nodes) -> None:
        self._leash, self._nodes = leash, nodes
        self._timer: threading.Timer | None = None
        self.child: subprocess.Popen[str] | None = None
        self.training = False  # before that there is nothing to save

    def ended(self) -> None:
        """In a thread of `nodes`."""
        self._leash.pull()
        stopped = self._nodes.end is not None and self._nodes.end.code == EXIT_STOPPED
        seconds = 0 if not self.training else SAVING if stopped else ALONE
        self._timer = threading.Timer(seconds, _end, [self.child])
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


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
