"""What `uses` names: a stage's interface, the folders of its code, and the command that starts it.

`uses: merge`       a stage of this repository: `stages/merge` beside the runner, or below $MICROSTAGES_STAGES
`uses: ./my-stage`  a folder with an `interface.json`, relative to the pipeline file's folder
`uses: name:tag`    an image that carries its interface as a label: the Docker engine's, or one in a registry, which
                    clusters pull; runs in containers only

How any command becomes a stage: a folder with an `interface.json` whose `manifest` is `"runner"`. The command gets its
inputs as paths, its parameters as flags, and for each output a folder to write files into. When it ends with 0 the
runner hashes what it wrote and makes it an artifact. In `command`, a word that begins with `./` is a file of the
stage's folder; the command itself is looked for in the folder's own `.venv/bin`, in the folder, beside this Python and
on the PATH. Lines of its stdout that are JSON events are shown as such; everything else is its log.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages.errors import UserError, nearest
from microstages.identity import code_identity, folder_lines
from microstages.interface import Interface

from runner import interfaces
from runner.folders import INTERFACE, stages_folder

__all__ = ["INTERFACE", "Found", "command", "find", "flags", "stages_folder"]


@dataclass(frozen=True)
class Found:
    """A stage that can be run: where it lies, what it takes and gives, and what its code is made of."""

    folder: Path
    interface: Interface
    code: tuple[Path, ...]
    image: str = ""  # the image that a pipeline or the interface names
    pulled: str = ""  # the same as others pull it: the engine's id says nothing to them
    identity: str = ""  # of an image's code; otherwise its folders tell

    def code_identity(self, lines: Callable[[Path], bytes] = folder_lines) -> str:
        """What the stage's code is, as the fingerprint takes it."""
        return self.identity or code_identity(self.code, lines)


def find(uses: str, base: Path) -> Found:
    """The stage that `uses` names; relative folders start at `base`. Raises UserError where there is none,
    PipelineError where its interface has mistakes."""
    if "/" not in uses and "\\" not in uses and ":" not in uses and uses not in (".", ".."):
        root = stages_folder()
        folder = root / uses
        if not (folder / INTERFACE).is_file():
            known = sorted(p.parent.name for p in root.glob(f"*/{INTERFACE}"))
            names = (
                f"there are: {', '.join(known)}"
                if known
                else f"no stages lie in {root}: set MICROSTAGES_STAGES to their folder"
            )
            own = " (write ./ before the name of a folder of yours)" if (base / uses / INTERFACE).is_file() else ""
            raise UserError(f"there is no stage {uses!r}{nearest(uses, known)}", fix=names + own)
    else:
        folder = base / Path(uses).expanduser()
        if not (folder / INTERFACE).is_file():
            if not uses.startswith((".", "/", "~")) and not folder.is_dir() and (":" in uses or "@" in uses):
                return _image(uses)
            what = f"there is no {INTERFACE} in {folder}" if folder.is_dir() else f"there is no folder {folder}"
            raise UserError(what, fix="a stage's folder holds its interface.json")
    interface = interfaces.load(folder / INTERFACE)
    code = tuple(Path(os.path.normpath(folder / c)) for c in interface.code)
    return Found(folder, interface, code, interface.image, interface.image)


def _image(name: str) -> Found:
    """The stage that an image says it is. Raises UserError where it is not there or says nothing."""
    from runner.executors.engine import CODE, STAGE
    from runner.executors.engine import INTERFACE as LABEL

    image, id, pulled, labels = _looked_up(name)
    if LABEL not in labels:
        fix = f'build it with --label {LABEL}="$(cat interface.json)"'
        raise UserError(f"the image {name} does not say which stage it is", fix=fix)
    interface = Interface.parse(labels[LABEL], name)
    own = labels.get(STAGE, interface.name) == interface.name  # else the label is that of an image it stands on
    return Found(Path(name), interface, (), image, pulled, (labels.get(CODE) if own else "") or id)


def _looked_up(name: str) -> tuple[str, str, str, Mapping[str, str]]:
    """An image as the engine knows it, its id, its name as a cluster pulls it, and its labels: those of the engine's
    image, else of that in the registry which its name says. A name that is moved while the pipeline runs changes
    nothing."""
    from runner.executors.engine import connect, image_named

    try:
        image = image_named(connect(), name)
        last = name.rpartition("/")[2]
        repository = name.removesuffix(last) + re.split("[:@]", last)[0]
        return image.id, image.id, image.digest if image.digest.startswith(f"{repository}@") else name, image.labels
    except UserError as error:
        from runner.executors.kubernetes import registry

        if not registry.host_of(name):
            raise
        try:
            there = registry.described(name)
        except UserError as why:
            raise UserError(f"{error.what}, and {why.what}", where=error.where, fix=why.fix or error.fix) from None
        return there.name, there.id, there.name, there.labels


def command(found: Found, inside: bool = False, at: Path | None = None) -> tuple[str, ...]:
    """The words that start the stage, on this machine or `inside` its image, where its folder lies `at` another path.
    Raises UserError where its program is not there."""
    if found.identity:
        return ()  # its image knows
    folder = found.folder.absolute()
    first, *rest = found.interface.command
    seen = at or folder
    words = [str(seen / w) if w.startswith("./") else w for w in rest]
    if inside and found.image:  # its program is the image's, or lies in its folder
        return (str(seen / first) if (folder / first).is_file() else first, *words)
    places = [folder / ".venv" / "bin" / first, folder / first, Path(sys.executable).parent / first]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return (str(place), *words)
    if on_path := shutil.which(first):
        return (on_path, *words)
    if (folder / first).is_file():
        raise UserError(f"{folder / first} is not executable", fix=f"chmod +x {folder / first}")
    fix = "install the stages: make install" if found.folder.parent == stages_folder() else f"install {first}"
    raise UserError(f"the program {first!r} of stage {found.interface.name} is not installed", fix=fix)


def flags(
    interface: Interface, inputs: Mapping[str, str], params: Mapping[str, Any], outputs: Mapping[str, str]
) -> list[str]:
    """The flags for resolved values: `--rank=8`, `--dora` or `--no-dora`, lists repeated, empty ones left out."""
    words = [f"{interface.inputs[name].flag}={uri}" for name, uri in inputs.items()]
    for name, value in params.items():
        flag = interface.params[name].flag
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif isinstance(value, list):
            words += [f"{flag}={v}" for v in value]
        else:
            words.append(f"{flag}={value}")
    return words + [f"{interface.outputs[name].flag}={uri}" for name, uri in outputs.items()]
