"""Data sets for the tests of training, written by hand in the format of `microstages.dataset`; what they look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from microstages.artifact import Artifact, Draft, open_artifact
from microstages.state import Place
from microstages.tokens import ModelText
from safetensors.numpy import save_file

RUN = "0123456789abcdef" * 2  # a fingerprint
TEMPLATE = "### Text: {phrase}\n### The tone is:\n"
Example = tuple[list[int], list[int]]  # token ids, 1 where trained


def tones(rows: Path, model: Path, count: int = 64, *, completion_only: bool = True) -> list[Example]:
    """Examples from the tones: the template, the tone, the end token."""
    text, out = ModelText(model), []
    for line in rows.read_text().splitlines()[:count]:
        row = json.loads(line)
        prompt = text.tokenizer.encode(TEMPLATE.format(**row), add_special_tokens=False).ids
        answer = [*text.tokenizer.encode(row["tone"], add_special_tokens=False).ids, 0]
        out.append((prompt + answer, [0 if completion_only else 1] * len(prompt) + [1] * len(answer)))
    return out


def write_split(
    folder: Path, name: str, examples: Sequence[Example], max_length: int, *, packed: bool = True
) -> dict[str, int]:
    bins: list[list[Example]] = []
    for example in examples:
        if packed and bins and sum(len(e[0]) for e in bins[-1]) + len(example[0]) <= max_length:
            bins[-1].append(example)
        else:
            bins.append([example])
    tensors = {
        "input_ids": np.asarray([t for e in examples for t in e[0]], np.uint16),
        "trained": np.asarray([t for e in examples for t in e[1]], np.uint8),
        "example_lengths": np.asarray([len(e[0]) for e in examples], np.int32),
        "bin_lengths": np.asarray([len(b) for b in bins], np.int32),
    }
    save_file(tensors, folder / f"{name}.safetensors")
    return {"rows": len(examples), "examples": len(examples), "bins": len(bins),
            "tokens": len(tensors["input_ids"]), "trained_tokens": int(tensors["trained"].sum())}  # fmt: skip


def write(
    target: Path, model: Path, train: Sequence[Example], test: Sequence[Example] = (), *, max_length: int = 256,
    packed: bool = True, **metadata: Any,
) -> Artifact:  # fmt: skip
    """Commit a data set at `target` and open it."""
    with Draft(str(target), "dataset") as draft:
        draft.metadata.update(
            {"format": 1, "strategy": "pack" if packed else "line", "max_length": max_length, "loss": "completion",
             "vocab_size": 4096, "tokenizer_sha256": ModelText(model).sha256, "end_token": "<|endoftext|>",
             "end_token_id": 0, "stop_token_ids": [0, 5], "template": {"kind": "template", "template": TEMPLATE}}
        )  # fmt: skip
        draft.metadata["train"] = write_split(draft.path, "train", train, max_length, packed=packed)
        if test:
            draft.metadata["test"] = write_split(draft.path, "test", test, max_length, packed=packed)
        draft.metadata.update(metadata)
        draft.commit({})
    return open_artifact(str(target), ["dataset"])


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of an adapter."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def saved_steps(place: Place) -> list[int]:
    """The steps of which a checkpoint is saved."""
    return [int(name.partition("-")[0]) for name in place.names()]
