"""A stage made with the library: the runner and the stage's own process agree on what it is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import microstages
import pytest

CLI = '''
"""A stage of a test."""
from typing import Annotated
from microstages.artifact import Artifact, Draft
from microstages.errors import TemporaryError, UserError
from microstages.stage import Input, Output, Param, Run, stage

@stage("tiny", package="microstages_tiny")
def main(
    run: Run,
    text: Annotated[Artifact, Input("files", help="a file")],
    output: Annotated[Draft, Output("dataset", name="dataset")],
    rate: Annotated[float, Param("a rate", min=0)] = 1,
    words: Annotated[list[str], Param("some words")] = ["a", "b"],
    note: Annotated[str | None, Param("a note")] = None,
    twice: Annotated[bool, Param("whether twice")] = True,
    threads: Annotated[int, Param("threads", min=1, affects_result=False)] = 1,
) -> None:
    """Copy a text."""
    if rate == 13:
        raise UserError("13 brings bad luck", where="--rate", fix="give another rate")
    (output.path / "text").write_bytes(text.path.read_bytes())
    output.metrics["rate"] = rate

if __name__ == "__main__":
    main()
'''


@pytest.fixture
def tiny(project):
    """The stage `tiny`, whose interface is what its `describe` prints, and a pipeline of it."""
    stages = project.folder / "stages"
    package = stages / "tiny" / "microstages_tiny"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Tiny."""\n__version__ = "1"\n')
    (package / "cli.py").write_text(CLI)
    (stages / "lib").mkdir()
    (stages / "lib" / "microstages").symlink_to(Path(microstages.__file__).parent)
    lib = str(Path(microstages.__file__).parent.parent)
    project.environment.update(MICROSTAGES_STAGES=str(stages), PYTHONPATH=f"{stages / 'tiny'}:{lib}:{Path.cwd()}")
    command = [sys.executable, "-m", "microstages_tiny.cli"]
    said = subprocess.run([*command, "describe"], env=project.environment, capture_output=True, check=True).stdout
    interface = {**json.loads(said), "command": command}
    (stages / "tiny" / "interface.json").write_text(json.dumps(interface))
    (project.folder / "data.txt").write_text("hello")
    project.pipeline("name: demo\ntarget: process\nstages:\n  a: {uses: tiny, inputs: {text: data.txt}}\n")
    return project


VALUES = ["rate=0.1", "rate=3", "rate=1e-7", "words=[x, 'y z']", "note=a note", "note=", "twice=false", "threads=2"]


def test_both_compute_the_same_fingerprint(tiny):
    options = [word for value in VALUES for word in ("--set", f"stages.a.params.{value}")]
    for more in ([], options):
        done = tiny.run("up", "--json", *more)
        assert done.code == 0, done.err
        (stage,) = done.json["stages"]
        manifest = json.loads((Path(stage["outputs"]["dataset"]["uri"]) / "artifact.json").read_text())
        assert manifest["provenance"]["fingerprint"] == stage["fingerprint"]
        assert stage["metrics"] == manifest["metrics"]
        assert tiny.up(*more) == {"a": "reused"}


def test_its_errors_are_shown_as_it_said_them(tiny):
    done = tiny.run("up", "--set", "stages.a.params.rate=13")
    assert done.code == 2
    assert re_lines(done.out)[1].startswith("a  failed after ")
    assert re_lines(done.out)[1].endswith(": stages.a.params.rate: 13 brings bad luck")
    assert re_lines(done.out)[2].strip() == "give another rate"
    assert "tiny: error: --rate: 13 brings bad luck" in tiny.run("logs", "a").out


def re_lines(text: str) -> list[str]:
    return text.rstrip().split("\n")


def test_code_that_is_installed_but_not_the_code_in_the_folder_is_told(tiny):
    elsewhere = tiny.folder / "installed"
    shutil.copytree(tiny.folder / "stages" / "tiny" / "microstages_tiny", elsewhere / "microstages_tiny")
    (elsewhere / "microstages_tiny" / "old.py").write_text("x = 1\n")
    tiny.environment["PYTHONPATH"] = f"{elsewhere}:{tiny.environment['PYTHONPATH']}"
    done = tiny.run("up")
    assert done.code == 2
    assert "the code that ran is not the code in" in done.out
    assert "install the stage again" in done.out
    assert not list((tiny.folder / ".runner/store/artifacts").glob("*/*/commit.json"))


def test_an_interface_older_than_the_code_is_told(tiny):
    file = tiny.folder / "stages" / "tiny" / "interface.json"
    interface = json.loads(file.read_text())
    interface["params"]["rate"]["default"] = 2
    file.write_text(json.dumps(interface))
    cli = tiny.folder / "stages" / "tiny" / "microstages_tiny" / "cli.py"
    cli.write_text(cli.read_text().replace('Param("a note")] = None', 'Param("a note")] = "new"'))
    done = tiny.run("up")
    assert done.code == 2
    assert "its interface.json is older than its code" in done.out
