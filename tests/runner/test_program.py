"""Commands that are printed are typed as this program was started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.program import as_typed, program

HERE = Path(sys.executable).parent


def said(words: list[str], folder: Path, path: str) -> str:
    """All that a command prints, in a folder, with a PATH."""
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an environment below it, as `make` leaves it."""
    (tmp_path / "venv").symlink_to(HERE.parent)
    return tmp_path


def test_started_by_a_path_it_prints_the_path(folder):
    assert "make a project: venv/bin/runner init FOLDER" in said(["venv/bin/runner", "up"], folder, "/usr/bin:/bin")
    made = said(["venv/bin/runner", "init", "mine"], folder, "/usr/bin:/bin")
    there = folder / "venv/bin/runner"
    assert f"next: cd mine && {there} plan && {there} up" in made, "behind cd the path still leads there"
    again = said(["../venv/bin/runner", "plan", "nothing.yaml"], folder / "mine", "/usr/bin:/bin")
    assert "../venv/bin/runner init FOLDER" in again


def test_the_commands_at_the_end_of_a_run_can_be_typed(folder, project):
    project.stage("make", 'echo x > "$out/x"', outputs={"out": "adapter"})
    project.pipeline("stages:\n  a: {uses: ./make, target: process}\n")
    ended = said(["venv/bin/runner", "up"], folder, "/usr/bin:/bin")
    assert "  venv/bin/runner lineage a   " in ended and "  venv/bin/runner pull a ./model   " in ended


def test_found_on_the_path_it_is_a_word(folder):
    assert "make a project: runner init FOLDER" in said(["runner", "up"], folder, f"{HERE}:/usr/bin:/bin")
    assert "make a project: runner init FOLDER" in said(["venv/bin/runner", "up"], folder, f"{HERE}:/usr/bin:/bin")


def test_another_program_of_that_name_on_the_path_is_not_meant(folder):
    (folder / "bin").mkdir()
    (folder / "bin/runner").write_text("#!/bin/sh\n")
    (folder / "bin/runner").chmod(0o755)
    assert "venv/bin/runner init" in said(["venv/bin/runner", "up"], folder, f"{folder / 'bin'}:/usr/bin:/bin")


def test_only_commands_are_typed_and_lines_of_files_stay(tmp_path, monkeypatch):
    (tmp_path / "runner").touch()
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "runner")])
    path = str(tmp_path / "runner")
    assert as_typed("`runner up` again; another runner died; my-runner up") == (
        f"`{path} up` again; another runner died; my-runner up"
    )
    assert as_typed("    3 | # runner plan\n      |   ^^^^") == "    3 | # runner plan\n      |   ^^^^"
    monkeypatch.setattr(sys, "argv", ["/x/pytest"])
    assert program() == "runner"
