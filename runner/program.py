"""How a person starts this program, for the commands that it prints: `runner`, where that word means it, or the path by
which it was started (`.venv/bin/runner`, before an environment is activated)."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

NAME = "runner"
_EXCERPT = re.compile(r" *\d* \| ")  # a line of a file, and the caret below it


def program(absolute: bool = False) -> str:
    """The words that start this program, as a shell takes them; `absolute`: from any folder."""
    started = Path(sys.argv[0])
    if started.name != NAME or not started.is_file():  # `python -m runner.cli`, a test
        return NAME
    from shutil import which

    found = which(NAME)
    if found and os.path.samefile(found, started):
        return NAME
    return shlex.quote(str(started.absolute() if absolute else started))


def as_typed(text: str, absolute: bool = False) -> str:
    """A text with the commands in it as they are typed here."""
    if (name := program(absolute)) == NAME:
        return text
    from runner.arguments import COMMANDS

    command = re.compile(rf"(?<![\w./-]){NAME} (?=(?:{'|'.join(COMMANDS)})\b)")
    return "\n".join(
        line if _EXCERPT.match(line) else command.sub(lambda _: f"{name} ", line) for line in text.split("\n")
    )
