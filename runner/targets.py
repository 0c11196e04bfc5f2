"""Where stages run: what `target` names, and what may be said of it below `targets`.

auto      in Docker where an engine answers and has the stage's image, as a process otherwise
process   as a process of this machine
docker    as a container of the local Docker engine
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from microstages.errors import nearest

from runner.document import Node, Problems

BUILT_IN = ("auto", "process", "docker")
OPTIONS = {"process": (), "docker": ("network", "flavor", "secrets")}
FLAVORS = ("cpu", "cuda")


@dataclass(frozen=True)
class Where:
    """A place for a stage: the kind of executor, and its options."""

    kind: str = "process"
    name: str = "process"
    options: Mapping[str, Any] = field(default_factory=dict)


def read_options(kind: str, name: str, nodes: Mapping[str, Node], problems: Problems) -> dict[str, Any]:
    """The checked options of a target; what is wrong goes to `problems`."""
    known = OPTIONS[kind]
    out: dict[str, Any] = {}
    for key, node in nodes.items():
        if key == "type":
            continue
        if key not in known:
            fix = f"known keys: {', '.join(('type', *known))}"
            problems.add(node.place, f"unknown key {key!r} in target {name}{nearest(key, known)}", fix)
        elif wrong := _CHECKS[key](node.plain()):
            problems.add(node.place, f"{key} of target {name} {wrong[0]}", wrong[1])
        else:
            out[key] = node.plain()
    return out


def _network(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and value:
        return None
    return "must be text", "none, bridge, host, or the name of a network of the engine"


def _flavor(value: Any) -> tuple[str, str] | None:
    return None if value in FLAVORS else (f"must be {' or '.join(FLAVORS)}, not {value!r}", "see docs/images.md")


def _secrets(value: Any) -> tuple[str, str] | None:
    fix = "name variables of your environment, or give `{name: …, file: …}`; a value never stands here"
    if not isinstance(value, list):
        return "must be a list", fix
    for entry in value:
        name = entry.get("name") if isinstance(entry, dict) else entry
        if isinstance(entry, dict) and (set(entry) != {"name", "file"} or not isinstance(entry["file"], str)):
            return "holds a mapping that is not `{name: …, file: …}`", fix
        if not isinstance(name, str) or not name.replace("_", "").isalnum():
            return "holds what is no name of a variable", fix
    return None


_CHECKS: Mapping[str, Callable[[Any], tuple[str, str] | None]] = {
    "network": _network,
    "flavor": _flavor,
    "secrets": _secrets,
}
