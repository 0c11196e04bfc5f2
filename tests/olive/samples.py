"""Configs of Olive: those beside the checkout, the fragments of its pages, and small ones of our own."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
OWN = Path(__file__).parent / "configs"
SHARED = Path(os.environ.get("MICROSTAGES_SHARED") or ROOT.parent / "shared") / "olive"
Config = dict[str, Any]


def own_configs() -> dict[str, Config]:
    """Our own configs by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(OWN.glob("*.json"))}


def shared_configs() -> dict[str, Config]:
    """The real configs beside the checkout by name; none where they are not there."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(SHARED.glob("*.json"))}


def fragments() -> dict[str, Config]:
    """The fragments of the pages beside the checkout, each put into a whole config of ours."""
    return {name: completed(part) for name, part in parts().items()}


def parts() -> dict[str, Config]:
    """The fragments as they stand there."""
    found = {}
    for page in sorted((SHARED / "docs").glob("*.md")):
        for n, block in enumerate(re.findall(r"^```json\n(.*?)^```", page.read_text(), flags=re.S | re.M)):
            found[f"{page.stem}-{n}"] = json.loads(as_mapping(block))
    return found


def as_mapping(block: str) -> str:
    """A fragment as JSON text."""
    text = block.strip().rstrip(",")
    return text if text.startswith("{") else "{" + text + "}"


def completed(part: Config) -> Config:
    """A whole config with this part in place of its own."""
    whole = copy.deepcopy(own_configs()["pages"])
    passes = {k: v for k, v in part.items() if isinstance(v, dict) and "type" in v and k != "input_model"}
    if passes:
        part = {"passes": {**(whole["passes"] if "lora" not in passes else {}), **passes}}
    whole |= copy.deepcopy(part)
    engine, systems = whole["engine"], whole["systems"]
    for key in ("host", "target"):
        if engine.get(key) not in systems:
            engine[key] = next(iter(systems)) if "systems" in part else engine[key]
    if engine["host"] not in systems:
        systems["aml"] = {"type": "AzureML", "config": {"accelerators": ["gpu"], "aml_compute": "gpus"}}
    return whole


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values of a config that are no mapping and no list, by their paths."""
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from leaves(one, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for n, one in enumerate(value):
            yield from leaves(one, f"{path}[{n}]")
    else:
        yield path, value
