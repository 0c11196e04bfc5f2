"""A plain command in a place that sees no files of this machine: what is brought to it, and where it finds it there.

The program of `microstages.porter` does the work there. A stage that is an image needs its inputs only; of a stage that
is a folder with an `image` that holds its interpreter the folder's code is brought as well, by way of the store.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages.artifact import identify, outside_files
from microstages.errors import UserError
from microstages.manifest import FILES
from microstages.storage import local_path, public

from runner import stages
from runner.executors import Carried
from runner.executors.kubernetes.manifests import CACHE, OUTPUTS
from runner.pipeline import Stage
from runner.staging import staged
from runner.store import Store

INPUTS, CODE, BEGAN = f"{CACHE}/inputs", f"{CACHE}/code", f"{CACHE}/began"
KEPT = f"{CACHE}{OUTPUTS}"  # where OUTPUTS are for who publishes them
STAGE = "merge"  # whose images hold the porter: the smallest of them
NO_STAGES = "install the runner from a checkout, or set MICROSTAGES_STAGES to its folder `stages`"


@dataclass(frozen=True)
class Load:
    """A plain command as it is started there: its words, the paths of its inputs and outputs, what is to be done for
    it."""

    command: tuple[str, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    carried: Carried


def pack(
    stage: Stage, store: Store, names: Mapping[str, str], reads: Mapping[str, str], digests: Mapping[str, str],
    writes: Mapping[str, str], provenance: Mapping[str, Any],
) -> Load:  # fmt: skip
    """What a place elsewhere needs to run a plain command. `names`: the addresses of its inputs as the pipeline has
    them; `reads`: as that place reaches them; `writes`: those of its outputs.

    Raises UserError where it cannot run there.
    """
    interface = stage.interface
    if stage.resources.nodes > 1:
        raise UserError(f"{interface.name} is a plain command: it runs on one node", fix="set `resources: {nodes: 1}`")
    inputs = {name: f"{INPUTS}/{name}/{file_name(uri)}" for name, uri in names.items()}
    command, code = _code(stage, store)
    orders = {
        "stage": interface.name,
        "inputs": {
            name: {
                "uri": reads[name], "kinds": list(interface.inputs[name].kinds), "digest": digests[name],
                "path": inputs[name],
            }
            for name in reads
        },
        "code": code,
        "outputs": {
            name: {"path": f"{KEPT}/{name}", "uri": uri, "kind": interface.outputs[name].kind}
            for name, uri in writes.items()
        },
        "began": BEGAN,
        "provenance": dict(provenance),
    }  # fmt: skip
    try:
        porter = stages.find(STAGE, Path())
    except UserError as error:
        what = f"a plain command needs the image of the stage {STAGE} beside it, and {error.what}"
        raise UserError(what, fix=NO_STAGES) from None
    carried = Carried(json.dumps(orders, sort_keys=True), STAGE, porter.code_identity())
    return Load(command, inputs, {name: f"{OUTPUTS}/{name}" for name in writes}, carried)


def file_name(uri: str) -> str:
    """What an input is called there: as it is here, so that a program that looks at the ending of a name sees it."""
    text = public(uri).rstrip("/")
    if glob.has_magic(text):
        return "files"
    return re.sub(r"[^\w.@=+-]", "-", re.split(r"[/\\]", text)[-1])[-100:].lstrip(".") or "input"


def _code(stage: Stage, store: Store) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """The words that start it there, and what they need of its folder."""
    found = stage.found
    if found.identity:
        return (), []  # its image has all of it
    folder = Path(os.path.normpath(found.folder.absolute()))
    own = [path.absolute() for path in found.code]
    for word in stage.interface.command:
        file = Path(os.path.normpath(folder / word))
        if word.startswith("./") and not any(file.is_relative_to(path) for path in own):
            what = f"its command names {word}, which is in none of its `code`"
            fix = f"name it there: only its code is brought to {stage.where.name}"
            raise UserError(what, where=folder / stages.INTERFACE, fix=fix)
    base = Path(os.path.commonpath([folder, *(p if p.is_dir() else p.parent for p in own)]))
    brought = []
    for path in own:
        place = str(Path(CODE, path.relative_to(base)))
        digest = identify(str(path), (FILES,))
        uri = str(path) if stage.where.sees(path) else staged(store, str(path), (FILES,), digest)
        if (there := local_path(uri)) and not stage.where.sees(there):
            fix = "move its folder to a volume of the target, or make it an image: docs/own-stage.md"
            raise UserError(f"{stage.where.name} does not see its code", where=path, fix=fix)
        files = {"": path} if path.is_file() else outside_files(path)[1]
        programs = sorted(name for name, file in files.items() if os.access(file, os.X_OK))
        brought.append({"uri": uri, "kinds": [FILES], "digest": digest, "path": place, "programs": programs})
    return stages.command(found, inside=True, at=Path(CODE, folder.relative_to(base))), brought
