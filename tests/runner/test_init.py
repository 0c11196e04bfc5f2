"""`runner init`: a folder to start from, that works as it is."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import zipfile
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
    for more in ("params.precision=int8", "params.test_fraction=0.2"):
        for file in ("pipeline.yaml", "fine-tuning/variants.yaml"):
            assert project.run("plan", file, "--set", more).code == 0


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


def fields(project, text: str | bytes, *more: str, name: str = "rows.csv") -> tuple[str, str, str]:
    """Prompt, answer and what is said, of a file with a text."""
    (project.folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    done = project.run("init", "new", "--data", name, *more)
    assert done.code == 0, done.err
    params = read(project.folder / "new/pipeline.yaml", commands=False).stages["data"].params
    variants = read(project.folder / "new/fine-tuning/variants.yaml", commands=False).stages["data"].params
    assert params == variants
    assert params["template"].endswith(f"}}\n{{{params['completion']}}}")
    return params["template"].partition("}")[0][1:], params["completion"], done.out


REPORTS = """No.;Report;Building;Team
R-1;The tap in the kitchen drips all night.;North;water
R-2;No light on the second floor since Monday.;South;power
R-3;A puddle below the sink, and it grows.;Hall, east;water
R-4;The socket by the door gives sparks.;Annex;power
"""


@pytest.mark.parametrize(
    ("text", "prompt", "answer"),
    [
        (REPORTS, "Report", "Team"),
        (REPORTS.replace("R-", ""), "Report", "Team"),
        (REPORTS.replace("power", "1").replace("water", "2"), "Report", "Team"),  # classes that are numbers
        ("team;text;lang\na;one two;en\nb;three four;en\na;five six;en\nb;seven;en\n", "text", "team"),
        ("team\ttext\na\tone two\nb\tthree four\n", "text", "team"),  # too few rows to know, but for the names
        ("Gruppe,Meldung\na,eins zwei\nb,drei vier\na,fünf\n", "Meldung", "Gruppe"),
        ("id,question,answer,lang\n1,why?,because it is so,en\n2,who?,somebody,en\n3,when?,later on,de\n4,a?,b,de\n",
         "question", "answer"),
        ("text;queue;by\na;b;c\n", "text", "by"), ('"what, who";queue\na;b\n', "what, who", "queue"),
        ("note,text,team,place\nlong words here and more,one two,a,\n,three four,b,x\n,five six,a,x\n,seven,b,y\n",
         "text", "team"),  # where a cell is empty a row is refused
        ("text,1\na b,c\nd e,c\n", "text", "1"), ("text,yes no\na b,c\nd e,c\n", "text", "yes no"),
    ],
)  # fmt: skip
def test_the_columns_are_chosen_by_what_they_hold_and_told(project, text, prompt, answer):
    found = fields(project, text)
    assert found[:2] == (prompt, answer)
    assert f"prompt: {prompt}, answer: {answer} (of " in found[2] and "give --prompt COL --answer COL" in found[2]
    assert "runner run data && runner logs data" in found[2]


def test_other_columns_can_be_named_and_a_slip_is_told(project):
    assert fields(project, REPORTS, "--answer", "Building")[:2] == ("Report", "Building")
    for words, said in [
        (("--prompt", "Raport"), "there is no column 'Raport' (did you mean 'Report'?)"),
        (("--prompt", "Team", "--answer", "Team"), "the same column"),
    ]:
        done = project.run("init", "other", "--data", "rows.csv", *words)
        assert done.code == 2 and said in done.err and not (project.folder / "other").exists()
    done = project.run("init", "other", "--answer", "Team")
    assert done.code == 2 and "give --data FILE too" in done.err


def test_json_and_chats_are_looked_at_too(project):
    rows = [{"who": w, "said": f"{w} said a lot of things", "n": 3} for w in ("one", "two", "one", "two")]
    assert fields(project, json.dumps(rows, indent=1), name="rows.json")[:2] == ("said", "who")
    prompt = json.loads((project.folder / "new/inferences/prompts.jsonl").read_text())
    assert prompt == {"messages": [{"role": "user", "content": "one said a lot of things"}]}
    row = {"id": "a", "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]}
    (project.folder / "chats.jsonl").write_text(json.dumps(row) + "\n")
    done = project.run("init", "chat", "--data", "chats.jsonl")
    assert done.code == 0 and "their messages are in messages" in done.out
    params = read(project.folder / "chat/pipeline.yaml", commands=False).stages["data"].params
    assert params["messages_field"] == "messages" and not params.get("template")


def test_a_file_that_is_not_utf8_is_read_and_how_to_convert_it_is_said(project):
    text = REPORTS.replace("puddle", "püddle").replace("Report", "Störung").encode("cp1252")
    prompt, answer, said = fields(project, text)
    assert (prompt, answer) == ("Störung", "Team")
    assert "rows.csv:1 is not UTF-8" in said and "iconv -f cp1252 -t utf-8 rows.csv > new/datasets/rows.csv" in said
    late = REPORTS.replace("puddle", "püddle").encode("cp1252")
    (project.folder / "late.csv").write_bytes(late)
    assert "late.csv:4 is not UTF-8" in project.run("init", "late", "--data", "late.csv").out
    (project.folder / "late.csv.gz").write_bytes(gzip.compress(late))
    said = project.run("init", "packed", "--data", "late.csv.gz").out
    command = said.partition("convert it:\n")[2].partition("\n")[0]
    assert subprocess.run(command, shell=True, cwd=project.folder, check=False).returncode == 0
    assert "püddle" in gzip.decompress((project.folder / "packed/datasets/late.csv.gz").read_bytes()).decode()


@pytest.mark.parametrize("text", ["one\na\n", "b,{a}\nz,x y\n"])
def test_what_is_not_found_is_asked_for_and_nothing_of_the_example_is_written(project, text):
    (project.folder / "rows.csv").write_text(text)
    done = project.run("init", "new", "--data", "rows.csv")
    assert done.code == 0, done.err
    assert "write them into `template`" in done.out
    assert not any("phrase" in f.read_text() for f in (project.folder / "new").rglob("*.yaml"))


def workbook() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        packed.writestr("[Content_Types].xml", "<Types/>")
        packed.writestr("xl/workbook.xml", "<workbook/>")
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0\1\2\3", "rows.csv: this is binary, and not Parquet or gzip"),
        (b"", "rows.csv: the file is empty"),
        (b"a,b\n", "rows.csv: there are no rows in it"),
        (b"[1, 2]", "rows.csv:1: no row can be read; the first: this is a number, not an object"),
        (b'[{"a": 1}, {"a"', "rows.csv:1: this is not JSON: the file ends too early"),
        ("a,b\nx,y\n".encode("utf-16"), "rows.csv: this is UTF-16"),
        (workbook(), "rows.csv: this is an Excel workbook\n  save it as CSV UTF-8"),
    ],
    ids=range(7),
)
def test_data_that_prepare_data_would_refuse_is_refused_in_its_words(project, data, said):
    (project.folder / "rows.csv").write_bytes(data)
    done = project.run("init", "new", "--data", "rows.csv")
    assert (done.code, said in done.err) == (2, True), done.err
    assert "--input-format" not in done.err
    assert not (project.folder / "new").exists()


def test_a_project_that_nobody_changed_is_made_anew(project):
    assert fields(project, REPORTS)[:2] == ("Report", "Team")
    wrong = project.run("init", "new", "--data", "rows.csv", "--answer", "Buildin")
    assert wrong.code == 2 and "did you mean 'Building'?" in wrong.err
    assert (project.folder / "new/pipeline.yaml").is_file(), "a mistake leaves what was there"
    prompt, answer, said = fields(project, REPORTS, "--answer", "Building")
    assert (prompt, answer) == ("Report", "Building") and "made new anew" in said
    done = project.run("init", "new", "--data", "new/datasets/rows.csv", "--prompt", "Building", "--answer", "Team")
    assert done.code == 0, done.err
    assert sorted(p.name for p in (project.folder / "new").iterdir() if p.name.startswith(".")) == [
        ".gitignore", ".init.json"
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["pipeline.yaml", "mine.txt", ".runner/history.db", "datasets/rows.csv"])
def test_a_project_that_was_worked_on_is_not_made_anew(project, change):
    fields(project, REPORTS)
    file = project.folder / "new" / change
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as f:
        f.write("# mine\n")
    before = sorted(p.read_bytes() for p in (project.folder / "new").rglob("*") if p.is_file())
    done = project.run("init", "new", "--data", "rows.csv")
    assert done.code == 2
    named = ".runner" if change.startswith(".") else change
    assert f"new: this folder holds something already: a project that is not as it was made ({named})" in done.err
    assert sorted(p.read_bytes() for p in (project.folder / "new").rglob("*") if p.is_file()) == before


def test_a_record_that_names_files_elsewhere_is_none(project):
    fields(project, REPORTS)
    (project.folder / "kept").write_text("mine")
    file = project.folder / "new/.init.json"
    record = json.loads(file.read_text())
    record["files"]["../kept"] = hashlib.sha256(b"mine").hexdigest()
    for text in (json.dumps(record), "[]", '{"files": [1]}'):
        file.write_text(text)
        done = project.run("init", "new", "--data", "rows.csv")
        assert done.code == 2 and "holds something already" in done.err
    assert (project.folder / "kept").read_text() == "mine"


def test_a_project_here_needs_no_cd(project):
    (project.folder / "mine").mkdir()
    project.folder = project.folder / "mine"
    assert project.run("init", ".").out.endswith("next: runner plan && runner up\n")


def test_a_models_folder_must_hold_one(project, examples):
    (project.folder / "base/inner").mkdir(parents=True)
    (project.folder / "base/inner/config.json").write_text("{}")
    for model, said in [
        ("base", "there is no config.json in this folder, so it holds no model"),
        ("base", "below it: inner"),
        ("bas", "there is no such folder (did you mean 'base'?)"),
        ("owner/name", "of the hub: --model hf://owner/name"),
        ("base/inner/config.json", "this is a file, not the folder of a model"),
    ]:
        done = project.run("init", "new", "--model", model)
        assert done.code == 2 and said in done.err, model
        assert not (project.folder / "new").exists()
    assert project.run("init", "near", "--model", "base/inner").code == 0
    assert "base_model: ../base/inner" in (project.folder / "near/pipeline.yaml").read_text()
    assert project.run("init", "far", "--model", examples / "tiny-phi3").code == 0
    for file in ("pipeline.yaml", "fine-tuning/variants.yaml"):
        assert f"base_model: {examples / 'tiny-phi3'}" in (project.folder / "far" / file).read_text()


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


@pytest.mark.parametrize(("template", "said"), [
    (None, ""), ("config", "      as_chat: true"), ("file", "      as_chat: true"), ("hub", "      # as_chat: true"),
])  # fmt: skip
def test_rows_are_written_as_a_chat_where_the_model_has_a_template_for_it(tmp_path, template, said):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "tokenizer_config.json").write_text('{"chat_template": "x"}' if template == "config" else "{}")
    if template == "file":
        (base / "chat_template.jinja").write_text("x")
    data = tmp_path / "rows.csv"
    data.write_text("question,answer\n" + "".join(f"How is it on day {n}?,well\n" for n in range(30)))
    module.create(tmp_path / "p", model="hf://owner/name" if template == "hub" else str(base), data=str(data))
    text = (tmp_path / "p/pipeline.yaml").read_text()
    assert ("as_chat" in text) == bool(said) and said in text
    row = json.loads((tmp_path / "p/inferences/prompts.jsonl").read_text())
    assert ("messages" in row) == said.startswith("      as_chat")


@pytest.mark.parametrize(("rows", "own", "said"), [
    (90, False, "epochs: 18, batch_tokens: 256"), (20, False, "epochs: 40, batch_tokens: 256"),
    (3000, False, "epochs: 3, batch_tokens: 512"), (90, True, "epochs: 10, batch_tokens: 1024"),
    (3000, True, "epochs: 3, batch_tokens: 4096"),
])  # fmt: skip
def test_few_rows_are_trained_in_small_steps_and_often(tmp_path, rows, own, said):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    data = tmp_path / "rows.csv"
    lines = [f"What is to be done about the parcel that was number {n:05} of last week?,wait\n" for n in range(rows)]
    data.write_text("question,answer\n" + "".join(lines))
    module.create(tmp_path / "p", model=str(base) if own else "", data=str(data))
    for file in ("pipeline.yaml", "fine-tuning/variants.yaml"):
        assert said in (tmp_path / "p" / file).read_text()
