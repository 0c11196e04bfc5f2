"""The repository keeps its own rules: same files everywhere, derived files current, light start-up, no odd words."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import stage_command

ROOT = Path(__file__).parent.parent
STAGES = ("prepare-data", "train-lora", "train-qlora", "merge", "build-onnx", "infer")
WITHOUT_TORCH = ("torch", "transformers", "peft", "bitsandbytes", "onnx")


def package_of(stage: str) -> str:
    return f"microstages_{stage.replace('-', '_')}"


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_folder_has_the_same_files(stage: str):
    hidden = (".", "__pycache__", "build")
    found = {p.name for p in (ROOT / "stages" / stage).iterdir() if not p.name.startswith(hidden)}
    found = {name for name in found if not name.endswith(".egg-info")}
    assert found == {"pyproject.toml", "README.md", "interface.json", package_of(stage)}
    inside = {p.name for p in (ROOT / "stages" / stage / package_of(stage)).iterdir()}
    assert {"__init__.py", "cli.py", "lock.txt"} <= inside


@pytest.mark.parametrize("stage", STAGES)
def test_interface_json_is_what_describe_prints(stage: str):
    done = subprocess.run([*stage_command(stage), "describe"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    committed = (ROOT / "stages" / stage / "interface.json").read_text()
    assert committed == done.stdout, "stale: run make interfaces"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_pins_its_dependencies_exactly(stage: str):
    project = tomllib.loads((ROOT / "stages" / stage / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"microstages-{stage}"
    assert set(project["scripts"]) == {stage}
    loose = [d for d in project["dependencies"] if "==" not in d]
    assert not loose


def test_the_locks_are_current():
    own = ROOT / "stages/train-qlora/.venv/bin/python"
    python = str(own) if own.exists() else sys.executable
    done = subprocess.run([python, "images/lock.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def imported(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after running some code."""
    code += "\nimport sys, json; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("stage", [s for s in STAGES if s != "train-qlora"])
def test_a_stage_starts_without_heavy_imports(stage: str):
    found = imported(f"import {package_of(stage)}.cli as cli; cli.main.interface()")
    assert not found & {*WITHOUT_TORCH, "numpy", "fsspec", "tokenizers", "rich", "onnxruntime_genai"}


def test_the_runner_starts_without_heavy_imports():
    found = imported("import runner.cli")
    assert not found & {*WITHOUT_TORCH, "numpy", "fsspec", "rich", "sqlite3", "asyncio"}


def test_the_project_speaks_of_itself_alone():
    hosts = re.compile(r"(pypi|pythonhosted|npmjs|debian)\.(org|com)", re.I)
    places = re.compile(r"(^|[^A-Za-z0-9_.-])/(work|farm)/")
    found = []
    for file in tracked():
        if file.suffix in (".safetensors", ".png", ".jsonl") or file.name in ("tokenizer.json", "test_repository.py"):
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        found += [str(file.relative_to(ROOT)) for pattern in (hosts, places) if pattern.search(text)]
    assert not found


def test_no_file_has_grown_past_one_idea():
    long = [str(f) for f in tracked() if f.suffix == ".py" and len(f.read_text().splitlines()) > 400]
    assert not long


def test_the_example_model_is_small_and_explained():
    folder = ROOT / "examples/tiny-phi3"
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 16_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Phi3ForCausalLM"]
    card = (folder / "README.md").read_text()
    for word in ("parameters", "perplexity", "tokens", "Sample", "CC0"):
        assert word in card
    assert not any(f.suffix in (".bin", ".pt", ".pkl") for f in folder.iterdir())


def test_the_example_data_is_what_it_says():
    rows = [json.loads(line) for line in (ROOT / "examples/tones.jsonl").read_text().splitlines()]
    assert {tuple(row) for row in rows} == {("phrase", "tone")}
    assert {row["tone"] for row in rows} == {"joy", "sadness", "fear", "surprise"}
    plain = {re.sub(r"\W+", " ", row["phrase"].lower()).strip() for row in rows}
    assert len(plain) == len(rows) >= 600


def test_scripts_can_be_executed():
    assert os.access(ROOT / ".ci/run", os.X_OK)
