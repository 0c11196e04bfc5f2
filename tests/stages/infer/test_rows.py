"""Given rows that join and leave while others go on, when they take their steps, then each says what it says alone."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from microstages.artifact import open_artifact
from microstages_infer.onnx_engine import OnnxEngine
from microstages_infer.onnx_rows import CAPACITY, GeneratorRows, SessionRows, rows_for
from microstages_infer.rows import Rows, proved, rows_of, swap_out
from microstages_infer.torch_engine import TorchEngine
from microstages_infer.torch_rows import TorchRows

# prompt, when it joins, how many tokens it gets: in steps
ROWS = ((9, 0, 30), (2, 0, 12), (5, 3, 3), (1, 4, 20), (14, 15, 9), (3, 16, 1))


def torch_engine(folder: Path) -> TorchEngine:
    artifact = open_artifact(str(folder), ["model"])
    return TorchEngine(artifact, None, device="cpu", precision="auto", threads=1, warn=print)


def onnx_engine(folder: Path) -> OnnxEngine:
    return OnnxEngine(open_artifact(str(folder), ["onnx-model"]), "auto", 1, later=True)


def prompts(vocabulary: int) -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(6, vocabulary, n).tolist() for n, _, _ in ROWS]


def alone(engine: Any, ids: list[int], tokens: int) -> list[int]:
    """What the engine says to one prompt."""
    said: list[int] = []

    def took(found: list[int]) -> bool:
        said.extend(found)
        return True

    engine.generate([ids], tokens, None, took)
    return said


def side_by_side(rows: Rows, given: Sequence[list[int]]) -> list[list[int]]:
    """What rows say that come and go as `ROWS` tells."""
    said: list[list[int]] = [[] for _ in given]
    live: list[int] = []
    for step in range(60):
        for row in reversed(range(len(live))):
            if len(said[live[row]]) == ROWS[live[row]][2]:
                rows.leave(row)
                swap_out(live, row)
        if live:
            for row, logits in zip(live, rows.step([said[i][-1] for i in live]), strict=True):
                said[row].append(int(logits.argmax()))
        for i, (_, begins, tokens) in enumerate(ROWS):
            if begins == step:
                said[i].append(int(rows.join(given[i], tokens).argmax()))
                live.append(i)
    assert not live
    return said


@pytest.mark.parametrize("kind", ["session", "generators", "generators read again", "torch", "torch read again"])
def test_rows_come_and_go(kind: str, onnx: Path, base: Path) -> None:
    engine: Any = torch_engine(base) if kind.startswith("torch") else onnx_engine(onnx)
    given = prompts(engine.vocabulary)
    wanted = [alone(engine, ids, tokens) for ids, (_, _, tokens) in zip(given, ROWS, strict=True)]
    if kind == "torch read again":
        engine.together = 12  # as with LongRoPE: there all is read anew, with the same result in this model
    if kind == "generators read again":
        engine.turn = 12
    rows = rows_of(engine, 6) if kind != "generators" else GeneratorRows(engine)
    types = {"session": SessionRows, "torch": TorchRows, "torch read again": TorchRows}
    assert type(rows) is types.get(kind, GeneratorRows) and rows.together == (kind in ("session", "torch"))
    for _ in range(2):
        assert side_by_side(rows, given) == wanted
        rows.join(given[0], 3)  # what was left there does no harm
        rows.clear()


@pytest.mark.parametrize("kind", ["windowed", "longrope"])
def test_models_whose_rows_depend_on_more_than_themselves_take_turns(kind: str, base: Path, tmp_path: Path) -> None:
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    factors = {"short_factor": [1.0] * 16, "long_factor": [float(i + 2) for i in range(16)]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16, **factors}
    more: dict[str, Any] = {"windowed": {"sliding_window": 8}, "longrope": {"rope_parameters": rope}}[kind]
    config = Phi3Config(
        vocab_size=4096, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=0,
        original_max_position_embeddings=16 if kind == "longrope" else 64, **{"sliding_window": None, **more},
    )  # fmt: skip
    torch.manual_seed(0)
    model = Phi3ForCausalLM(config)
    for weight in model.parameters():
        weight.data *= 5  # so that what it says depends on what it read
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, tmp_path)
    engine = torch_engine(tmp_path)
    given = prompts(4096)
    rows = rows_of(engine, 6)
    assert not rows.together
    wanted = [alone(engine, ids, tokens) for ids, (_, _, tokens) in zip(given, ROWS, strict=True)]
    assert side_by_side(rows, given) == wanted


def test_rows_longer_than_the_buffers_were(onnx: Path) -> None:
    """Given a buffer that must grow while rows are in it, then nothing of them is lost."""
    engine = onnx_engine(onnx)
    rows = SessionRows.open(engine, 6)
    assert rows is not None and rows._capacity == CAPACITY
    given = prompts(4096)
    wanted = side_by_side(rows, given)
    rows.clear()
    rows._buffers, rows._capacity = [b[:, :, :16].copy() for b in rows._buffers], 16
    rows._bindings.clear()
    assert side_by_side(rows, given) == wanted and rows._capacity > 16


def test_a_model_whose_rows_disturb_each_other_is_found_out(onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = onnx_engine(onnx)
    good = SessionRows.open(engine, 2)
    assert good is not None and proved(good, 4096)
    run = SessionRows._run

    def shifted(self: SessionRows, first: int, tokens: Any, lengths: list[int]) -> Any:
        return run(self, first, tokens, [max(lengths)] * len(lengths))  # as a graph does that pads on the left

    monkeypatch.setattr(SessionRows, "_run", shifted)
    assert not proved(good, 4096)
    assert isinstance(rows_for(engine, 2), GeneratorRows)
