"""A project whose store lies somewhere: in its folder, or in an object store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from microstages import storage


class Shelf:
    """A project (`chain`) and its store, of which everything can be seen and spoiled."""

    def __init__(self, project: Any, uri: str, environment: dict[str, str]) -> None:
        self.project, self.uri, self.environment = project, uri, environment
        project.environment |= environment

    def run(self, *args: object, **options: Any) -> Any:
        return self.project.run(*args, **options)

    def ok(self, *args: object) -> Any:
        """What a command that must end well prints as JSON."""
        done = self.run(*args, "--json")
        assert done.code == 0, done.err
        return done.json

    def files(self) -> dict[str, int]:
        """Every file of the store and its size, but for what this machine remembers of it."""
        found = storage.listing(self.uri)
        return {k: v for k, v in found.items() if not k.endswith(".verified.json") and not k.startswith(".runner/")}

    def commits(self) -> set[str]:
        """The stage runs that have a result, each `stage/fingerprint`."""
        return {"/".join(k.split("/")[1:3]) for k in self.files() if k.endswith("/commit.json")}

    def attempts(self) -> set[str]:
        return {k.split("/")[3] for k in self.files() if k.startswith("artifacts/") and k.count("/") > 3}

    def output(self, stage: str) -> str:
        """The address of a stage's result now."""
        return next(s["outputs"]["out"] for s in self.ok("plan")["stages"] if s["stage"] == stage)

    def read(self, uri: str, name: str = "text") -> bytes:
        data = storage.read(storage.join(uri, name))
        assert data is not None
        return data

    def runs(self) -> list[dict[str, Any]]:
        """The records of runs, oldest first."""
        names = sorted(n for n in storage.listing(storage.join(self.uri, "runs")) if n.endswith(".json"))
        return [json.loads(self.read(self.uri, f"runs/{n}")) for n in names]


@pytest.fixture
def shelf(chain: Any) -> Shelf:
    """The store in the project's folder."""
    return Shelf(chain, str(chain.folder / ".runner" / "store"), {})


@pytest.fixture
def far(chain: Any, remote: Any, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A store in an object store."""
    monkeypatch.setenv("MICROSTAGES_CACHE", chain.environment["MICROSTAGES_CACHE"])
    uri = remote.uri("store")
    chain.pipeline(chain.file.read_text().replace("name: demo\n", f"name: demo\nstore: {uri}\n"))
    return Shelf(chain, uri, dict(remote.environment))


# A program that runs the runner and is killed at once, before it changes the file system below $BELOW for the Nth time.
KILLED = """
import os, signal, sys

below, left = os.environ["BELOW"], int(os.environ["NTH"])
changes = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree", "shutil.copyfile")

def watch(event, args):
    global left
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event in changes or writes:
        paths = [os.fsdecode(a) for a in args[:2] if isinstance(a, (str, bytes, os.PathLike))]
        if any(os.path.abspath(p).startswith(below) for p in paths):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

from runner.cli import call
sys.addaudithook(watch)
sys.exit(call(sys.argv[1:]))
"""


@pytest.fixture
def killed_at_every_step(tmp_path: Path) -> Callable[..., int]:
    """`killed_at_every_step(folder, below, environment, args, fresh, then)`: run a command again and again, each time
    after `fresh()`, killed one change of the file system later than the time before, until it comes to its end. After
    each kill `then()` is called. Returns how many times it was killed."""
    program = tmp_path / "killed.py"
    program.write_text(textwrap.dedent(KILLED))

    def go(
        folder: Path, below: Path, environment: dict[str, str], args: list[str],
        fresh: Callable[[], None], then: Callable[[], None],
    ) -> int:  # fmt: skip
        for nth in range(1, 1000):
            fresh()
            env = {**os.environ, **environment, "BELOW": str(below), "NTH": str(nth)}
            done = subprocess.run(
                [sys.executable, str(program), *args], cwd=folder, env=env, capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return nth - 1
            assert done.returncode == -9, done.stderr
            then()
        raise AssertionError("it never ends")

    return go
