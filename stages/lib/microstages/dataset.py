"""What a `dataset` artifact holds. `prepare-data` writes it; `train-*` and `infer` read it.

`train.safetensors`, and `test.safetensors` where rows were held out, each with four tensors:

    input_ids        (tokens,)    uint16, or int32 where the vocabulary needs it: all examples one after another
    trained          (tokens,)    uint8: 1 where the loss is taken on predicting this token. The first token of an
                                  example is never predicted
    example_lengths  (examples,)  int32: tokens of each example, in order
    bin_lengths      (bins,)      int32: how many consecutive examples share a sequence of at most `max_length` tokens

Attention never crosses an example: position ids restart at each. With the strategies `join…` an example is a whole
block of `max_length` tokens, across rows. Examples may be filled up with pad tokens at the end, not trained.
`test.jsonl`: the held-out rows as text, one object a line, `prompt` (what the model is given; null where none is
known), `completion` (what it should answer; null likewise), `text` (both, without the end token); none where held-out
blocks are no rows. `report.json`, `report.md`: what came in and what became of it.

Metadata of the artifact:

    format            1
    strategy          pack, join, join-sliding, join-random, line or line-random
    max_length        tokens in a sequence at most
    loss              completion or all: what the loss is taken on
    vocab_size        entries of the tokenizer
    tokenizer_sha256  of tokenizer.json
    end_token         the text of the token that ends an answer, null where none is added
    end_token_id      its id, null likewise
    stop_token_ids    ids that end generation: the model's own, and end_token_id
    template          how rows became text: {"kind": "template"|"fields"|"templates"|"columns"|"chat", …}
    train, test       counts: {"rows", "examples", "bins", "tokens", "trained_tokens"}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages.artifact import Artifact
from microstages.errors import UserError

FORMAT = 1
TENSORS = ("input_ids", "trained", "example_lengths", "bin_lengths")


@dataclass(frozen=True)
class Split:
    """The arrays of one split, memory-mapped. Shapes and types: see the module."""

    input_ids: Any
    trained: Any
    example_lengths: Any
    bin_lengths: Any


def load_split(dataset: Artifact, split: str) -> Split | None:
    """The arrays of `train` or `test`; None where the data set has no such split. Reads the header only."""
    import numpy as np

    file = dataset.path / f"{split}.safetensors"
    if not file.is_file():
        return None
    with file.open("rb") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
    types = {"U8": np.uint8, "U16": np.uint16, "I32": np.int32, "I64": np.int64}
    arrays = {}
    for name in TENSORS:
        if name not in header:
            raise UserError(f"it has no tensor {name}", where=file, fix="prepare the data again")
        spec = header[name]
        shape, (start, _) = tuple(spec["shape"]), spec["data_offsets"]
        empty = 0 in shape
        dtype = types[spec["dtype"]]
        arrays[name] = np.zeros(shape, dtype) if empty else np.memmap(file, dtype, "r", 8 + size + start, shape)
    return Split(**arrays)


@dataclass(frozen=True)
class HeldOut:
    """A row that was not trained on, as text."""

    prompt: str | None
    completion: str | None
    text: str


def held_out(file: Path) -> Iterator[HeldOut]:
    """The rows of `test.jsonl`. Raises UserError with file and line where one cannot be read."""
    with file.open(encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            try:
                v = json.loads(line)
                yield HeldOut(v["prompt"], v["completion"], v["text"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"not a held-out row: {error}", where=f"{file}:{number}") from None
