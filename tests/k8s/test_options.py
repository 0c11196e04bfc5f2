"""What may be said of a target of type kubernetes: the schema for editors and the reader say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import runner
from runner.document import Problems, parse
from runner.executors.kubernetes.options import OPTIONS
from runner.spec import parse_spec
from runner.targets import read_options

jsonschema = pytest.importorskip("jsonschema", reason="SCHEMA NOT TESTED: install jsonschema")
SCHEMA = json.loads((Path(runner.__file__).parent / "pipeline.schema.json").read_text())
ACCEPTED = [
    "",
    "context: x, namespace: ml, registry: ghcr.io/team, flavor: cuda, pull_policy: Never, pull_secrets: [a]",
    "images: {merge: 'x/merge:1'}, service_account: a, token: true, node_selector: {pool: gpu}",
    "secrets: [A_TOKEN, {name: A, secret: b, key: c}], tolerations: [{key: gpu, operator: Exists}]",
    "gpu: amd.com/gpu, queue: q, priority_class: p, labels: {a: b}, annotations: {a: b}, user: 1, patience: 0, ttl: 0",
    "volumes: [{path: /data, claim: data}]",
]
REJECTED = [
    "namspace: ml", "context: ''", "namespace: 3", "images: [a]", "images: {a: 1}", "flavor: gpu", "pull_policy: never",
    "pull_secrets: a", "secrets: A", "secrets: [{name: A}]", "secrets: ['a b']", "token: 'yes'", "tolerations: [a]",
    "user: 0", "user: root", "ttl: -1", "ttl: 1.5", "patience: -1", "volumes: [{path: /data}]", "labels: {a: 1}",
    "network: none",
]  # fmt: skip


def accepted(options: str) -> tuple[bool, bool]:
    text = f"targets: {{c: {{type: kubernetes, {options}}}}}\nstages: {{a: {{uses: x}}}}"
    problems = Problems()
    node = parse(text, "pipeline.yaml")
    spec = parse_spec(node, Path("pipeline.yaml"), problems)
    read_options("kubernetes", "c", spec.targets["c"].nodes, problems)
    return not problems.found, jsonschema.Draft202012Validator(SCHEMA).is_valid(node.plain())


@pytest.mark.parametrize("options", ACCEPTED)
def test_both_accept(options):
    assert accepted(options) == (True, True)


@pytest.mark.parametrize("options", REJECTED)
def test_both_reject(options):
    assert accepted(options) == (False, False)


def test_the_schema_knows_every_option():
    assert set(SCHEMA["$defs"]["kubernetes"]["properties"]) == {"type", *OPTIONS}
