"""Every mistake in a pipeline is told before anything runs: where it is, what is wrong, what to do."""

import json
from pathlib import Path

import pytest

from runner.document import PipelineError
from runner.facts import outside_digests
from runner.pipeline import read

INTERFACES = {
    "prepare-data": {
        "inputs": {"source": ["files"], "model": ["model"]},
        "outputs": {"dataset": "dataset"},
        "params": {
            "template": {"type": "string", "default": None, "nullable": True},
            "strategy": {"type": "string", "default": "pack", "choices": ["pack", "join", "line"]},
            "test_fraction": {"type": "number", "default": 0.1, "min": 0, "max": 1, "exclusive_max": True},
        },
    },
    "train-lora": {
        "inputs": {"dataset": ["dataset"], "base_model": ["model"]},
        "outputs": {"adapter": "adapter"},
        "params": {
            "rank": {"type": "integer", "default": 16, "min": 1},
            "dora": {"type": "boolean", "default": False},
            "target_modules": {"type": "list", "default": ["all"]},
        },
    },
    "merge": {
        "inputs": {"base_model": ["model"], "adapter": ["adapter"]},
        "outputs": {"model": "model"},
        "params": {"dtype": {"type": "string", "required": True, "choices": ["base", "fp32"]}},
    },
}

GOOD = """\
name: demo
params:
  data: data.txt
  rank: 8
store: store
target: auto
targets:
  here: {type: process}
  far: {type: kubernetes, namespace: ml}
stages:
  data:
    uses: prepare-data
    inputs: {source: "${{ params.data }}", model: model}
  adapter:
    uses: train-lora
    inputs: {dataset: "${{ stages.data.dataset }}", base_model: model}
    params: {rank: "${{ params.rank }}"}
    resources: {gpus: 1, memory: 48GiB, cpus: 2}
  merged:
    uses: merge
    inputs: {base_model: model, adapter: "${{ stages.adapter.adapter }}"}
    params: {dtype: base}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stages of INTERFACES, a data file and a model, where relative paths start."""
    for name, value in INTERFACES.items():
        stage = tmp_path / "stages" / name
        stage.mkdir(parents=True)
        interface = {
            "schema": 1, "name": name, "version": "1", "summary": "", "command": ["sh"], "code": ["."],
            "manifest": "stage",
            "inputs": {k: {"flag": f"--{k}", "kinds": v} for k, v in value["inputs"].items()},
            "outputs": {k: {"flag": f"--{k}", "kind": v} for k, v in value["outputs"].items()},
            "params": {k: {"flag": f"--{k}", **v} for k, v in value["params"].items()},
        }  # fmt: skip
        (stage / "interface.json").write_text(json.dumps(interface))
    monkeypatch.setenv("MICROSTAGES_STAGES", str(tmp_path / "stages"))
    (tmp_path / "data.txt").write_text("x\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(text: str, *settings: str, target: str | None = None) -> PipelineError:
    """The mistakes in a pipeline; there must be some."""
    Path("pipeline.yaml").write_text(text)
    with pytest.raises(PipelineError) as caught:
        outside_digests(read(Path("pipeline.yaml"), settings, target))
    return caught.value


def test_the_good_pipeline_is_good():
    Path("pipeline.yaml").write_text(GOOD)
    pipeline = read(Path("pipeline.yaml"))
    assert list(pipeline.stages) == ["data", "adapter", "merged"]
    assert pipeline.stages["adapter"].params == {"rank": 8, "dora": False, "target_modules": ["all"]}
    assert pipeline.stages["adapter"].resources.memory == 48 * 2**30
    assert set(outside_digests(pipeline)) == {
        ("data", "source"), ("data", "model"), ("adapter", "base_model"), ("merged", "base_model")
    }  # fmt: skip


def place(line: str, text: str) -> str:
    """`line:column` of some text in a line of GOOD."""
    rows = GOOD.split("\n")
    row = next(i for i, r in enumerate(rows) if line in r)
    return f"{row + 1}:{rows[row].index(text) + 1}"


# What is replaced in GOOD, by what, where that is told (line and column), what is told.
CASES = [
    # keys
    ("name: demo", "nme: demo", "1:1", "unknown key 'nme' in the pipeline (did you mean 'name'?)"),
    ("store: store", "stores: store", "5:1", "unknown key 'stores' in the pipeline (did you mean 'store'?)"),
    ("    uses: merge", "    use: merge", "20:5", "unknown key 'use' in stage merged (did you mean 'uses'?)"),
    ("    uses: merge\n", "", "19:3", "stage merged does not say what it uses"),
    ("    params: {dtype: base}", "    param: {dtype: base}", "22:5", "unknown key 'param' in stage merged"),
    ("gpus: 1", "gpu: 1", "18:17", "unknown key 'gpu' in resources of stage adapter (did you mean 'gpus'?)"),
    ("store: store", "store: a\nstore: b", "6:1", "'store' is given twice, first at line 5"),
    ("  merged:", "  adapter:", "19:3", "'adapter' is given twice, first at line 14"),
    ("  merged:", "  Merged:", "19:3", "'Merged' cannot be a stage's name"),
    ("  merged:", "  a.b:", "19:3", "'a.b' cannot be a stage's name"),
    ("name: demo", "<<: {a: b}", "1:1", "merge keys (<<) are not read"),
    ("name: demo", "[a]: demo", "1:1", "a key must be a word"),
    # types
    ("name: demo", "name: 3", "1:7", "name must be text, not a number"),
    ("name: demo", "name: {a: b}", "1:7", "name must be text, not a mapping"),
    ("store: store", "store:", "5:7", "store must be text, not empty"),
    ("  rank: 8", "  rank: {a: 8}", "4:9", "the parameter 'rank' is a mapping"),
    ("  rank: 8", "  rank: [[8]]", "4:9", "the parameter 'rank' is not a flat list"),
    ("  rank: 8", "  rank: '${{ params.data }}'", "4:9", "the parameter 'rank' holds a reference"),
    ("resources: {gpus: 1, memory: 48GiB, cpus: 2}", "resources: 3", "18:16",
     "resources of stage adapter must be a mapping"),
    ("gpus: 1", "gpus: some", "18:23", "gpus must be a whole number, 0 or more, not 'some'"),
    ("gpus: 1", "gpus: -1", "18:23", "gpus must be a whole number, 0 or more, not -1"),
    ("gpus: 1", "gpus: 1.5", "18:23", "gpus must be a whole number, 0 or more, not 1.5"),
    ("memory: 48GiB", "memory: 48 GiX", "18:34", "memory must be above 0, such as 48GiB, not '48 GiX'"),
    ("cpus: 2", "cpus: 0", "18:47", "cpus must be above 0"),
    ("    uses: merge", "    uses: merge\n    timeout: soon", "21:14",
     "timeout must be above 0, such as 30min, not 'soon'"),
    ("    uses: merge", "    uses: merge\n    retries: yes", "21:14",
     "retries must be a whole number, 0 or more, not 'yes'"),
    ("    uses: merge", "    uses: [merge]", "20:11", "uses of stage merged must be text, not a list"),
    ("    inputs: {base_model: model, adapter: \"${{ stages.adapter.adapter }}\"}", "    inputs: [a]", "21:13",
     "inputs of stage merged must be a mapping, not a list"),
    ("target: auto\n", "target: auto\n- x\n", "7:1", "this is not YAML"),
    ("name: demo", "name: 'demo", "1:7", "this is not YAML"),
    ("name: demo", "name: !secret demo", "1:7", "the tag !secret has no meaning here"),
    ("name: demo", "\tname: demo", "1:1", "this is not YAML"),
    # stages and targets
    ("uses: merge", "uses: mrge", "20:11", "there is no stage 'mrge' (did you mean 'merge'?)"),
    ("uses: merge", "uses: ./mine", "20:11", "there is no folder"),
    ("uses: merge", "uses: ./model", "20:11", "there is no interface.json in"),
    ("uses: merge", "uses: ghcr.io/me/merge:1", "20:11", "no Docker engine answers"),
    ("uses: merge", "uses: \"${{ params.methd }}\"", "20:11", "there is no parameter 'methd'"),
    ("target: auto", "target: hear", "6:9", "there is no target 'hear' (did you mean 'here'?)"),
    ("target: auto", "target: far", "5:8",
     "stage data runs on far, and the store 'store' is a folder of this machine"),
    ("target: auto", "target: {type: kubernetes}", "6:9", "target must be text"),
    ("namespace: ml", "namespce: ml", "9:27", "unknown key 'namespce' in target far (did you mean 'namespace'?)"),
    ("namespace: ml", "user: 0", "9:33", "user of target far must be a whole number, 1 or more"),
    ("namespace: ml", "secrets: [{name: a}]", "9:36", "holds what is not `{name: …, secret: …, key: …}`"),
    ("type: kubernetes, namespace", "type: azureml, tier", "9:30", "tier of target far must be standard or spot"),
    ("{type: process}", "{type: proces}", "8:16",
     "target here has the unknown type 'proces' (did you mean 'process'?)"),
    ("{type: process}", "{}", "8:9", "target here has no type"),
    # references
    ("${{ params.data }}", "${{ params.dta }}", place("inputs: {source", '"${{ p'),
     "there is no parameter 'dta' (did you mean 'data'?)"),
    ("${{ params.rank }}", "${{ param.rank }}", place("params: {rank", '"${{'),
     "is not a reference (did you mean 'params'?)"),
    ("${{ params.rank }}", "${{ stages.data.dataset }}", place("params: {rank", '"${{'), "cannot stand here"),
    ("${{ params.rank }}", "${{ params.rank", place("params: {rank", '"${{'), "a reference is not closed"),
    ("${{ stages.data.dataset }}", "${{ stages.dta.dataset }}", place("inputs: {dataset", '"${{'),
     "there is no stage 'dta' (did you mean 'data'?)"),
    ("${{ stages.data.dataset }}", "${{ stages.data.datast }}", place("inputs: {dataset", '"${{'),
     "stage data (prepare-data) has no output 'datast' (did you mean 'dataset'?)"),
    ("${{ stages.data.dataset }}", "${{ stages.data }}", place("inputs: {dataset", '"${{'),
     "is not the output of a stage"),
    ("${{ stages.data.dataset }}", "x/${{ stages.data.dataset }}", place("inputs: {dataset", '"${{'),
     "is not the output of a stage"),
    ("source: \"${{ params.data }}\"", "source: \"${{ stages.merged.model }}\"", "11:3",
     "these stages wait for each other: data → adapter → merged → data"),
    # inputs
    ("${{ stages.adapter.adapter }}", "${{ stages.data.dataset }}", place("inputs: {base_model: model, ad", '"${{'),
     "'adapter' of merge takes adapter, not dataset"),
    ("base_model: model, adapter", "base_modl: model, adapter", "21:14",
     "merge has no input 'base_modl' (did you mean 'base_model'?)"),
    ("base_model: model, adapter", "base: model, adapter", "19:3", "stage merged needs the input 'base_model' (model)"),
    ("base_model: model, adapter", "base_model: 3, adapter", "21:26", "input base_model of stage merged is a number"),
    ("base_model: model, adapter", "base_model: '', adapter", "21:26",
     "input base_model of stage merged is empty text"),
    ("base_model: model, adapter", "base_model: , adapter", "21:26", "the input 'base_model' of stage merged is empty"),
    ("base_model: model, adapter", "base_model: modle, adapter", "21:26",
     "no such file or folder (did you mean 'model'?)"),
    ("base_model: model, adapter", "base_model: data.txt, adapter", "21:26",
     "it is a file; a folder of kind model is wanted"),
    ("base_model: model, adapter", "base_model: stages, adapter", "21:26", "there is no config.json (model) in it"),
    ("data: data.txt", "data: none/*.json", place("data: data.txt", "data.txt"), "no file matches this pattern"),
    # parameters
    ("{dtype: base}", "{dtyp: base}", "22:14", "merge has no parameter 'dtyp' (did you mean 'dtype'?)"),
    ("{dtype: base}", "{}", "19:3", "stage merged needs the parameter 'dtype'"),
    ("{dtype: base}", "{dtype: bse}", "22:21", "dtype must be one of base, fp32, not 'bse' (did you mean 'base'?)"),
    ("{dtype: base}", "{dtype: base, adapter: x}", "22:27", "'adapter' is an input of merge, not a parameter"),
    ("  rank: 8", "  rank: 0", place("  rank: 8", "8"),
     "rank of stage adapter must be a whole number at least 1, not 0"),
    ("  rank: 8", "  rank: eight", place("  rank: 8", "8"),
     "rank of stage adapter must be a whole number at least 1, not 'eight'"),
    ("rank: \"${{ params.rank }}\"", "rank: 8, dora: maybe", "17:29", "dora must be true or false, not 'maybe'"),
    ("rank: \"${{ params.rank }}\"", "rank: 8, target_modules: q", "17:39", "target_modules must be a list, not 'q'"),
    ("rank: \"${{ params.rank }}\"", "rank: 8, target_modules: []", "17:39",
     "target_modules must be a list, not empty"),
    ("model: model}", "model: model}\n    params: {test_fraction: 1.5}", "14:29",
     "test_fraction must be a number at least 0"),
    ("model: model}", "model: model}\n    params: {strategy: pakc}", "14:24", "(did you mean 'pack'?)"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "where", "what"), CASES, ids=[c[3][:60] for c in CASES])
def test_a_mistake_is_told_with_its_place(folder, old, new, where, what):
    assert old in GOOD
    error = problems(GOOD.replace(old, new, 1))
    found = [p for p in error.problems if str(p.place) == f"pipeline.yaml:{where}" and what in p.what]
    assert found, str(error)
    assert found[0].fix, "there is no remedy"
    assert str(found[0]).count("\n") == 3, "what; the line and a caret; what to do"
    assert not (folder / "store").exists()


# Files that are no pipeline at all.
FILES = [
    (b"", "pipeline.yaml:1:1", "the file is empty"),
    (b"# nothing\n", "pipeline.yaml:1:1", "the file is empty"),
    (b"- a\n- b\n", "pipeline.yaml:1:1", "a pipeline is a mapping, not a list"),
    (b"name: x\n", "pipeline.yaml:1:1", "there are no stages"),
    (b"stages: {}\n", "pipeline.yaml:1:1", "there are no stages"),
    (b"stages: [a]\n", "pipeline.yaml:1:9", "stages must be a mapping, not a list"),
    (b"stages:\n  a: merge\n", "pipeline.yaml:2:6", "stage a must be a mapping, not text"),
    (b"name: \xff\xfe\n", "pipeline.yaml:1:7", "this is not UTF-8 text"),
    (b"a: 1\n---\nb: 2\n", "pipeline.yaml:2:1", "this is not YAML"),
    (b"a: *b\n", "pipeline.yaml:1:4", "this is not YAML"),
    (b"a: &a [*a]\n", "pipeline.yaml:1:4", "this alias contains itself"),
    (b"a: \x00\n", "pipeline.yaml:1:4", "this is not YAML: the character U+0000"),
    (b"a: " + b"[" * 5000 + b"]" * 5000, "pipeline.yaml:1:", "this is nested too deeply"),
    (
        b"a: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
            b"%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n" % (n + 1, n + 1, *[n] * 10)
            for n in range(97, 105)
        ),
        "pipeline.yaml:1:", "there are more than 100000 values",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("data", "where", "what"), FILES, ids=[f[2] + str(i) for i, f in enumerate(FILES)])
def test_a_file_that_is_no_pipeline_is_told(data, where, what):
    Path("pipeline.yaml").write_bytes(data)
    with pytest.raises(PipelineError) as caught:
        read(Path("pipeline.yaml"))
    assert any(str(p.place).startswith(where) and what in p.what and p.fix for p in caught.value.problems), caught.value


def test_a_file_that_is_not_there_names_the_nearest():
    Path("pipeline.yaml").write_text(GOOD)
    with pytest.raises(PipelineError, match=r"no such pipeline file \(did you mean 'pipeline.yaml'\?\)"):
        read(Path("pipelne.yaml"))
    with pytest.raises(PipelineError, match="this is a folder"):
        read(Path("model"))


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file():
    text = (
        GOOD.replace("store: store", "stor: x")
        .replace("uses: merge", "uses: mrge")
        .replace("params.data", "params.dat")
    )
    error = problems(text)
    assert [p.place.line for p in error.problems] == [5, 13, 20]


SETTINGS = [
    ("params.dta=x", "there is no parameter 'dta' (did you mean 'data'?)"),
    ("stages.mrged.params.dtype=x", "there is no stage 'mrged' (did you mean 'merged'?)"),
    ("stages.merged.parms.dtype=x", "unknown key 'parms' in stage merged (did you mean 'params'?)"),
    ("stages.merged.params.dtype=x", "dtype must be one of base, fp32, not 'x'"),
    ("stor=x", "unknown key 'stor' in the pipeline (did you mean 'store'?)"),
    ("params.rank", "this is not KEY=VALUE"),
    ("params..rank=1", "this is not KEY=VALUE"),
    ("=1", "this is not KEY=VALUE"),
    ("params.rank=[1", "this is not YAML"),
    ("name.first=x", "'first' cannot be set in text"),
    ("stages.adapter.params.rank=0", "rank must be a whole number at least 1, not 0"),
    ("stages.merged.inputs.adapter=nowhere", "no such file or folder"),
]


@pytest.mark.parametrize(("setting", "what"), SETTINGS, ids=[s[0] for s in SETTINGS])
def test_a_wrong_setting_is_told_as_what_was_typed(setting, what):
    error = problems(GOOD, setting)
    found = [p for p in error.problems if what in p.what]
    assert found, str(error)
    assert str(found[0].place).startswith("--set ")
    assert found[0].fix


def test_settings_take_yaml_values_and_later_ones_win():
    Path("pipeline.yaml").write_text(GOOD)
    given = ("params.rank=4", "stages.adapter.params.dora=true", "stages.adapter.params.target_modules=[q, v]",
             "params.rank=32", "stages.merged.resources.cpus=1", "stages.data.params.template='a: {b}'")  # fmt: skip
    stages = read(Path("pipeline.yaml"), given).stages
    assert stages["adapter"].params == {"rank": 32, "dora": True, "target_modules": ["q", "v"]}
    assert stages["merged"].resources.cpus == 1
    assert stages["data"].params["template"] == "a: {b}"


def test_a_parameter_that_nothing_uses_is_a_warning_in_the_file_and_a_mistake_when_set():
    text = GOOD.replace("params:\n", "params:\n  other: 1\n", 1)
    Path("pipeline.yaml").write_text(text)
    assert read(Path("pipeline.yaml")).warnings == ("pipeline.yaml:3:3: warning: the parameter 'other' is not used",)
    error = problems(text, "params.other=2")
    assert "'other' is not used by any stage" in str(error)


def test_a_target_on_the_command_line_is_checked():
    assert "--target: there is no target 'nowhere'" in str(problems(GOOD, target="nowhere"))
    assert "stage data runs on far, and the store 'store' is a folder of this machine" in str(
        problems(GOOD, target="far")
    )


def test_yaml_1_2_values():
    """`no` is text, `1e-4` is a number, `010` is ten, a date is text."""
    from runner.document import parse

    text = "a: no\nb: 1e-4\nc: 010\nd: 2024-01-01\ne: 12:30\nf: True\ng: ~\nh: '3'\ni: .5\nj: 0x1f\n"
    values = parse(text, "x").plain()
    assert values == {
        "a": "no", "b": 1e-4, "c": 10, "d": "2024-01-01", "e": "12:30", "f": True, "g": None, "h": "3", "i": 0.5,
        "j": "0x1f",
    }  # fmt: skip


INTERFACE_MISTAKES = [
    ({"command": []}, "its command is not a list of words"),
    ({"manifest": "me"}, "its manifest is 'me'"),
    ({"outputs": {}}, "it has no outputs"),
    ({"outputs": {"out": {"flag": "--out", "kind": "datset"}}}, "unknown kind 'datset' (did you mean 'dataset'?)"),
    ({"code": ["nowhere"]}, "its code names 'nowhere', which is not there"),
    ({"command": ["no-such-program"]}, "the program 'no-such-program' of stage merge is not installed"),
    ({"schema": 9}, "interface schema 9 is not known here"),
    ({"params": {"dtype": {"flag": "--dtype", "type": "colour"}}}, "parameter 'dtype' has the unknown type 'colour'"),
    ({"inputs": 3}, "this interface cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "what"), INTERFACE_MISTAKES, ids=[m[1] for m in INTERFACE_MISTAKES])
def test_a_mistake_in_an_interface_is_told_where_it_is_used(folder, change, what):
    file = folder / "stages" / "merge" / "interface.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    error = problems(GOOD)
    found = [p for p in error.problems if what in p.what]
    assert found, str(error)
    at = str(found[0].place).partition(":")
    if "not installed" in what:
        assert str(found[0].place) == "pipeline.yaml:20:11"
    else:
        assert at[0] == str(file)
        assert int(at[2].partition(":")[0]) >= 1
        assert "stage merged (pipeline.yaml:20:11) uses it" in found[0].fix
