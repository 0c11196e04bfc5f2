"""`runner import olive`: where it writes, what it says, how it ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from olive.samples import OWN

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run(…)` runs `runner import olive …` in a folder with our configs."""
    for file in OWN.glob("*.json"):
        shutil.copy(file, tmp_path)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runner.cli", "import", "olive", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return call


def test_it_writes_beside_the_config_and_says_what_became_of_each_key(run: Run, tmp_path: Path):
    done = run("pages.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "pipeline.yaml").read_text().startswith("# From pages.json, a config of Olive (generation A).\n")
    lines = done.stdout.splitlines()
    assert lines[0] == "pages.json: generation A (input_model is of type PyTorchModel)"
    assert lines.index("changed:") < lines.index("used:") < lines.index("not needed:")
    assert lines[-1] == "next: runner plan pipeline.yaml"
    assert lines[-2] == "62 keys: 2 changed, 50 used, 10 not needed"


def test_the_same_as_json(run: Run):
    data = json.loads(run("pages.json", "--json").stdout)
    assert data["generation"] == "A"
    assert [s["uses"] for s in data["stages"]] == ["prepare-data", "train-lora", "merge", "build-onnx"]
    assert sum(data["counts"].values()) == len(data["keys"])
    key = next(k for k in data["keys"] if k["path"] == "passes.lora.config.lora_r")
    assert key == {"path": "passes.lora.config.lora_r", "value": 32, "how": "used", "becomes": "rank", "why": ""}


def test_a_file_is_not_replaced_unasked(run: Run, tmp_path: Path):
    (tmp_path / "pipeline.yaml").write_text("name: mine\n")
    done = run("pages.json")
    assert done.returncode == 2
    assert "this file is there already" in done.stderr
    assert (tmp_path / "pipeline.yaml").read_text() == "name: mine\n"
    assert run("pages.json", "--force").returncode == 0
    assert run("pages.json", "-o", "other.yaml").returncode == 0
    assert (tmp_path / "other.yaml").read_text() == (tmp_path / "pipeline.yaml").read_text()


def test_mistakes_end_with_2_and_write_nothing(run: Run, tmp_path: Path):
    config = json.loads((tmp_path / "pages.json").read_text())
    config["pases"] = config.pop("passes")
    (tmp_path / "wrong.json").write_text(json.dumps(config))
    done = run("wrong.json")
    assert done.returncode == 2
    assert "unknown key pases (did you mean 'passes'?)" in done.stderr
    assert not (tmp_path / "pipeline.yaml").exists()
    done = run("pags.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no such config (did you mean 'pages.json'?)" in done.stderr
    assert run("pages.json", "-o", "no/pipeline.yaml").returncode == 2


def test_the_generation_can_be_said(run: Run):
    done = run("pages.json", "--generation", "B")
    assert done.stdout.startswith("pages.json: generation B (asked for; detected A: input_model")
    assert run("pages.json", "--generation", "C", "--force").returncode == 2
