"""Every key misspelled, every value of another type: each is found. Names that a config gives itself are free."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from olive.samples import OWN, Config, fragments, own_configs, parts, shared_configs

from runner.document import Node, PipelineError, Place
from runner.olive.convert import made_of, read

PARTS = {name: part for name, part in parts().items() if part not in shared_configs().values()}
ALL = {**own_configs(), **shared_configs(), **{name: c for name, c in fragments().items() if name in PARTS}}
# Keys that are names: of systems, passes, evaluators, tags, columns.
NAMES = re.compile(r"(systems|passes|evaluators|.*\.tags|.*\.col_filters)\.[^.\[]+")
FREE = re.compile(r".*\.(tags|col_filters)\.[^.]+")  # values of any type
SAMPLES = {"text": "no such word", "flag": True, "number": 17.5, "list": [17.5], "mapping": {"wrong": 17.5}}
# Values that Olive takes in another type too, and that cannot be told from right ones.
ALSO = {
    ("data_files", "text"), ("model_path", "text"),  # a path in place of a resource
    ("search_strategy", "mapping"), ("search_strategy", "flag"), ("cache_dir", "list"), ("report_to", "list"),
    ("alpha", "number"), ("int4_is_symmetric", "flag"),  # one value in place of several
    ("tags", "mapping"), ("col_filters", "mapping"),  # any names
    ("text_cols", "text"),  # a column
}  # fmt: skip


def node(value: Any, place: Place, path: str = "") -> Node:
    """A value as it is read, with its path for its place."""
    here = Place(path or place.file, 1, 1)
    if isinstance(value, dict):
        at = {k: f"{path}.{k}" if path else k for k in value}
        return Node(
            {k: node(v, place, at[k]) for k, v in value.items()}, here, {k: Place(p, 1, 1) for k, p in at.items()}
        )
    if isinstance(value, list):
        return Node([node(v, place, f"{path}[{n}]") for n, v in enumerate(value)], here)
    return Node(value, here)


def said(config: Config, tmp_path: Path) -> str:
    """What is wrong with a config; empty where nothing is."""
    try:
        made_of(node(config, Place("config")), tmp_path / "olive.json", tmp_path / "pipeline.yaml")
    except PipelineError as error:
        return str(error)
    return ""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values below a config."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in pairs:
        yield (*path, key)
        yield from places(one, (*path, key))


def mutable(name: str) -> Iterator[tuple[Any, ...]]:
    """The paths to change: of a fragment what it brings, of a whole config all."""
    part = PARTS.get(name, ALL[name])
    own = set(part) if set(part) <= set(ALL[name]) else {"passes"}
    return (path for path in places(ALL[name]) if path[0] in own)


def text(path: tuple[Any, ...]) -> str:
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


def kind(value: Any) -> str:
    types = {str: "text", bool: "flag", int: "number", float: "number", list: "list", dict: "mapping"}
    return types[type(value)]


def changed(config: Config, path: tuple[Any, ...], value: Any) -> Config:
    """A copy with another value at a path."""
    out = copy.deepcopy(config)
    inside: Any = out
    for part in path[:-1]:
        inside = inside[part]
    inside[path[-1]] = value
    return out


@pytest.mark.parametrize("name", ALL)
def test_every_misspelled_key_is_found(name: str, tmp_path: Path):
    config, tried = ALL[name], 0
    for path in mutable(name):
        if isinstance(path[-1], int) or NAMES.fullmatch(text(path)):
            continue
        out = copy.deepcopy(config)
        inside: Any = out
        for part in path[:-1]:
            inside = inside[part]
        wrong = f"{path[-1]}x"
        copied = {wrong if k == path[-1] else k: v for k, v in inside.items()}
        inside.clear()
        inside.update(copied)
        found = said(out, tmp_path)
        full = text((*path[:-1], wrong))
        assert f"unknown key {full}" in found, f"{full} is not told: {found}"
        assert f"did you mean {path[-1]!r}" in found, f"the nearest key to {full} is not told: {found}"
        tried += 1
    assert tried > 5


@pytest.mark.parametrize("name", ALL)
def test_every_value_of_a_wrong_type_is_found(name: str, tmp_path: Path):
    config, missed = ALL[name], []
    for path in mutable(name):
        value: Any = config
        for part in path:
            value = value[part]
        key = next(p for p in reversed(path) if isinstance(p, str))
        for other, sample in SAMPLES.items():
            free = (key, other) in ALSO or FREE.fullmatch(text(path))
            if other != kind(value) and not free and not said(changed(config, path, sample), tmp_path):
                missed.append((text(path), other))
    assert missed == []


@pytest.mark.parametrize("name", own_configs())
@pytest.mark.parametrize("empty", [None, {}, []])
def test_what_is_empty_or_missing_is_told_or_has_a_fate(name: str, empty: Any, tmp_path: Path):
    config = ALL[name]
    for path in places(config):
        said(changed(config, path, empty), tmp_path)  # a fault of ours would be another exception
        if empty is None and isinstance(path[-1], str):
            out = copy.deepcopy(config)
            inside: Any = out
            for part in path[:-1]:
                inside = inside[part]
            del inside[path[-1]]
            said(out, tmp_path)


def test_a_mistake_has_its_line_and_column(tmp_path: Path):
    lines = (OWN / "pages.json").read_text().splitlines()
    row = next(n for n, line in enumerate(lines) if '"lora_r"' in line)
    lines[row] = lines[row].replace('"lora_r": 32', '"lora_rr": "x"')
    file = tmp_path / "olive.json"
    file.write_text("\n".join(lines))
    with pytest.raises(PipelineError) as caught:
        made_of(read(file), file, tmp_path / "pipeline.yaml")
    column = lines[row].index('"lora_rr"') + 1
    assert str(caught.value).startswith(f"{file}:{row + 1}:{column}: unknown key passes.lora.config.lora_rr")


def test_all_mistakes_are_told_at_once(tmp_path: Path):
    config = json.loads((OWN / "pages.json").read_text())
    config["passes"]["builder"]["config"]["precision"] = "int5"
    config["passes"]["lora"]["config"]["lora_dropout"] = 2
    config["passes"]["lora"]["config"]["train_data_config"] = "dataset_default_trian"
    config["engine"]["host"] = "amm"
    found = said(config, tmp_path)
    for text_ in ("'int5'", "dropout of train-lora", "'dataset_default_train'", "no such system (did you mean 'aml'?)"):
        assert text_ in found


@pytest.mark.parametrize("value, words", [
    ("", "the file is empty"), ("[1]", "a config is a mapping"), ('{"passes": ', "not YAML"),
    ('{"a": 1, "a": 2}', "given twice"),
])  # fmt: skip
def test_a_file_that_is_no_config_is_told(tmp_path: Path, value: str, words: str):
    (file := tmp_path / "olive.json").write_text(value)
    with pytest.raises(PipelineError, match=words):
        read(file)
