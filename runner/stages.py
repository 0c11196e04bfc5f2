"""What `uses` names: a stage's interface, the folders of its code, and the command that starts it.

`uses: merge`       a stage of this repository: `stages/merge` beside the runner, or below $MICROSTAGES_STAGES
`uses: ./my-stage`  a folder with an `interface.json`, relative to the pipeline file's folder
`uses: name:tag`    an image of the Docker engine that carries its interface as a label; runs in containers only

How any command becomes a stage: a folder with an `interface.json` whose `manifest` is `"runner"`. The command gets its
inputs as paths, its parameters as flags, and for each output a folder to write files into. When it ends with 0 the
runner hashes what it wrote and makes it an artifact. In `command`, a word that begins with `./` is a file of the
stage's folder; the command itself is looked for in the folder's own `.venv/bin`, in the folder, beside this Python and
on the PATH. Lines of its stdout that are JSON events are shown as such; everything else is its log.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages.errors import UserError, nearest
from microstages.identity import code_identity, folder_lines
from microstages.interface import Interface
from microstages.manifest import KINDS

INTERFACE = "interface.json"


@dataclass(frozen=True)
class Found:
    """A stage that can be run: where it lies, what it takes and gives, and what its code is made of."""

    folder: Path
    interface: Interface
    code: tuple[Path, ...]
    image: str = ""  # the image that a pipeline or the interface names
    identity: str = ""  # of an image's code; otherwise its folders tell

    def code_identity(self, lines: Callable[[Path], bytes] = folder_lines) -> str:
        """What the stage's code is, as the fingerprint takes it."""
        return self.identity or code_identity(self.code, lines)


def stages_folder() -> Path:
    """Where the stages of this repository lie."""
    return Path(os.environ.get("MICROSTAGES_STAGES") or Path(__file__).parent.parent / "stages")


def find(uses: str, base: Path) -> Found:
    """The stage that `uses` names; relative folders start at `base`. Raises UserError where there is none."""
    if "/" not in uses and "\\" not in uses and ":" not in uses and uses not in (".", ".."):
        root = stages_folder()
        folder = root / uses
        if not (folder / INTERFACE).is_file():
            known = sorted(p.parent.name for p in root.glob(f"*/{INTERFACE}"))
            names = f"there are: {', '.join(known)}" if known else f"there are no stages in {root}"
            own = " (write ./ before the name of a folder of yours)" if (base / uses / INTERFACE).is_file() else ""
            raise UserError(f"there is no stage {uses!r}{nearest(uses, known)}", fix=names + own)
    else:
        folder = base / Path(uses).expanduser()
        if not (folder / INTERFACE).is_file():
            if not uses.startswith((".", "/", "~")) and not folder.is_dir() and (":" in uses or "@" in uses):
                return _image(uses)
            what = f"there is no {INTERFACE} in {folder}" if folder.is_dir() else f"there is no folder {folder}"
            raise UserError(what, fix="a stage's folder holds its interface.json")
    interface = Interface.load(folder / INTERFACE)
    _check(interface, folder)
    code = tuple(Path(os.path.normpath(folder / c)) for c in interface.code)
    return Found(folder, interface, code, image=interface.image)


def _image(name: str) -> Found:
    """The stage that an image says it is. Raises UserError where it is not there or says nothing."""
    from runner.executors.engine import CODE, connect, image_named
    from runner.executors.engine import INTERFACE as LABEL

    image = image_named(connect(), name)
    if LABEL not in image.labels:
        fix = f'build it with --label {LABEL}="$(cat interface.json)"'
        raise UserError(f"the image {name} does not say which stage it is", fix=fix)
    interface = Interface.parse(image.labels[LABEL], name)
    # by its id: a name that is moved while the pipeline runs changes nothing
    return Found(Path(name), interface, (), image.id, image.labels.get(CODE) or image.id)


def _check(interface: Interface, folder: Path) -> None:
    where = folder / INTERFACE
    if not interface.command or not all(isinstance(word, str) and word for word in interface.command):
        raise UserError("its command is not a list of words", where=where, fix='such as "command": ["sh", "./run.sh"]')
    if interface.manifest not in ("stage", "runner"):
        raise UserError(f"its manifest is {interface.manifest!r}", where=where, fix='write "stage" or "runner"')
    if not interface.outputs:
        raise UserError("it has no outputs", where=where, fix="a stage makes at least one artifact")
    for name, output in interface.outputs.items():
        if output.kind not in KINDS:
            guess = nearest(output.kind, KINDS)
            what = f"its output {name!r} has the unknown kind {output.kind!r}{guess}"
            raise UserError(what, where=where, fix=f"kinds: {', '.join(KINDS)}")
    for name, code in zip(interface.code, (folder / c for c in interface.code), strict=True):
        if not code.exists():
            raise UserError(f"its code names {name!r}, which is not there", where=where, fix="correct `code`")


def command(found: Found, inside: bool = False) -> tuple[str, ...]:
    """The words that start the stage, on this machine or `inside` its image. Raises UserError where its program is not
    there."""
    if found.identity:
        return ()  # its image knows
    folder = found.folder.absolute()
    first, *rest = found.interface.command
    words = [str(folder / w) if w.startswith("./") else w for w in rest]
    if inside and found.image:  # its program is the image's, or lies in its folder
        return (str(folder / first) if (folder / first).is_file() else first, *words)
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
