"""Stages in other languages for tests: the example as an image, and projects of small scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import EXAMPLES

DEDUPE = EXAMPLES / "stages" / "dedupe"
BASE = "microstages/merge:latest"  # its shell and its awk are all that is used
NAME = "microstages-test/dedupe:1"
# Turns `--name=value` into the shell variable of that name.
FLAGS = 'set -eu\nfor word in "$@"; do name="${word%%=*}"; eval "${name#--}=\\${word#*=}"; done\n'
ROWS = '{"t": "One."}\n{"t": "two"}\n{"t": "one"}\n{"t": "two"}\n'


@contextmanager
def built(engine: str, name: str = NAME, base: str = BASE) -> Iterator[str]:
    """The example stage as an image with its interface, on the engine at an address, made as docs/own-stage.md says."""
    label = f"microstages.interface={(DEDUPE / 'interface.json').read_text()}"
    words = ["docker", "build", "--quiet", "--build-arg", f"BASE={base}", "--label", label, "--tag", name, str(DEDUPE)]
    environment = {**os.environ, "DOCKER_HOST": engine}
    subprocess.run(words, check=True, capture_output=True, env=environment)
    yield name
    subprocess.run(["docker", "rmi", "--force", name], check=True, capture_output=True, env=environment)


class Own:
    """A folder with a pipeline and its stages. `head`: the lines of the pipeline before its stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.head = ""
        self.environment = {**os.environ, "MICROSTAGES_CACHE": str(folder / "cache")}
        (folder / "rows.jsonl").write_text(ROWS)

    def stage(self, name: str, script: str, inputs: tuple[str, ...] = (), **more: Any) -> None:
        """A stage that is a shell script with each flag as a variable; its output is `out`."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        interface = {
            "schema": 1, "name": name, "version": "1", "summary": "A stage of a test.", "command": ["./run.sh"],
            "manifest": "runner", "image": BASE, "params": {},
            "inputs": {k: {"flag": f"--{k}", "kinds": ["files"]} for k in inputs},
            "outputs": {"out": {"flag": "--out", "kind": "files"}}, **more,
        }  # fmt: skip
        (folder / "interface.json").write_text(json.dumps(interface))
        (folder / "run.sh").write_text(f"#!/bin/sh\n{FLAGS}{script}\n")
        (folder / "run.sh").chmod(0o755)

    def pipeline(self, stages: str) -> None:
        (self.folder / "pipeline.yaml").write_text(f"name: own\n{self.head}stages:\n{stages}")

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "runner.cli", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the runner. No command may end with a traceback."""
        done = subprocess.run(
            self.command(*words), cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, timeout=300,
        )  # fmt: skip
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    def up(self, *words: str) -> dict[str, Any]:
        """What `up --json` says, by stage; it must end well."""
        done = self.run("up", "--json", *words)
        assert done.returncode == 0, done.stderr
        return stages(done.stdout)


def stages(text: str) -> dict[str, Any]:
    """What a command said as JSON of its stages."""
    return {s["stage"]: s for s in json.loads(text)["stages"]}


def digests(made: Mapping[str, Any]) -> dict[str, str]:
    return {f"{name}.{key}": o["digest"] for name, s in made.items() for key, o in s["outputs"].items()}


def fingerprints(made: Mapping[str, Any]) -> dict[str, str]:
    return {name: s["fingerprint"] for name, s in made.items()}
