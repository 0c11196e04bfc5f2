"""The JSON Schema of pipeline files, for editors: `runner schema` prints it.

    schema.base.json   which values a pipeline file takes
    keys               each key in words, and its default
    interface.json     inputs, outputs and parameters of each stage, by what `uses` says

`pipeline.schema.json` is what comes of the stages of this repository; a test says when it is stale (`make interfaces`
writes it). `runner schema` in a project adds the stages of its own that its pipeline uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microstages.interface import Interface, ParamSpec

from runner.keys import KEYS, Key
from runner.parameters import sample

BASE = Path(__file__).parent / "schema.base.json"
_ANY_REFERENCE = {"type": "string", "pattern": "\\$\\{\\{"}
_REFERENCE = {"$ref": "#/$defs/reference"}
_NUMERIC = {"type": "string", "pattern": "^\\s*[-+]?([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([eE][-+]?[0-9]+)?\\s*$"}


def schema(interfaces: Mapping[str, Interface]) -> dict[str, Any]:
    """The schema with these stages, each by what `uses` says of it."""
    made: dict[str, Any] = json.loads(BASE.read_text())
    for key in KEYS.values():
        _describe(made, key)
    stage = made["$defs"]["stage"]
    stage["properties"]["uses"]["examples"] = list(interfaces)
    stage["allOf"] = []
    for name, interface in interfaces.items():
        same = {"properties": {"uses": {"const": name}}, "required": ["uses"]}
        own = "uses-" + re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
        while own in made["$defs"]:
            own += "-"  # ./merge beside merge
        stage["allOf"].append({"if": same, "then": {"$ref": f"#/$defs/{own}"}})
        made["$defs"][own] = _stage(interface)
    return made


def _describe(made: dict[str, Any], key: Key) -> None:
    """Put the words of a key where the schema speaks of it."""
    node, below = _find(made, key.path.split("."))
    text = key.help
    if key.default is not None:
        plain = key.default if isinstance(key.default, str) else json.dumps(key.default)
        text += f" Default: {plain}."
        if not isinstance(key.default, str) or " " not in key.default:
            node["default"] = key.default
    node["description"] = text
    if below is not None:
        below["description"] = text


def _find(made: dict[str, Any], words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The node of a key, and the definition of a mapping that it refers to."""
    defs = made["$defs"]
    if words[0] == "targets" and len(words) == 3:
        return defs[words[1]]["properties"][words[2]], None
    node = made["properties"][words[0]]
    for word in words[1:]:
        inner = node.get("additionalProperties")
        inside = inner if words[0] in ("stages", "targets") and node is made["properties"][words[0]] else node
        node = _resolved(defs, inside)["properties"][word]
    found = _resolved(defs, node)
    return node, found if found is not node and "properties" in found else None


def _resolved(defs: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = defs[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    return found


def _stage(interface: Interface) -> dict[str, Any]:
    """What a stage takes: a part of the schema that holds where `uses` says so."""
    inputs = {
        name: {
            "type": ["string"] if i.required else ["string", "null"],
            "minLength": 1,
            "description": f"[{' or '.join(i.kinds)}] {i.help}".strip(),
        }
        for name, i in interface.inputs.items()
    }
    needed = [name for name, i in interface.inputs.items() if i.required]
    params = [name for name, p in interface.params.items() if p.required]
    both = {
        "inputs": {"additionalProperties": False, "properties": inputs, **({"required": needed} if needed else {})},
        "params": {
            "additionalProperties": False,
            "properties": {name: parameter(p) for name, p in interface.params.items()},
        },
    }
    if needed:
        both["inputs"]["type"] = "object"
    made: dict[str, Any] = {"description": interface.summary, "properties": both}
    if needed:
        made["required"] = ["inputs"]
    if params:  # a matrix may give them
        made["if"] = {"not": {"required": ["matrix"]}}
        made["then"] = {"required": ["params"], "properties": {"params": {"type": "object", "required": params}}}
    return made


def parameter(p: ParamSpec) -> dict[str, Any]:
    """What the value of a parameter is: in its type and limits, or a reference."""
    text = p.help + (f" [{p.unit}]" if p.unit else "")
    if p.choices and p.type == "string":
        kinds: list[dict[str, Any]] = [{"enum": list(p.choices)}, _ANY_REFERENCE]
    elif p.type == "integer":
        kinds = [{"type": "integer", **_limits(p)}, _REFERENCE]
    elif p.type == "number":
        kinds = [{"type": "number", **_limits(p)}, _NUMERIC, _ANY_REFERENCE]
    elif p.type == "boolean":
        kinds = [{"type": "boolean"}, _REFERENCE]
    elif p.type == "list":
        words: dict[str, Any] = {"type": ["string", "number"]}
        if p.choices:
            words = {"anyOf": [{"enum": list(p.choices)}, _ANY_REFERENCE]}
        kinds = [{"type": "array", "items": words, **({"minItems": 1} if p.default else {})}, _REFERENCE]
    else:
        kinds = [{"type": "string"}]
    if p.nullable and not p.default:
        kinds.append({"type": "null"})
    made: dict[str, Any] = {"description": text, "anyOf": kinds}
    if p.default is not None:
        made["default"] = p.default
    else:
        made["examples"] = [_as_value(sample(p), p)]
    return made


def _limits(p: ParamSpec) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if p.min is not None:
        out["exclusiveMinimum" if p.exclusive_min else "minimum"] = p.min
    if p.max is not None:
        out["exclusiveMaximum" if p.exclusive_max else "maximum"] = p.max
    return out


def _as_value(text: str, p: ParamSpec) -> Any:
    from runner.document import parse

    return parse(text, "").plain() if p.type != "string" else text


def built_in() -> dict[str, Interface]:
    """The stages of this repository."""
    from runner import stages

    root = stages.stages_folder()
    return {f.parent.name: Interface.load(f) for f in sorted(root.glob(f"*/{stages.INTERFACE}"))}


def of_project(file: Path) -> dict[str, Interface]:
    """The stages of this repository, and those in folders that a pipeline file names. Raises PipelineError."""
    from microstages.errors import UserError

    from runner import stages
    from runner.document import load

    found = built_in()
    top = load(file).value.get("stages")
    for node in top.value.values() if top is not None and isinstance(top.value, dict) else ():
        uses = node.value.get("uses") if isinstance(node.value, dict) else None
        word = uses.value if uses is not None else None
        if isinstance(word, str) and word not in found and (file.resolve().parent / word / stages.INTERFACE).is_file():
            try:
                found[word] = stages.find(word, file.resolve().parent).interface
            except UserError:
                continue  # `runner check` says what is wrong with it
    return found


def as_text(interfaces: Mapping[str, Interface]) -> str:
    """The schema as it lies in a file."""
    return _written(schema(interfaces)) + "\n"


def _written(node: Any, indent: int = 0) -> str:
    """JSON with a line for what fits into one."""
    flat = json.dumps(node, ensure_ascii=False)
    if not isinstance(node, (dict, list)) or (len(flat) + indent <= 118 and indent > 2):
        return flat
    pad, end = " " * (indent + 2), " " * indent
    if isinstance(node, dict):
        rows = [f"{pad}{json.dumps(k)}: {_written(v, indent + 2)}" for k, v in node.items()]
        return "{\n" + ",\n".join(rows) + f"\n{end}}}"
    return "[\n" + ",\n".join(pad + _written(v, indent + 2) for v in node) + f"\n{end}]"


if __name__ == "__main__":
    (Path(__file__).parent / "pipeline.schema.json").write_text(as_text(built_in()))
