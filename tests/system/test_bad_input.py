"""What users get wrong, through the programs as users run them.

Each case: one or two lines that name the place and the remedy, exit code 2, no traceback, and nothing half-written.
The stages' own tests hold longer tables; this one is the tour of everything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import run_program, stage_command

ROOT = Path(__file__).parent.parent.parent
TEMPLATE = "### Text: {phrase}\n### The tone is:\n{tone}"
PREPARE = ["prepare-data", "--source", "rows.jsonl", "--model", "model", "--output", "out", "--template", TEMPLATE]
TRAIN = ["train-lora", "--dataset", "dataset", "--base-model", "model", "--output", "out"]
MERGE = ["merge", "--base-model", "model", "--adapter", "adapter", "--output", "out"]
BUILD = ["build-onnx", "--model", "model", "--output", "out"]
INFER = ["infer", "--model", "model", "--output", "out"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Good things, and each of them broken in one way."""
    w = tmp_path_factory.mktemp("bad") / "world"
    w.mkdir()
    rows = [{"phrase": f"phrase number {i}", "tone": "joy"} for i in range(40)]
    lines = [json.dumps(r) for r in rows]
    (w / "rows.jsonl").write_text("\n".join(lines))
    (w / "empty.jsonl").write_text("")
    (w / "latin.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"phrase": "caf\xe9", "tone": "joy"}\n')
    (w / "cut.jsonl").write_text("\n".join(lines) + '\n{"phrase": "half')
    (w / "header.csv").write_text("phrase,tone\n")
    (w / "cut.parquet").write_bytes(b"PAR1" + bytes(100))
    (w / "folder").mkdir()
    shutil.copytree(tiny_model, w / "model")
    for name, gone in {
        "no-tokenizer": "tokenizer.json",
        "no-config": "config.json",
        "no-weights": "model.safetensors",
    }.items():
        shutil.copytree(tiny_model, w / name)
        (w / name / gone).unlink()
    shutil.copytree(w / "no-weights", w / "pickled")
    (w / "pickled/pytorch_model.bin").write_bytes(b"\x80\x02.")
    shutil.copytree(tiny_model, w / "cut-model")
    os.truncate(w / "cut-model/model.safetensors", 5000)
    shutil.copytree(tiny_model, w / "broken-config")
    (w / "broken-config/config.json").write_text("{")
    shutil.copytree(tiny_model, w / "other-model")
    with (w / "other-model/README.md").open("w") as f:
        f.write("another model")
    for command in (
        [*PREPARE, "--completion", "tone", "--max-length", "64"],
        [*TRAIN, "--rank", "4", "--steps", "1", "--batch-tokens", "64"],
    ):
        target = "dataset" if command[0] == "prepare-data" else "adapter"
        command[command.index("out")] = target
        done = run_program([*stage_command(command[0]), *command[1:]], cwd=w)
        assert done.code == 0, done.stderr
    for name, change in {
        "bad-schema": lambda m: m.update(schema=9),
        "escaping": lambda m: m["files"][0].update(path="../x"),
        "no-digest": lambda m: m.pop("digest"),
        "another-digest": lambda m: m.update(digest="sha256:" + "0" * 64),
    }.items():
        shutil.copytree(w / "dataset", w / name)
        manifest = json.loads((w / name / "artifact.json").read_text())
        change(manifest)
        (w / name / "artifact.json").write_text(json.dumps(manifest))
    shutil.copytree(w / "dataset", w / "altered")
    data = bytearray((w / "altered/train.safetensors").read_bytes())
    data[-1] ^= 1
    (w / "altered/train.safetensors").write_bytes(data)
    shutil.copytree(w / "dataset", w / "missing")
    (w / "missing/report.json").unlink()
    shutil.copytree(w / "dataset", w / "not-json")
    (w / "not-json/artifact.json").write_text("{")
    shutil.copytree(w / "adapter", w / "plain-adapter")
    (w / "plain-adapter/artifact.json").unlink()
    config = json.loads((w / "plain-adapter/adapter_config.json").read_text())
    (w / "plain-adapter/adapter_config.json").write_text(json.dumps({**config, "peft_type": "LOHA"}))
    (w / "taken").mkdir()
    (w / "taken/mine.txt").write_text("mine")
    return w


def without(command: list[str], flag: str) -> list[str]:
    at = command.index(flag)
    return command[:at] + command[at + 2 :]


def put(command: list[str], flag: str, value: str) -> list[str]:
    return [*without(command, flag), flag, value]


STAGES = {
    # flags
    "a flag that does not exist": ([*PREPARE, "--tempalte", "x"], "--tempalte"),
    "a missing input": (without(PREPARE, "--source"), "--source"),
    "a missing output": (without(MERGE, "--output"), "--output"),
    "a word for a number": ([*TRAIN, "--rank", "many"], "--rank"),
    "rank 0": ([*TRAIN, "--rank", "0"], "at least 1"),
    "a learning rate of 0": ([*TRAIN, "--learning-rate", "0"], "above 0"),
    "a learning rate that is no number": ([*TRAIN, "--learning-rate", "nan"], "--learning-rate"),
    "a dropout of 1": ([*TRAIN, "--dropout", "1"], "below 1"),
    "a choice misspelled": ([*PREPARE, "--strategy", "pak"], "did you mean 'pack'"),
    "everything held out": ([*PREPARE, "--test-fraction", "1"], "below 1"),
    "an unknown precision": ([*BUILD, "--precision", "int3"], "int4"),
    # inputs that are not what they should be
    "data that is not there": (put(PREPARE, "--source", "rows.json"), "did you mean 'rows.jsonl'"),
    "a pattern without a match": (put(PREPARE, "--source", "*.tsv"), "no file matches"),
    "an empty folder": (put(PREPARE, "--source", "folder"), "empty"),
    "empty data": (put(PREPARE, "--source", "empty.jsonl"), "empty"),
    "a header without rows": (put(PREPARE, "--source", "header.csv"), "no rows"),
    "bad UTF-8": (put(PREPARE, "--source", "latin.jsonl"), "latin.jsonl:41"),
    "a row cut short": (put(PREPARE, "--source", "cut.jsonl"), "cut.jsonl:41"),
    "a truncated parquet file": (put(PREPARE, "--source", "cut.parquet"), "cut.parquet"),
    "a field that does not exist": (put(PREPARE, "--template", "{phrase} {tonne}"), "did you mean 'tone'"),
    "a template that does not end": (put(PREPARE, "--template", "{phrase"), "{{"),
    "an end token of many tokens": ([*PREPARE, "--end-token", "the very end"], "--end-token"),
    "sequences beyond the model": ([*PREPARE, "--max-length", "100000"], "256"),
    "a model without tokenizer": (put(PREPARE, "--model", "no-tokenizer"), "tokenizer.json"),
    "a model without config": (put(PREPARE, "--model", "no-config"), "config.json"),
    "a model without weights": (put(MERGE, "--base-model", "no-weights"), "no weights"),
    "pickled weights": (put(MERGE, "--base-model", "pickled"), "pickled"),
    "weights cut short": ([*put(MERGE, "--base-model", "cut-model"), "--allow-other-base"], "safetensors"),
    "weights cut short, to train on": (put(TRAIN, "--base-model", "cut-model"), "cut-model: its weights"),
    "weights cut short, to build from": (put(BUILD, "--model", "cut-model"), "safetensors"),
    "a config that is no JSON": (put(MERGE, "--base-model", "broken-config"), "config.json"),
    "a file in place of a model": (put(MERGE, "--base-model", "rows.jsonl"), "it is a file"),
    "a model in place of a data set": (put(TRAIN, "--dataset", "model"), "dataset is wanted"),
    "a data set in place of an adapter": (put(MERGE, "--adapter", "dataset"), "adapter is wanted"),
    "an adapter of another base": (put(MERGE, "--base-model", "other-model"), "another base"),
    "an adapter of another base, answering": (
        [*put(INFER, "--model", "other-model"), "--adapter", "adapter", "--dataset", "dataset"], "another base",
    ),
    "an adapter of another kind": (put(MERGE, "--adapter", "plain-adapter"), "LOHA"),
    "target modules that match nothing": ([*TRAIN, "--target-modules", "qkv_prj"], "qkv_proj"),
    "nothing to answer": (INFER, "there is nothing to answer"),
    "a prompts file that is not there": ([*INFER, "--prompts", "questions.txt"], "no such file"),
    # artifacts that were altered
    "an altered artifact": (put(TRAIN, "--dataset", "altered"), "train.safetensors: this file of the artifact was"),
    "an artifact that lacks a file": (put(TRAIN, "--dataset", "missing"), "report.json: this file of the artifact is"),
    "a manifest that is no JSON": (put(TRAIN, "--dataset", "not-json"), "not JSON"),
    "a manifest of the future": (put(TRAIN, "--dataset", "bad-schema"), "schema 9"),
    "a manifest that leaves its folder": (put(TRAIN, "--dataset", "escaping"), "outside its folder"),
    "a manifest without digest": (put(TRAIN, "--dataset", "no-digest"), "digest"),
    "a manifest with another digest": (put(TRAIN, "--dataset", "another-digest"), "digest"),
    # outputs that cannot be
    "an output that is taken": (put(PREPARE, "--output", "taken"), "already"),
    "an output below a file": (put(PREPARE, "--output", "rows.jsonl/out"), "rows.jsonl"),
    "an output on a full disk": (put(PREPARE, "--output", "full/out"), "the disk is full"),
    "an output on a read-only disk": (put(PREPARE, "--output", "read-only/out"), "read-only"),
    "a protocol without a driver": (put(PREPARE, "--output", "nosuch://bucket/x"), "nosuch"),
}  # fmt: skip


@pytest.fixture(scope="module")
def small_disks(world: Path) -> Iterator[None]:
    """`full`: a file system of 12 KiB; `read-only`: one that cannot be written."""
    made = []
    for name, options in {"full": "size=12k", "read-only": "size=64k,ro"}.items():
        (world / name).mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(world / name)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode == 0:
            made.append(world / name)
    if len(made) < 2 and os.environ.get("CI"):
        pytest.fail("file systems cannot be mounted here, and CI must not skip this")
    yield
    for place in made:
        subprocess.run(["umount", str(place)], check=False)


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != ".verified.json"}


def check(code: int, stderr: str, phrase: str, lines: int) -> None:
    assert code == 2, stderr
    assert "Traceback" not in stderr
    error = stderr[stderr.index("error:") :]
    assert phrase in error
    assert len(error.strip().splitlines()) <= lines, stderr


@pytest.mark.parametrize("case", STAGES)
@pytest.mark.usefixtures("small_disks")
def test_stage(world: Path, case: str):
    (stage, *arguments), phrase = STAGES[case]
    if "disk" in case and not os.path.ismount(world / "full"):
        pytest.skip("NOT TESTED: a file system cannot be mounted by this user")
    before = tree(world)
    done = run_program([*stage_command(stage), *arguments], cwd=world)
    check(done.code, done.stderr, phrase, lines=2)
    assert tree(world) == before


GOOD = """\
name: demo
params:
  data: rows.jsonl
stages:
  data:
    uses: prepare-data
    inputs: {source: "${{ params.data }}", model: model}
    params: {template: "{phrase} {tone}", max_length: 64}
  adapter:
    uses: train-lora
    inputs: {dataset: "${{ stages.data.dataset }}", base_model: model}
    params: {rank: 4}
"""

DATASET_AS_MODEL = 'base_model: "${{ stages.data.dataset }}"'

PIPELINES = {
    "not YAML": (GOOD + "  x: [", "pipeline.yaml:"),
    "an empty file": ("", "pipeline.yaml"),
    "an unknown key": (GOOD.replace("name:", "naem:"), "did you mean 'name'"),
    "an unknown key of a stage": (GOOD.replace("uses: train-lora", "use: train-lora"), "did you mean 'uses'"),
    "a key twice": (GOOD + "name: again\n", "name"),
    "an unknown stage": (GOOD.replace("train-lora", "train-lroa"), "did you mean 'train-lora'"),
    "an unknown parameter": (GOOD.replace("rank: 4", "rnak: 4"), "did you mean 'rank'"),
    "a parameter of the wrong type": (GOOD.replace("rank: 4", "rank: four"), "pipeline.yaml:12"),
    "rank 0": (GOOD.replace("rank: 4", "rank: 0"), "at least 1"),
    "an unknown input": (GOOD.replace("base_model:", "base_modle:"), "did you mean 'base_model'"),
    "a missing input": (GOOD.replace(", base_model: model", ""), "base_model"),
    "a missing file": (GOOD.replace("rows.jsonl", "rows.json"), "rows.json"),
    "a reference to nothing": (GOOD.replace("params.data", "params.dta"), "did you mean"),
    "a reference to no stage": (GOOD.replace("stages.data.dataset", "stages.dta.dataset"), "did you mean"),
    "a reference to no output": (GOOD.replace("stages.data.dataset", "stages.data.datset"), "did you mean"),
    "a cycle": (GOOD.replace('"${{ params.data }}"', '"${{ stages.adapter.adapter }}"'), "adapter"),
    "an output of the wrong kind": (GOOD.replace("base_model: model", DATASET_AS_MODEL), "kind"),
    "an unknown target": (GOOD + "target: moon\n", "moon"),
    "a list in place of stages": (GOOD.split("stages:", maxsplit=1)[0] + "stages: []\n", "stages"),
    "no stages": (GOOD.split("stages:", maxsplit=1)[0], "stages"),
}  # fmt: skip


def runner(*arguments: str, cwd: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "runner.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("case", PIPELINES)
def test_pipeline(world: Path, case: str):
    text, phrase = PIPELINES[case]
    (world / "pipeline.yaml").write_text(text)
    before = tree(world)
    code, stderr = runner("up", cwd=world)
    assert code == 2, stderr
    assert "Traceback" not in stderr
    assert phrase in stderr
    assert tree(world) == before, "nothing runs before everything is checked"


COMMANDS = {
    "a pipeline that is not there": (["up", "pipelin.yaml"], "pipelin.yaml"),
    "an unknown command": (["upp"], "upp"),
    "an unknown option": (["up", "--forec"], "--forec"),
    "an unknown stage": (["up", "--only", "adaptor"], "did you mean 'adapter'"),
    "a stage whose inputs are not done": (["run", "adapter"], "data"),
    "--set without a value": (["plan", "--set", "params.data"], "params.data"),
    "--set of an unknown parameter": (["plan", "--set", "params.dta=x"], "did you mean"),
    "--set of what cannot be": (["plan", "--set", "stages.adapter.params.rank=0"], "at least 1"),
    "a store on a full disk": (["up", "--set", "store=full/store"], "the disk is full"),
    "a store that cannot be written": (["up", "--set", "store=read-only/store"], "read-only"),
    "logs of a run that never was": (["logs", "99"], "no runs yet"),
}


@pytest.mark.parametrize("case", COMMANDS)
@pytest.mark.usefixtures("small_disks")
def test_command(world: Path, case: str):
    arguments, phrase = COMMANDS[case]
    if "store" in case and not os.path.ismount(world / "full"):
        pytest.skip("NOT TESTED: a file system cannot be mounted by this user")
    (world / "pipeline.yaml").write_text(GOOD)
    code, stderr = runner(*arguments, cwd=world)
    assert code == 2, stderr
    assert "Traceback" not in stderr
    assert phrase in stderr


def test_there_are_at_least_sixty_cases():
    assert len(STAGES) + len(PIPELINES) + len(COMMANDS) >= 60
