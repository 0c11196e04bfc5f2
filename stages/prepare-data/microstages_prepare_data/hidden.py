"""Pad tokens that training is to hide from attention: whether there are any that it would see."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from microstages.artifact import Artifact
from microstages.dataset import load_split

from microstages_prepare_data.plan import Plan

EXAMPLES = 4096  # looked at in one go


def hidden_token(plan: Plan, folder: Path, splits: Iterable[str], notes: list[str]) -> int | None:
    """The id that is to be hidden; None where that changes nothing: no trained token comes behind one in its example.

    Written splits of `folder` are read once more. What was found goes to the notes.
    """
    if not plan.settings.hide_pad:
        return None
    token = plan.untrained_id
    if token is None:
        notes.append("the tokenizer names no pad_token, so none is hidden")
        return None
    here = Artifact(str(folder), folder, "dataset", "", ())
    found = (load_split(here, s) for s in splits)
    if any(_seen(s, token) for s in found if s is not None):
        notes.append(f"{plan.text.special('pad_token')} is hidden from attention: training takes padded rows, slower")
        return token
    notes.append("no pad token stands before a trained one, so hiding them changes nothing")
    return None


def _seen(split: Any, token: int) -> bool:
    """Whether a trained token comes behind this token, in an example of the split."""
    lengths, at = split.example_lengths, 0
    for first in range(0, len(lengths), EXAMPLES):
        ends = np.cumsum(lengths[first : first + EXAMPLES], dtype=np.int64)
        ids, trained = (a[at : at + int(ends[-1])] for a in (split.input_ids, split.trained))
        at += int(ends[-1])
        where = np.flatnonzero(ids == token)
        later = np.append(np.flatnonzero(trained), ends[-1])  # the end stands for none
        following = later[np.searchsorted(later, where, side="right")]
        if (following < ends[np.searchsorted(ends, where, side="right")]).any():
            return True
    return False
