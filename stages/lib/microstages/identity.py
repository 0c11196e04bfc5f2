"""What a stage run is: the fingerprint over stage, code, parameters and the digests of the inputs.

Not over URIs, places, machines, secrets or time. Same fingerprint, same result, so a result is used again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

_LEFT_OUT = (".pyc", ".pyo")


def folder_lines(folder: Path) -> bytes:
    """A line for each source file of a folder (or for the one file): `sha256  folder/path`."""
    if folder.is_file():
        return f"{hashlib.sha256(folder.read_bytes()).hexdigest()}  {folder.name}\n".encode()
    files = {}
    for top, dirs, names in os.walk(folder, followlinks=True):
        dirs[:] = [d for d in dirs if not d.startswith(".") and d != "__pycache__"]
        for name in names:
            if not name.startswith(".") and not name.endswith(_LEFT_OUT):
                path = os.path.join(top, name)
                files[Path(path).relative_to(folder).as_posix()] = path
    lines = []
    for name, path in sorted(files.items()):
        with open(path, "rb") as f:
            lines.append(f"{hashlib.sha256(f.read()).hexdigest()}  {folder.name}/{name}\n")
    return "".join(lines).encode()


def code_identity(folders: Iterable[Path], lines: Callable[[Path], bytes] = folder_lines) -> str:
    """`sha256:<hex>` over the files of a stage's packages: source and `lock.txt`, the exact versions it runs with.

    The folders' own names count, not where they lie: a checkout and an installed package have the same identity.
    `lines` may remember what `folder_lines` said, where many stages share a folder.
    """
    h = hashlib.sha256()
    for folder in folders:
        h.update(lines(folder))
    return f"sha256:{h.hexdigest()}"


def fingerprint(stage: str, code: str, params: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """32 hex digits that name a stage run.

    `params` are resolved (defaults filled in), `inputs` are content digests by input name.
    """
    value = {"stage": stage, "code": code, "params": dict(params), "inputs": dict(inputs)}
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
