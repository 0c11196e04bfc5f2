"""What a pipeline must hold for stages that run on another machine."""

from __future__ import annotations

import pytest

from runner.document import PipelineError
from runner.pipeline import read

TEXT = """\
name: demo
store: {store}
targets:
  far: {{type: kubernetes{volumes}}}
  near: {{type: process}}
stages:
  a: {{uses: prepare-data, inputs: {{source: {source}, model: abfs://x/model}}, target: {target}}}
"""


def problems(tmp_path, store, source, volumes="", target="far") -> str:
    file = tmp_path / "pipeline.yaml"
    file.write_text(TEXT.format(store=store, source=source, volumes=volumes, target=target))
    try:
        read(file, commands=False)
        return ""
    except PipelineError as error:
        return str(error)


@pytest.mark.parametrize("store", ["abfs://x/store", "s3://x/store"])
def test_a_store_that_is_reached_from_everywhere_is_enough(tmp_path, store):
    assert problems(tmp_path, store, "rows.jsonl") == ""


def test_a_folder_of_this_machine_is_not(tmp_path):
    said = problems(tmp_path, ".runner/store", "rows.jsonl")
    assert "pipeline.yaml:2:8: stage a runs on far, and the store '.runner/store' is a folder of this machine" in said
    assert "--set store=" in said
    assert problems(tmp_path, ".runner/store", "rows.jsonl", target="near") == ""


def test_a_folder_on_a_volume_is_enough_where_the_inputs_are_on_one_too(tmp_path):
    volumes = f", volumes: [{{path: {tmp_path}/shared, claim: c}}]"
    assert problems(tmp_path, f"{tmp_path}/shared/store", f"{tmp_path}/shared/rows.jsonl", volumes) == ""
    said = problems(tmp_path, f"{tmp_path}/shared/store", "rows.jsonl", volumes)
    assert "pipeline.yaml:7:" in said and "its input source is on no volume of it" in said
    assert "is a folder of this machine" in problems(tmp_path, "elsewhere", "rows.jsonl", volumes)


@pytest.mark.parametrize("target, why", [
    ("kubernetes", "work is a plain command without an image"),
    ("azureml", "work is a plain command: azureml cannot run it"),
])  # fmt: skip
def test_a_plain_command_is_refused(tmp_path, target, why):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "interface.json").write_text(
        '{"schema": 1, "name": "work", "version": "1", "summary": "s", "command": ["sh"], "code": ["."], "inputs": {},'
        ' "manifest": "runner", "outputs": {"out": {"flag": "--out", "kind": "dataset"}}, "params": {}}'
    )
    file = tmp_path / "pipeline.yaml"
    file.write_text("store: s3://x\nstages: {a: {uses: ./work}}\n")
    with pytest.raises(PipelineError, match=why):
        read(file, target=target)
