"""A pipeline file's values, typed, with references to parameters filled in.

Everything that can be told from the file alone is checked here: keys, types, references, units. Mistakes are
collected, not raised one by one. `pipeline.schema.json` says the same to editors; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from microstages.errors import EXIT_USER, nearest

from runner.document import Node, Place, Problems
from runner.problems import Origin, guess
from runner.references import FAILED, REFERENCE, WHOLE, References
from runner.retry import TIMEOUT, Retry
from runner.units import in_our_words, read_bytes, read_number, read_seconds, shown

KEYS = ("name", "params", "store", "target", "targets", "stages")
STAGE_KEYS = (
    "uses",
    "inputs",
    "params",
    "resources",
    "target",
    "retries",
    "retry",
    "timeout",
    "grace",
    "matrix",
    "select",
)
RETRY = ("attempts", "backoff", "max_backoff", "on")
RESOURCES = ("gpus", "memory", "cpus", "shm", "nodes")
TARGET_TYPES = ("process", "docker", "kubernetes", "azureml")
# What other systems call it.
ELSEWHERE = {
    "with": "params", "args": "params", "arguments": "params", "parameters": "params", "config": "params",
    "vars": "params", "variables": "params", "env": "params", "jobs": "stages", "steps": "stages", "tasks": "stages",
    "nodes": "stages", "image": "uses", "run": "uses", "script": "uses", "type": "uses", "in": "inputs",
    "needs": "inputs", "depends_on": "inputs", "dependencies": "inputs", "deps": "inputs", "gpu": "resources",
    "memory": "resources", "cpus": "resources", "gpus": "resources", "limits": "resources", "executor": "target",
    "strategy": "matrix", "max_retries": "retries", "tries": "attempts", "max_attempts": "attempts", "delay": "backoff",
}  # fmt: skip
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
STORE = ".runner/store"
GRACE = 30.0


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
    origin: Origin | None = None  # where the value of a reference was given


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
    odd: bool = False  # its inputs are no mapping, which is told already


@dataclass(frozen=True)
class Target:
    """A named place where stages can run."""

    name: str
    type: str
    nodes: Mapping[str, Node] = field(default_factory=dict)
    keys: Mapping[str, Place] = field(default_factory=dict)


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


def parse_spec(root: Node, file: Path, problems: Problems) -> Spec:
    """Typed values of a pipeline file; what is wrong goes to `problems`, and a harmless value stands in for it."""
    return _Parser(file, problems).spec(root)


class _Parser:
    def __init__(self, file: Path, problems: Problems) -> None:
        self.file, self.problems = file, problems
        self.references = References({}, problems)

    def spec(self, root: Node) -> Spec:
        top = self.mapping(root, KEYS, "the pipeline")
        params = self.parse_params(top.get("params"))
        self.references = References(params, self.problems)
        stage_nodes = self.open_mapping(top.get("stages"), "stages")
        if not stage_nodes and ("stages" not in top or isinstance(top["stages"].value, (dict, type(None)))):
            place = root.keys.get("stages", root.place)
            fix = "write one below it" if "stages" in root.keys else "add `stages:` with at least one"
            self.problems.add(place, "there are no stages", f"{fix}, such as `merged: {{uses: merge}}`")
        default = Node(self.file.resolve().parent.name, root.place)
        name = self.text(top["name"], "name") if "name" in top else default.value
        store = self.references.filled(top["store"]) if "store" in top else Node(STORE, root.place)
        target = self.references.filled(top["target"]) if "target" in top else Node("auto", root.place)
        self.text(store, "store")
        self.text(target, "target")
        targets = {k: self.target(k, v) for k, v in self.open_mapping(top.get("targets"), "targets").items()}
        keys = top["stages"].keys if "stages" in top else {}
        stages = {k: self.stage(k, v, keys.get(k, v.place)) for k, v in stage_nodes.items()}
        unused = tuple((k, self._set_at(top["params"], k)) for k in params if k not in self.references.used)
        return Spec(self.file, name, params, store, target, targets, stages, unused)

    @staticmethod
    def _set_at(node: Node, key: str) -> Place:
        """Where a key was written, or the `--set` that gave its value."""
        value = node.value[key].place
        return node.keys[key] if value.line else value

    # --- pieces ---

    def parse_params(self, node: Node | None) -> dict[str, Node]:
        params = self.open_mapping(node, "params")
        before = len(self.problems.found)
        for name, value in list(params.items()):
            if isinstance(value.value, dict):
                fix = "a parameter is text, a number, true or false, or a list of these"
                self.problems.add(value.place, f"the parameter {name!r} is a mapping", fix)
            elif isinstance(value.value, list) and any(isinstance(v.value, (dict, list)) for v in value.value):
                self.problems.add(value.place, f"the parameter {name!r} is not a flat list", "write a list of words")
            elif isinstance(value.value, str) and REFERENCE.search(value.value):
                what = f"the parameter {name!r} holds a reference"
                self.problems.add(value.place, what, "references stand in stages; a parameter is a plain value")
            if len(self.problems.found) > before:  # what refers to it is not to be complained of again
                params[name], before = Node(FAILED, value.place), len(self.problems.found)
        return params

    def target(self, name: str, node: Node) -> Target:
        options = self.open_mapping(node, f"target {name}")
        kind = options.get("type")
        if kind is None and (wrong := next((k for k in options if guess(k, ("type",))), "")):
            what = f"unknown key {wrong!r} in target {name} (did you mean 'type'?)"
            self.problems.add(node.keys.get(wrong, node.place), what, f"one of {', '.join(TARGET_TYPES)}")
            kind = options.pop(wrong)
        if kind is None:
            what = f"target {name} has no type"
            self.problems.add(node.place, what, f"add `type:`, one of {', '.join(TARGET_TYPES)}")
            return Target(name, "process")
        if kind.value not in TARGET_TYPES:
            what = f"target {name} has the unknown type {kind.value!r}{nearest(kind.value, TARGET_TYPES)}"
            self.problems.add(kind.place, what, f"known types: {', '.join(TARGET_TYPES)}")
        return Target(name, str(kind.value), options, node.keys)

    def stage(self, name: str, node: Node, place: Place) -> StageSpec:
        if not NAME.fullmatch(name):
            fit = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:63]
            said = f" (did you mean {fit!r}?)" if NAME.fullmatch(fit) else ""
            fix = "use small letters, digits, - and _, at most 63, a letter first"
            self.problems.add(place, f"{name!r} cannot be a stage's name{said}", fix)
        values = self.mapping(node, STAGE_KEYS, f"stage {name}", "{uses: merge}")
        uses = Node("", place)
        if select := values.get("select"):
            for key in sorted(set(values) - {"select"}):
                what = f"stage {name} selects: it has no {key}"
                self.problems.add(node.keys.get(key, place), what, "it takes one of the variants as it is")
        elif "uses" in values:
            uses = self.references.filled(values["uses"])
            self.text(uses, f"uses of stage {name}")
        elif isinstance(node.value, (dict, type(None))):
            self.problems.add(place, f"stage {name} does not say what it uses", "add `uses: <stage or folder>`")
        inputs_node, params_node = values.get("inputs"), values.get("params")
        inputs = {
            k: self.input(name, k, v, inputs_node.keys[k])  # type: ignore[union-attr]
            for k, v in self.open_mapping(inputs_node, f"inputs of stage {name}").items()
        }
        params = {
            k: self.references.filled(v) for k, v in self.open_mapping(params_node, f"params of stage {name}").items()
        }
        target = self.references.filled(values["target"]) if "target" in values else None
        if target:
            self.text(target, f"target of stage {name}")
        return StageSpec(
            name, place, uses, inputs, params, params_node.keys if params_node else {},
            self.resources(name, values.get("resources")), target,
            self.retry(name, values),
            self.quantity(values.get("timeout"), "timeout", read_seconds, "30min", above=True),
            self.quantity(values.get("grace"), "grace", read_seconds, "30s", default=GRACE) or 0.0, select,
            inputs_node is not None and not isinstance(inputs_node.value, (dict, type(None))),
        )  # fmt: skip

    def input(self, stage: str, name: str, node: Node, key: Place) -> InputValue:
        if isinstance(node.value, str) and "stages." in node.value and (m := WHOLE.fullmatch(node.value)):
            parts = m.group(1).strip().split(".")
            if parts[0] == "stages" and len(parts) == 3 and all(parts):
                return InputValue(Ref(parts[1], parts[2]), key, node.place)
        value = self.references.filled(node, whole_stage=True)
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
        return InputValue(value.value, key, node.place, value.origin)

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
        found = [self.references.filled(entry) for entry in node.value]
        for entry in found:
            value = entry.value
            number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255 and value != EXIT_USER
            if not number and value not in (TIMEOUT, FAILED):
                why = "2 is never tried again" if value == EXIT_USER else f"on cannot hold {shown(value)}"
                self.problems.add(entry.place, why, fix)
        return frozenset(entry.value for entry in found if isinstance(entry.value, (int, str)))

    # --- types ---

    def mapping(self, node: Node, known: Sequence[str], what: str, example: str = "") -> dict[str, Node]:
        """The values of known keys. An unknown key that is near to a known one stands for it from then on: it is told
        once, and not that the other one is missing."""
        values = self.open_mapping(node, what, example)
        found = {k: v for k, v in values.items() if k in known}
        for key in values:
            if key in known:
                continue
            place = node.keys.get(key, node.place)
            meant = ELSEWHERE.get(key, "") if ELSEWHERE.get(key) in known else guess(key, known)
            said = f" (did you mean {meant!r}?)" if meant else ""
            fix = f"known keys: {', '.join(known)}"
            if key in ("needs", "depends_on", "dependencies", "deps"):
                fix = "references in its inputs make the order: ${{ stages.NAME.OUTPUT }}"
            self.problems.add(place, f"unknown key {key!r} in {what}{said}", fix)
            if guess(key, known) == meant and meant:
                found.setdefault(meant, values[key])
        return found

    def open_mapping(self, node: Node | None, what: str, example: str = "") -> dict[str, Node]:
        if node is None or node.value is None:
            return {}
        if not isinstance(node.value, dict):
            what = f"{what} must be a mapping, not {node.kind()}"
            self.problems.add(node.place, what, f"in its place write {example or '{key: value}'}")
            return {}
        return dict(node.value)

    def text(self, node: Node, what: str) -> str:
        if node.value == FAILED:
            return ""
        if not isinstance(node.value, str) or not node.value:
            fix = f'write "{node.value}" in quotes' if isinstance(node.value, (int, float)) else "give a word"
            fix = "give a word, or leave the key out" if node.value in (None, "") else fix
            self.problems.add(node.place, f"{what} must be text, not {node.kind()}", fix)
            return ""
        return node.value

    def count(self, node: Node | None, what: str, default: int, least: int = 0) -> int:
        value = self.references.filled(node).value if node else None
        if node is None or value is None:
            return default
        if value == FAILED:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            text = f"{what} must be a whole number, {least} or more, not {shown(value)}"
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
        value = self.references.filled(node).value if node else None
        if node is None or value in (None, FAILED):
            return default
        number = None if isinstance(value, (bool, list, dict)) else read(str(value).strip())
        if number is None or (above and number == 0):
            meant = in_our_words(str(value).strip())
            good = meant if meant != str(value).strip() and read(meant) else example
            sort = "above 0" if above else "0 or more"
            sort = f"written as {good}" if good != example else f"{sort}, such as {example}"
            self.problems.add(node.place, f"{what} must be {sort}, not {shown(value)}", f"write {what}: {good}")
            return default
        return number
