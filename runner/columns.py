"""Whether the fields that a `prepare-data` stage names are in its source, told before any stage runs.

Only the beginning of a file of this machine is read: CSV, JSON Lines, or JSON that is a list of rows, packed by gzip or
not. Where that does not tell what the rows are (Parquet, folders, nested JSON, addresses), nothing is said: the stage
tells it when it runs.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.errors import nearest

from runner.document import Node, Place, Problems
from runner.pipeline import External, Pipeline, Stage
from runner.spec import Spec

HEAD = 1 << 18  # bytes of a file that are looked at
ROWS = 100  # as many as the stage looks at
TEMPLATES = ("template", "prompt_template", "completion_template")
NAMES = ("prompt_field", "completion_field", "messages_field")


def check(pipeline: Pipeline, spec: Spec, problems: Problems) -> None:
    """Tell each field that is not there, at the place where it is written."""
    read: dict[tuple[Path, str, str], tuple[str, ...]] = {}
    for stage in pipeline.stages.values():
        source = stage.inputs.get("source")
        path = storage.local_path(source.uri) if isinstance(source, External) else None
        if stage.uses != "prepare-data" or stage.select or path is None:
            continue
        kind, mark = str(stage.params.get("input_format")), str(stage.params.get("delimiter"))
        if (path, kind, mark) not in read:
            read[path, kind, mark] = fields(path, kind, mark)
        if there := read[path, kind, mark]:
            _stage(stage, spec, path, there, problems)


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


def fields(path: Path, kind: str = "auto", delimiter: str = "auto") -> tuple[str, ...]:
    """The names of a file's fields, as its first rows have them; empty where that cannot be told."""
    try:
        with path.open("rb") as f:
            head = f.read(HEAD)
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as f:
                head = f.read(HEAD)
        text = head.decode("utf-8-sig", errors="ignore").lstrip()
    except (OSError, EOFError):
        return ()
    if not text or kind == "parquet" or head[:4] == b"PAR1" or b"\0" in head[:4096] or head[:2] in (b"\xff\xfe",):
        return ()
    try:
        if kind != "csv" and (kind in ("json", "jsonl") or text[0] in "{["):
            return _json(text, whole=len(head) < HEAD)
        return _csv(text, delimiter)
    except (ValueError, RecursionError, csv.Error):
        return ()


def _json(text: str, whole: bool) -> tuple[str, ...]:
    found: dict[str, None] = {}
    rows = _listed(text[1:]) if text[0] == "[" else _lines(text, whole)
    for _, row in zip(range(ROWS), rows, strict=False):
        if not isinstance(row, dict):
            return ()
        found |= dict.fromkeys(map(str, row))
    return tuple(found)


def _listed(text: str) -> Iterator[Any]:
    """The rows of a JSON list, as far as they are whole."""
    decoder = json.JSONDecoder()
    text = text.lstrip()
    while text and text[0] != "]":
        try:
            row, end = decoder.raw_decode(text)
        except ValueError:
            return
        yield row
        text = text[end:].lstrip().removeprefix(",").lstrip()


def _lines(text: str, whole: bool) -> Iterator[Any]:
    """The rows of JSON Lines. Raises ValueError for what may be one document that holds rows in a list."""
    lines = [line for line in (text if whole else text[: text.rfind("\n") + 1]).split("\n") if line.strip()]
    if len(lines) == 1 and any(isinstance(v, list) for v in json.loads(lines[0]).values()):
        raise ValueError("one document")
    for line in lines:
        yield json.loads(line)


def _csv(text: str, delimiter: str) -> tuple[str, ...]:
    """The header. Which mark stands between names is told as the stage tells it: the most frequent outside quotes."""
    mark = {"auto": "", "tab": "\t"}.get(delimiter, delimiter)
    if not mark:
        quoted, counts = False, dict.fromkeys(",\t;|", 0)
        for c in text:
            quoted ^= c == '"'
            if not quoted and c in counts:
                counts[c] += 1
            elif not quoted and c == "\n":
                break
        mark = max(counts, key=lambda c: counts[c])
    return tuple(next(csv.reader(io.StringIO(text, newline=""), delimiter=mark), []))
