"""The images of this checkout, and containers of them, where an engine answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from conftest import ENGINE, without_engine

ROOT = Path(__file__).parent.parent.parent
IMAGES = ROOT / "images"
# the scripts of images/ import each other by their plain names
sys.path += [str(IMAGES), str(Path(__file__).parent)]

HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none")


def with_engine() -> dict[str, str]:
    """The environment as it was before the tests hid the engine from what does not ask for it."""
    environment = {k: v for k, v in os.environ.items() if k != "DOCKER_HOST"}
    return environment | ({"DOCKER_HOST": ENGINE} if ENGINE else {})


@dataclass(frozen=True)
class Image:
    """One stage's image in the local engine."""

    stage: str
    name: str
    client: str

    def docker(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        streams: dict[str, Any] = {"capture_output": True, "text": True, "env": with_engine(), **options}
        return subprocess.run([self.client, *arguments], check=False, **streams)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `docker image inspect` says."""
        done = self.docker("image", "inspect", self.name)
        assert done.returncode == 0, done.stderr
        value: dict[str, Any] = json.loads(done.stdout)[0]
        return value

    @property
    def labels(self) -> dict[str, str]:
        found: dict[str, str] = self.facts["Config"]["Labels"]
        return found

    def run(self, *command: str, options: tuple[str, ...] = (), user: str = "") -> subprocess.CompletedProcess[str]:
        """The stage in a hardened container: no capabilities, read-only root, no network."""
        chosen = ("--user", user) if user else ()
        return self.docker("run", "--rm", *HARDENED, *chosen, *options, self.name, *command)

    def python(self, code: str) -> str:
        """What a piece of Python prints in a container, run as root so that it sees every file."""
        options = ("run", "--rm", "--interactive", "--network", "none", "--user", "0", "--entrypoint", "python3")
        done = self.docker(*options, self.name, "-", input=code)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def images() -> Callable[[str], Image]:
    """`images("merge")` is that stage's image, made of the sources as they are now.

    A first build takes minutes, so it is not made here: `make images`. A build again takes seconds.
    """
    from build import BuildError, Engine
    from layers import STAGES, tag

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DOCKER_HOST")
        if ENGINE:
            patch.setenv("DOCKER_HOST", ENGINE)
        try:
            engine = Engine.find()
        except BuildError as error:
            without_engine(str(error).replace("\n ", ":"))
        if missing := [s for s in STAGES if engine.image(tag(s, "cpu")) is None]:
            without_engine(f"there is no image of {', '.join(missing)}: make images")
        key = '{{index .Config.Labels "org.opencontainers.image.base.name"}}'
        base = engine.run("image", "inspect", "--format", key, tag("base", "cpu")).stdout.strip()
        command = [sys.executable, str(IMAGES / "build.py"), "--base", base]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    found = {s: Image(s, tag(s, "cpu"), engine.client) for s in STAGES}
    return lambda stage: found[stage]


@pytest.fixture
def image(request: pytest.FixtureRequest, images: Callable[[str], Image]) -> Image:
    """The image of the stage that a test is parametrized with: `indirect=True`."""
    return images(request.param)
