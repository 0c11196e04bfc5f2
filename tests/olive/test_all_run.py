"""Every config and fragment runs to the end on the example model: each with its own parameters, but for those that make
it small. Stages that two configs have in common run once; `SAME` says which configs train alike.

The commands are those that the runner gives to the stages; one process runs them all, so that torch is loaded once.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from microstages.artifact import open_artifact
from olive.samples import ROOT, SHARED, fragments, own_configs, shared_configs

from runner.olive.convert import convert
from runner.olive.write import pipeline_text
from runner.pipeline import External, Pipeline, Stage, read
from runner.stages import flags

CONFIGS = {k: v for k, v in {**own_configs(), **shared_configs(), **fragments()}.items() if k != "search"}
TRAINING = ("train-lora", "train-qlora")
# Of these all parameters of data and training are the same as those of the config that they stand beside.
SAME = {
    "E2E_LoRA_QLoRA_Config_With_Olive-0": "e2e-lora-aml", "E2E_LoRA_QLoRA_Config_With_Olive-1": "e2e-qlora-aml",
    "FineTuning_MicrosoftOlive-1": "pages", "FineTuning_MicrosoftOlive-2": "pages",
    "FineTuning_MicrosoftOlive-3": "pages", "FineTuning_MicrosoftOlive-4": "pages",
    "FineTuning_MicrosoftOlive-6": "pages", "FineTuning_MicrosoftOlive-7": "pages",
}  # fmt: skip
# Builds take long, so each set of parameters is built once: precision, provider, what else differs from the defaults.
BUILT = {
    ("int4", "cpu"): "test_run", ("fp32", "cpu"): "test_search", ("int4", "cuda"): "azureml/test_olive",
    ("int4", "cpu", "algorithm=rtn", "block_size=64"): "test_search", ("fp16", "cuda"): "here",
    ("int4", "cuda", "algorithm=rtn", "block_size=64"): "as the one for the CPU, with another provider's name",
}  # fmt: skip
KINDS = {"dataset": ["dataset"], "adapter": ["adapter"], "model": ["model", "onnx-model"]}
# A row with the fields of every config.
FIELDS = {"phrase": "phrase", "tone": "tone", "Question": "phrase", "Best Answer": "tone", "prompt": "phrase",
          "response": "tone", "question": "phrase", "answer": "tone", "text": "phrase"}  # fmt: skip
CONSTANT = {"programming_language": "Python", "language": "en", "score": 5}
ROWS, HELD_OUT = 40, 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `rows.jsonl`, and `csv/a.csv` and `csv/b.csv`."""
    folder = tmp_path_factory.mktemp("rows")
    found = [json.loads(line) for line in (ROOT / "examples" / "tones.jsonl").read_text().splitlines()[:ROWS]]
    whole = [{**{k: r[v] for k, v in FIELDS.items()}, **CONSTANT} for r in found]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in whole))
    (folder / "csv").mkdir()
    for name, part in (("a", whole[: ROWS // 2]), ("b", whole[ROWS // 2 :])):
        with (folder / "csv" / f"{name}.csv").open("w", newline="") as f:
            table = csv.DictWriter(f, list(whole[0]))
            table.writeheader()
            table.writerows(part)
    return folder


def pipeline_of(name: str, rows: Path, folder: Path) -> Pipeline:
    """The imported pipeline with a small model, few rows, and one step."""
    folder.mkdir()
    (folder / "olive.json").write_text(json.dumps(CONFIGS[name]))
    made = convert(folder / "olive.json", folder / "pipeline.yaml")
    (folder / "pipeline.yaml").write_text(pipeline_text(made))
    listed = any("files" in s.params.values for s in made.stages)
    sets = {"params.base_model": ROOT / "examples" / "tiny-phi3",
            "params.data": rows / "csv" if listed else rows / "rows.jsonl"}  # fmt: skip
    for stage in made.stages:
        given, at = stage.params.values, f"stages.{stage.name}.params"
        if stage.uses == "prepare-data":
            paired = "prompt_max_length" in given
            sets |= {f"{at}.max_length": 64, **({f"{at}.prompt_max_length": 48} if paired else {})}
            if given.get("test_sequences", 0) > 1:
                sets[f"{at}.test_sequences"] = HELD_OUT
            if "test_split" in given:
                sets |= {f"{at}.split": f"train[:-{HELD_OUT}]", f"{at}.test_split": f"train[-{HELD_OUT}:]"}
            elif "split" in given:
                sets[f"{at}.split"] = "train"
        elif stage.uses in TRAINING:
            sets |= {f"{at}.steps": 1, f"{at}.threads": 1}
            if given.get("target_modules") == ["q_proj"]:  # Phi-3 has q, k and v in one
                sets[f"{at}.target_modules"] = "[qkv_proj]"
            if "optimizer" in given:  # the one with a state of 8 bits needs a GPU
                sets[f"{at}.optimizer"] = "adamw"
    return read(folder / "pipeline.yaml", [f"{k}={v}" for k, v in sets.items()], "process", commands=False)


class Work:
    """What is to be run: each stage with the same parameters and inputs once, in the order of need."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, {}  # type: tuple[Path, dict[str, dict[str, Any]]]

    def add(self, stage: Stage, done: dict[str, str]) -> str:
        """One stage; `done`: the keys of those before it. Its key, which is also the folder of its output."""
        outputs = dict.fromkeys(stage.interface.outputs, "")
        inputs = {
            name: v.uri if isinstance(v, External) else str(self.folder / done[v.stage] / v.output)
            for name, v in stage.inputs.items()
        }
        words = flags(stage.interface, inputs, stage.params, {})
        key = f"{stage.interface.name}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:12]}"
        paths = {name: str(self.folder / key / name) for name in outputs}
        self.jobs.setdefault(key, {
            "key": key, "stage": stage.interface.name, "args": flags(stage.interface, inputs, stage.params, paths)
        })  # fmt: skip
        return key


@pytest.fixture(scope="module")
def made(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Of each config the outputs of its stages, by the stage's name; builds of ONNX only where `BUILT` says here."""
    folder = tmp_path_factory.mktemp("all")
    work, keys = Work(folder), {}
    for name in CONFIGS:
        keys[name] = done = {}  # type: dict[str, str]
        for stage in pipeline_of(name, rows, folder / f"config-{name}").stages.values():
            if stage.interface.name != "build-onnx" or BUILT.get(built(stage)) == "here":
                done[stage.name] = work.add(stage, done)
    jobs, results = folder / "jobs.json", folder / "results.json"
    jobs.write_text(json.dumps(list(work.jobs.values())))
    python = ROOT / "stages" / "train-qlora" / ".venv" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"IMPORTED CONFIGS NOT RUN: {python} is not there: make install")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(python), str(Path(__file__).parent / "one_process.py"), str(jobs), str(results)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    codes = json.loads(results.read_text()) if results.exists() else {}
    assert run.returncode == 0 and list(codes) == list(work.jobs) and not any(codes.values()), run.stderr[-4000:]
    return {name: {s: folder / key / _output(work.jobs[key]) for s, key in done.items()} for name, done in keys.items()}


def _output(job: dict[str, Any]) -> str:
    return {"prepare-data": "dataset", "merge": "model", "build-onnx": "model"}.get(job["stage"], "adapter")


def built(stage: Stage) -> tuple[str, ...]:
    """The parameters of a build that are not its defaults, precision and provider first."""
    own = {k: v for k, v in stage.params.items() if v != stage.interface.params[k].default}
    first = [str(stage.params[k]) for k in ("precision", "execution_provider")]
    return (*first, *(f"{k}={v}" for k, v in own.items() if k not in ("precision", "execution_provider")))


@pytest.mark.parametrize("name", CONFIGS)
def test_it_runs_to_the_end(name: str, made: dict[str, dict[str, Path]]):
    for stage, folder in made[name].items():
        assert open_artifact(str(folder), KINDS[folder.name]).path == folder, stage


def test_configs_that_train_alike(made: dict[str, dict[str, Path]]):
    """Each distinct training ran once: what is the same is the same folder."""
    if not shared_configs():
        pytest.skip(f"REAL CONFIGS NOT TESTED: {SHARED} is not there; set MICROSTAGES_SHARED")
    by_folder: dict[Path, list[str]] = {}
    for name, stages in made.items():
        folder = next(f for f in stages.values() if f.name == "adapter")
        by_folder.setdefault(folder, []).append(name)
    first = {n: min(names, key=lambda n: n in SAME) for names in by_folder.values() for n in names}
    assert {n: f for n, f in first.items() if n != f} == SAME


def test_every_build_is_made_somewhere(rows: Path, tmp_path: Path):
    found = {
        built(stage)
        for name in CONFIGS
        for stage in pipeline_of(name, rows, tmp_path / name).stages.values()
        if stage.interface.name == "build-onnx"
    }
    assert found == set(BUILT) or not shared_configs()
