"""YAML as a tree of values that know their places, so that every complaint can name file, line and column.

Plain scalars are read as YAML 1.2 reads them: only `true` and `false` are booleans, `1e-4` is a number, `no` and dates
are text. A key given twice is a mistake, not the last one wins. Anchors work; merge keys and tags do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from microstages.errors import EXIT_USER, UserError, nearest

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

MAX_DEPTH = 50
MAX_VALUES = 100_000  # aliases of aliases can stand for more values than memory holds


@dataclass(frozen=True, order=True)
class Place:
    """Where a value was written: a line and column of a file, or a `--set` option (line 0)."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Node:
    """A value and its place. `value` is a scalar, a list or a mapping of nodes; `keys` has the places of the keys."""

    value: Any
    place: Place
    keys: Mapping[str, Place] = field(default_factory=dict)

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {k: v.plain() for k, v in self.value.items()}
        if isinstance(self.value, list):
            return [v.plain() for v in self.value]
        return self.value

    def kind(self) -> str:
        """In words, what sort of value this is."""
        if self.value is None:
            return "empty"
        words: list[tuple[type, str]] = [(dict, "a mapping"), (list, "a list"), (str, "text"), (bool, "true or false")]
        return next((w for t, w in words if isinstance(self.value, t)), "a number")


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake: where, what, and the remedy."""

    place: Place
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" + (f"\n  {self.fix}" if self.fix else "")


class PipelineError(UserError):
    """A pipeline with mistakes: all of them, in the order of their places."""

    exit_code = EXIT_USER

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems)))
        super().__init__("\n".join(str(p) for p in self.problems))


class Problems:
    """Collects mistakes, so that all of them are told at once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, place: Place, what: str, fix: str = "") -> None:
        self.found.append(Problem(place, what, fix))

    def check(self) -> None:
        """Raises PipelineError where there is any."""
        if self.found:
            raise PipelineError(self.found)


def load(file: Path) -> Node:
    """Read a YAML file. Raises PipelineError where it cannot be read or is no YAML mapping."""
    name = str(file)
    top = Place(name, 1, 1)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        siblings = [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        guess = nearest(file.name, siblings)
        raise PipelineError(
            [Problem(Place(name), f"there is no such pipeline file{guess}", "give the path of one")]
        ) from None
    except IsADirectoryError:
        fix = "give the file, such as folder/pipeline.yaml"
        raise PipelineError([Problem(Place(name), "this is a folder, not a pipeline file", fix)]) from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise PipelineError(
            [Problem(Place(name), f"the file cannot be read: {why}", "check its owner and mode")]
        ) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise PipelineError(
            [Problem(Place(name, line, column), "this is not UTF-8 text", "save the file as UTF-8")]
        ) from None
    node = parse(text, name)
    if not isinstance(node.value, dict):
        what = "the file is empty" if node.value is None else f"a pipeline is a mapping, not {node.kind()}"
        raise PipelineError([Problem(top, what, "it begins with `name:` and has `stages:`; see the README")])
    return node


def parse(text: str, file: str) -> Node:
    """Parse YAML text. Raises PipelineError with the place of what is wrong."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if error.context_mark and "end of stream" in (error.problem or ""):
            mark = error.context_mark  # where the quote was opened says more than where the file ends
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file, 1, 1)
        what = " ".join(str(x) for x in (error.problem, error.context) if x)
        raise PipelineError(
            [Problem(place, f"this is not YAML: {what}", "check indentation, quotes and colons")]
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        what = str(error).split("\n", maxsplit=1)[0]
        raise PipelineError([Problem(Place(file, 1, 1), f"this is not YAML: {what}", "check the text")]) from None
    finally:
        loader.dispose()
    if root is None:
        return Node(None, Place(file, 1, 1))
    problems = Problems()
    node = _Reader(file, problems).node(root, ())
    problems.check()
    return node


class _Reader:
    def __init__(self, file: str, problems: Problems) -> None:
        self.file, self.problems, self.count = file, problems, 0

    def place(self, node: yaml.Node) -> Place:
        return Place(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def node(self, node: yaml.Node, above: tuple[int, ...]) -> Node:
        place = self.place(node)
        self.count += 1
        if id(node) in above:
            raise PipelineError([Problem(place, "this alias contains itself", "write the value out")])
        if self.count > MAX_VALUES:
            raise PipelineError([Problem(place, f"there are more than {MAX_VALUES} values", "use fewer aliases")])
        if len(above) > MAX_DEPTH:
            raise PipelineError([Problem(place, "this is nested too deeply", "a pipeline needs six levels")])
        above = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, place, above)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.node(child, above) for child in node.value], place)
        assert isinstance(node, yaml.ScalarNode)
        if node.tag.startswith("!"):
            self.problems.add(place, f"the tag {node.tag} has no meaning here", "remove it")
        return Node(plain_scalar(node.value) if not node.style else node.value, place)

    def mapping(self, node: yaml.MappingNode, place: Place, above: tuple[int, ...]) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        for key, value in node.value:
            at = self.place(key)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.add(at, "a key must be a word", "write `key: value`")
                continue
            name = key.value
            if name == "<<" and not key.style:
                self.problems.add(at, "merge keys (<<) are not read", "repeat the values, or use params")
            elif name in values:
                self.problems.add(at, f"{name!r} is given twice, first at line {keys[name].line}", "remove one of them")
            else:
                values[name], keys[name] = self.node(value, above), at
        return Node(values, place, keys)


_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def plain_scalar(text: str) -> Any:
    """The value of an unquoted YAML scalar, by the core schema of YAML 1.2."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INT.fullmatch(text) and len(text) < 400:
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text.lower().lstrip("+-") in (".inf", ".nan"):
        return -math.inf if text.startswith("-") else float(text.lower().lstrip("+").replace(".", ""))
    return text


def override(root: Node, settings: Sequence[str]) -> Node:
    """The tree with `--set path.to.key=value` applied, in order. Raises PipelineError where a path or value is wrong.

    What a pipeline names itself (its params, its stages) must be there already; other keys are checked later as if
    they stood in the file.
    """
    problems = Problems()
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = path.strip().split(".")
        place = Place(f"--set {path.strip()}")
        if not equals or not all(keys):
            problems.add(Place(f"--set {setting}"), "this is no KEY=VALUE", "write it as --set params.name=value")
            continue
        try:
            value = _at(parse(text, place.file), place)
        except PipelineError as error:
            problems.add(place, error.problems[0].what, "quote the value as YAML wants it")
            continue
        if keys[0] in ("params", "stages") and isinstance(root.value.get(keys[0]), Node) and len(keys) > 1:
            known = root.value[keys[0]].value
            if isinstance(known, dict) and keys[1] not in known:
                noun = "parameter" if keys[0] == "params" else "stage"
                names = ", ".join(known) or "none"
                problems.add(place, f"there is no {noun} {keys[1]!r}{nearest(keys[1], known)}", f"there are: {names}")
                continue
        root = _put(root, keys, value, place, problems)
    problems.check()
    return root


def _at(node: Node, place: Place) -> Node:
    if isinstance(node.value, dict):
        return Node({k: _at(v, place) for k, v in node.value.items()}, place, dict.fromkeys(node.value, place))
    if isinstance(node.value, list):
        return Node([_at(v, place) for v in node.value], place)
    return Node(node.value, place)


def _put(node: Node, keys: Sequence[str], value: Node, place: Place, problems: Problems) -> Node:
    if not keys:
        return value
    inside = {} if node.value is None else node.value
    if not isinstance(inside, dict):
        problems.add(place, f"{keys[0]!r} cannot be set in {node.kind()}", "check the path")
        return node
    old = inside.get(keys[0], Node(None, place))
    new = _put(old, keys[1:], value, place, problems)
    return Node({**inside, keys[0]: new}, node.place, {keys[0]: place, **node.keys})
