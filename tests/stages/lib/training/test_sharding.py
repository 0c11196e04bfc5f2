"""A base model that is shared out over the processes: the same losses and the same adapter as without."""

import io
import json

import numpy as np
import pytest
from microstages.artifact import open_artifact
from microstages.errors import UserError
from microstages.reporting import Reporter
from microstages.state import Place
from microstages_training.distributed import Team, launch
from microstages_training.settings import Settings
from microstages_training.train import Job, check, find
from safetensors.numpy import load_file
from training_data import RUN, files, saved_steps


@pytest.fixture
def train_in_two(tones, tiny_model, tmp_path):
    """`train_in_two(shard="on", …)`: the adapter's folder and the metrics of a run in two processes."""

    def run(dataset=tones, model=tiny_model, place=None, **settings):
        out, report = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}", Reporter("train", None, io.StringIO())
        out.mkdir()
        chosen = Settings(**{"rank": 4, "alpha": 4.0, "learning_rate": 1e-2, "batch_tokens": 300, "accumulation": 2,
                             "steps": 6, "precision": "fp32", "threads": 1, "eval_every": 0.5, **settings})  # fmt: skip
        keep = find(place, report) if place is not None else None
        job = Job(str(dataset.path), dataset.uri, dict(dataset.metadata), str(model),
                  open_artifact(str(model), ["model"]).digest, str(out), chosen, keep=keep)  # fmt: skip
        check(job, str(model))
        return out, launch(job, 2, report)["metrics"]

    return run


def losses(adapter):
    log = json.loads((adapter / "training.json").read_text())
    return [p["loss"] for p in (*log["steps"], *log["evaluations"])]


def weights(adapter):
    return load_file(adapter / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"gradient_checkpointing": True, "dora": True, "target_modules": ["qkv_proj", "down_proj"]},
        {"modules_to_save": ["lm_head"], "early_stopping_patience": 9},
    ],
    ids=["LoRA", "DoRA, gradient checkpointing", "modules_to_save"],
)
def test_shared_out_it_learns_the_same(variant, train_in_two, train_here, tones, tiny_model):
    alone, found, _ = train_here(
        tones, tiny_model, batch_tokens=300, accumulation=2, steps=6, eval_every=0.5, **variant
    )
    shared, metrics = train_in_two(shard="on", **variant)
    assert metrics["processes"] == 2 and metrics["trained_tokens"] == found["metrics"]["trained_tokens"]
    for other in (alone,) if variant else (alone, train_in_two()[0]):
        np.testing.assert_allclose(losses(shared), losses(other), rtol=1e-3)
        ours, theirs = weights(shared), weights(other)
        assert set(ours) == set(theirs)
        for name, value in ours.items():
            np.testing.assert_allclose(value, theirs[name], rtol=0, atol=2e-3 * np.abs(theirs[name]).max() + 1e-6)


def test_its_checkpoints_are_the_same_files(train_in_two, tmp_path):
    """A run that was not shared out goes on from them, and the other way round."""
    place = Place(str(tmp_path / "kept"), RUN)
    undisturbed, _ = train_in_two(shard="on", place=place, checkpoint_every=2, checkpoints_kept=9)
    again, metrics = train_in_two(shard="on", place=place)
    assert metrics["resumed_from_step"] == saved_steps(place)[-1] and files(again) == files(undisturbed)
    whole, metrics = train_in_two(shard="off", place=place)
    assert metrics["resumed_from_step"] > 0
    np.testing.assert_allclose(losses(whole), losses(undisturbed), rtol=1e-3)


def test_only_the_parts_are_kept(tiny_model, monkeypatch):
    """Of the decoder layers a process holds its part; the adapter, the embeddings and the output layer are whole."""
    import torch
    import torch.distributed as dist
    from microstages_training import sharding
    from microstages_training.base import add_adapter, load_base
    from torch.distributed.tensor import DTensor

    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        causal = load_base(tiny_model, Settings(), torch.device("cpu"), "fp32")
        add_adapter(causal, Settings(rank=4))
        sharding.shard(causal, Team(), torch.device("cpu"))
        parts = {n for n, p in causal.named_parameters() if isinstance(p, DTensor)}
        layers = {n for n, p in causal.named_parameters() if ".layers." in n and "lora_" not in n}
        assert parts == layers and all(not p.requires_grad for n, p in causal.named_parameters() if n in parts)
    finally:
        dist.destroy_process_group()


def test_where_it_is_of_no_use_it_is_not_done(tiny_model, train_here, tones):
    with pytest.raises(UserError, match="a 4-bit base model is not shared out"):
        Settings(shard="on", quant_type="nf4").check()
    _, _, said = train_here(tones, tiny_model, steps=1, shard="on")
    assert "warning: there is one process: nothing to share the base model out over" in said
