"""References to parameters, `${{ params.NAME }}`, and what stands for one that leads nowhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from microstages.errors import nearest

from runner.document import Node, Place, Problems
from runner.problems import Origin

REFERENCE = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
WHOLE = re.compile(r"\s*\$\{\{((?:(?!\}\}).)*)\}\}\s*", re.DOTALL)
FAILED = "\0"  # stands for the value of a reference that does not exist: told already, not to be complained of again


class References:
    """Fills in a pipeline's parameters. `used`: those that something referred to."""

    def __init__(self, params: Mapping[str, Node], problems: Problems) -> None:
        self.params, self.problems = params, problems
        self.used: set[str] = set()

    def filled(self, node: Node, whole_stage: bool = False) -> Node:
        """The node with `${{ params.x }}` replaced: in its type where it is the whole value, as text inside text."""
        if isinstance(node.value, list):
            return Node([self.filled(v) for v in node.value], node.place)
        if not isinstance(node.value, str) or "${{" not in node.value:
            return node
        if m := WHOLE.fullmatch(node.value):
            return Node(
                self.param(m.group(1), node.place, whole_stage), node.place, origin=self.origin(m.group(1).strip())
            )

        def one(m: re.Match[str]) -> str:
            value = self.param(m.group(1), node.place, whole_stage)
            return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)

        text = REFERENCE.sub(one, node.value)
        if REFERENCE.sub("", node.value).count("${{"):
            self.problems.add(node.place, "a reference is not closed", "write ${{ params.name }}")
            return Node(FAILED, node.place)
        return Node(FAILED if FAILED in text else text, node.place)

    def origin(self, word: str) -> Origin | None:
        """Where the value of `params.NAME` was given."""
        given = self.params.get(word.partition(".")[2]) if word.startswith("params.") else None
        return Origin(word, given.place) if given else None

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
            self.problems.add(place, f"${{{{{inner}}}}} is not a reference{guess}", fix)
        return FAILED
