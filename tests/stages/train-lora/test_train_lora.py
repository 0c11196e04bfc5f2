"""`train-lora` as a program: what a run leaves behind, and how it ends when something is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from microstages.artifact import open_artifact

SMALL = ("--rank", 4, "--alpha", 4, "--batch-tokens", 512, "--steps", 3, "--threads", 1)
FILES = {"adapter_config.json", "adapter_model.safetensors", "loss.svg", "training.json"}


def test_a_run_leaves_an_adapter_that_says_how_it_went(run_stage, tones, tiny_model, tmp_path):
    # when an adapter is trained
    done = run_stage(
        "train-lora", "--dataset", tones.path, "--base-model", tiny_model, "--output", tmp_path / "a", *SMALL
    )
    # then it is an artifact of exactly these files
    assert done.code == 0, done.stderr
    adapter = open_artifact(str(tmp_path / "a"), ["adapter"])
    assert set(adapter.files) == FILES
    # and it names its base model and what ends an answer
    assert adapter.metadata["base_model"] == open_artifact(str(tiny_model), ["model"]).digest
    assert adapter.metadata["stop_token_ids"] == [0, 5] and adapter.metadata["end_token"] == "<|endoftext|>"
    # and its events tell of progress with loss and speed, and of the held-out loss
    progress = done.event("progress")
    assert progress["label"] == "training" and progress["done"] == progress["total"] == 3
    assert float(progress["loss"]) > 0 and progress["speed"].endswith("tokens/s")
    assert done.event("metric")["eval_loss"] == pytest.approx(adapter.manifest.metrics["eval_loss"], rel=1e-5)
    assert done.event("artifact")["digest"] == adapter.digest
    # and the same run elsewhere gives the same digest
    again = run_stage(
        "train-lora", "--dataset", tones.path, "--base-model", tiny_model, "--output", tmp_path / "b", *SMALL
    )
    assert again.event("artifact")["digest"] == adapter.digest


def test_stopping_leaves_nothing_half_written(tones, tiny_model, tmp_path):
    own = Path(__file__).parents[3] / "stages" / "train-lora" / ".venv" / "bin" / "python"
    command = [own if own.exists() else sys.executable, "-m", "microstages_train_lora.cli", "--dataset", tones.path,
               "--base-model", tiny_model, "--output", tmp_path / "a", "--steps", 100_000, "--threads", 1]  # fmt: skip
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if json.loads(line).get("label") == "training":
                break
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 143
    assert os.listdir(tmp_path) == []


BAD = [
    ("rank 0", ["--rank", "0"], "--rank: must be a whole number at least 1, not 0"),
    ("dropout 1", ["--dropout", "1"], "--dropout: must be a number at least 0 and below 1"),
    ("learning rate 0", ["--learning-rate", "0"], "--learning-rate: must be a number above 0"),
    ("schedule", ["--schedule", "cosin"], "(did you mean 'cosine'?)"),
    ("no such flag", ["--rnak", "8"], "--rnak"),
    ("word for a number", ["--epochs", "three"], "--epochs"),
    ("odd rank", ["--init", "orthogonal", "--rank", "3"], "--rank: init orthogonal needs an even rank, not 3"),
    ("layer named twice", ["--target-modules", "x", "--modules-to-save", "x"], "'x' is in --target-modules too"),
    ("micro-batch too small", ["--batch-tokens", "16"], "--batch-tokens: a micro-batch of 16 tokens cannot hold"),
    ("warm-up too long", ["--warmup", "99"], "--warmup: 99 steps of warm-up are more than the"),
    ("evaluation", ["--eval-every", "-1"], "--eval-every: must be a number at least 0, not -1"),
    ("no GPU for liger", ["--liger"], "--liger: the fused kernels need an NVIDIA GPU"),
    ("too many GPUs", ["--gpus", "99"], "--gpus: 99 GPUs are asked for"),
    ("no such layer", ["--target-modules", "qkv_prj"], "--target-modules: no linear layer is named 'qkv_prj'"),
    ("no such data", ["--dataset", "nowhere"], "--dataset nowhere: no such file or folder"),
    ("data is a model", ["--dataset", "{model}"], "it is of kind model; dataset is wanted"),
    ("model is data", ["--base-model", "{data}"], "--base-model"),
    ("another tokenizer", ["--base-model", "{other}"], "it was prepared with the tokenizer of another model"),
    ("no tokenizer", ["--base-model", "{bare}"], "the model has no tokenizer.json"),
    ("pickled weights", ["--base-model", "{pickled}"], "its weights are pickled"),
    ("weights cut short", ["--base-model", "{cut}"], "weights cannot be read"),
    ("output there", ["--output", "{data}"], "something lies there already"),
]


@pytest.fixture(scope="module")
def broken(tones, tiny_model, tmp_path_factory) -> dict[str, str]:
    """Models with one thing wrong each."""
    root = tmp_path_factory.mktemp("broken")
    for name in ("other", "bare", "pickled", "cut"):
        shutil.copytree(tiny_model, root / name)
    tokenizer = root / "other" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    (root / "bare" / "tokenizer.json").unlink()
    (root / "pickled" / "model.safetensors").rename(root / "pickled" / "pytorch_model.bin")
    weights = root / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return {"model": str(tiny_model), "data": str(tones.path), **{p.name: str(p) for p in root.iterdir()}}


@pytest.mark.parametrize(("arguments", "said"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_ends_in_two_lines_that_name_the_place(arguments, said, run_stage, broken, tmp_path):
    flags = {"--dataset": broken["data"], "--base-model": broken["model"], "--output": str(tmp_path / "out"),
             "--batch-tokens": "512", "--threads": "1"}  # fmt: skip
    arguments = [a.format(**broken) for a in arguments]
    kept = [x for k, v in flags.items() if k not in arguments for x in (k, v)]
    began = time.time()
    done = run_stage("train-lora", *kept, *arguments)
    assert done.code == 2, done.stderr
    problem = done.stderr[done.stderr.index("train-lora: error:") :].strip().split("\n")
    assert said in problem[0] and len(problem) <= 2
    assert "Traceback" not in done.stderr
    assert not [p for p in tmp_path.iterdir() if p.stat().st_mtime >= began - 1], "something was left behind"
