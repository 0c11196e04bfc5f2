"""`interface.json` of a stage's folder, read strictly: every mistake in it is told with line and column.

The interface itself is `microstages.interface`; what it accepts of a file is checked here before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from microstages.errors import UserError, json_mistake, nearest
from microstages.interface import SCHEMA, TYPES, InputSpec, Interface, OutputSpec, ParamSpec
from microstages.manifest import KINDS

from runner.excerpt import lines
from runner.problems import PipelineError, Place, Problem

_TOP = tuple(f.name for f in fields(Interface))
_MADE = tuple(dict.fromkeys((*KINDS, "files")))  # what an input or an output may be
_KEYS = {"inputs": InputSpec, "outputs": OutputSpec, "params": ParamSpec}
_FIX = "docs/contract.md shows one; a stage's `describe` prints one"
Path_ = tuple[str | int, ...]  # where in the JSON
Found = tuple[Path_, str, str]


def load(file: Path) -> Interface:
    """Read an `interface.json`. Raises PipelineError with everything that is wrong in it."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        value = json.loads(text)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise PipelineError(
            [Problem(Place(str(file)), f"it cannot be read: {why}", "check its owner and mode")]
        ) from None
    except UnicodeDecodeError:
        raise PipelineError([Problem(Place(str(file)), "this is not UTF-8 text", "save the file as UTF-8")]) from None
    except json.JSONDecodeError as error:
        source = lines(text)[error.lineno - 1]
        place = Place(str(file), error.lineno, error.colno, 1, source)
        what = json_mistake(error)[1]
        raise PipelineError(
            [Problem(place, f"this is not JSON: {what}", "check commas, quotes and brackets")]
        ) from None
    except RecursionError:
        raise PipelineError([Problem(Place(str(file)), "this is nested too deeply", _FIX)]) from None
    found = list(_mistakes(value, file.parent))
    if found:
        raise PipelineError(_placed(found, text, str(file)))
    try:
        return Interface.parse(text, file)
    except UserError as error:
        raise PipelineError([Problem(Place(str(file), 1, 1, 1, lines(text)[0]), error.what, error.fix)]) from None


def _placed(found: Sequence[Found], text: str, file: str) -> list[Problem]:
    """The mistakes with their places: JSON is YAML, whose nodes know them."""
    from runner.document import parse

    try:
        root = parse(text, file)
    except PipelineError as error:
        return [Problem(error.problems[0].place, what, fix) for _, what, fix in found]
    made = []
    for path, what, fix in found:
        node, place = root, root.place
        for word in path:
            inner = node.value
            if isinstance(inner, list) and isinstance(word, int) and word < len(inner):
                node = inner[word]
                place = node.place
            elif isinstance(inner, dict) and word in inner:
                place = node.keys[str(word)]
                node = inner[word]
                said = not isinstance(node.value, (dict, list)) and not what.startswith("unknown key")
                place = node.place if said and word == path[-1] else place
            else:
                break
        made.append(Problem(place, what, fix))
    return made


def _mistakes(v: Any, folder: Path) -> list[Found]:
    if not isinstance(v, dict):
        return [((), "this interface cannot be read: it is no JSON object", _FIX)]
    if v.get("schema") != SCHEMA:
        return [(("schema",), f"interface schema {v.get('schema')!r} is not known here", f'write "schema": {SCHEMA}')]
    found: list[Found] = []
    for key in v:
        if key not in _TOP and not key.startswith("$"):
            found.append(((key,), f"unknown key {key!r}{nearest(key, _TOP)}", f"known keys: {', '.join(_TOP)}"))
    wanted: list[tuple[str, Callable[[Any], bool], str]] = [
        ("name", _text, 'a name, such as "name": "upper"'),
        ("version", _text, 'text, such as "version": "1"'),
        ("summary", lambda x: isinstance(x, str), "text in a sentence"),
        *((key, lambda x: isinstance(x, dict), f'an object, such as "{key}": {{}}') for key in _KEYS),
    ]
    for key, good, example in wanted:
        if key not in v:
            found.append(((), f"this interface cannot be read: it has no {key!r}", f"add {example}"))
        elif not good(v[key]):
            found.append(((key,), f"this interface cannot be read: {key} is of a wrong type", f"give {example}"))
    command = v.get("command")
    if not (isinstance(command, list) and command and all(_text(w) for w in command)):
        found.append((("command",), "its command is not a list of words", 'such as "command": ["sh", "./run.sh"]'))
    if v.get("manifest", "stage") not in ("stage", "runner"):
        found.append((("manifest",), f"its manifest is {v['manifest']!r}", 'write "stage" or "runner"'))
    for key, spec in _KEYS.items():
        if isinstance(v.get(key), dict):
            for name, one in v[key].items():
                found += _one(key, name, one, tuple(f.name for f in fields(spec)))
    if v.get("outputs") == {}:
        found.append((("outputs",), "it has no outputs", "a stage makes at least one artifact"))
    return [*found, *_code(v.get("code", ["."]), folder)]


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _code(code: Any, folder: Path) -> list[Found]:
    if not isinstance(code, list) or not all(_text(c) for c in code):
        return [(("code",), "its code is not a list of files and folders", 'such as "code": ["."]')]
    return [
        (("code", n), f"its code names {name!r}, which is not there", "correct `code`")
        for n, name in enumerate(code)
        if not (folder / name).exists()
    ]


def _one(group: str, name: str, one: Any, known: Sequence[str]) -> list[Found]:
    """What is wrong with one input, output or parameter."""
    noun = {"inputs": "input", "outputs": "output", "params": "parameter"}[group]
    at: Path_ = (group, name)
    if not isinstance(one, dict):
        return [(at, f"{noun} {name!r} is no JSON object", f'such as {{"flag": "--{name}", …}}')]
    found: list[Found] = []
    for key in one:
        if key not in known:
            what = f"unknown key {key!r} in {noun} {name!r}{nearest(key, known)}"
            found.append(((*at, key), what, f"known keys: {', '.join(known)}"))
    flag = one.get("flag")
    if not (_text(flag) and str(flag).startswith("--")):
        found.append(((*at, "flag"), f"{noun} {name!r} has no flag", f'write "flag": "--{name.replace("_", "-")}"'))
    if group == "outputs":
        found += _kinds(at, "kind", noun, name, [one.get("kind")], _MADE)
    elif group == "inputs":
        kinds = one.get("kinds")
        if not isinstance(kinds, list) or not kinds:
            found.append(((*at, "kinds"), f"input {name!r} has no list of kinds", 'such as "kinds": ["files"]'))
        else:
            found += _kinds(at, "kinds", noun, name, kinds, _MADE)
    else:
        found += _parameter(at, name, one) if not found else []
    return found


def _kinds(at: Path_, key: str, noun: str, name: str, kinds: Sequence[Any], known: Sequence[str]) -> list[Found]:
    return [
        ((*at, key), f"its {noun} {name!r} has the unknown kind {kind!r}{nearest(str(kind), known)}",
         f"kinds: {', '.join(known)}")
        for kind in kinds
        if kind not in known
    ]  # fmt: skip


def _parameter(at: Path_, name: str, one: Mapping[str, Any]) -> list[Found]:
    if one.get("type") not in TYPES:
        what = f"parameter {name!r} has the unknown type {one.get('type')!r}{nearest(str(one.get('type')), TYPES)}"
        return [((*at, "type"), what, f"types: {', '.join(TYPES)}")]
    choices = one.get("choices", ())
    if not isinstance(choices, (list, tuple)) or not all(isinstance(c, str) for c in choices):
        return [((*at, "choices"), f"choices of parameter {name!r} are not a list of text", 'such as ["a", "b"]')]
    for limit in ("min", "max"):
        if not isinstance(one.get(limit, 0), (int, float)) or isinstance(one.get(limit), bool):
            return [((*at, limit), f"{limit} of parameter {name!r} is not a number", f'such as "{limit}": 1')]
    default = one.get("default")
    if default is not None:
        try:
            ParamSpec(**{**one, "choices": tuple(choices)}).check(default)
        except ValueError as error:
            return [((*at, "default"), f"the default of parameter {name!r} {error}", "give one that fits, or null")]
    return []
