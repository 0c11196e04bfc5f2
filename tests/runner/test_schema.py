"""The JSON Schema for editors says the same as the parser, on what a schema can say."""

import json
from pathlib import Path

import pytest

import runner
from runner.document import Problems, parse
from runner.matrix import expand
from runner.select import read
from runner.spec import parse_spec

jsonschema = pytest.importorskip("jsonschema", reason="SCHEMA NOT TESTED: install jsonschema")
SCHEMA = json.loads((Path(runner.__file__).parent / "pipeline.schema.json").read_text())
ROOT = Path(runner.__file__).parent.parent

ACCEPTED = [
    "stages: {a: {uses: ./merge}}",
    "name: x\nparams:\nstages: {a: {uses: ./x, inputs: , params: , resources: }}",
    "params: {a: 1, b: [x, 2], c: true, d: , e: text}\nstages: {a: {uses: x}}",
    "store: abfs://models/phi3\ntarget: aml\ntargets: {aml: {type: azureml, compute: gpu}}\nstages: {a: {uses: x}}",
    "stages: {a: {uses: x, resources: {gpus: 1, memory: 48GiB, cpus: 1.5, shm: 8 GB}, timeout: 30min, retries: 0}}",
    "stages: {a: {uses: x, resources: {memory: 1000, cpus: '2'}, timeout: 90, grace: 0}}",
    "params: {n: 1}\nstages: {a: {uses: x, retries: '${{ params.n }}', resources: {gpus: '${{ params.n }}'}}}",
    "stages: {a: {uses: x, inputs: {m: '${{ stages.b.out }}', n: }}, b: {uses: y}}",
    "stages: {a: {uses: x, retry: {attempts: 4, backoff: 2s, max_backoff: 1min, on: [75, 143, 137, timeout]}}}",
    "params: {n: 1}\nstages: {a: {uses: x, retry: {attempts: '${{ params.n }}', on: ['${{ params.n }}']}}}",
    "stages: {a: {uses: x, retry: {on: []}}, b: {uses: x, retry: {attempts: , on: }}, c: {uses: x, retry: }}",
    "stages: {a: {uses: x, resources: {nodes: 2}}}",
    "stages: {a: {uses: x, matrix: {p: [1, x, true, null]}}}",
    "stages: {a: {uses: x, matrix: {p: [1, 2], q: [a], exclude: [{p: 1}]}}}",
    "stages: {a: {uses: x, matrix: {p: [1, 2]}}, b: {select: {from: a, maximize: m}}}",
    "stages: {a: {uses: x, matrix: {p: [1]}}, b: {select: {from: a, minimize: m, where: {s: {min: 1, max: 2.5}}}}}",
]
REJECTED = [
    "stages: {a: {uses: x, resources: {nodes: 0}}}",
    "stages: {a: {uses: x, matrix: }}",
    "stages: {a: {uses: x, matrix: {}}}",
    "stages: {a: {uses: x, matrix: {p: 1}}}",
    "stages: {a: {uses: x, matrix: {p: []}}}",
    "stages: {a: {uses: x, matrix: {p: [[1]]}}}",
    "stages: {a: {uses: x, matrix: {p: [1, 2], exclude: [p]}}}",
    "stages: {a: {uses: x, matrix: {p: [1, 2], exclude: [{}]}}}",
    "stages: {a: {uses: x, matrix: {p: [1]}}, b: {select: {from: a}}}",
    "stages: {a: {uses: x, matrix: {p: [1]}}, b: {select: {maximize: m}}}",
    "stages: {a: {uses: x, matrix: {p: [1]}}, b: {select: {from: a, maximize: m, minimize: m}}}",
    "stages: {a: {uses: x, matrix: {p: [1]}}, b: {select: {from: a, maximize: m}, uses: x}}",
    "stages: {a: {uses: x, matrix: {p: [1]}}, b: {select: {from: a, maximize: m, were: {}}}}",
    "stages: {a: {uses: x, matrix: {p: [1]}}, b: {select: {from: a, maximize: m, where: {s: {max: big}}}}}",
    "stages: {a: {uses: x, matrix: {p: [1]}}, b: {select: {from: a, maximize: m, where: {s: {}}}}}",
    "stages: {a: {uses: x, matrix: {p: [1]}}, b: {select: a}}",
    "name: x",
    "stages: {}",
    "stages: [a]",
    "stages: {a: merge}",
    "stages: {a: {}}",
    "stages: {a: {uses: }}",
    "stages: {a: {uses: ''}}",
    "stages: {a: {uses: x, use: y}}",
    "stages: {A: {uses: x}}",
    "stages: {a: {uses: x}}\nnme: y",
    "name: 3\nstages: {a: {uses: x}}",
    "name: ''\nstages: {a: {uses: x}}",
    "params: [a]\nstages: {a: {uses: x}}",
    "params: {a: {b: c}}\nstages: {a: {uses: x}}",
    "params: {a: [[b]]}\nstages: {a: {uses: x}}",
    "params: {a: '${{ params.b }}', b: 1}\nstages: {a: {uses: x}}",
    "store:\nstages: {a: {uses: x}}",
    "targets: {a: {}}\nstages: {a: {uses: x}}",
    "targets: {a: {type: slurm}}\nstages: {a: {uses: x}}",
    "stages: {a: {uses: x, inputs: {m: 3}}}",
    "stages: {a: {uses: x, inputs: {m: ''}}}",
    "stages: {a: {uses: x, inputs: [m]}}",
    "stages: {a: {uses: x, params: [m]}}",
    "stages: {a: {uses: x, resources: {gpu: 1}}}",
    "stages: {a: {uses: x, resources: {gpus: 1.5}}}",
    "stages: {a: {uses: x, resources: {gpus: -1}}}",
    "stages: {a: {uses: x, resources: {gpus: many}}}",
    "stages: {a: {uses: x, resources: {memory: big}}}",
    "stages: {a: {uses: x, resources: {cpus: 0}}}",
    "stages: {a: {uses: x, resources: {cpus: '0.0'}}}",
    "stages: {a: {uses: x, resources: {cpus: true}}}",
    "stages: {a: {uses: x, timeout: 3 weeks}}",
    "stages: {a: {uses: x, timeout: 0}}",
    "stages: {a: {uses: x, retries: some}}",
    "stages: {a: {uses: x, retries: -1}}",
    "stages: {a: {uses: x, target: 3}}",
    "stages: {a: {uses: x, retry: 3}}",
    "stages: {a: {uses: x, retry: {tries: 3}}}",
    "stages: {a: {uses: x, retry: {attempts: 0}}}",
    "stages: {a: {uses: x, retry: {attempts: 1.5}}}",
    "stages: {a: {uses: x, retry: {backoff: soon}}}",
    "stages: {a: {uses: x, retry: {max_backoff: -1}}}",
    "stages: {a: {uses: x, retry: {on: 75}}}",
    "stages: {a: {uses: x, retry: {on: [2]}}}",
    "stages: {a: {uses: x, retry: {on: [0]}}}",
    "stages: {a: {uses: x, retry: {on: [256]}}}",
    "stages: {a: {uses: x, retry: {on: [true]}}}",
    "stages: {a: {uses: x, retry: {on: [late]}}}",
    "stages: {a: {uses: x, retries: 1, retry: {attempts: 2}}}",
]


def parser_accepts(text: str) -> bool:
    problems = Problems()
    root, variants = expand(parse(text, "pipeline.yaml"), problems)
    spec = parse_spec(root, Path("pipeline.yaml"), problems)
    for name, stage in spec.stages.items():
        if stage.select:
            read(name, stage.select, spec.stages, variants, problems)
    return not problems.found


def schema_accepts(text: str) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(parse(text, "pipeline.yaml").plain())


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("text", ACCEPTED)
def test_both_accept(text):
    assert parser_accepts(text)
    assert schema_accepts(text)


@pytest.mark.parametrize("text", REJECTED)
def test_both_reject(text):
    assert not parser_accepts(text)
    assert not schema_accepts(text)


def test_both_accept_the_pipeline_of_this_repository():
    text = (ROOT / "pipeline.yaml").read_text()
    assert parser_accepts(text)
    assert schema_accepts(text)


# --- what it says of each stage, and that it is current


def test_it_is_what_the_stages_make_of_it():
    from runner.schema import as_text, built_in

    committed = (Path(runner.__file__).parent / "pipeline.schema.json").read_text()
    assert committed == as_text(built_in()), "stale: run make interfaces"


def pipelines() -> list[Path]:
    return sorted(f for place in ("*.yaml", "examples/**/*.yaml") for f in ROOT.glob(place))


@pytest.mark.parametrize("file", pipelines(), ids=lambda f: str(f.relative_to(ROOT)))
def test_every_pipeline_of_this_repository_is_right_by_it(file):
    from runner.schema import of_project, schema

    made = schema(of_project(file))
    found = [e.message for e in jsonschema.Draft202012Validator(made).iter_errors(parse(file.read_text(), "x").plain())]
    assert not found


def test_the_pipelines_of_a_new_project_are_right_by_it(tmp_path):
    from runner.project import create

    create(tmp_path / "new")
    files = list((tmp_path / "new").rglob("*.yaml"))
    assert len(files) >= 2
    for file in files:
        assert schema_accepts(file.read_text()), file


# A stage of this repository: by the schema and by the runner alike.
INPUTS = {
    "prepare-data": "source: s, model: m", "train-lora": "dataset: d, base_model: m", "infer": "model: m",
    "merge": "base_model: m, adapter: a", "build-onnx": "model: m",
}  # fmt: skip
GOOD_PARAMS = [
    ("merge", "dtype: bf16"),
    ("merge", "double_quant: true, quant_type: nf4"),
    ("merge", "quant_type: "),
    ("merge", "dtype: '${{ params.t }}'"),
    ("train-lora", "rank: 8, learning_rate: 1e-3, target_modules: [a, b]"),
    ("train-lora", "rank: 8.0, alpha: 3, dropout: '0.5'"),
    ("train-lora", "rank: '${{ params.n }}', steps: "),
    ("train-lora", "dora: '${{ params.yes }}'"),
    ("train-lora", "target_modules: ['${{ params.t }}', x]"),
    ("build-onnx", "op_types_to_quantize: [MatMul, Gather]"),
    ("prepare-data", "template: '{a} ${{ params.t }}', test_fraction: 0"),
    ("infer", "stop: [a], temperature: 0, top_p: 1"),
]
BAD_PARAMS = [
    ("merge", "dtyp: bf16"),
    ("merge", "dtype: bf17"),
    ("merge", "dtype: "),
    ("merge", "dtype: 3"),
    ("merge", "threads: -1"),
    ("merge", "threads: 257"),
    ("merge", "double_quant: yes"),
    ("train-lora", "rank: 0"),
    ("train-lora", "rank: many"),
    ("train-lora", "rank: 1.5"),
    ("train-lora", "learning_rate: 0"),
    ("train-lora", "dropout: 1"),
    ("train-lora", "dropout: half"),
    ("train-lora", "target_modules: qkv"),
    ("train-lora", "target_modules: [true]"),
    ("train-lora", "dora: 1"),
    ("build-onnx", "op_types_to_quantize: [Conv]"),
    ("build-onnx", "block_size: 8"),
    ("prepare-data", "test_fraction: 1"),
    ("prepare-data", "template: [a]"),
    ("infer", "top_p: 0"),
]


def of_a_stage(uses: str, params: str, inputs: str | None = None) -> str:
    given = INPUTS[uses] if inputs is None else inputs
    return (
        f"params: {{t: bf16, n: 3, 'yes': true}}\n"
        f"stages: {{a: {{uses: {uses}, inputs: {{{given}}}, params: {{{params}, }}}}}}"
    ).replace(", }", "}")


def runner_accepts(text: str, folder: Path) -> bool:
    from runner.document import PipelineError, Problems
    from runner.pipeline import look

    (folder / "pipeline.yaml").write_text(text)
    problems = Problems()
    try:
        look(folder / "pipeline.yaml", (), None, False, problems)
    except PipelineError:
        return False
    return not problems.found


@pytest.mark.parametrize(("uses", "params"), GOOD_PARAMS)
def test_both_accept_parameters(uses, params, tmp_path):
    text = of_a_stage(uses, params)
    assert runner_accepts(text, tmp_path)
    assert schema_accepts(text)


@pytest.mark.parametrize(("uses", "params"), BAD_PARAMS)
def test_both_reject_parameters(uses, params, tmp_path):
    text = of_a_stage(uses, params)
    assert not runner_accepts(text, tmp_path)
    assert not schema_accepts(text)


@pytest.mark.parametrize(
    ("inputs", "good"),
    [("base_model: m, adapter: a", True), ("base_model: m", False), ("base_model: m, adapter: ", False),
     ("base_model: m, adapter: a, other: x", False), ("base_model: m, adaptor: a", False)],
)  # fmt: skip
def test_both_know_the_inputs_of_a_stage(inputs, good, tmp_path):
    text = of_a_stage("merge", "dtype: base", inputs)
    assert runner_accepts(text, tmp_path) == schema_accepts(text) == good


def test_every_key_has_words_and_its_true_default():
    from runner.keys import KEYS
    from runner.retry import Retry
    from runner.schema import _find
    from runner.spec import GRACE, STORE
    from runner.units import read_seconds

    for key in KEYS.values():
        node, _ = _find(SCHEMA, key.path.split("."))
        assert node["description"].startswith(key.help)

    def default(path: str):
        return _find(SCHEMA, path.split("."))[0]["default"]

    usual = Retry()
    assert default("store") == STORE
    assert default("stages.retries") == usual.attempts - 1
    assert default("stages.retry.attempts") == usual.attempts
    assert read_seconds(default("stages.retry.backoff")) == usual.backoff
    assert read_seconds(default("stages.retry.max_backoff")) == usual.max_backoff
    assert set(default("stages.retry.on")) == usual.on
    assert read_seconds(default("stages.grace")) == GRACE


def test_every_property_that_it_has_is_in_the_words():
    from runner.keys import KEYS

    def names(node: dict, path: str) -> set[str]:
        found = set()
        if "$ref" in node:
            node = {**SCHEMA["$defs"][node["$ref"].rpartition("/")[2]], **node}
        for name, one in (node.get("properties") or {}).items():
            found.add(f"{path}{name}")
            if isinstance(one, dict) and name not in ("inputs", "params"):
                found |= names(one, f"{path}{name}.")
        inner = node.get("additionalProperties")
        if path in ("stages.", "targets.") and isinstance(inner, dict):
            found |= names(inner, path)
        return found

    known = set(KEYS) | {"stages.matrix.exclude"}
    assert names(SCHEMA, "") <= known
    for kind in ("docker", "kubernetes", "azureml"):
        assert {f"targets.{kind}.{k}" for k in SCHEMA["$defs"][kind]["properties"]} - {f"targets.{kind}.type"} <= known


def test_stages_of_own_folders_are_in_the_schema_of_a_project(tmp_path, capsys, monkeypatch):
    from runner import cli

    value = json.loads((ROOT / "stages/merge/interface.json").read_text())
    (tmp_path / "own").mkdir()
    (tmp_path / "own/interface.json").write_text(json.dumps({**value, "name": "own", "code": ["."]}))
    (tmp_path / "pipeline.yaml").write_text("stages: {a: {uses: ./own, inputs: {base_model: m, adapter: a}}}\n")
    monkeypatch.chdir(tmp_path)
    assert cli.call(["schema"]) == 0
    made = jsonschema.Draft202012Validator(json.loads(capsys.readouterr().out))
    good = parse((tmp_path / "pipeline.yaml").read_text(), "x").plain()
    assert made.is_valid(good)
    good["stages"]["a"]["params"] = {"dtyp": "base"}
    assert not made.is_valid(good)
