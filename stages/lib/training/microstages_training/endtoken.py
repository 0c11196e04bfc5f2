"""The end token that a base model never learned: noticed before training, because it ends in answers that never stop.

LoRA changes the hidden states, not the output layer. A token whose output row was never trained cannot be taught by it:
the loss stays high and generation runs on. Two signs of such a row, after Land and Bartolo, Fishing for Magikarp
(https://arxiv.org/abs/2405.05417):

* it is next to nothing: its norm is far below that of the others (a fresh or cleared row);
* it points where the other rows that were never a target were pushed to, almost parallel to several of them, and the
  base model finds the token less likely than a blind guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from microstages.reporting import Reporter

from microstages_training.base import tied
from microstages_training.batches import Examples
from microstages_training.loop import micro_batches
from microstages_training.model import Model
from microstages_training.settings import Settings

SMALL = 1 / 3  # of the median norm
PARALLEL = 0.9  # cosine
CROWD = 5  # rows that parallel
ENOUGH = 16  # end tokens whose likelihood is looked at


@dataclass(frozen=True)
class Row:
    """A token's output row: its norm as a share of the median, and how many other rows are almost parallel to it."""

    norm: float
    parallel: int


def look_at(weight: torch.Tensor, token: int) -> Row:
    """Measure a row of an output layer's weight (vocabulary, hidden)."""
    weight = weight.detach().float()
    norms = weight.norm(dim=1)
    cosines = (weight @ weight[token]) / (norms * norms[token]).clamp(min=1e-12)
    return Row(float(norms[token] / norms.median().clamp(min=1e-12)), int((cosines > PARALLEL).sum()) - 1)


def check_end_token(
    model: Model, train: Examples, facts: Mapping[str, Any], settings: Settings, report: Reporter
) -> None:
    """Warn where the data set's end token looks as if it was never trained, with what can be done. Needs an untrained
    adapter."""
    token, head = facts.get("end_token_id"), model.causal.get_output_embeddings()
    names = {"lm_head", *(n for n, m in model.causal.named_modules() if m is head)}
    if token is None or head is None or names & {*(settings.modules_to_save or ()), *(settings.target_modules or ())}:
        return
    row = look_at(head.weight, token)
    if row.norm < SMALL:
        sign = f"its output row is {row.norm:.2f} of the usual size"
    elif row.parallel >= CROWD:
        loss, blind = _loss_of(model, train, token, settings), math.log(head.weight.shape[0])
        if loss is None or loss <= blind + 1:
            return
        sign = f"{row.parallel} unused tokens have the same output row; its loss is {loss:.1f}, blind {blind:.1f}"
    else:
        return
    layers = "--modules-to-save lm_head" + (" --modules-to-save embed_tokens" if tied(model.causal) else "")
    report.warn(
        f"the end token {facts.get('end_token')!r} looks untrained in the base model ({sign}): answers may never end.\n"
        f"  Train the output layer too ({layers}), or prepare the data with an end token that the model knows"
    )


def _loss_of(model: Model, train: Examples, token: int, settings: Settings) -> float | None:
    """Mean loss of a token where it is a target, over the first examples that have it; None where none is near."""
    model.causal.eval()
    found: list[float] = []
    for number, batch in enumerate(micro_batches(train, settings.batch_tokens)):
        if len(batch.targets):
            losses, targets = model.losses(batch)
            found += losses[targets == token].tolist()
        if len(found) >= ENOUGH or number >= 3:
            break
    return sum(found) / len(found) if found else None
