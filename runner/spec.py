"""A pipeline file's values, typed, with references to parameters filled in.

Everything that can be told from the file alone is checked here: keys, types, references, units. Mistakes are
collected, not raised one by one. `pipeline.schema.json` says the same to editors; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microstages.errors import EXIT_USER, nearest

from runner.document import Node, Place, Problems
from runner.retry import TIMEOUT, Retry

KEYS = ("name", "params", "store", "target", "targets", "stages")
STAGE_KEYS = ("uses", "inputs", "params", "resources", "target", "retries", "retry", "timeout", "grace", "select")
RETRY = ("attempts", "backoff", "max_backoff", "on")
RESOURCES = ("gpus", "memory", "cpus", "shm", "nodes")
TARGET_TYPES = ("process", "docker", "kubernetes", "azureml")
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
STORE = ".runner/store"
GRACE = 30.0

_REFERENCE = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_WHOLE = re.compile(r"\s*\$\{\{((?:(?!\}\}).)*)\}\}\s*", re.DOTALL)
_SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
FAILED = "\0"  # stands for the value of a reference that does not exist: told already, not to be complained of again


@dataclass(frozen=True)
class Ref:
    """The output of another stage."""

    stage: str
    output: str


@dataclass(frozen=True)
class InputValue:
    """What a pipeline gives an input: another stage's output, a path or address, or nothing (an optional input)."""

    value: Ref | str | None
    key: Place
    place: Place


@dataclass(frozen=True)
class Resources:
    """What a stage asks for on each of its nodes: GPUs, processor cores, bytes of memory and of shared memory. None: no
    matter."""

    gpus: int = 0
    cpus: float | None = None
    memory: int | None = None
    shm: int | None = None
    nodes: int = 1


@dataclass(frozen=True)
class StageSpec:
    """One stage as the file has it."""

    name: str
    place: Place
    uses: Node
    inputs: Mapping[str, InputValue]
    params: Mapping[str, Node]
    param_keys: Mapping[str, Place]
    resources: Resources
    target: Node | None
    retry: Retry
    timeout: float | None
    grace: float
    select: Node | None = None


@dataclass(frozen=True)
class Target:
    """A named place where stages can run."""

    name: str
    type: str
    nodes: Mapping[str, Node] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """A pipeline file."""

    file: Path
    name: str
    params: Mapping[str, Node]
    store: Node
    target: Node
    targets: Mapping[str, Target]
    stages: Mapping[str, StageSpec]
    unused: tuple[tuple[str, Place], ...]


def read_number(text: str) -> float | None:
    """`1.5`: a number, 0 or more; None for anything else."""
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else None


def read_bytes(text: str) -> float | None:
    """`48GiB`, `500 MB`, `1000`: bytes; None for anything else."""
    m = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i?))?b?", text.lower())
    if not m:
        return None
    return float(m.group(1)) * (1024 if m.group(3) else 1000) ** " kmgt".index(m.group(2) or " ")


def read_seconds(text: str) -> float | None:
    """`90`, `90s`, `30min`, `1.5h`, `2d`: seconds; None for anything else."""
    m = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|d)?", text)
    return float(m.group(1)) * _SECONDS[m.group(2) or ""] if m else None


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value)


def parse_spec(root: Node, file: Path, problems: Problems) -> Spec:
    """Typed values of a pipeline file; what is wrong goes to `problems`, and a harmless value stands in for it."""
    return _Parser(file, problems).spec(root)


class _Parser:
    def __init__(self, file: Path, problems: Problems) -> None:
        self.file, self.problems = file, problems
        self.params: dict[str, Node] = {}
        self.used: set[str] = set()

    def spec(self, root: Node) -> Spec:
        top = self.mapping(root, KEYS, "the pipeline")
        self.params = self.parse_params(top.get("params"))
        stage_nodes = self.open_mapping(top.get("stages"), "stages")
        if not stage_nodes and not (top.get("stages") and not isinstance(top["stages"].value, dict)):
            place = root.keys.get("stages", root.place)
            self.problems.add(
                place, "there are no stages", "add `stages:` with at least one stage that `uses` something"
            )
        default = Node(self.file.resolve().parent.name, root.place)
        name = self.text(top["name"], "name") if "name" in top else default.value
        store = self.filled(top["store"]) if "store" in top else Node(STORE, root.place)
        target = self.filled(top["target"]) if "target" in top else Node("auto", root.place)
        self.text(store, "store")
        self.text(target, "target")
        targets = {k: self.target(k, v) for k, v in self.open_mapping(top.get("targets"), "targets").items()}
        keys = top["stages"].keys if "stages" in top else {}
        stages = {k: self.stage(k, v, keys.get(k, v.place)) for k, v in stage_nodes.items()}
        unused = tuple((k, self._set_at(top["params"], k)) for k in self.params if k not in self.used)
        return Spec(self.file, name, self.params, store, target, targets, stages, unused)

    @staticmethod
    def _set_at(node: Node, key: str) -> Place:
        """Where a key was written, or the `--set` that gave its value."""
        value = node.value[key].place
        return node.keys[key] if value.line else value

    # --- pieces ---

    def parse_params(self, node: Node | None) -> dict[str, Node]:
        params = self.open_mapping(node, "params")
        for name, value in params.items():
            if isinstance(value.value, dict):
                fix = "a parameter is text, a number, true or false, or a list of these"
                self.problems.add(value.place, f"the parameter {name!r} is a mapping", fix)
            elif isinstance(value.value, list) and any(isinstance(v.value, (dict, list)) for v in value.value):
                self.problems.add(value.place, f"the parameter {name!r} is not a flat list", "write a list of words")
            elif isinstance(value.value, str) and _REFERENCE.search(value.value):
                what = f"the parameter {name!r} holds a reference"
                self.problems.add(value.place, what, "references stand in stages; a parameter is a plain value")
        return params

    def target(self, name: str, node: Node) -> Target:
        options = self.open_mapping(node, f"target {name}")
        kind = options.get("type")
        if kind is None:
            what = f"target {name} has no type"
            self.problems.add(node.place, what, f"add `type:`, one of {', '.join(TARGET_TYPES)}")
            return Target(name, "process")
        if kind.value not in TARGET_TYPES:
            what = f"target {name} has the unknown type {kind.value!r}{nearest(kind.value, TARGET_TYPES)}"
            self.problems.add(kind.place, what, f"known types: {', '.join(TARGET_TYPES)}")
        return Target(name, str(kind.value), options)

    def stage(self, name: str, node: Node, place: Place) -> StageSpec:
        if not NAME.fullmatch(name):
            fix = "use small letters, digits, - and _, at most 63, a letter first"
            self.problems.add(place, f"{name!r} cannot be a stage's name", fix)
        values = self.mapping(node, STAGE_KEYS, f"stage {name}")
        uses = Node("", place)
        if select := values.get("select"):
            for key in sorted(set(values) - {"select"}):
                what = f"stage {name} selects: it has no {key}"
                self.problems.add(node.keys.get(key, place), what, "it takes one of the variants as it is")
        elif "uses" in values:
            uses = self.filled(values["uses"])
            self.text(uses, f"uses of stage {name}")
        elif isinstance(node.value, (dict, type(None))):
            self.problems.add(place, f"stage {name} does not say what it uses", "add `uses: <stage or folder>`")
        inputs_node, params_node = values.get("inputs"), values.get("params")
        inputs = {
            k: self.input(name, k, v, inputs_node.keys[k])  # type: ignore[union-attr]
            for k, v in self.open_mapping(inputs_node, f"inputs of stage {name}").items()
        }
        params = {k: self.filled(v) for k, v in self.open_mapping(params_node, f"params of stage {name}").items()}
        target = self.filled(values["target"]) if "target" in values else None
        if target:
            self.text(target, f"target of stage {name}")
        return StageSpec(
            name, place, uses, inputs, params, params_node.keys if params_node else {},
            self.resources(name, values.get("resources")), target,
            self.retry(name, values),
            self.quantity(values.get("timeout"), "timeout", read_seconds, "30min", above=True),
            self.quantity(values.get("grace"), "grace", read_seconds, "30s", default=GRACE) or 0.0, select,
        )  # fmt: skip

    def input(self, stage: str, name: str, node: Node, key: Place) -> InputValue:
        if isinstance(node.value, str) and "stages." in node.value and (m := _WHOLE.fullmatch(node.value)):
            parts = m.group(1).strip().split(".")
            if parts[0] == "stages" and len(parts) == 3 and all(parts):
                return InputValue(Ref(parts[1], parts[2]), key, node.place)
        value = self.filled(node, whole_stage=True)
        if value.value == FAILED:
            return InputValue(None, key, node.place)
        if value.value is not None and not isinstance(value.value, str):
            what = f"input {name} of stage {stage} is {value.kind()}, not a path, an address or a stage's output"
            self.problems.add(node.place, what, "quote it if it is a path")
            return InputValue(None, key, node.place)
        if value.value == "":
            self.problems.add(
                node.place, f"input {name} of stage {stage} is empty text", "give a path, or leave it out"
            )
            return InputValue(None, key, node.place)
        return InputValue(value.value, key, node.place)

    def resources(self, stage: str, node: Node | None) -> Resources:
        values = self.mapping(node, RESOURCES, f"resources of stage {stage}") if node else {}
        cpus = self.quantity(values.get("cpus"), "cpus", read_number, "2", above=True)
        memory = self.quantity(values.get("memory"), "memory", read_bytes, "48GiB", above=True)
        shm = self.quantity(values.get("shm"), "shm", read_bytes, "8GiB")
        gpus = self.count(values.get("gpus"), "gpus", 0)
        nodes = self.count(values.get("nodes"), "nodes", 1, least=1)
        return Resources(gpus, cpus, None if memory is None else int(memory), None if shm is None else int(shm), nodes)

    def retry(self, stage: str, values: Mapping[str, Node]) -> Retry:
        """`retries: N`, or `retry:` with all that can be said of it."""
        node, usual = values.get("retry"), Retry()
        if node is None:
            return Retry(1 + self.count(values.get("retries"), "retries", usual.attempts - 1))
        if "retries" in values:
            what = f"stage {stage} has both `retries` and `retry`"
            self.problems.add(values["retries"].place, what, "write the number as `attempts` below `retry:`")
        given = self.mapping(node, RETRY, f"retry of stage {stage}")
        attempts = self.count(given.get("attempts"), "attempts", usual.attempts, least=1)
        backoff = self.quantity(given.get("backoff"), "backoff", read_seconds, "2s", default=usual.backoff)
        most = self.quantity(given.get("max_backoff"), "max_backoff", read_seconds, "1min", default=usual.max_backoff)
        return Retry(attempts, backoff or 0.0, most or 0.0, self.codes(given.get("on"), usual.on))

    def codes(self, node: Node | None, default: Set[int | str]) -> Set[int | str]:
        """The ends after which a stage is tried again."""
        if node is None or node.value is None:
            return default
        fix = f"exit codes from 1 to 255 but 2 (the caller's mistake), and the word {TIMEOUT}: on: [75, 137, {TIMEOUT}]"
        if not isinstance(node.value, list):
            self.problems.add(node.place, f"on must be a list, not {node.kind()}", fix)
            return default
        found = [self.filled(entry) for entry in node.value]
        for entry in found:
            value = entry.value
            number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255 and value != EXIT_USER
            if not number and value not in (TIMEOUT, FAILED):
                why = "2 is never tried again" if value == EXIT_USER else f"on cannot hold {_shown(value)}"
                self.problems.add(entry.place, why, fix)
        return frozenset(entry.value for entry in found if isinstance(entry.value, (int, str)))

    # --- types ---

    def mapping(self, node: Node, known: Sequence[str], what: str) -> dict[str, Node]:
        values = self.open_mapping(node, what)
        for key in values:
            if key not in known:
                place = node.keys.get(key, node.place)
                fix = f"known keys: {', '.join(known)}"
                self.problems.add(place, f"unknown key {key!r} in {what}{nearest(key, known)}", fix)
        return {k: v for k, v in values.items() if k in known}

    def open_mapping(self, node: Node | None, what: str) -> dict[str, Node]:
        if node is None or node.value is None:
            return {}
        if not isinstance(node.value, dict):
            what = f"{what} must be a mapping, not {node.kind()}"
            self.problems.add(node.place, what, "write `key: value` below it")
            return {}
        return dict(node.value)

    def text(self, node: Node, what: str) -> str:
        if node.value == FAILED:
            return ""
        if not isinstance(node.value, str) or not node.value:
            self.problems.add(node.place, f"{what} must be text, not {node.kind()}", "quote it, or give a word")
            return ""
        return node.value

    def count(self, node: Node | None, what: str, default: int, least: int = 0) -> int:
        value = self.filled(node).value if node else None
        if node is None or value is None:
            return default
        if value == FAILED:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            text = f"{what} must be a whole number, {least} or more, not {_shown(value)}"
            self.problems.add(node.place, text, f"write {what}: 1")
            return default
        return value

    def quantity(
        self,
        node: Node | None,
        what: str,
        read: Callable[[str], float | None],
        example: str,
        *,
        default: float | None = None,
        above: bool = False,
    ) -> float | None:
        value = self.filled(node).value if node else None
        if node is None or value in (None, FAILED):
            return default
        number = None if isinstance(value, (bool, list, dict)) else read(str(value).strip())
        if number is None or (above and number == 0):
            sort = "above 0" if above else "0 or more"
            what_ = f"{what} must be {sort}, such as {example}, not {_shown(value)}"
            self.problems.add(node.place, what_, f"write {what}: {example}")
            return default
        return number

    # --- references ---

    def filled(self, node: Node, whole_stage: bool = False) -> Node:
        """The node with `${{ params.x }}` replaced: in its type where it is the whole value, as text inside text."""
        if isinstance(node.value, list):
            return Node([self.filled(v) for v in node.value], node.place)
        if not isinstance(node.value, str) or "${{" not in node.value:
            return node
        if m := _WHOLE.fullmatch(node.value):
            return Node(self.param(m.group(1), node.place, whole_stage), node.place)

        def one(m: re.Match[str]) -> str:
            value = self.param(m.group(1), node.place, whole_stage)
            return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)

        text = _REFERENCE.sub(one, node.value)
        if _REFERENCE.sub("", node.value).count("${{"):
            self.problems.add(node.place, "a reference is not closed", "write ${{ params.name }}")
        return Node(text, node.place)

    def param(self, inner: str, place: Place, whole_stage: bool) -> Any:
        parts = inner.strip().split(".")
        if parts[0] == "params" and len(parts) == 2 and parts[1]:
            if parts[1] in self.params:
                self.used.add(parts[1])
                value = self.params[parts[1]]
                return value.value if not isinstance(value.value, list) else list(value.value)
            known = ", ".join(self.params) or "none"
            guess = nearest(parts[1], self.params)
            self.problems.add(place, f"there is no parameter {parts[1]!r}{guess}", f"parameters: {known}")
        elif parts[0] == "stages" and whole_stage:
            fix = "write ${{ stages.NAME.OUTPUT }} and nothing else as the input's value"
            self.problems.add(place, f"${{{{{inner}}}}} is not the output of a stage", fix)
        elif parts[0] == "stages":
            fix = "stages' outputs can only be inputs"
            self.problems.add(place, f"${{{{{inner}}}}} cannot stand here", fix)
        else:
            guess = nearest(parts[0], ("params", "stages"))
            fix = "write ${{ params.NAME }} or ${{ stages.NAME.OUTPUT }}"
            self.problems.add(place, f"${{{{{inner}}}}} is no reference{guess}", fix)
        return FAILED
