"""`runner check` tells all that is wrong with a pipeline and what it names here, and changes nothing."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXAMPLES, NO_ENGINE

from runner import cli
from runner.excerpt import covered, excerpt

GOOD = """\
name: tones
params: {spare: 1}
store: store
targets:
  far: {type: kubernetes, secrets: [HUB_TOKEN, {name: X, secret: hub, key: x}]}
  box: {type: docker, secrets: [{name: KEY, file: key.txt}]}
stages:
  data:
    uses: prepare-data
    inputs: {source: rows.jsonl, model: model}
    params: {template: "{a} {b}"}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good pipeline and what it names."""
    (tmp_path / "pipeline.yaml").write_text(GOOD)
    (tmp_path / "rows.jsonl").write_text('{"a": "x", "b": "y"}\n')
    (tmp_path / "model").symlink_to(EXAMPLES / "tiny-phi3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    monkeypatch.delenv("HUB_TOKEN", raising=False)
    return tmp_path


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    capsys.readouterr()
    code = cli.call(["check", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_good_pipeline_is_told_in_one_line_and_what_is_odd_as_a_warning(folder, capsys):
    code, out, err = check(capsys)
    assert code == 0
    assert out == "pipeline.yaml: 1 stage on auto, 2 inputs there: nothing is wrong\n"
    assert err.startswith(
        "pipeline.yaml:2:10: warning: the parameter 'spare' is not used\n    2 | params: {spare: 1}\n"
    )
    assert sorted(p.name for p in folder.iterdir()) == ["model", "pipeline.yaml", "rows.jsonl"]


def test_all_mistakes_are_told_of_keys_files_secrets_and_targets_at_once(folder, capsys):
    text = GOOD.replace("source: rows", "source: row").replace("store: s", "store: rows.jsonl/s")
    text = text.replace('{a} {b}"', '{a}", max_lenth: 3')
    more = '  there:\n    uses: merge\n    inputs: {base_model: model, adapter: "abfs://c/a"}\n    target: far\n'
    (folder / "pipeline.yaml").write_text(text + more)
    code, out, err = check(capsys)
    assert code == 2
    assert not out
    for told in (
        "pipeline.yaml:3:8: stage there runs on far, and the store 'rows.jsonl/store' is a folder of this machine",
        "pipeline.yaml:3:8: rows.jsonl is a file, so it cannot hold the store ",
        "pipeline.yaml:5:37: target far: the secret HUB_TOKEN is not set",
        "pipeline.yaml:10:22: input source of stage data: ",
        "(did you mean 'rows.jsonl'?)",
        "pipeline.yaml:11:31: prepare-data has no parameter 'max_lenth' (did you mean 'max_length'?)",
    ):
        assert told in err
    assert "target box" not in err, "nothing runs there"
    assert "warning" not in err, "first what is wrong"


def test_it_is_told_to_editors(folder, capsys):
    (folder / "pipeline.yaml").write_text(GOOD.replace("uses: prepare-data", "uses: prepare-dta"))
    code, out, err = check(capsys, "--json")
    assert code == 2
    assert not err
    wrong, odd = json.loads(out)
    assert wrong == {
        "file": "pipeline.yaml", "option": None, "line": 9, "column": 11, "end_column": 22, "severity": "error",
        "message": "there is no stage 'prepare-dta' (did you mean 'prepare-data'?)",
        "fix": "there are: build-onnx, infer, merge, prepare-data, train-lora, train-qlora",
    }  # fmt: skip
    assert (odd["severity"], odd["line"], odd["column"], odd["end_column"]) == ("warning", 2, 10, 15)
    (folder / "pipeline.yaml").write_text(GOOD)
    code, out, _ = check(capsys, "--json", "--set", "stages.data.params.max_length=1")
    told = next(row for row in json.loads(out) if row["file"] is None)
    assert (told["option"], told["line"], told["column"]) == ("--set stages.data.params.max_length", None, 31)


def test_a_file_that_is_not_there_is_told_to_editors_too(capsys):
    code, out, _ = check(capsys, "--json", "pipelne.yaml")
    assert code == 2
    assert json.loads(out)[0]["message"] == "there is no such pipeline file (did you mean 'pipeline.yaml'?)"


def test_secrets_that_are_there_are_fine(folder, capsys, monkeypatch):
    far = GOOD.replace("store: store", "store: s3://models/tones") + "    target: far\n"
    (folder / "pipeline.yaml").write_text(far)
    assert check(capsys)[0] == 2
    monkeypatch.setenv("HUB_TOKEN", "hf_secretsecret")
    code, out, err = check(capsys)
    assert (code, "nothing is wrong" in out) == (0, True), err
    assert "secretsecret" not in out + err


def test_docker_by_name_needs_an_engine_and_the_file_of_a_secret(folder, capsys):
    (folder / "pipeline.yaml").write_text(GOOD + "    target: box\n")
    code, _, err = check(capsys)
    assert code == 2
    assert "pipeline.yaml:6:51: target box: " in err
    assert "the file of the secret KEY cannot be read" in err
    assert "pipeline.yaml:12:13: no Docker engine answers" in err
    (folder / "key.txt").write_text("x")
    assert "secret KEY" not in check(capsys)[2]


def test_an_artifact_is_looked_at_without_reading_it(folder, capsys):
    from microstages.artifact import Draft

    with Draft(str(folder / "made"), "adapter") as draft:
        (draft.path / "x").write_text("12345")
        draft.commit({})
    (folder / "pipeline.yaml").write_text("stages: {a: {uses: merge, inputs: {base_model: model, adapter: made}}}\n")
    assert check(capsys)[0] == 0
    (folder / "made/x").write_text("1234")
    assert "made/x: this file of the artifact has 4 bytes, not 5" in check(capsys)[2]
    (folder / "made/x").unlink()
    assert "made/x: this file of the artifact is missing" in check(capsys)[2]


def test_what_is_wrong_with_every_variant_is_told_once(folder, capsys):
    text = "stages:\n  a:\n    uses: merge\n    inputs: {base_model: model}\n    matrix: {dtype: [bf16, fp16]}\n"
    (folder / "pipeline.yaml").write_text(text)
    code, _, err = check(capsys)
    assert code == 2
    assert err.count("needs the input 'adapter'") == 1
    assert "stage a needs" in err


# --- the line and the caret

LINES = [
    ("uses: mrge", 3, 7, 4, "    3 | uses: mrge\n      |       ^^^^"),
    ("a: b", 1, 99, 1, "    1 | a: b\n      |     ^"),
    ("\tx: 1", 2, 2, 1, "    2 |  x: 1\n      |  ^"),
    ("name: 東京x", 1, 9, 1, "    1 | name: 東京x\n      |           ^"),
    ("name: a\x07b", 1, 8, 1, "    1 | name: a?b\n      |        ^"),
    ("é: e\u0301x", 1, 6, 1, "    1 | é: e\u0301x\n      |     ^"),
    ("x=1", 0, 3, 1, "      | x=1\n      |   ^"),
]


@pytest.mark.parametrize(("text", "line", "column", "width", "shown"), LINES)
def test_a_caret_stands_under_the_place(text, line, column, width, shown):
    assert excerpt(text, line, column, width) == shown


def test_a_long_line_is_cut_around_the_place():
    top, caret = excerpt("x" * 500 + "HERE" + "y" * 500, 7, 501, 4).split("\n")
    assert len(top) < 130
    assert top[caret.index("^") : caret.rindex("^") + 1] == "HERE"
    assert top.startswith("    7 | …") and top.endswith("…")


SECRETS = [
    "store: abfs://c/x?sv=1&sig=VERYSECRET&x=1",
    "store: https://me:VERYSECRET@host/x",
    "environment: {HF_TOKEN: VERYSECRET}",
    "  AZURE_STORAGE_KEY: 'VERYSECRET'",
    "x: DefaultEndpoints=1;AccountKey=VERYSECRET;",
    "password: VERYSECRET",
    "environment: {my_token: VERYSECRET12345}",
    "data: hf_VERYSECRETVERYSECRET",
]


@pytest.mark.parametrize("text", SECRETS)
def test_what_looks_secret_is_covered_and_columns_stay(text):
    assert "VERYSECRET" not in covered(text)
    assert len(covered(text)) == len(text)


PLAIN = [
    "end_token: <|end|>",
    "params: {max_new_tokens: 1024}",
    "secrets: [HF_TOKEN]",
    "pull_secrets: [registry]",
]


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_not_secret_is_shown(text):
    assert covered(text) == text


@pytest.mark.parametrize(
    ("name", "rows", "params", "told", "column"),
    [
        ("rows.jsonl", '{"a": "x", "b": "y"}\n', 'template: "{a} {bb}"', "'bb' (did you mean 'b'?)", 29),
        ("rows.csv", '"No; 1";team\n1;x\n', 'template: "{No; 1} {taem}"', "'taem' (did you mean 'team'?)", 33),
        (
            "rows.tsv",
            "text\tteam\na\tb\n",
            "prompt_field: txt, completion_field: team",
            "'txt' (did you mean 'text'?)",
            28,
        ),
        ("rows.json", '[{"a": "x"}, {"b": "y"}]', "columns: [a, b, c]", "'c'", 30),
        ("rows.jsonl.gz", '{"a": "x", "b": "y"}\n', 'template: "{a} {b}", where: [bad=1]', "'bad'", 43),
    ],
)
def test_a_field_that_the_data_does_not_have_is_told_at_its_place(folder, capsys, name, rows, params, told, column):
    data = gzip.compress(rows.encode()) if name.endswith(".gz") else rows.encode()
    (folder / name).write_bytes(data)
    text = GOOD.replace("rows.jsonl", name).replace('template: "{a} {b}"', params)
    (folder / "pipeline.yaml").write_text(text)
    code, out, _ = check(capsys, "--json")
    assert code == 2
    (row,) = (r for r in json.loads(out) if r["severity"] == "error")
    assert row["message"] == f"{name} has no field {told}"
    assert (row["line"], row["column"]) == (11, column)


def test_a_field_is_told_where_a_reference_takes_it_from(folder, capsys):
    text = GOOD.replace("{spare: 1}", '{form: "{a} {c}"}').replace('"{a} {b}"', '"${{ params.form }}"')
    (folder / "pipeline.yaml").write_text(text)
    code, _, err = check(capsys)
    assert code == 2
    assert "pipeline.yaml:2:21: rows.jsonl has no field 'c'" in err


@pytest.mark.parametrize(
    ("rows", "params"),
    [
        ('{"data": [{"zz": 1}]}', 'template: "{zz}"'),  # one document: its rows lie within
        ('{"a": "x"}\n{"b": "y"}\n', 'template: "{a}", bad_rows: skip'),
        ('{"a": "x"}\n{"b": "y"}\n', 'template: "{a}", where: [a=x]'),  # the other row is not chosen
        ('{"a": "x"}\n{"b": "y"}\n', 'template: "{a}", split: "train[:1]"'),
        ('{"a": "x"}\n{"a": "y"}\n{', 'template: "{a}", max_rows: 2'),
        ('{"a": "x"}\n', 'template: "{{zz}} {a}"'),
        ('{"a": {"b": "x"}}\n', 'template: "{a[b]:>8}", values: python'),
        ('{"messages": [{"role": "user", "content": "x"}]}\n', "seed: 1"),
    ],
)
def test_what_is_fine_or_cannot_be_told_of_rows_is_left_to_the_stage(folder, capsys, rows, params):
    (folder / "rows.jsonl").write_text(rows)
    (folder / "pipeline.yaml").write_text(GOOD.replace('template: "{a} {b}"', params))
    code, _, err = check(capsys)
    assert code == 0, err


@pytest.mark.parametrize(
    ("rows", "params", "where", "what"),
    [
        (b"\x00\x01\x02", "", "10:22", "rows.jsonl: this is binary, and not Parquet or gzip"),
        (b"", "", "10:22", "rows.jsonl: the file is empty"),
        (b'[{"a": "x", "b": "y"}, {"a": ', "", "10:22", "rows.jsonl:1: this is not JSON: the file ends too early"),
        ("a,b\nGrün,x\n".encode("cp1252"), "", "10:22", "rows.jsonl:2: no row can be read; the first: this is not UTF"),
        (b"a,b\n", "", "10:22", "rows.jsonl: there are no rows in it"),
        (b"PAR1\0\0", "", "10:22", "rows.jsonl: this Parquet file cannot be read"),
        (b"a,b\n" + b"x,y\n" * 120 + b"x,\n", ", completion: b", "10:22",
         "rows.jsonl:122: the field 'b', the answer, is empty"),
        (b"a,b\nx,y\n", ", completion: a", "11:47", "the template begins with {a}, so there is no prompt"),
        (b"a,b\nx,y\n", ", columns: [a]", "11:24", "template and columns exclude each other"),
    ],
)  # fmt: skip
def test_what_prepare_data_would_refuse_is_told_in_its_words(folder, capsys, rows, params, where, what):
    (folder / "rows.jsonl").write_bytes(rows)
    (folder / "pipeline.yaml").write_text(GOOD.replace('"{a} {b}"', '"{a} {b}"' + params))
    code, _, err = check(capsys)
    assert code == 2
    assert err.startswith(f"pipeline.yaml:{where}: "), err
    assert what in err.partition("\n")[0]


def test_it_says_of_rows_what_the_stage_itself_says(folder, capsys):
    """A file for each sentence that is written down twice."""
    files = {
        "empty": b"", "no-rows": b"a,b\n", "no-objects": b"[1, 2]",
        "binary": b"\0\1", "latin": "a,b\nx,y\nGr\u00f6n,x\n".encode("cp1252"),
        "cells": b"a,b\nx,y\nx\n", "quotes": b'{"a": "x", "b": "y"}\n{\'a\': 1}\n', "none": b'{"a": "x", "b": null}\n',
        "cut": b'[{"a": "x", "b": "y"}, {"a": ',
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
        flags = [f"--source={name}", "--model=model", "--output=out", "--template={a} {b}"]
        done = subprocess.run(
            [Path(sys.executable).parent / "prepare-data", *flags], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, name
        what, fix = done.stderr.partition(f"{name}")[2].strip().split("\n")[:2]
        (folder / "pipeline.yaml").write_text(GOOD.replace("rows.jsonl", name))
        code, _, err = check(capsys)
        assert code == 2
        assert what in err, name
        fix = fix.strip().replace("--input-format", "input_format").replace("--bad-rows skip", "bad_rows: skip")
        assert fix in err, name


def test_what_follows_from_a_slip_is_not_told(folder, capsys):
    (folder / "pipeline.yaml").write_text(GOOD.replace("{template:", "{tmeplate:"))
    code, _, err = check(capsys)
    assert (code, err.count("pipeline.yaml:")) == (2, 1)
    assert "(did you mean 'template'?)" in err


def test_a_plan_and_a_run_tell_a_column_that_is_not_there_before_anything_begins(folder, capsys):
    (folder / "pipeline.yaml").write_text(GOOD.replace("{b}", "{bb}"))
    for words in (("plan",), ("up",), ("run", "data")):
        capsys.readouterr()
        assert cli.call(list(words)) == 2
        assert "pipeline.yaml:11:29: rows.jsonl has no field 'bb' (did you mean 'b'?)" in capsys.readouterr().err
    assert not (folder / "store").exists() and not (folder / ".runner").exists()


def test_a_plan_looks_only_at_what_would_run(folder, capsys):
    (folder / "rows.jsonl").write_text("")
    more = "  there: {uses: merge, inputs: {base_model: model, adapter: model}}\n"
    (folder / "pipeline.yaml").write_text(GOOD + more.replace("adapter: model", "adapter: a"))
    from microstages.artifact import Draft

    with Draft(str(folder / "a"), "adapter") as draft:
        (draft.path / "x").write_text("x")
        draft.commit({})
    assert cli.call(["plan", "--only", "there"]) == 0, capsys.readouterr().err
    assert cli.call(["plan"]) == 2


def test_one_wrong_value_that_many_inputs_take_is_told_once(folder, capsys):
    text = GOOD.replace("{spare: 1}", "{base: modl}").replace("model: model", 'model: "${{ params.base }}"')
    more = '  there:\n    uses: merge\n    inputs: {base_model: "${{ params.base }}", adapter: "abfs://c/a"}\n'
    (folder / "pipeline.yaml").write_text(text + more)
    for code, err in ((check(capsys)[::2]), (cli.call(["plan"]), capsys.readouterr().err)):
        assert code == 2
        assert err.count("pipeline.yaml:2:16: ") == 1
        assert "params.base is used at pipeline.yaml:10:41 and 14:26" in err
        assert "of stage" not in err.partition("\n")[0]


def test_without_a_pipeline_it_says_where_one_is_or_how_one_is_made(folder, capsys, monkeypatch, tmp_path_factory):
    (folder / "below/it").mkdir(parents=True)
    monkeypatch.chdir(folder / "below/it")
    assert cli.call(["up"]) == 2
    assert f"there is one in {folder}: cd ../.., or give -p ../.." in capsys.readouterr().err
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    assert cli.call(["up"]) == 2
    assert "or make a project: runner init FOLDER" in capsys.readouterr().err


def test_a_setting_of_a_stage_says_where_it_belongs(capsys):
    code, _, err = check(capsys, "--set", "params.max_length=9")
    assert code == 2
    assert "--set stages.data.params.max_length=9; of the pipeline: spare" in err


@pytest.mark.parametrize(("param", "what"), [("serve: true", "serve leaves no result"), ("port: 9", "port goes with")])
def test_a_stage_that_only_talks_has_no_place_in_a_pipeline(folder, capsys, param, what):
    more = f"  talk:\n    uses: infer\n    inputs: {{model: model}}\n    params: {{{param}}}\n"
    (folder / "pipeline.yaml").write_text(GOOD + more)
    code, _, err = check(capsys)
    assert code == 2
    assert what in err and "so a stage of a pipeline cannot have it" in err
    (folder / "pipeline.yaml").write_text(GOOD + more.replace("true", "false").replace("9", "8080"))
    assert check(capsys)[0] == 0


def test_the_pipeline_is_given_as_a_word_an_option_or_a_folder(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    file = f"{folder.name}/pipeline.yaml"
    for words in ((file,), ("-p", file), ("--pipeline", folder.name), (folder.name,), (file, "-p", file)):
        code, out, err = check(capsys, *words)
        assert (code, out) == (0, f"{file}: 1 stage on auto, 2 inputs there: nothing is wrong\n"), err
    assert check(capsys, file, "-p", "other.yaml")[0] == 2
    assert cli.call(["ps", "-p", folder.name]) == 0
    assert cli.call(["graph", "-p", folder.name]) == 0
    assert cli.call(["run", "dta", "-p", file]) == 2
    assert "did you mean 'data'?" in capsys.readouterr().err
