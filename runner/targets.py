"""Where stages run: what `target` names, and what may be said of it below `targets`.

auto        in Docker where an engine answers and has the stage's image, as a process otherwise
process     as a process of this machine
docker      as a container of the local Docker engine
kubernetes  as a Job of a Kubernetes cluster
azureml     as a command job of an Azure Machine Learning workspace
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microstages.errors import nearest

from runner.document import Node, Place, Problems
from runner.options import FLAVORS, Check, one_of, secrets, text

BUILT_IN = ("auto", "process", "docker", "kubernetes", "azureml")
ELSEWHERE = ("kubernetes", "azureml")  # they see nothing of this machine's files


@dataclass(frozen=True)
class Where:
    """A place for a stage: the kind of executor, and its options."""

    kind: str = "process"
    name: str = "process"
    options: Mapping[str, Any] = field(default_factory=dict)

    def sees(self, path: Path) -> bool:
        """Whether a path of this machine is the same there: below a volume that both have."""
        return any(path.is_relative_to(str(v["path"])) for v in self.options.get("volumes") or ())


def read_options(
    kind: str, name: str, nodes: Mapping[str, Node], problems: Problems, keys: Mapping[str, Place] | None = None
) -> dict[str, Any]:
    """The checked options of a target; what is wrong goes to `problems`. `keys`: where the keys stand."""
    known = options(kind)
    out: dict[str, Any] = {}
    for key, node in nodes.items():
        if key == "type":
            continue
        if key not in known:
            fix = f"known keys: {', '.join(('type', *known))}"
            place = (keys or {}).get(key, node.place)
            problems.add(place, f"unknown key {key!r} in target {name}{nearest(key, known)}", fix)
        elif wrong := known[key](node.plain()):
            problems.add(node.place, f"{key} of target {name} {wrong[0]}", wrong[1])
        else:
            out[key] = node.plain()
    return out


def options(kind: str) -> Mapping[str, Check]:
    """What may be said of a target of this kind, and how each is checked."""
    if kind == "docker":
        return {"network": text("none, bridge, host, or the name of a network of the engine"),
                "flavor": one_of(FLAVORS, "see docs/images.md"), "secrets": secrets}  # fmt: skip
    if kind == "kubernetes":
        from runner.executors.kubernetes.options import OPTIONS

        return OPTIONS
    if kind == "azureml":
        from runner.executors.azureml.options import OPTIONS

        return OPTIONS
    return {}
