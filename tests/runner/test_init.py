"""`runner init`: a folder to start from, that works as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner import project as module
from runner.pipeline import read


def stages(file: Path) -> set[str]:
    return set(read(file, commands=False).stages)


def test_it_is_a_project_that_runs(project):
    done = project.run("init", "mine")
    assert done.code == 0, done.err
    folder = project.folder / "mine"
    names = {p.name for p in folder.iterdir() if p.is_dir()}
    assert names == {"datasets", "fine-tuning", "inferences", "model-cache", "gen-model", "setup"}
    assert all((folder / name / "README.md").read_text().startswith(f"# {name}") for name in names)
    assert stages(folder / "pipeline.yaml") == {"data", "adapter", "merged", "onnx", "base", "tuned", "quantized"}
    project.folder = folder
    assert project.up("--only", "data", "--target", "process") == {"data": "done"}
    # what belongs to both pipelines is made once
    states = project.run("plan", "fine-tuning/variants.yaml", "--json").json["stages"]
    assert {s["stage"]: s["action"] for s in states}["data"] == "reuse"
    assert {s["stage"] for s in states if s["uses"] == "train-lora"} == {
        f"adapter-{rank}-{rate}" for rank in (16, 64) for rate in ("3e-4", "1e-3")
    }
    json.loads((folder / "inferences/prompts.jsonl").read_text())


def test_ones_own_data_and_model(project):
    (project.folder / "rows.csv").write_text("question,topic,best answer\nwhy,x,because\n")
    done = project.run("init", "deep/er", "--data", "rows.csv", "--model", "hf://owner/model@main")
    assert done.code == 0, done.err
    found = read(project.folder / "deep/er/pipeline.yaml", commands=False)
    data = found.stages["data"]
    assert (project.folder / "deep/er/datasets/rows.csv").is_file()
    assert data.params["template"] == "{question}\n{best answer}" and data.params["completion"] == "best answer"
    assert data.inputs["model"].uri == "hf://owner/model@main"
    assert not (project.folder / "deep/er/model-cache/tiny-phi3").exists()
    stages(project.folder / "deep/er/fine-tuning/variants.yaml")


@pytest.mark.parametrize("text, template", [
    ("text;queue;by\na;b;c\n", "{text}\n{by}"), ("text\tqueue\na\tb\n", "{text}\n{queue}"),
    ('"what, who"|queue\na|b\n', None), ("one\na\n", None),
])  # fmt: skip
def test_the_fields_of_a_csv_file_are_found_or_asked_for(project, text, template):
    (project.folder / "rows.csv").write_text(text)
    done = project.run("init", "new", "--data", "rows.csv")
    assert done.code == 0, done.err
    assert ("write them into `template`" in done.out) == (template is None)
    if template:
        assert read(project.folder / "new/pipeline.yaml", commands=False).stages["data"].params["template"] == template


def test_from_a_config_of_olive(project, examples):
    done = project.run("init", "mine", "--from-olive", examples / "olive-config.json")
    assert done.code == 0, done.err
    assert "pipeline.yaml does what olive-config.json says (generation A)" in done.out
    folder = project.folder / "mine"
    assert "train-lora" in {s.interface.name for s in read(folder / "pipeline.yaml", commands=False).stages.values()}
    assert (folder / "fine-tuning/olive-config.json").is_file() and not (folder / "fine-tuning/variants.yaml").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("there",), "this folder holds something already"),
        (("new", "--data", "none.jsonl"), "there is no such file"),
        (("new", "--from-olive", "wrong.json"), "there is no input_model"),
        (("new", "--from-olive", "none.json"), "none.json"),
    ],
)
def test_a_mistake_leaves_nothing(project, words, said):
    (project.folder / "there").mkdir()
    (project.folder / "there/file").write_text("mine")
    (project.folder / "wrong.json").write_text("{}")
    done = project.run("init", *words)
    assert done.code == 2 and said in done.err
    assert not (project.folder / "new").exists()
    assert (project.folder / "there/file").read_text() == "mine"


def test_without_the_examples_it_names_a_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EXAMPLES", tmp_path / "none")
    module.create(tmp_path / "mine")
    text = (tmp_path / "mine/pipeline.yaml").read_text()
    assert "base_model: hf://microsoft/Phi-3-mini-4k-instruct" in text and "learning_rate: 2e-4" in text
