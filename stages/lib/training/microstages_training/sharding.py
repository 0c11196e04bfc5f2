"""A base model that does not fit one GPU, shared out over all processes (FSDP2, `fully_shard`).

Each decoder layer's frozen weights lie in equal parts on all processes; a layer is gathered for its forward, and again
for its backward, and freed after it. The adapter stays whole in every process, and so do the embeddings and the output
layer, which are called in pieces: the adapter's gradients are summed as without sharding (`Team.sum_gradients`), and
checkpoints are the same files.

Gathering is a collective. So all processes make the same number of passes: those that have fewer micro-batches make
idle ones (`Model.idle`).

Reference: Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, https://arxiv.org/abs/2304.11277
"""

from __future__ import annotations

from typing import Any

import torch
from microstages.errors import UserError
from microstages.reporting import Reporter, size

from microstages_training.distributed import Team
from microstages_training.settings import Settings

SHARE = 0.5  # of a GPU's memory: a base model that takes more is shared out; activations and the adapter need the rest


def wanted(causal: Any, settings: Settings, team: Team, device: torch.device, report: Reporter) -> bool:
    """Whether the base model, which still lies in the CPU's memory, is to be shared out; the same in all processes."""
    if settings.shard == "off" or settings.quant_type is not None:
        return False
    if team.size == 1:
        if settings.shard == "on":
            report.warn("there is one process: nothing to share the base model out over")
        return False
    if settings.shard == "on":
        return True
    if device.type != "cuda":
        return False
    needed, there = sum(p.nbytes for p in causal.parameters()), torch.cuda.get_device_properties(device).total_memory
    if not team.agree(needed > SHARE * there):
        return False
    report.log(f"the base model takes {size(needed)}, a GPU has {size(there)}: shared out over {team.size}")
    return True


def shard(causal: Any, team: Team, device: torch.device) -> None:
    """Share out the decoder layers of a model with its adapter, and move the rest to the device, in place.

    The model may lie in the CPU's memory: the device never holds more of it than its parts and one layer.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    body = causal.base_model
    layers = decoder_layers(causal)
    mesh = init_device_mesh(device.type, (team.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=_trained(layer))
    fully_shard(body, mesh=mesh, ignored_params={p for n, p in body.named_parameters() if not _is_shared(p)})
    causal.to(device)


def decoder_layers(causal: Any) -> list[Any]:
    """The layers of a model's body. Raises UserError where it has no list of them."""
    body, modules = causal.base_model, list(causal.base_model.modules())
    lists: list[Any] = [m for m in modules if isinstance(m, torch.nn.ModuleList) and len(m) > 0]
    if not lists or body is causal:
        raise UserError("this model has no list of layers to share out", where="--shard", fix="give --shard off")
    largest: Any = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))
    return list(largest)


def _trained(module: Any) -> set[Any]:
    return {p for p in module.parameters() if p.requires_grad}


def _is_shared(parameter: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)
