"""Given one model in several forms, when each answers the same prompts, then the answers are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOKENS = 24


@pytest.fixture(scope="module")
def answered(infer: Any, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs the stage once for each distinct set of arguments; the folder of its predictions."""
    done: dict[tuple[str, ...], Path] = {}

    def answer(*arguments: object) -> Path:
        key = tuple(map(str, arguments))
        if key not in done:
            out = tmp_path_factory.mktemp("answers") / "predictions"
            result = infer(*key, "--prompts", prompts, "--max-new-tokens", TOKENS, "--output", out)
            assert result.code == 0, result.stderr
            done[key] = out
        return done[key]

    return answer


def test_the_base_model_says_what_transformers_says(base: Path, answered: Callable[..., Path], read: Any) -> None:
    import torch
    from microstages.tokens import ModelText
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = ModelText(base).tokenizer
    for row, prompt in zip(read.predictions(answered("--model", base)), read.prompts, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
        said = [int(t) for t in whole[0, ids.shape[1] :]]
        ended = said[-1] in (0, 5)
        assert row["prediction"] == tokenizer.decode(said[:-1] if ended else said, skip_special_tokens=False)
        assert (row["tokens"], row["ended"]) == (len(said), ended)


def test_a_merged_model_says_what_base_and_adapter_say(
    base: Path, adapter: Path, merged: Path, answered: Callable[..., Path], read: Any
) -> None:
    both = answered("--model", base, "--adapter", adapter)
    assert read.predictions(both) == read.predictions(answered("--model", merged))
    assert read.predictions(both) != read.predictions(answered("--model", base))
    assert read.manifest(both)["metadata"]["form"] == "adapter"


def test_fp32_onnx_says_what_the_base_model_says(
    base: Path, onnx: Path, answered: Callable[..., Path], read: Any
) -> None:
    left, right = answered("--model", base), answered("--model", onnx)
    assert (left / "predictions.jsonl").read_bytes() == (right / "predictions.jsonl").read_bytes()
    assert read.manifest(right)["metadata"]["form"] == "onnx"
    assert read.manifest(right)["metrics"]["engine"] == "onnxruntime-genai"


@pytest.mark.parametrize("form", ["base", "onnx"])
def test_the_batch_does_not_change_the_answers(
    form: str, request: pytest.FixtureRequest, answered: Callable[..., Path]
) -> None:
    model = request.getfixturevalue(form)
    alone, together = answered("--model", model, "--batch-size", 1), answered("--model", model)
    assert (alone / "predictions.jsonl").read_bytes() == (together / "predictions.jsonl").read_bytes()


def test_draws_depend_on_the_seed_alone(onnx: Path, base: Path, answered: Callable[..., Path], read: Any) -> None:
    drawn = ("--temperature", 0.9, "--top-k", 50, "--top-p", 0.9, "--repetition-penalty", 1.1)
    first = read.predictions(answered("--model", onnx, *drawn))
    assert first == read.predictions(answered("--model", onnx, *drawn, "--batch-size", 2))
    assert first == read.predictions(answered("--model", base, *drawn))
    assert first != read.predictions(answered("--model", onnx, *drawn, "--seed", 1))
    assert first != read.predictions(answered("--model", onnx))


def test_onnx_inference_imports_neither_torch_nor_transformers(onnx: Path) -> None:
    script = (
        "import sys; from microstages_infer.cli import main\n"
        "code = main.main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'peft', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else code)"
    )
    command = [sys.executable, "-c", script, "--model", str(onnx), "--prompt", "She said", "--max-new-tokens", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_torch_onnx_runs_and_a_model_says_what_to_install(
    base: Path, onnx: Path, tmp_path: Path, run_stage: Callable[..., Any]
) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    ask = ("--prompt", "She said", "--max-new-tokens", 2)
    assert run_stage("infer", "--model", onnx, *ask, env=env).code == 0
    result = run_stage("infer", "--model", base, *ask, env=env)
    assert result.code == 2
    assert "needs torch" in result.stderr and "microstages-infer[torch]" in result.stderr
    assert "Traceback" not in result.stderr
