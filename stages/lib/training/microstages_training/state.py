"""Where training stands, and a copy of it: taken quickly into memory, written later, restored to the bit.

Files of a checkpoint: `parameters.safetensors` (all that is trained, by the model's names), `optimizer.safetensors`
(`<parameter>/<key>`), `best.safetensors` (the best adapter so far, with early stopping), `state.json` (the rest). The
order of the data, the learning rate and the random numbers follow from the step's number and need no state.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from microstages.artifact import Draft
from microstages.errors import UserError
from microstages.tensors import HashingWriter, header
from safetensors import safe_open

from microstages_training.model import Model

FORMAT = 1
REST = "state.json"
TYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.uint8: "U8",
    torch.int8: "I8", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL",
}  # fmt: skip
PLAIN = ("step", "epoch", "loss_sum", "trained_sum", "curve", "evaluations", "worse")


@dataclass
class Meter:
    """What was done and how long it took, evaluations apart."""

    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0


@dataclass
class State:
    """Where training stands: with the adapter's weights in the model, all that a continuation needs."""

    optimizer: Any
    step: int = 0
    epoch: float = 0.0
    loss_sum: float = 0.0  # over the trained tokens since the curve's last point
    trained_sum: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] | None = None  # the adapter of the best evaluation, kept only with early stopping
    best_loss: float = math.inf
    worse: int = 0  # evaluations since the best
    stopped_early: bool = False
    meter: Meter = field(default_factory=Meter)
    resumed_from: int | None = None  # the step of the checkpoint that this process began with

    @property
    def evaluated(self) -> bool:
        """Whether the held-out loss of this very step is known."""
        return bool(self.evaluations) and self.evaluations[-1]["step"] == self.step


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state at a step: tensors on the CPU by file, and the rest."""

    step: int
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    rest: Mapping[str, Any]

    def write(self, draft: Draft) -> None:
        """Write the files into a draft, hashed on the way; nothing is copied in memory."""
        for name, tensors in self.tensors.items():
            head = header(((k, TYPES[t.dtype], tuple(t.shape)) for k, t in tensors.items()), {})
            size = len(head) + sum(t.nbytes for t in tensors.values())
            with HashingWriter(draft.path / name, size) as out:
                out.write(head)
                for t in tensors.values():
                    if t.numel():
                        out.write(t.reshape(-1).view(torch.uint8).numpy().data)
            draft.hashed(name, out.sha256)
        (draft.path / REST).write_text(json.dumps(self.rest, indent=1) + "\n")


class Camera:
    """Takes snapshots into memory that it keeps, one at a time: a snapshot is overwritten by the next."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def take(self, model: Model, state: State) -> Snapshot:
        """Copy the state as it stands. Its lists and the best adapter are shared: they are never changed in place."""
        parameters, optimizer = {}, {}
        rest: dict[str, Any] = {"format": FORMAT, "precision": model.precision, "threads": torch.get_num_threads()}
        rest |= {k: getattr(state, k) for k in PLAIN}
        rest |= {"curve": list(state.curve), "evaluations": list(state.evaluations), "meter": asdict(state.meter)}
        rest["best_loss"] = state.best_loss if math.isfinite(state.best_loss) else None
        rest["optimizer"] = values = {}
        if paged(state.optimizer):
            torch.cuda.synchronize()  # their memory is written by the GPU and read here by the CPU
        for name, p in model.trained:
            parameters[name] = self._copy(f"parameters/{name}", p)
            for key, value in state.optimizer.state.get(p, {}).items():
                if isinstance(value, torch.Tensor):
                    optimizer[f"{name}/{key}"] = self._copy(f"optimizer/{name}/{key}", value)
                else:
                    values[f"{name}/{key}"] = value
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        tensors = {"parameters.safetensors": parameters, "optimizer.safetensors": optimizer}
        if state.best is not None:
            tensors["best.safetensors"] = dict(state.best)
        return Snapshot(state.step, tensors, rest)

    def _copy(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor, own = tensor.detach(), self._memory.get(name)
        on_gpu = tensor.device.type == "cuda"
        if own is None or own.shape != tensor.shape or own.dtype != tensor.dtype:
            own = self._memory[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
        return own.copy_(tensor, non_blocking=on_gpu)


def rest_of(folder: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors. Raises UserError where this version cannot read it."""
    try:
        value: dict[str, Any] = json.loads((folder / REST).read_text())
        if value["format"] == FORMAT:
            return value
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError("this checkpoint is not of this version", where=folder, fix="remove it and run again")


@torch.no_grad()
def restore(folder: Path, model: Model, state: State) -> None:
    """Put a checkpoint into a model and a new state. Raises UserError where it belongs to another model."""
    rest = rest_of(folder)
    with safe_open(folder / "parameters.safetensors", "pt") as file:
        wanted = {name: tuple(p.shape) for name, p in model.trained}
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if found != wanted:
            raise UserError("this checkpoint is that of another model", where=folder, fix="remove it and run again")
        for name, p in model.trained:
            p.copy_(file.get_tensor(name))
    owners = dict(model.trained)
    with safe_open(folder / "optimizer.safetensors", "pt") as file:
        for place in file.keys():  # noqa: SIM118
            name, _, key = place.rpartition("/")
            _keep(state.optimizer, owners[name], key, file.get_tensor(place))
    for place, value in rest["optimizer"].items():
        name, _, key = place.rpartition("/")
        state.optimizer.state[owners[name]][key] = value
    if (folder / "best.safetensors").is_file():
        with safe_open(folder / "best.safetensors", "pt") as file:
            state.best = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
    for key in PLAIN:
        setattr(state, key, rest[key])
    state.best_loss = math.inf if rest["best_loss"] is None else rest["best_loss"]
    state.meter = Meter(**rest["meter"])
    state.resumed_from = state.step


def paged(optimizer: Any) -> bool:
    """Whether its state may lie in memory that CPU and GPU share (bitsandbytes)."""
    return bool(getattr(optimizer, "is_paged", False)) and torch.cuda.is_available()


def _keep(optimizer: Any, p: torch.Tensor, key: str, value: torch.Tensor) -> None:
    """Give a tensor to the optimizer, in memory of the kind that the optimizer itself takes for it."""
    if key in ("state1", "state2") and hasattr(optimizer, "get_state_buffer"):
        own = optimizer.get_state_buffer(p, dtype=value.dtype)
        if paged(optimizer):
            torch.cuda.synchronize()  # it is being filled with zeros
    else:
        own = torch.empty(value.shape, dtype=value.dtype, device=p.device)
    optimizer.state[p][key] = own.copy_(value)
