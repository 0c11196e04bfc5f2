"""`--set path.to.key=value`: values put in place of a pipeline file's; a mistake in one points into the option."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from microstages.errors import nearest

from runner.document import Node, parse
from runner.excerpt import covered, lines
from runner.problems import PipelineError, Place, Problems


def override(root: Node, settings: Sequence[str]) -> Node:
    """The tree with `--set path.to.key=value` applied, in order. Raises PipelineError where a path or value is wrong.

    What a pipeline names itself (its params, its stages) must be there already; other keys are checked later as if
    they stood in the file.
    """
    problems = Problems()
    for setting in settings:
        path, equals, text = setting.partition("=")
        name = f"--set {path.strip()}"
        keys = _keys(path, name, setting)
        if not equals or not all(k for k, _ in keys):
            what = f"--set {covered(setting)}"
            bad = next((at for k, at in keys if not k), replace(keys[0][1], column=len(setting) + 1))
            lacks = "the key is missing" if not path.strip() else "there is an empty word in the key"
            lacks = lacks if equals else "there is no ="
            fix = "write it as --set KEY=VALUE, such as --set params.rank=8 or --set target=docker"
            problems.add(replace(bad, file=what), f"this is not KEY=VALUE: {lacks}", fix)
            continue
        try:
            value = _at(parse(text, name), name, setting, len(path) + 1)
        except PipelineError as error:
            wrong = error.problems[0]
            place = _moved(wrong.place, name, setting, len(path) + 1)
            problems.add(place, wrong.what, f"{wrong.fix}; the value is YAML, and the shell takes one pair of quotes")
            continue
        if keys[0][0] in ("params", "stages") and isinstance(root.value.get(keys[0][0]), Node) and len(keys) > 1:
            known = root.value[keys[0][0]].value
            word, place = keys[1]
            if isinstance(known, dict) and word not in known:
                noun = "parameter" if keys[0][0] == "params" else "stage"
                fix = f"there are: {', '.join(known) or 'none'}"
                if noun == "parameter" and (of := _stages_with(root, word)):
                    meant = " or ".join(f"--set stages.{stage}.params.{word}={text}" for stage in of)
                    fix = f"a parameter of a stage: {covered(meant)}; {fix.replace('there are', 'of the pipeline')}"
                problems.add(place, f"there is no {noun} {word!r}{nearest(word, known)}", fix)
                continue
        root = _put(root, keys, value, problems)
    problems.check()
    return root


def _stages_with(root: Node, name: str) -> list[str]:
    """The stages that have a parameter of this name: those that give it a value, else all."""
    from runner.completion_keys import interface_of

    stages = root.value.get("stages")
    known = stages.value if stages is not None and isinstance(stages.value, dict) else {}
    found = {}
    for stage, node in known.items():
        with suppress(OSError, ValueError):
            if name in interface_of(root, node, Path(root.place.file)).get("params", {}):
                params = node.value.get("params")
                found[stage] = params is not None and isinstance(params.value, dict) and name in params.value
    return [s for s in found if found[s]] or list(found)


def _keys(path: str, name: str, setting: str) -> list[tuple[str, Place]]:
    """The words of a dotted path, and where each stands in the option."""
    found, column = [], 1
    for word in path.split("."):
        blank = len(word) - len(word.lstrip())
        found.append((word.strip(), Place(name, 0, column + blank, max(1, len(word.strip())), setting)))
        column += len(word) + 1
    return found


def _moved(place: Place, name: str, setting: str, shift: int) -> Place:
    """A place in an option's value as a place in the option."""
    if "\n" in setting:
        return Place(name, 0, 1, 1, lines(setting)[0])
    return Place(name, 0, shift + place.column, place.width, setting)


def _at(node: Node, name: str, setting: str, shift: int) -> Node:
    place = _moved(node.place, name, setting, shift)
    if isinstance(node.value, dict):
        inner = {k: _at(v, name, setting, shift) for k, v in node.value.items()}
        return Node(inner, place, {k: _moved(p, name, setting, shift) for k, p in node.keys.items()})
    if isinstance(node.value, list):
        return Node([_at(v, name, setting, shift) for v in node.value], place)
    return Node(node.value, place)


def _put(node: Node, keys: Sequence[tuple[str, Place]], value: Node, problems: Problems) -> Node:
    if not keys:
        return value
    (word, place), *rest = keys
    inside = {} if node.value is None else node.value
    if not isinstance(inside, dict):
        problems.add(place, f"{word!r} cannot be set in {node.kind()}", "set the whole value, or check the path")
        return node
    old = inside.get(word, Node(None, place))
    new = _put(old, rest, value, problems)
    return Node({**inside, word: new}, node.place, {word: place, **node.keys})
