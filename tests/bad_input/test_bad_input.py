"""Four hundred bad inputs: each is told in at most six lines, with its place and what to do, and nothing is written.

The cases run in this process; some of them also as programs, as a user starts them. `PRINT=FILE` writes all of them and
what is said of each, to be read.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_input import artifacts, commands, data, flags, pipelines
from bad_input.harness import Case, Said, check, check_run, given, tree
from conftest import NO_ENGINE, stage_command

BY_HAND = [*pipelines.CASES, *flags.CASES, *data.CASES, *artifacts.CASES, *commands.CASES]
ALL = [*BY_HAND, *pipelines.mutated()]
EVERY = 40  # of so many cases one runs as a program too


@pytest.fixture(scope="module")
def told() -> Iterator[list[str]]:
    found: list[str] = []
    yield found
    if place := os.environ.get("PRINT"):
        Path(place).write_text("\n\n".join(found) + "\n")


@pytest.mark.parametrize("case", ALL, ids=[c.name for c in ALL])
def test_it_is_told(world: Path, case: Case, told: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    said = check_run(case, world)
    told.append(f"[{case.name}]\n{case.shown()}\n=>\n{said.text.rstrip()}")


SAMPLE = [c for c in ALL if c.command[0] != "train-qlora"][::EVERY]


@pytest.mark.parametrize("case", SAMPLE, ids=[c.name for c in SAMPLE])
def test_a_program_says_the_same(world: Path, case: Case, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    program, *words = case.command
    command = [sys.executable, "-m", "runner.cli"] if program == "runner" else stage_command(program)
    with given(case, world):
        before = tree(world)
        done = subprocess.run([*command, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        assert tree(world) == before
    check(case, Said(done.returncode, done.stderr))


def test_there_are_two_hundred_and_most_are_made_by_hand():
    assert len(ALL) >= 200
    assert len({c.name for c in ALL}) == len(ALL)
    inputs = {
        (c.command, tuple(c.files.items()), c.name if c.change else "", tuple(c.environment.items())) for c in BY_HAND
    }
    assert len(inputs) == len(BY_HAND) >= 120, "two cases give the same input"


def test_the_good_inputs_are_good(world: Path):
    from bad_input.harness import run

    here = os.getcwd()
    os.chdir(world)
    try:
        for command in (("runner", "check"), ("runner", "plan"), ("runner", "check", "other.yaml")):
            said = run(command)
            assert said.code == 0, said.text
    finally:
        os.chdir(here)


def test_the_rules_find_what_is_wrong():
    """The harness itself: what breaks a rule is not let through."""
    case = Case("x", ("runner",), "^here:1:2: ", "do this")
    good = "here:1:2: it is wrong\n    1 | text\n      |  ^\n  do this\n"
    check(case, Said(2, good))
    broken = {
        "another exit code": Said(70, good),
        "a traceback": Said(2, good + "Traceback (most recent call last)\n"),
        "too many lines": Said(2, good.replace("  do this", "a\nb\nc\nd\n  do this")),
        "no place": Said(2, good.replace("here:1:2", "somewhere")),
        "no remedy": Said(2, "here:1:2: it is wrong\n"),
        "another remedy": Said(2, good.replace("do this", "do that")),
        "nothing": Said(2, ""),
    }
    for said in broken.values():
        with pytest.raises(AssertionError):
            check(case, said)
