"""Whether a `prepare-data` stage can read its source and finds the fields that it names, told before any stage runs.

Files of this machine are read by the stage's own reader (`rows`), of which a plan looks at the first rows only. Of
folders, patterns and addresses nothing is said: the stage tells it when it runs.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.errors import UserError, nearest

from runner.document import Node, Place, Problems
from runner.pipeline import External, Pipeline, Stage
from runner.spec import Spec, StageSpec

TEMPLATES = ("template", "prompt_template", "completion_template")
NAMES = ("prompt_field", "completion_field", "messages_field")
SOURCES = ("source", "test_source")


def check(
    pipeline: Pipeline, spec: Spec, problems: Problems, only: Collection[str] | None = None, whole: bool = False
) -> None:
    """Tell what cannot be read, and each field that is not there, at the place where it is written.

    `only`: the stages that are looked at (None: all); `whole`: look at every row of small files, too.
    """
    for stage in pipeline.stages.values():
        if stage.uses == "prepare-data" and not stage.select and (only is None or stage.name in only):
            _look(stage, spec, problems, whole)


def _look(stage: Stage, spec: Spec, problems: Problems, whole: bool) -> None:
    from runner import rows

    sources = [(name, v) for name in SOURCES if isinstance(v := stage.inputs.get(name), External)]
    files = [(name, v, path) for name, v in sources if (path := storage.local_path(v.uri)) and path.is_file()]
    if len(files) < len(sources) or not files or "input_format" not in stage.params or not rows.installed():
        return
    kind, mark = str(stage.params.get("input_format")), str(stage.params.get("delimiter"))
    there: dict[str, None] = {}
    before = len(problems.found)
    for name, value, path in files:
        with _told(stage, spec, problems, name, value):
            there |= dict.fromkeys(rows.fields(path, kind, mark))
    if len(problems.found) == before:
        _stage(stage, spec, files[0][2], list(there), problems)
    if len(problems.found) > before or _wrong(spec.stages[stage.name], problems):
        return
    with _told(stage, spec, problems):
        recipe = rows.recipe(stage.params, tuple(there))
        for name, value, path in files if whole else ():
            with _told(stage, spec, problems, name, value):
                rows.check_all(path, stage.params, recipe)


def _wrong(stage: StageSpec, problems: Problems) -> bool:
    """Whether a mistake in the parameters of a stage is told already: what would follow from it is not."""
    nodes = stage.params.values()
    places = {*stage.param_keys.values(), *(n.place for n in nodes), *(n.origin.place for n in nodes if n.origin)}
    return any(p.place in places for p in problems.found)


@contextmanager
def _told(
    stage: Stage, spec: Spec, problems: Problems, name: str = "", value: External | None = None
) -> Iterator[None]:
    """What the stage would say goes to `problems`: at the parameter that it is about, else at the input."""
    from runner.translated import translated

    try:
        yield
    except (OSError, ImportError):
        return  # a file that cannot be opened is told of every stage; Parquet is read where its library is
    except UserError as wrong:
        base = stage.variant.base if stage.variant else stage.name
        error = translated(wrong, stage.interface, base)
        node = spec.stages[stage.name].params.get(error.where.rpartition(".")[2])
        if node is not None and error.where.startswith("stages."):
            problems.add_in(node.place, node.origin, error.what, error.fix)
        elif value is not None:
            value.wrong(problems, f"input {name} of stage {stage.name}", f"{error.where}: {error.what}", error.fix)
        else:
            problems.add(stage.place, f"stage {stage.name}: {error.what}", error.fix)


def _stage(stage: Stage, spec: Spec, path: Path, there: Sequence[str], problems: Problems) -> None:
    told: set[str] = set()
    for name, node in spec.stages[stage.name].params.items():
        for field, text in _named(name, stage.params):
            if field in there or field in told:
                continue
            told.add(field)
            place, fix = _place(node, text), f"its fields: {_some(there)}"
            if node.origin:
                place, fix = _place(replace(node, place=node.origin.place), text), f"{fix}; {name} refers to it"
            problems.add(place, f"{path.name} has no field {field!r}{nearest(field, there)}", fix)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _place(node: Node, text: str) -> Place:
    """Where in a value a text stands; the value's own place where that is not in one line."""
    for item in node.value if isinstance(node.value, list) else ():
        if str(item.value).startswith(text):
            node = item
            break
    at = node.place.source.find(text, max(node.place.column - 1, 0))
    return replace(node.place, column=at + 1, width=len(text)) if at >= 0 and node.place.column else node.place


def _named(name: str, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields that a parameter names, each with its text there."""
    value = params.get(name)
    if name in TEMPLATES and isinstance(value, str):
        with suppress(ValueError):  # the stage says what is wrong with a template
            for _, field, spec, conversion in string.Formatter().parse(value):
                if field and params.get("values") == "python":
                    yield field.split(".")[0].split("[")[0], "{" + field
                elif field:
                    whole = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                    yield whole, "{" + whole
    elif name in (*NAMES, "completion") and isinstance(value, str):
        yield value, value
    elif name in ("columns", "where") and isinstance(value, list):
        for word in map(str, value):
            field = word.partition("=")[0] if name == "where" else word
            yield field, field
