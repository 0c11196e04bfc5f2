"""Choices of training under their usual names: batches by sequences, Adam's constants, the best adapter."""

from __future__ import annotations

import json

import numpy as np
import pytest
from microstages.errors import UserError
from microstages_training.batches import Plan
from microstages_training.optimizer import make_optimizer
from microstages_training.settings import Settings
from training_data import files, tones, write

LENGTHS = np.asarray([5, 900, 20, 7, 300, 11, 2, 40, 9], np.int64)


@pytest.mark.parametrize("size", [1, 2, 4, 20])
def test_a_micro_batch_is_so_many_sequences(size):
    plan = Plan(LENGTHS, 64, 2, 0, 2.0, batch_size=size)  # 64 tokens: a limit that does not count then
    for _, step in plan.walk():
        assert all(len(bins) == size for bins in step[:-1]) and 1 <= len(step[-1]) <= size and len(step) <= 2
    for number in range(2):
        order, steps = plan.epoch(number)
        assert sorted(order) == list(range(len(LENGTHS)))
        assert len(steps) == -(-len(LENGTHS) // (2 * size))


def test_processes_share_such_batches():
    plan = Plan(LENGTHS, 64, 2, 0, 1.0, batch_size=2)
    for _, step in plan.walk():
        mine = [plan.share(step, rank, 2) for rank in range(2)]
        assert sorted(np.concatenate([b for m in mine for b in m])) == sorted(np.concatenate(step))
        assert all(len(b) <= 2 for m in mine for b in m)


def test_the_same_batches_train_the_same_adapter(tones, tiny_model, train_here):
    """Equal sequences: four of them are four times their tokens."""
    by_size, _, said = train_here(tones, tiny_model, batch_size=4, steps=3)
    assert "3 steps of 4 sequences" in said
    other, _, _ = train_here(tones, tiny_model, batch_size=4, steps=3, data_seed=0)
    assert files(by_size) == files(other)
    other, _, _ = train_here(tones, tiny_model, batch_size=4, steps=3, data_seed=7)
    assert files(by_size) != files(other)


def test_adams_constants_are_those_that_were_given():
    import torch

    parameter = torch.nn.Parameter(torch.ones(2, 2))
    made = make_optimizer([parameter], Settings(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6), "cpu")
    assert made.defaults["betas"] == (0.8, 0.95) and made.defaults["eps"] == 1e-6
    assert make_optimizer([parameter], Settings(), "cpu").defaults["betas"] == (0.9, 0.999)


def test_the_best_adapter_is_kept_and_training_goes_on(tmp_path, examples, tiny_model, train_here):
    """Held out are other answers than those that it learns: the more it learns, the worse."""
    rows = tones(examples / "tones.jsonl", tiny_model, 24)
    others = [([t + 40 * m for t, m in zip(*row, strict=True)], row[1]) for row in rows]
    data = write(tmp_path / "data", tiny_model, rows, others)
    hot = {"learning_rate": 0.1, "schedule": "constant", "steps": 12, "eval_every": 1.0}
    last, found, _ = train_here(data, tiny_model, **hot)
    best, kept, _ = train_here(data, tiny_model, keep_best=True, **hot)
    losses = [e["loss"] for e in json.loads((best / "training.json").read_text())["evaluations"]]
    assert len(losses) == 13 and kept["metrics"]["steps"] == found["metrics"]["steps"] == 12
    assert min(losses) < losses[-1]
    assert kept["metrics"]["eval_loss"] == min(losses) and found["metrics"]["eval_loss"] == losses[-1]
    assert files(best)["adapter_model.safetensors"] != files(last)["adapter_model.safetensors"]


def test_without_held_out_rows_there_is_no_best(tmp_path, examples, tiny_model, train_here):
    data = write(tmp_path / "data", tiny_model, tones(examples / "tones.jsonl", tiny_model, 8))
    with pytest.raises(UserError, match="the best adapter needs held-out rows"):
        train_here(data, tiny_model, keep_best=True)


def test_the_curve_is_told_as_it_is_made(tones, tiny_model, train_here):
    import io

    events = io.StringIO()
    adapter, _, _ = train_here(tones, tiny_model, steps=3, events=events)
    told = [e for e in map(json.loads, events.getvalue().splitlines()) if e["event"] == "metric" and "loss" in e]
    curve = json.loads((adapter / "training.json").read_text())["steps"]
    assert [{k: e[k] for k in curve[0]} for e in told] == curve


def test_loftq_is_refused_where_nothing_is_quantized():
    with pytest.raises(UserError, match="loftq is for a plain adapter on a 4-bit base"):
        Settings(init="loftq").check()
    with pytest.raises(UserError, match="loftq is for a plain adapter"):
        Settings(init="loftq", quant_type="nf4", dora=True).check()
