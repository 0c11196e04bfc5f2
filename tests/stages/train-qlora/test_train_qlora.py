"""`train-qlora` as a program, for real, with bitsandbytes on the CPU. It has an environment of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from microstages.artifact import open_artifact
from safetensors import safe_open

SMALL = ("--rank", 4, "--alpha", 4, "--batch-tokens", 512, "--steps", 12, "--learning-rate", "1e-2", "--threads", 1)
QUANTIZED = [f"model.layers.{i}.{n}" for i in (0, 1)
             for n in ("mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj")]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _needs_bitsandbytes():
    own = Path(__file__).parents[3] / "stages" / "train-qlora" / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    found = subprocess.run([python, "-c", "import bitsandbytes, accelerate"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("TRAIN-QLORA NOT TESTED: bitsandbytes is not installed here; make stages/train-qlora/.venv")


def train(run_stage, tones, model, output, *options):
    return run_stage(
        "train-qlora", "--dataset", tones.path, "--base-model", model, "--output", output, *SMALL, *options
    )


def test_it_trains_on_a_4_bit_base_and_says_exactly_what_was_quantized(run_stage, tones, tiny_model, tmp_path):
    done = train(run_stage, tones, tiny_model, tmp_path / "a", "--eval-every", 4)
    assert done.code == 0, done.stderr
    adapter = open_artifact(str(tmp_path / "a"), ["adapter"])
    assert adapter.metadata["method"] == "qlora"
    assert adapter.metadata["quantization"] == {
        "type": "nf4", "double_quant": True, "compute_dtype": adapter.metadata["quantization"]["compute_dtype"],
        "block_size": 64, "device": "cpu",
        "modules": QUANTIZED,
    }  # fmt: skip
    assert adapter.metadata["quantization"]["compute_dtype"] in ("bfloat16", "float32")
    # the held-out loss falls, also across the evaluations in between
    losses = [e["loss"] for e in json.loads((adapter.path / "training.json").read_text())["evaluations"]]
    assert len(losses) == 4 and losses == sorted(losses, reverse=True)
    # the adapter is an ordinary one: fp32, no trace of the quantization in PEFT's files
    with safe_open(adapter.path / "adapter_model.safetensors", "np") as f:
        assert {f.get_slice(k).get_dtype() for k in f.keys()} == {"F32"}  # noqa: SIM118
        assert len(f.keys()) == 2 * len(QUANTIZED)
    # and the same run gives the same bytes
    again = train(run_stage, tones, tiny_model, tmp_path / "b", "--eval-every", 4)
    assert again.event("artifact")["digest"] == adapter.digest


def test_fp4_in_fp32_without_double_quantization(run_stage, tones, tiny_model, tmp_path):
    options = ("--quant-type", "fp4", "--no-double-quant", "--compute-dtype", "fp32", "--gradient-checkpointing")
    done = train(run_stage, tones, tiny_model, tmp_path / "a", *options)
    assert done.code == 0, done.stderr
    found = open_artifact(str(tmp_path / "a"), ["adapter"]).metadata["quantization"]
    assert (found["type"], found["double_quant"], found["compute_dtype"]) == ("fp4", False, "float32")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimizer", "adamw-8bit"], "--optimizer: the optimizer adamw-8bit needs an NVIDIA GPU"),
        (["--optimizer", "paged-adamw-32bit"], "needs an NVIDIA GPU"),
        (["--quant-type", "nf8"], "--quant-type: quant_type must be one of nf4, fp4, not 'nf8' (did you mean 'nf4'?)"),
        (["--compute-dtype", "int8"], "--compute-dtype: compute_dtype must be one of auto, bf16, fp32"),
    ],
)
def test_bad_input_ends_in_two_lines_that_name_the_place(arguments, said, run_stage, tones, tiny_model, tmp_path):
    done = train(run_stage, tones, tiny_model, tmp_path / "a", *arguments)
    assert done.code == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_layers_that_the_cpu_distorts_are_named(run_stage, tones, tiny_model, tmp_path):
    odd = train(run_stage, tones, tiny_model, tmp_path / "odd", "--steps", 1)  # its down_proj is 160 wide
    assert "no multiple of 64: model.layers.0.mlp.down_proj and 1 more" in odd.stderr
