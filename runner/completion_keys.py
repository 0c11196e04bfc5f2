"""Completes `--set KEY=VALUE`, from a pipeline file and the interfaces of its stages; and the words of `explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner.document import Node, load
from runner.folders import INTERFACE, stages_folder

Found = list[tuple[str, str]]
Interface = dict[str, Any]


def settings(file: Path, current: str) -> Found:
    """What may follow `--set`: a key up to its next dot or `=`, then a value where some are known."""
    root = load(file)
    key, equals, _ = current.partition("=")
    if equals:
        return [(f"{key}={value}", text) for value, text in _values(root, key.split("."), file)]
    *before, _ = key.split(".")
    prefix = "".join(f"{word}." for word in before)
    return [(prefix + word, text) for word, text in _keys(root, before, file)]


def _keys(root: Node, before: list[str], file: Path) -> Found:
    from runner.keys import KEYS

    def said(path: str) -> str:
        return KEYS[path].help if path in KEYS else ""

    if not before:
        return [*((f"{k}.", said(k)) for k in ("params", "stages", "targets")),
                *((f"{k}=", said(k)) for k in ("store", "target", "name"))]  # fmt: skip
    if before == ["params"]:
        return [(f"{name}=", f"now {node.value!r}") for name, node in _mapping(root, "params").items()]
    stages = _mapping(root, "stages")
    if before == ["stages"]:
        return [(f"{name}.", "") for name in stages]
    if before[0] == "stages" and len(before) >= 2 and before[1] in stages:
        interface = interface_of(root, stages[before[1]], file)
        if len(before) == 2:
            open_ = ("params", "inputs", "resources", "retry", "matrix")
            closed = ("uses", "target", "retries", "timeout", "grace")
            return [*((f"{k}.", said(f"stages.{k}")) for k in open_), *((f"{k}=", said(f"stages.{k}")) for k in closed)]
        if before[2:] in (["params"], ["inputs"]):
            return [(f"{name}=", str(p.get("help", ""))) for name, p in interface.get(before[2], {}).items()]
        parent = ".".join(["stages", *before[2:]])
        return [(f"{k.name}=", k.help) for k in KEYS.values() if k.path.rpartition(".")[0] == parent]
    if before == ["targets"]:
        return [(f"{name}.", "") for name in _mapping(root, "targets")]
    if before[0] == "targets" and len(before) == 2:
        kind = _mapping(root, "targets")[before[1]].plain().get("type")
        return [(f"{k.name}=", k.help) for k in KEYS.values() if k.path.rpartition(".")[0] == f"targets.{kind}"]
    return []


def _values(root: Node, keys: list[str], file: Path) -> Found:
    from runner.targets import BUILT_IN

    stages = _mapping(root, "stages")
    if keys[-1] == "target" and len(keys) in (1, 3):
        return [(name, "") for name in (*_mapping(root, "targets"), *BUILT_IN)]
    if keys[0] == "stages" and len(keys) == 3 and keys[2] == "uses":
        return _alike(interface_of(root, stages[keys[1]], file)) if keys[1] in stages else []
    if keys[0] == "stages" and len(keys) == 4 and keys[2] == "params" and keys[1] in stages:
        return _of_param(interface_of(root, stages[keys[1]], file), keys[3])
    if keys[0] == "params" and len(keys) == 2:
        return _of_reference(root, f"params.{keys[1]}", file)
    return []


def _of_param(interface: Interface, name: str) -> Found:
    p = interface.get("params", {}).get(name, {})
    if p.get("type") == "boolean":
        return [("true", ""), ("false", "")]
    return [(c, "the default" if c == p.get("default") else "") for c in p.get("choices", ())]


def _of_reference(root: Node, reference: str, file: Path) -> Found:
    """The values that a pipeline's parameter can have, by what refers to it."""
    for node in _mapping(root, "stages").values():
        if not isinstance(node.value, dict):
            continue
        uses = node.value.get("uses")
        if uses is not None and _refers(uses, reference):
            return _alike(interface_of(root, node, file))
        params = node.value.get("params")
        for name, value in params.value.items() if params is not None and isinstance(params.value, dict) else ():
            if _refers(value, reference) and (found := _of_param(interface_of(root, node, file), name)):
                return found
    return []


def _alike(present: Interface) -> Found:
    """The stages that fit where one is used now: their inputs and outputs have the same names. All, where it is none
    that is known."""

    def names(interface: Interface) -> tuple[set[str], set[str]]:
        return set(interface.get("inputs", ())), set(interface.get("outputs", ()))

    known = {name: _read(stages_folder() / name / INTERFACE) for name in _stages()}
    return [(name, i.get("summary", "")) for name, i in known.items() if not present or names(i) == names(present)]


def _refers(node: Node, reference: str) -> bool:
    return isinstance(node.value, str) and "".join(node.value.split()) == f"${{{{{reference}}}}}"


def _stages() -> list[str]:
    return sorted(p.parent.name for p in stages_folder().glob(f"*/{INTERFACE}"))


def _mapping(root: Node, key: str) -> dict[str, Node]:
    node = root.value.get(key)
    return node.value if node is not None and isinstance(node.value, dict) else {}


def interface_of(root: Node, stage: Node, file: Path) -> Interface:
    """What the interface of a stage says, as it stands in its file; empty where that is not known."""
    uses = stage.value.get("uses") if isinstance(stage.value, dict) else None
    word = uses.value if uses is not None else None
    if isinstance(word, str) and "${{" in word:
        name = "".join(word.split()).removeprefix("${{params.").removesuffix("}}")
        given = _mapping(root, "params").get(name)
        word = given.value if given is not None else None
    if not isinstance(word, str) or ":" in word:
        return {}
    return _read((file.parent if "/" in word else stages_folder()) / word / INTERFACE)


def _read(file: Path) -> Interface:
    found: Interface = json.loads(file.read_bytes()) if file.is_file() else {}
    return found


def explainable() -> Found:
    """The words that `runner explain` knows best."""
    from runner.keys import KEYS

    stages = {name: _read(stages_folder() / name / INTERFACE) for name in _stages()}
    return [
        *((name, i["summary"]) for name, i in stages.items()),
        *((k.path, k.help) for k in KEYS.values()),
        *((f"{s}.{n}", p.get("help", "")) for s, i in stages.items() for n, p in i["params"].items()),
    ]
