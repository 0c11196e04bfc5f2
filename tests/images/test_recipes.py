"""The recipes keep their own rules, without an engine: Dockerfiles, bake file, layers, base."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import STAGES

ROOT = Path(__file__).parent.parent.parent
IMAGES = ROOT / "images"
DOCKERFILES = sorted([*IMAGES.glob("*.Dockerfile"), IMAGES / "base" / "Dockerfile"])
LABELS = {
    *(f"org.opencontainers.image.{n}" for n in ("title", "description", "source", "version", "revision")),
    *(f"org.opencontainers.image.{n}" for n in ("licenses", "documentation")),
    *(f"microstages.{n}" for n in ("stage", "flavor", "code", "interface")),
}


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of each line of a Dockerfile, continuation lines joined, comments left out."""
    text = re.sub(r"(?m)^\s*#.*\n", "", file.read_text()).replace("\\\n", " ")
    return [(w[0].upper(), w[1].strip()) for line in text.splitlines() if len(w := line.strip().split(maxsplit=1)) == 2]


def last_stage(file: Path) -> list[tuple[str, str]]:
    """The instructions of the image that a Dockerfile makes."""
    found = instructions(file)
    start = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def test_there_is_a_dockerfile_for_each_stage_and_no_other():
    names = {f.name.removesuffix(".Dockerfile") for f in IMAGES.glob("*.Dockerfile")}
    assert names == {*STAGES, "layer"}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.name)
def test_a_dockerfile_needs_no_frontend_and_names_no_moving_image(file: Path):
    text = file.read_text()
    assert not re.search(r"(?im)^#\s*syntax\s*=", text), "that would fetch a frontend"
    stages: set[str] = set()
    arguments = {rest.partition("=")[0] for name, rest in instructions(file) if name == "ARG"}
    for name, rest in instructions(file):
        if name == "FROM":
            source, *alias = rest.split()
            variable = re.fullmatch(r"\$\{(\w+)\}", source)
            assert source in stages or (variable and variable[1] in arguments), f"FROM {source}"
            stages.update(alias[1:])
        if name == "ARG" and ":" in rest:
            assert not re.search(r":(latest)?$", rest), rest
    assert ":latest" not in text
    for name, rest in instructions(file):
        assert name != "ADD"
        if name == "RUN":
            assert not re.search(r"(curl|wget)\b", rest)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_image_is_not_root_and_starts_the_stage(stage: str):
    found = last_stage(IMAGES / f"{stage}.Dockerfile")
    users = [rest for name, rest in found if name == "USER"]
    assert users == ["10001:10001"]
    assert [json.loads(rest) for name, rest in found if name == "ENTRYPOINT"] == [[stage]]
    assert not [rest for name, rest in found if name == "RUN"], "everything is made in a builder"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_image_has_all_labels(stage: str):
    from layers import project

    found = " ".join(rest for name, rest in last_stage(IMAGES / f"{stage}.Dockerfile") if name == "LABEL")
    labels = dict(re.findall(r'([\w.]+)="([^"]*)"', found))
    assert set(labels) == LABELS
    assert labels["microstages.stage"] == stage
    assert labels["org.opencontainers.image.description"] == project(stage)["description"]
    assert labels["org.opencontainers.image.licenses"] == project(stage)["license"]


@pytest.mark.parametrize("stage", STAGES)
def test_stage_dockerfiles_differ_only_in_what_the_stage_is(stage: str):
    from layers import PARENTS, package_of, project

    def plain(name: str) -> str:
        text = (IMAGES / f"{name}.Dockerfile").read_text()
        text = text.replace(f"microstages/{PARENTS[name]}:", "microstages/PARENT:")
        text = text.replace(package_of(name), "PACKAGE").replace(project(name)["description"], "DESCRIPTION")
        text = re.sub(r"COPY stages/lib/training .*\n| /source/training", "", text)
        return re.sub(rf"\b{name}\b", "STAGE", text.partition("\n")[2])

    assert plain(stage) == plain("merge")


@pytest.mark.parametrize("stage", STAGES)
def test_an_image_is_made_of_the_folders_that_are_the_code_identity(stage: str):
    from layers import interface

    copied = {
        os.path.normpath(source)
        for name, rest in instructions(IMAGES / f"{stage}.Dockerfile")
        if name == "COPY" and not rest.startswith("--")
        for source in rest.split()[:-1]
    }
    for folder in interface(stage)["code"]:
        path = os.path.normpath(f"stages/{stage}/{folder}")
        assert path in copied or os.path.dirname(path) in copied, path


def test_versions_are_the_same_everywhere():
    from layers import VERSION, project

    assert {project(s)["version"] for s in STAGES} == {VERSION}
    for file in DOCKERFILES:
        assert set(re.findall(r":(\d+\.\d+\.\d+)", file.read_text())) <= {VERSION}
        assert set(re.findall(r"ARG VERSION=(\S+)", file.read_text())) <= {VERSION}
    assert f'variable "VERSION" {{ default = "{VERSION}" }}' in (IMAGES / "docker-bake.hcl").read_text()


def test_the_bake_file_has_all_images_on_the_same_parents():
    from layers import LAYERS, PARENTS, STAGES

    text = (IMAGES / "docker-bake.hcl").read_text()
    pairs = dict(re.findall(r'\{ name = "([\w-]+)", parent = "([\w-]+)" \}', text))
    assert pairs == PARENTS
    assert set(pairs) == {*LAYERS, *STAGES}
    group = re.search(r"targets = (\[.*\])", text)
    assert group and json.loads(group[1]) == list(STAGES)
    used = set(re.findall(r"(?m)^    (\w+) +=", text)) | set(re.findall(r"(\w+) = ", text))
    for file in DOCKERFILES:
        for name, rest in instructions(file):
            if name == "ARG" and (variable := rest.partition("=")[0]) not in ("CODE", "INTERFACE"):
                assert variable in used, f"{file.name}: ARG {variable} is not set by the bake file"


def test_bake_gets_the_labels_of_the_checkout():
    from layers import interface

    done = subprocess.run([sys.executable, IMAGES / "build.py", "--bake"], capture_output=True, text=True, check=True)
    targets = json.loads(done.stdout)["target"]
    assert set(targets) == set(STAGES)
    for stage in STAGES:
        values = targets[stage]["args"]
        assert json.loads(values["INTERFACE"]) == interface(stage)
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", values["CODE"])
        # in a bake file these would be templates
        assert "${" not in values["INTERFACE"] and "%{" not in values["INTERFACE"]


def test_a_build_sees_no_environment_and_no_output():
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "nothing by default"
    assert {r for r in rules if r.startswith("!")} == {"!images", "!stages"}
    assert {"**/.*", "**/__pycache__", "**/build"} <= set(rules)


def test_the_shell_script_parses_and_can_be_executed():
    script = IMAGES / "base" / "debian.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)
