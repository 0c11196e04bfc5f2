"""`runner explain` knows every stage, parameter and key, and names the nearest of what it does not know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import runner
from runner import cli
from runner.document import Problems, parse
from runner.keys import KEYS
from runner.matrix import expand
from runner.parameters import example
from runner.schema import built_in
from runner.spec import parse_spec
from runner.targets import options, read_options

STAGES = sorted((Path(runner.__file__).parent.parent / "stages").glob("*/interface.json"))
INTERFACES = {f.parent.name: json.loads(f.read_text()) for f in STAGES}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def explain(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.call(["explain", *words]) == 0
    return capsys.readouterr().out


def flat(text: str) -> str:
    return " ".join(text.split()).lower()


@pytest.mark.parametrize("name", INTERFACES)
def test_a_stage_is_told_whole_with_an_example_that_can_be_read(name, capsys):
    said, about = explain(capsys, name), INTERFACES[name]
    assert about["summary"] in said
    for group in ("inputs", "outputs", "params"):
        for word, one in about[group].items():
            assert f"\n  {word} " in said
            assert flat(one.get("help", "")) in flat(said)
    example = said[said.index("example\n") + len("example\n") :]
    problems = Problems()
    spec = parse_spec(parse(example, "example"), Path("example"), problems)
    stage = next(iter(spec.stages.values()))
    assert stage.uses.value == name
    assert {k for k, i in about["inputs"].items() if i["required"]} <= set(stage.inputs)
    assert not problems.found


def test_a_parameter_has_type_default_unit_and_limits(capsys):
    said = explain(capsys, "prepare-data.max_length")
    assert "takes    a whole number at least 2" in said
    assert "unit     tokens" in said
    assert "default  none" in said
    assert "prepare-data --max-length" in said
    assert "one of base, bf16, fp16, fp32" in explain(capsys, "merge.dtype")
    assert "changes no result" in explain(capsys, "merge.threads")


def test_a_parameter_without_its_stage_is_told_of_all_that_have_it(capsys):
    said = explain(capsys, "learning_rate")
    assert said.startswith("train-lora, train-qlora: the parameter learning_rate\n"), "what is equal is told once"
    for stage in (s for s, i in INTERFACES.items() if "precision" in i["params"]):
        assert stage in explain(capsys, "precision")


@pytest.mark.parametrize("path", KEYS)
def test_every_key_is_told_with_an_example_that_the_parser_takes(path, capsys):
    said = explain(capsys, path)
    key = KEYS[path]
    assert flat(key.help) in flat(said) and key.values.split(",")[0] in said
    words, example = path.split("."), parse(key.example, "example")
    problems = Problems()
    if words[0] == "targets" and len(words) == 3:
        read_options(words[1], "x", example.value, problems)
        assert set(example.value) == {words[2]}
    elif path == "targets.type":
        assert set(next(iter(example.value.values())).value) == {"type"}
    elif len(words) == 1:
        text = key.example if path == "stages" else f"{key.example}\nstages: {{a: {{uses: merge}}}}\n"
        parse_spec(parse(text, "x"), Path("x"), problems)
    else:
        value = f"{{{key.example}}}"
        for word in reversed(words[1:-1]):
            value = f"{{{word}: {value}}}"
        uses = "" if words[1] in ("select", "uses") else "uses: x, "
        root = parse(f"params: {{rank: 8}}\nstages: {{q: {{uses: y}}, a: {{{uses}{value[1:]}}}", "x")
        parse_spec(expand(root, Problems())[0], Path("x"), problems)
    assert not problems.found, problems.found


def test_the_keys_are_those_of_targets():
    for kind in ("docker", "kubernetes", "azureml"):
        named = {k.name for k in KEYS.values() if k.path.startswith(f"targets.{kind}.")}
        assert named == set(options(kind)), kind


def test_names_of_a_pipeline_may_stand_in_a_path(folder, capsys):
    assert explain(capsys, "stages.adapter.retry") == explain(capsys, "stages.retry")
    assert explain(capsys, "stages.adapter.params.rank") == explain(capsys, "rank")
    (folder / "pipeline.yaml").write_text("targets: {cluster: {type: kubernetes}}\n")
    assert explain(capsys, "targets.cluster.queue") == explain(capsys, "targets.kubernetes.queue")


def test_a_word_that_means_several_things_is_told_as_all_of_them(capsys):
    said = explain(capsys, "gpus")
    assert said.startswith("stages.resources.gpus\n")
    assert "train-lora, train-qlora: the parameter gpus\n" in said


def test_without_a_word_all_are_listed(capsys):
    said = explain(capsys)
    for word in (*INTERFACES, *(k for k in KEYS if k.count(".") == 0), "stages.retry", "targets.azureml"):
        assert f"  {word} " in said


def test_a_folder_with_an_interface_is_a_stage_too(folder, capsys):
    (folder / "own").mkdir()
    value = {**INTERFACES["merge"], "name": "own", "summary": "Mine.", "code": ["."]}
    (folder / "own/interface.json").write_text(json.dumps(value))
    assert explain(capsys, "./own").startswith("./own: Mine.")


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("merg", "merge"),
        ("learning_rat", "learning_rate"),
        ("merge.dtyp", "merge.dtype"),
        ("stages.timeot", "stages.timeout"),
    ],
)
def test_what_is_not_known_names_the_nearest(word, near, capsys):
    assert cli.call(["explain", word]) == 2
    assert f"nothing here is called {word!r} (did you mean {near!r}?)" in capsys.readouterr().err


def test_a_stage_of_the_pipeline_here_is_told_even_where_the_file_has_mistakes(capsys, folder):
    (folder / "pipeline.yaml").write_text(
        "name: p\nparams: {method: train-lora}\nstages:\n  mine: {uses: prepare-data}\n"
        '  adapter: {uses: "${{ params.method }}"}\n'
    )
    said = explain(capsys, "mine")
    assert said.startswith("mine: a stage of pipeline.yaml, which uses prepare-data\n\nprepare-data: ")
    assert said.count("\nprepare-data: ") == 1
    assert "adapter: a stage of pipeline.yaml, which uses train-lora" in explain(capsys, "adapter")


def test_a_stage_of_the_pipeline_is_told_as_what_it_uses(folder, capsys):
    (folder / "pipeline.yaml").write_text("stages:\n  mine: {uses: merge, inputs: {base_model: a, adapter: b}}\n")
    said = explain(capsys, "mine")
    assert said.startswith("mine: a stage of pipeline.yaml, which uses merge\n\nmerge: ")
    assert explain(capsys, "merge") in said


@pytest.mark.parametrize("name", INTERFACES)
def test_an_example_of_a_parameter_is_a_good_value_and_seldom_the_default(name):
    interface = built_in()[name]
    same = []
    for param, wanted in interface.params.items():
        text = example(param, wanted)
        node = parse(f"{{x: {text}}}", "example").value["x"]
        value = wanted.check(node.plain())
        same += [param] if value == wanted.default or text == "some text" else []
    assert not same
