"""Which images there are and what stands on what.

    base ─► core ─┬─► merge, prepare-data
                  └─► torch ─┬─► train-lora, train-qlora
                             └─► onnx ─► build-onnx, infer

A layer holds what all stages above it share, so that the engine stores it once.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "images" / "locks"
FLAVORS = ("cpu", "cuda")
STAGES = ("prepare-data", "train-lora", "train-qlora", "merge", "build-onnx", "infer")
LAYERS = {
    "core": STAGES,
    "torch": ("train-lora", "train-qlora", "build-onnx", "infer"),
    "onnx": ("build-onnx", "infer"),
}
PARENTS = {
    "core": "base", "torch": "core", "onnx": "torch",
    "prepare-data": "core", "merge": "core", "train-lora": "torch", "train-qlora": "torch",
    "build-onnx": "onnx", "infer": "onnx",
}  # fmt: skip
VERSION = "0.1.0"


def tag(name: str, flavor: str) -> str:
    """The name of an image. What lies below the flavours has no flavour."""
    return f"microstages/{name}:{VERSION}" + ("" if name in ("base", "builder") else f"-{flavor}")


def package_of(stage: str) -> str:
    return f"microstages_{stage.replace('-', '_')}"


def project(stage: str) -> dict[str, Any]:
    """The `project` table of a stage's pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "stages" / stage / "pyproject.toml").read_text())["project"]
    return table


def interface(stage: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((ROOT / "stages" / stage / "interface.json").read_text())
    return value


def pins(stage: str) -> dict[str, str]:
    """Name -> version in a stage's `lock.txt`."""
    lines = (ROOT / "stages" / stage / package_of(stage) / "lock.txt").read_text().split()
    return dict(line.split("==") for line in lines)


def read_lock(file: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name -> version and sha256 hashes of a hash-locked requirements file."""
    text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.M).replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        requirement, *hashes = line.split()
        name, _, version = requirement.partition("==")
        found[name] = (version, tuple(h.removeprefix("--hash=sha256:") for h in hashes))
    return found
