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
    "stages: {a: {uses: merge}}",
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
