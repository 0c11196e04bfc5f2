"""What every bad input is held to: how it is given, what it must say, and that nothing is written or lost.

A case is told in at most six lines: where (the place), what, the line with a caret where there is one, the remedy.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from conftest import ROOT

Change = Callable[[Path], object]
LINES = 6


@dataclass(frozen=True)
class Case:
    """One bad input. `command`: the program and its words. `place` and `remedy`: patterns of what is said, the first
    in the first line, the second below it. `files`: written before, `change`: done to the world before; both below the
    world's folder. `environment`: None removes a variable."""

    name: str
    command: tuple[str, ...]
    place: str
    remedy: str
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    change: Change | None = None
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def shown(self) -> str:
        """The input, for people."""
        lines = ["$ " + " ".join(w if re.fullmatch(r"[\w./:=,@%+\[\]{}-]+", w) else repr(w) for w in self.command)]
        lines += [f"  {k}={v}" if v is not None else f"  without {k}" for k, v in self.environment.items()]
        for name, data in self.files.items():
            text = data if isinstance(data, str) else repr(data)
            lines += [f"  {name}:", *(f"    | {line}" for line in text[:900].split("\n"))]
        return "\n".join(lines)


@dataclass(frozen=True)
class Said:
    """How a program ended."""

    code: int
    text: str


def run(command: tuple[str, ...]) -> Said:
    """Run a program of this project in this process."""
    program, *words = command
    out, err = io.StringIO(), io.StringIO()
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        with redirect_stdout(out), redirect_stderr(err):
            if program == "runner":
                from runner import cli

                code = cli.call(words)
            else:
                package = f"microstages_{program.replace('-', '_')}"
                if (folder := str(ROOT / "stages" / program)) not in sys.path:
                    sys.path.append(folder)  # train-qlora lives in an environment of its own
                code = importlib.import_module(f"{package}.cli").main.main(words)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Said(code, err.getvalue())


def tree(folder: Path) -> dict[str, int]:
    """The files below a folder with their sizes; remembered hashes are no part of it."""
    found = {}
    for top, _, names in os.walk(folder):
        for name in names:
            if name != ".verified.json" and not name.endswith(("-wal", "-shm")):
                path = os.path.join(top, name)
                found[os.path.relpath(path, folder)] = os.lstat(path).st_size
    return found


@contextmanager
def given(case: Case, world: Path) -> Iterator[None]:
    """The world with a case's files and variables; afterwards as it was."""
    old = {name: os.environ.get(name) for name in case.environment}
    before = {name: (world / name).read_bytes() if (world / name).is_file() else None for name in case.files}
    here = os.getcwd()
    try:
        for name, data in case.files.items():
            (world / name).parent.mkdir(parents=True, exist_ok=True)
            (world / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        if case.change:
            case.change(world)
        for name, value in case.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        os.chdir(world)
        yield
    finally:
        os.chdir(here)
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for name, data in before.items():
            if data is None:
                (world / name).unlink(missing_ok=True)
            else:
                (world / name).write_bytes(data)


def check(case: Case, said: Said) -> None:
    """The rules. Raises AssertionError."""
    assert said.code == 2, f"exit code {said.code}\n{said.text}"
    assert "Traceback" not in said.text, said.text
    at = re.search(r"error: ", said.text) if case.command[0] != "runner" else None
    told = (said.text[at.end() :] if at else said.text).strip("\n").split("\n")
    assert told[0], "nothing is said"
    assert len(told) <= LINES, said.text
    assert re.search(case.place, told[0]), f"the place {case.place!r} is not in: {told[0]}\n{said.text}"
    assert len(told) > 1, f"there is no remedy\n{said.text}"
    assert told[-1].startswith("  ") and told[-1].strip(), said.text
    assert re.search(case.remedy, told[-1]), f"the remedy {case.remedy!r} is not in: {told[-1]}\n{said.text}"


def check_run(case: Case, world: Path) -> Said:
    """Run a case by all the rules; what it said."""
    with given(case, world):
        before = tree(world)
        said = run(case.command)
        after = tree(world)
        check(case, said)
        assert after == before, f"written or lost: {set(after.items()) ^ set(before.items())}"
    return said
