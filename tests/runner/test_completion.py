"""What is typed is completed: by the words that scripts ask for, and in the shells that are here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import runner
from runner import cli
from runner.completion import SCRIPTS, answer, complete

PIPELINE = """\
params: {method: train-lora, precision: int4, data: x}
targets: {cluster: {type: kubernetes, namespace: ml}}
stages:
  data: {uses: prepare-data, inputs: {source: "${{ params.data }}", model: m}}
  adapter: {uses: "${{ params.method }}", inputs: {dataset: "${{ stages.data.dataset }}", base_model: m}}
  onnx: {uses: build-onnx, inputs: {model: m}, params: {precision: "${{ params.precision }}"}}
  wide: {uses: merge, inputs: {base_model: m, adapter: a}, matrix: {dtype: [bf16, fp16]}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pipeline, a run and a tag."""
    import sqlite3

    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    (tmp_path / "other.yaml").write_text("stages: {only: {uses: infer, inputs: {model: m}}}\n")
    (tmp_path / ".runner/store/tags").mkdir(parents=True)
    (tmp_path / ".runner/store/tags/v1.json").write_text("{}")
    db = sqlite3.connect(tmp_path / ".runner/history.db")
    db.execute("CREATE TABLE runs (id INTEGER, started REAL, status TEXT)")
    db.executemany("INSERT INTO runs VALUES (?, ?, ?)", [(7, 1.7e9, "done"), (8, 1.7e9, "failed")])
    db.commit()
    db.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(line: str) -> list[str]:
    """What may stand at the end of a line."""
    *before, current = line.split(" ")
    return [word for word, _ in complete(before, current)]


STAGES = ["data", "adapter", "onnx", "wide", "wide-bf16", "wide-fp16"]
CASES: list[tuple[str, list[str]]] = [
    ("pl", ["plan"]),
    ("up --fo", ["--force"]),
    ("up --only ", STAGES),
    ("up --from o", ["onnx"]),
    ("up --only=d", ["--only=data"]),
    ("run ", STAGES),
    ("run --pipeline other.yaml ", ["only"]),
    ("up --target c", ["cluster"]),
    ("graph --format d", ["dot"]),
    ("export ", ["kubernetes", "azureml"]),
    ("completion z", ["zsh"]),
    ("logs ", ["8", "7", *STAGES]),
    ("logs 7 a", ["adapter"]),
    ("cancel w", ["wide", "wide-bf16", "wide-fp16"]),
    ("tag ", ["v1"]),
    ("tag v2 a", ["adapter"]),
    ("pull v", ["v1"]),
    ("explain merge.dt", ["merge.dtype"]),
    ("explain stages.ret", ["stages.retries", "stages.retry", "stages.retry.attempts", "stages.retry.backoff",
                            "stages.retry.max_backoff", "stages.retry.on"]),
    # --set
    ("up --set p", ["params."]),
    ("up --set params.", ["params.method=", "params.precision=", "params.data="]),
    ("up --set params.method=train", ["params.method=train-lora", "params.method=train-qlora"]),
    ("up --set params.precision=f", ["params.precision=fp16", "params.precision=fp32"]),
    ("up --set params.data=", []),
    ("up --set stages.o", ["stages.onnx."]),
    ("up --set stages.onnx.r", ["stages.onnx.resources.", "stages.onnx.retry.", "stages.onnx.retries="]),
    ("up --set stages.onnx.resources.g", ["stages.onnx.resources.gpus="]),
    ("up --set stages.onnx.params.prec", ["stages.onnx.params.precision="]),
    ("up --set stages.adapter.params.ra", ["stages.adapter.params.rank="]),
    ("up --set stages.adapter.params.dora=", ["stages.adapter.params.dora=true", "stages.adapter.params.dora=false"]),
    ("up --set stages.onnx.inputs.", ["stages.onnx.inputs.model=", "stages.onnx.inputs.prompts=",
                                      "stages.onnx.inputs.dataset="]),
    ("up --set params.method=", ["params.method=train-lora", "params.method=train-qlora"]),
    ("up --set stages.onnx.uses=", ["stages.onnx.uses=build-onnx"]),
    ("--", ["--help", "--version"]),
    ("up --set target=clu", ["target=cluster"]),
    ("up --set targets.cluster.name", ["targets.cluster.namespace="]),
    # files are left to the shell, nothing is known of a word that is none
    ("plan ", []),
    ("nonsense ", []),
    ("up --set stages.nothing.params.", []),
]  # fmt: skip


@pytest.mark.parametrize(("line", "found"), CASES, ids=[c[0] for c in CASES])
def test_words(line, found):
    assert words(line) == found


def test_every_command_and_its_options_are_there(capsys):
    assert words("") == [c.__name__.rstrip("_") for c in cli.COMMANDS]
    for command in words(""):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli.call([command, "--help"])
        said = capsys.readouterr().out
        for option in words(f"{command} --"):
            assert option in said
        listed = {
            w.strip(",")
            for line in said.split("\n")
            if line.startswith("  -")
            for w in line.split()
            if w.startswith("--")
        }
        assert listed <= set(words(f"{command} --")), command


def test_a_pipeline_that_cannot_be_read_is_no_noise(folder):
    (folder / "pipeline.yaml").write_text("stages: [")
    assert words("run ") == words("up --set stages.") == []
    (folder / "pipeline.yaml").unlink()
    assert words("run ") == []
    assert "process" in words("up --target ")


def test_bash_takes_the_rest_after_its_own_breaks():
    assert answer(["bash", "runner up --set params.precision=in", "=:"]) == "int4\nint8\n"
    assert answer(["bash", "runner up --set params.precision=in", " \t"]).startswith("params.precision=int4\n")
    assert answer(["bash", "runner run 'da", "=:"]) == "data\n", "a quote that is open"
    assert answer(["bash", "runner run ", "=:"]).split() == STAGES


def test_it_loads_nothing_heavy():
    code = "import sys; from runner.completion import complete; complete(['up', '--set'], 'stages.onnx.params.p=');"
    code += "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "fsspec", "rich", "asyncio", "docker", "typer", "torch"} & set(done.stdout.split())


# --- real shells


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    """A PATH on which `runner` is this checkout's."""
    (folder / "bin").mkdir()
    program = folder / "bin/runner"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m runner.cli "$@"\n')
    program.chmod(0o755)
    root = Path(cli.__file__).parent.parent
    return {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "HOME": str(folder),
    }


def test_bash(environment):
    script = """
        source <(runner completion bash)
        ask() { COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_WORDS=($*); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
                COMPREPLY=(); $(complete -p runner | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo "${COMPREPLY[@]}"; }
        ask "runner ru"
        ask "runner up --only o"
        ask "runner up --set params.precision=in"
        ask "runner nonsense x"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["run", "onnx", "int4 int8", "", ""]
    assert not done.stderr


def test_fish(environment):
    fish = shutil.which("fish") or pytest.skip("COMPLETION IN FISH NOT TESTED: fish is not installed")
    script = "runner completion fish | source; complete -C 'runner up --only o'; complete -C 'runner run '"
    done = subprocess.run(
        [fish, "--no-config", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["onnx", *sorted(STAGES)], done.stderr


def test_zsh(environment):
    zsh = shutil.which("zsh") or pytest.skip("COMPLETION IN ZSH NOT TESTED: zsh is not installed")
    script = """
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell "autoload -Uz compinit && compinit -u -D; source <(runner completion zsh); PS1=; echo REA''DY"
        zpty -r shell line '*READY*'
        zpty -n -w shell $'runner up --set params.prec\\t'
        zpty -r shell line '*precision=*' && print -r -- "found: $line"
    """
    end = time.monotonic() + 60
    with subprocess.Popen([zsh, "-f", "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=end - time.monotonic())
    assert "params.precision=" in out.partition("found: ")[2]


def test_a_shell_that_is_left_out_is_asked_for(capsys):
    for command, known in (("completion", "bash, zsh, fish"), ("export", "kubernetes, azureml")):
        assert cli.call([command]) == 2
        assert f"is one of {known}: runner {command} {known.split(',')[0]}" in capsys.readouterr().err


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.call(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"runner {runner.__version__}\n"


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_says_how_it_is_used(shell, capsys):
    assert cli.call(["completion", shell]) == 0
    assert f"runner completion {shell}" in capsys.readouterr().out
