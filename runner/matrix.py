"""Variants of stages: a `matrix` on a stage makes one stage of it for each combination of its values.

    onnx:
      uses: build-onnx
      matrix: {precision: [int4, int8], algorithm: [rtn, k_quant]}

Each key is a parameter of the stage, unless the stage refers to it itself, as `${{ matrix.key }}`, which may stand
wherever a reference may. A stage that takes from a stage with variants has the same variants; one that takes from two
has their combinations. `exclude` leaves out combinations. A `select` ends it: it takes one of the variants.

This happens before a pipeline is checked: what is checked afterwards has no matrix any more.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from microstages.errors import nearest

from runner.document import Node, Place, Problem, Problems

MOST = 200  # variants of one stage
_MATRIX = re.compile(r"\$\{\{\s*matrix\.([^}]*?)\s*\}\}")
_STAGE = re.compile(r"(\$\{\{\s*stages\.)([A-Za-z0-9_-]+)(\.)")

Values = dict[tuple[str, str], Any]  # (stage with the matrix, key) -> value


@dataclass(frozen=True)
class Variant:
    """One stage that a matrix made: of which, and with which values."""

    base: str
    values: Mapping[str, Any]


@dataclass
class _Stage:
    node: Node
    variants: list[Values] = field(default_factory=lambda: [{}])
    names: list[str] = field(default_factory=list)


def expand(root: Node, problems: Problems) -> tuple[Node, dict[str, Variant]]:
    """The pipeline without matrices, and what each stage that one made is. What is wrong goes to `problems`."""
    top = root.value.get("stages") if isinstance(root.value, dict) else None
    if top is None or not isinstance(top.value, dict) or not any(_has(n, "matrix") for n in top.value.values()):
        return root, {}
    return _Expansion(top, problems).done(root)


def _has(node: Node, key: str) -> bool:
    return isinstance(node.value, dict) and key in node.value


class _Expansion:
    def __init__(self, top: Node, problems: Problems) -> None:
        self.top, self.problems = top, problems
        self.stages: dict[str, _Stage] = {}

    def done(self, root: Node) -> tuple[Node, dict[str, Variant]]:
        for name in self.top.value:
            self.look(name, ())
        nodes: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        variants: dict[str, Variant] = {}
        for name in self.top.value:
            stage, place = self.stages[name], self.top.keys.get(name, self.top.place)
            for values, own in zip(stage.variants, stage.names, strict=True):
                nodes[own], keys[own] = self.made(name, stage.node, values), place
                if values:
                    variants[own] = Variant(name, {key: value for (_, key), value in values.items()})
        stages = Node(nodes, self.top.place, keys)
        return Node({**root.value, "stages": stages}, root.place, root.keys), variants

    def look(self, name: str, path: tuple[str, ...]) -> _Stage:
        """A stage with its variants; those that it takes from are looked at first."""
        if name in self.stages:
            return self.stages[name]
        node = self.top.value[name]
        stage = _Stage(node)
        if _has(node, "select") or name in path:  # a ring is told where stages are put in order
            stage.names = [name]
            self.stages[name] = stage
            return stage
        inherited: list[Values] = [{}]
        for up in sorted(self.takes_from(node), key=list(self.top.value).index):
            inherited = _joined(inherited, self.look(up, (*path, name)).variants)
        own = self.own(name, node) if _has(node, "matrix") else [{}]
        stage.variants = [{**a, **b} for a in inherited for b in own]
        if len(stage.variants) > MOST:
            what = f"stage {name} has {len(stage.variants)} variants, more than {MOST}"
            self.problems.add(self.top.keys.get(name, node.place), what, "leave some values out")
            stage.variants = stage.variants[:1]
        stage.names = _names(name, stage.variants)
        self.stages[name] = stage
        return stage

    def takes_from(self, node: Node) -> set[str]:
        found = node.value.get("inputs") if isinstance(node.value, dict) else None
        inputs = found.value.values() if found is not None and isinstance(found.value, dict) else ()
        text = [i.value for i in inputs if isinstance(i.value, str)]
        return {m[2] for t in text for m in _STAGE.finditer(t) if m[2] in self.top.value}

    def own(self, name: str, node: Node) -> list[Values]:
        """The combinations of a stage's own matrix."""
        matrix = node.value["matrix"]
        if not isinstance(matrix.value, dict) or not matrix.value:
            kind = "an empty one" if matrix.value == {} else matrix.kind()
            what = f"matrix of stage {name} must be a mapping of lists, not {kind}"
            self.problems.add(matrix.place, what, "write `matrix: {rank: [8, 16]}`")
            return [{}]
        lists: dict[str, list[Any]] = {}
        for key, values in matrix.value.items():
            if key == "exclude":
                continue
            good = isinstance(values.value, list) and values.value
            if not good or any(isinstance(v.value, (dict, list)) for v in values.value):
                what = f"{key} in the matrix of stage {name} must be a list of values, not {values.kind()}"
                self.problems.add(values.place, what, f"write {key}: [one, another]")
                continue
            lists[key] = [v.value for v in values.value]
        found = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
        left = [f for f in found if not self.excluded(name, matrix.value.get("exclude"), f, lists)]
        if not left:
            self.problems.add(matrix.place, f"the matrix of stage {name} excludes everything", "exclude less")
        return [{(name, key): value for key, value in f.items()} for f in left or found[:1]]

    def excluded(self, name: str, node: Node | None, values: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
        if node is None or node.value is None:
            return False
        entries = node.value if isinstance(node.value, list) else [node]
        for entry in entries:
            if not isinstance(entry.value, dict) or not entry.value:
                what = f"exclude in the matrix of stage {name} must be a list of mappings"
                self.problems.add(entry.place, what, "write `exclude: [{rank: 8, dropout: 0.1}]`")
                return False
            for key in entry.value:
                if key not in known:
                    what = f"exclude in the matrix of stage {name} names {key!r}{nearest(key, known)}"
                    self.problems.add(entry.keys.get(key, entry.place), what, f"its keys: {', '.join(known)}")
            if all(values.get(k) == v.value for k, v in entry.value.items()):
                return True
        return False

    # --- making a variant ---

    def made(self, name: str, node: Node, values: Values) -> Node:
        """The stage with these values in place of its matrix."""
        if not isinstance(node.value, dict):
            return node
        rest = {k: v for k, v in node.value.items() if k != "matrix"}
        plain = Node(rest, node.place, node.keys)
        named = _referred(plain)
        filled = self.filled(name, plain, values)
        mine = {key: value for (stage, key), value in values.items() if stage == name and key not in named}
        if mine:
            place, keys_at = node.value["matrix"].place, node.value["matrix"].keys
            params = filled.value.get("params") or Node({}, place, {})
            lists = node.value["matrix"].value
            written = {k: next((n for n in lists[k].value if n.value is v), None) for k, v in mine.items()}
            own = {k: written[k] or Node(v, keys_at.get(k, place)) for k, v in mine.items()}
            both = {**(params.value or {}), **own}
            for key in set(params.value or {}) & set(mine):
                what = f"{key} of stage {name} stands in its matrix and in its params"
                self.problems.add(params.keys.get(key, params.place), what, "remove one of them")
            keys = {**params.keys, **{k: keys_at.get(k, place) for k in mine}}
            filled = Node({**filled.value, "params": Node(both, params.place, keys)}, filled.place, filled.keys)
        return filled

    def filled(self, name: str, node: Node, values: Values) -> Node:
        if isinstance(node.value, dict):
            inner = {k: self.filled(name, v, values) for k, v in node.value.items()}
            return Node(inner, node.place, node.keys)
        if isinstance(node.value, list):
            return Node([self.filled(name, v, values) for v in node.value], node.place, node.keys)
        if not isinstance(node.value, str) or "${{" not in node.value:
            return node
        if m := _MATRIX.fullmatch(node.value.strip()):
            return Node(self.value(name, m[1], node.place, values), node.place)

        def text(m: re.Match[str]) -> str:
            value = self.value(name, m[1], node.place, values)
            return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)

        def reference(m: re.Match[str]) -> str:
            return m[1] + self.variant_of(m[2], values) + m[3]

        return Node(_STAGE.sub(reference, _MATRIX.sub(text, node.value)), node.place)

    def value(self, name: str, word: str, place: Place, values: Values) -> Any:
        """What `${{ matrix.word }}` stands for: `key`, or `stage.key` where several stages have one."""
        stage, _, key = word.rpartition(".")
        found = [v for (s, k), v in values.items() if k == key and stage in ("", s)]
        if len(found) == 1:
            return found[0]
        known = ", ".join(f"{s}.{k}" if not found else k for s, k in values) or "none"
        if found:
            what = f"matrix.{word} is a key of several matrices"
            self.problems.add(place, what, f"write matrix.STAGE.{key}; known: {known}")
        else:
            guess = nearest(key, [k for _, k in values])
            what = f"stage {name} has no matrix key {word!r}{guess}"
            self.problems.add(place, what, f"known: {known}")
        return found[0] if found else None

    def variant_of(self, name: str, values: Values) -> str:
        """The name of the variant of another stage that goes with these values."""
        stage = self.stages.get(name)
        if stage is None:
            return name
        for own, given in zip(stage.names, stage.variants, strict=True):
            if all(values.get(key, value) == value for key, value in given.items()):
                return own
        return name


def _joined(one: list[Values], other: list[Values]) -> list[Values]:
    """Combinations of two lists of values that agree where they speak of the same."""
    return [{**a, **b} for a in one for b in other if all(a.get(k, v) == v for k, v in b.items())]


def _referred(node: Node) -> set[str]:
    """The keys that a stage refers to by itself."""
    if isinstance(node.value, dict):
        return set().union(*map(_referred, node.value.values())) if node.value else set()
    if isinstance(node.value, list):
        return set().union(*map(_referred, node.value)) if node.value else set()
    return {m[1].rpartition(".")[2] for m in _MATRIX.finditer(node.value)} if isinstance(node.value, str) else set()


def _names(base: str, variants: list[Values]) -> list[str]:
    """A name for each variant: the stage's, and its values where they differ."""
    if variants == [{}]:
        return [base]
    differing = [k for k in variants[0] if len({repr(v.get(k)) for v in variants}) > 1] or list(variants[0])[:1]
    names: list[str] = []
    for values in variants:
        words = [re.sub(r"[^a-z0-9_]+", "-", _word(values[k]).lower()).strip("-") or "none" for k in differing]
        name = "-".join([base, *words])[:60].rstrip("-")
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def _word(value: Any) -> str:
    """A value as a part of a name: `3e-4` as such, `0.1` as `0_1`."""
    if not isinstance(value, float):
        return str(value)
    if value and abs(value) < 0.01:
        digits, _, power = f"{value:e}".partition("e")
        return f"{float(digits):g}e{int(power)}".replace(".", "_")
    return f"{value:g}".replace(".", "_")


def once(found: Sequence[Problem], variants: Mapping[str, Variant]) -> list[Problem]:
    """What is wrong with every variant of a stage is told of the stage."""
    if not variants:
        return list(found)
    names = re.compile("|".join(sorted(map(re.escape, variants), key=len, reverse=True)))

    def plain(text: str) -> str:
        return names.sub(lambda m: variants[m[0]].base, text)

    alike: dict[Problem, list[Problem]] = {}
    for p in found:
        one = replace(p, what=plain(p.what), fix=plain(p.fix), common=plain(p.common))
        alike.setdefault(one, []).append(p)
    return [one if len(set(many)) > 1 else many[0] for one, many in alike.items()]
