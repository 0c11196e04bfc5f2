"""What others than ONNX Runtime GenAI want in the folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FP32 = ("--precision", "fp32", "--verify", "skip")


def test_foundry_local_finds_a_name_and_the_chat_template(build: Callable[..., Any], tiny_model: Path) -> None:
    found = build(tiny_model, *FP32, "--layout", "foundry-local").json("inference_model.json")
    assert found["Name"] == "phi3-fp32-cpu"
    assert found["PromptTemplate"]["assistant"] == "{Content}"
    prompt = found["PromptTemplate"]["prompt"]
    assert prompt.count("{Content}") == 1 and "<|user|>" in prompt and prompt.rstrip().endswith("<|assistant|>")
    named = build(tiny_model, *FP32, "--layout", "foundry-local", "--model-name", "tones")
    assert named.json("inference_model.json")["Name"] == "tones"
    assert not (build(tiny_model, *FP32).path / "inference_model.json").exists()


def test_without_a_template_the_message_is_the_prompt(
    build: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "bare")
    (tmp_path / "bare/chat_template.jinja").unlink()
    found = build(tmp_path / "bare", *FP32, "--layout", "foundry-local").json("inference_model.json")
    assert found["PromptTemplate"] == {"assistant": "{Content}", "prompt": "{Content}"}


def test_a_template_that_changes_messages_is_refused(
    run_stage: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "loud")
    (tmp_path / "loud/chat_template.jinja").write_text("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    done = run_stage("build-onnx", "--model", tmp_path / "loud", "--output", tmp_path / "out", *FP32,
                     "--layout", "foundry-local")  # fmt: skip
    assert done.code == 2 and "its chat template changes a message" in done.stderr
    assert not (tmp_path / "out").exists()


def test_ai_toolkit_finds_it_where_runner_pull_puts_it(
    build: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    found = build(tiny_model, *FP32, "--layout", "ai-toolkit", "--model-name", "team/tones")
    assert (found.path / "genai_config.json").is_file()  # where infer looks for it
    models = tmp_path / ".aitk/models"
    (models / "microsoft").mkdir(parents=True)  # others are there
    command = [sys.executable, "-m", "runner.cli", "pull", str(found.path), str(models)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    place = models / "team/tones/cpu/tones-fp32-cpu"
    assert str(place) in done.stdout and (place / "genai_config.json").is_file()
    assert sorted(p.name for p in models.iterdir()) == ["microsoft", "team"]


def test_a_name_that_is_no_folder_is_refused(run_stage: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    for name in ("../tones", "a/b/c", "/tones", ".hidden"):
        done = run_stage("build-onnx", "--model", tiny_model, "--output", tmp_path / "out", *FP32,
                         "--layout", "ai-toolkit", "--model-name", name)  # fmt: skip
        assert done.code == 2 and "--model-name" in done.stderr and "no name of a folder" in done.stderr
    assert not (tmp_path / "out").exists()
