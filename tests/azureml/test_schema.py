"""The JSON Schema for editors says the same of a target of type azureml as the runner."""

import json
from pathlib import Path

import pytest

import runner
from runner.executors.azureml.options import OPTIONS

jsonschema = pytest.importorskip("jsonschema", reason="SCHEMA NOT TESTED: install jsonschema")
SCHEMA = json.loads((Path(runner.__file__).parent / "pipeline.schema.json").read_text())
SECRET = {"name": "A", "vault": "v", "secret": "s"}
VALUES = {
    "subscription_id": ["x", "", 3], "resource_group": ["x", None], "workspace": ["x", []], "compute": ["gpu", ""],
    "instance_type": ["Standard_X", 1], "registry": ["r.io/x", ""], "images": [{"merge": "x"}, {"merge": 1}, "x"],
    "flavor": ["cpu", "cuda", "rocm"], "tier": ["spot", "standard", "cheap"], "experiment": ["x", ""],
    "identity": ["managed", "user", "12345678-1111-2222-3333-444444444444", "me", 1],
    "secrets": [[SECRET], [], ["A"], [{**SECRET, "x": "y"}], [{"name": "A"}], SECRET],
    "tags": [{"a": "b"}, {"a": 1}, []], "environment": [{"a": "b"}, {"a": 1}, "x"],
}  # fmt: skip


def test_every_option_is_in_the_schema():
    assert set(SCHEMA["$defs"]["azureml"]["properties"]) == {"type", *OPTIONS} and set(VALUES) == set(OPTIONS)


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in VALUES.items() for v in values])
def test_both_say_the_same(key, value):
    pipeline = {"targets": {"aml": {"type": "azureml", key: value}}, "stages": {"a": {"uses": "./stage"}}}
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(pipeline) == (OPTIONS[key](value) is None)


def test_an_unknown_option_is_refused():
    pipeline = {"targets": {"aml": {"type": "azureml", "namespace": "x"}}, "stages": {"a": {"uses": "./stage"}}}
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(pipeline)
