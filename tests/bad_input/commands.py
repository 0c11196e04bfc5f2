"""The runner's commands, options and environment; and interfaces of stages in own folders."""

from __future__ import annotations

import json
from typing import Any

from bad_input.harness import Case
from bad_input.tables import GOOD, PLAIN

OTHER = ("-p", "other.yaml")

TABLE: list[tuple[str, tuple[str, ...], str, str]] = [
    ("an unknown command", ("upp",), "'upp'.*did you mean 'up'", "runner --help"),
    ("an unknown option", ("up", "--forec"), "--forec.*did you mean '--force'", "runner.* --help"),
    ("an option without its value", ("up", "--only"), "--only", "runner up --help"),
    ("a number that is a word", ("up", "--jobs", "many"), "--jobs.*'many'", "runner up --help"),
    ("a file that is not there", ("plan", "pipelin.yaml"), "^pipelin.yaml: .*did you mean 'pipeline.yaml'", "path"),
    ("a folder as a file", ("plan", "own"), "^own: this is a folder", "give the file"),
    ("a stage that is not there", ("up", "--only", "adaptor"), "'adaptor' .did you mean 'adapter'", "stages: data"),
    ("from a stage that is not there", ("up", "--from", "mergd"), "'mergd' .did you mean 'merged'", "stages: data"),
    ("two ways to choose", ("up", "--only", "data", "--from", "data"), "--only and --from exclude", "give one"),
    ("run without a stage", ("run",), "STAGE", "runner run --help"),
    ("a stage whose inputs are not done", ("run", "adapter"), "data is not done, and adapter needs it",
     "run the whole"),
    ("a target that is not there", ("plan", "--target", "dokcer"), "--target: .*'dokcer' .did you mean 'docker'",
     "targets: "),
    ("a form that is not there", ("graph", "--format", "png"), "png", "runner graph --help"),
    ("logs of a run that never was", ("logs", "99", *OTHER), "there is no run 99", "runner ps"),
    ("logs of a stage that never was", ("logs", "b", *OTHER), "run 1 has no stage 'b'", "its stages: a"),
    ("three words for logs", ("logs", "1", "a", "b", *OTHER), "too many words", "runner logs"),
    ("a stop of nothing", ("cancel", "99", *OTHER), "99|no run", "."),
    ("a tag with a space", ("tag", "my tag", *OTHER), "my tag", "letters, digits"),
    ("a tag that is there", ("tag", "v1", *OTHER), "v1", "--move"),
    ("a tag of a stage that is not there", ("tag", "v2", "b", *OTHER), "'b'", "stages|a"),
    ("a tag to remove that is not there", ("tag", "v3", "--delete", *OTHER), "'?v3", "tags|v1|runner tag"),
    ("--delete without a name", ("tag", "--delete", *OTHER), "--delete takes the name", "runner tag --delete NAME"),
    ("a result that is not there", ("verify", "b", *OTHER), "'b' is neither a stage", "stages: a; tags: v1"),
    ("an output that is not there", ("verify", "a.model", *OTHER), "stage a of other.yaml has no output 'model'",
     "its only output is out: write a.out"),
    ("--all and words", ("verify", "--all", "a", *OTHER), "--all excludes words", "give one"),
    ("a stage that is not done", ("pull", "merged", "there"), "merged is not done", "runner up"),
    ("a copy to an address", ("pull", "a", "abfs://x/y", *OTHER), "DEST abfs://x/y: pull writes to a folder of this",
     "runner push"),
    ("an age that is none", ("gc", "--older-than", "soon", *OTHER), "soon", "runner gc --help"),
    ("an export to nowhere", ("export", "slurm"), "slurm", "runner export --help"),
    ("a project where something lies", ("init", "taken"), "taken: this folder holds something", "new one"),
    ("a project of no data", ("init", "new", "--data", "row.jsonl"), "row.jsonl: there is no such file", "rows"),
    ("an import of nothing", ("import", "olive", "olive.json"), "olive.json", "."),
    ("a comparison of nothing", ("compare", "merged"), "merged", "."),
    ("a word that is nothing", ("explain", "learning_rat"), "did you mean 'learning_rate'", "runner explain"),
    ("a shell that is not there", ("completion", "tcsh"), "tcsh", "runner completion --help"),
    ("a store that is a file", ("up", "--set", "store=rows.jsonl", "other.yaml"), "rows.jsonl", "."),
    ("a store below a file, checked", ("check", "--set", "store=rows.jsonl/s"), "--set store: rows.jsonl is a file",
     "give a folder"),
    ("a driver that is not there", ("plan", "--set", "store=nosuch://x/y", "other.yaml"), "nosuch", "."),
]  # fmt: skip

ENVIRONMENT: list[tuple[str, tuple[str, ...], dict[str, str | None], str, str]] = [
    ("no engine for docker", ("check", "--target", "docker"), {"DOCKER_HOST": "unix:///none"},
     "--target: no Docker engine", "unset the variable DOCKER_HOST, or run with"),
    ("no engine, to run", ("up", "other.yaml", "--target", "docker"), {"DOCKER_HOST": "unix:///none"}, "image|engine",
     "."),
    ("an engine of no address", ("check", "--target", "docker"), {"DOCKER_HOST": "nowhere"},
     "--target: no Docker engine", "unset the variable DOCKER_HOST, or run with"),
    ("a secret that is not set", ("check", "cluster.yaml"), {"HUB_TOKEN": None},
     r"^cluster.yaml:3:\d+: target far: the secret HUB_TOKEN is not set", "export HUB_TOKEN="),
    ("stages that are not there", ("plan", "one.yaml"), {"MICROSTAGES_STAGES": "empty"},
     "^one.yaml:1:.*no stage 'merge'",
     "set MICROSTAGES_STAGES"),
    ("an address of MLflow that is none", ("up", "other.yaml", "--force", "--target", "process"),
     {"MLFLOW_TRACKING_URI": "nowhere"}, "nowhere", "."),
]  # fmt: skip


def interface(**changes: Any) -> str:
    value = {**json.loads(PLAIN), **changes}
    return json.dumps({k: v for k, v in value.items() if v is not ...}, indent=2)


N: dict[str, Any] = {"flag": "--n", "type": "integer", "default": 1}
INTERFACES: list[tuple[str, str, str, str]] = [
    ("no JSON", PLAIN.replace('"params"', "params"), r":6:3: this is not JSON|:\d+:\d+: this is not JSON", "commas"),
    ("cut off", PLAIN[:200], r":\d+:\d+: this is not JSON", "brackets"),
    ("a comma too many", PLAIN.replace('"code": ["."],', '"code": ["."],,'), r":\d+:\d+: this is not JSON", "commas"),
    ("a list", "[]", ":1:1: this interface cannot be read", "contract"),
    ("no schema", interface(schema=...), "schema None", '"schema": 1'),
    ("a schema of the future", interface(schema=2), r":2:13: interface schema 2", '"schema": 1'),
    ("an unknown key", interface(sumary="x"), r":\d+:3: unknown key 'sumary' .did you mean 'summary'", "known keys"),
    ("no summary", interface(summary=...), "it has no 'summary'", "add text"),
    ("a command that is a text", interface(command="sh run.sh"), r":6:14: its command is not a list", "command"),
    ("a manifest of nobody", interface(manifest="me"), "its manifest is 'me'", '"stage" or "runner"'),
    ("no outputs", interface(outputs={}), "it has no outputs", "at least one artifact"),
    ("an output of an unknown kind", interface(outputs={"o": {"flag": "--o", "kind": "datset"}}),
     r":\d+:\d+: .*'datset' .did you mean 'dataset'", "kinds: "),
    ("an input of an unknown kind", interface(inputs={"i": {"flag": "--i", "kinds": ["modl"]}}), "did you mean 'model'",
     "kinds: "),
    ("an input without kinds", interface(inputs={"i": {"flag": "--i"}}), "input 'i' has no list of kinds", "kinds"),
    ("a parameter without a flag", interface(params={"n": {"type": "integer"}}), "parameter 'n' has no flag",
     '"flag": "--n"'),
    ("a parameter of an unknown type", interface(params={"n": {**N, "type": "int"}}),
     "unknown type 'int'.*'integer'|'int'", "types: "),
    ("a key of a parameter misspelled", interface(params={"n": {**N, "defualt": 2}}), "did you mean 'default'",
     "known keys"),
    ("a default that does not fit", interface(params={"n": {**N, "default": "one"}}),
     "default of parameter 'n' must be", "null"),
    ("code that is not there", interface(code=["src"]), "its code names 'src'", "correct"),
    ("a program that is not there", interface(command=["no-such-program"]), "pipeline.yaml:4:.*'no-such-program'",
     "install"),
]  # fmt: skip

ONE = "stages: {a: {uses: merge, inputs: {base_model: model, adapter: adapter}}}\n"
CLUSTER = """\
store: s3://models/tones
target: far
targets: {far: {type: kubernetes, secrets: [HUB_TOKEN]}}
stages: {a: {uses: merge, inputs: {base_model: model, adapter: adapter}}}
"""
FILES = {"pipeline.yaml": GOOD, "one.yaml": ONE, "cluster.yaml": CLUSTER}
PROCESS = ("runner", "plan", "--target", "process")
OWN = "stages:\n  a:\n    inputs: {text: text.txt}\n    uses: ./own\n"
CASES = [
    *(Case(f"runner: {n}", ("runner", *words), p, r, {"pipeline.yaml": GOOD}) for n, words, p, r in TABLE),
    *(Case(f"environment: {n}", ("runner", *w), p, r, FILES, None, e) for n, w, e, p, r in ENVIRONMENT),
    *(
        Case(f"interface: {n}", ("runner", "plan", "--target", "process"), p, r,
     {"own/interface.json": text, "pipeline.yaml": OWN})
        for n, text, p, r in INTERFACES
    ),
]  # fmt: skip
