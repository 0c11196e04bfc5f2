"""YAML as a tree of values that know their places, so that every complaint can name file, line and column.

Plain scalars are read as YAML 1.2 reads them: only `true` and `false` are booleans, `1e-4` is a number, `no` and dates
are text. A key given twice is a mistake, not the last one wins. Anchors work; merge keys and tags do not.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from microstages.errors import nearest

from runner.broken import Loader, broken, unreadable
from runner.excerpt import lines
from runner.problems import Origin, PipelineError, Place, Problem, Problems

__all__ = ["Node", "PipelineError", "Place", "Problem", "Problems", "load", "parse", "plain_scalar"]

MAX_DEPTH = 50
MAX_VALUES = 100_000  # aliases of aliases can stand for more values than memory holds


@dataclass(frozen=True)
class Node:
    """A value and its place. `value` is a scalar, a list or a mapping of nodes; `keys` has the places of the keys."""

    value: Any
    place: Place
    keys: Mapping[str, Place] = field(default_factory=dict)
    origin: Origin | None = None  # where the value of a reference comes from

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


def load(file: Path) -> Node:
    """Read a YAML file. Raises PipelineError where it cannot be read or is no YAML mapping."""
    name = str(file)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        siblings = [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        guess = nearest(file.name, siblings)
        raise PipelineError(
            [Problem(Place(name), f"there is no such pipeline file{guess}", _elsewhere(file))]
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
        begin = data.rfind(b"\n", 0, error.start) + 1
        source = data[begin:].split(b"\n", 1)[0].decode(errors="replace")
        column = len(data[begin : error.start].decode(errors="replace")) + 1
        place = Place(name, data.count(b"\n", 0, error.start) + 1, column, 1, source)
        fix = "save the file as UTF-8" + (" (it looks like UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "")
        raise PipelineError([Problem(place, "this is not UTF-8 text", fix)]) from None
    node = parse(text, name)
    if not isinstance(node.value, dict):
        what = "the file is empty" if node.value is None else f"a pipeline is a mapping, not {node.kind()}"
        fix = "a pipeline file begins with `name:` and has `stages:`; `runner init FOLDER` makes one"
        raise PipelineError([Problem(Place(name, 1, 1, 1, node.place.source), what, fix)])
    return node


def _elsewhere(file: Path) -> str:
    """What to do where there is no pipeline file: one may lie in a folder above."""
    fix = "give the path of one, or make a project: runner init FOLDER"
    here = Path.cwd()
    if file.parent != Path():
        return fix
    above = next((p for p in here.parents if (p / file.name).is_file()), None)
    if above is None:
        return fix
    way = os.path.relpath(above, here)
    return f"there is one in {above}: cd {way}, or give -p {way}"


def parse(text: str, file: str) -> Node:
    """Parse YAML text. Raises PipelineError with the place of what is wrong."""
    source = lines(text)
    loader = Loader(text)
    try:
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise PipelineError([broken(error, source, file)]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise PipelineError([unreadable(error, text, file)]) from None
    finally:
        loader.dispose()
    if root is None:
        return Node(None, Place(file, 1, 1, 1, source[0]))
    problems = Problems()
    node = _Reader(file, problems, source).node(root, ())
    problems.check()
    return node


class _Reader:
    def __init__(self, file: str, problems: Problems, source: Sequence[str]) -> None:
        self.file, self.problems, self.source, self.count = file, problems, source, 0

    def place(self, node: yaml.Node) -> Place:
        start, end = node.start_mark, node.end_mark
        source = self.source[start.line] if start.line < len(self.source) else ""
        width = end.column - start.column if end.line == start.line else 1
        return Place(self.file, start.line + 1, start.column + 1, max(1, width), source)

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
                kind = "a list" if isinstance(key, yaml.SequenceNode) else "a mapping"
                fix = "write a word before the colon, `key: value`"
                self.problems.add(at, f"a key must be a word, not {kind}", fix)
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
