"""A stand-in of Azure ML for a test, and attempts that run in it."""

from __future__ import annotations

import itertools
import os
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from azureml.server import Azure
from microstages.errors import UserError

from runner.executors import Attempt, Status
from runner.executors.azureml import executor as module
from runner.executors.azureml.executor import AzureMLExecutor
from runner.spec import Resources


@pytest.fixture(scope="session")
def specs(shared: Path) -> Path:
    """Microsoft's swagger."""
    folder = shared / "specs"
    if not (folder / "azureml-mfe-2023-10-01.swagger.json").is_file():
        pytest.skip(f"AZURE ML NOT TESTED: Microsoft's swagger is not in {folder}")
    return folder


def use(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process know it, have an identity there, and look often."""
    for name in [n for n in os.environ if n.startswith(("AZURE", "AWS_", "IDENTITY_", "MSI_"))]:
        monkeypatch.delenv(name)
    for name, value in azure.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "LOOKS", (0.02, 0.1))
    monkeypatch.setattr(module, "LATE", 2.0)
    monkeypatch.setattr("microstages.arm.PAUSES", (0.02, 0.1))


@pytest.fixture
def azure(specs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    """Azure ML whose jobs are processes; this process knows it and has an identity there."""
    with Azure(specs) as made:
        use(made, monkeypatch)
        yield made
        assert not made.violations


@dataclass(frozen=True)
class Engine:
    """The Docker engine of this machine."""

    address: str


@pytest.fixture(scope="session")
def any_engine() -> Engine:
    """A Docker engine with the image that `Runs` uses, of whatever code."""
    from runner.executors.engine import address, connect, image_named

    hidden = os.environ["DOCKER_HOST"]
    own = os.environ.get("MICROSTAGES_TEST_ENGINE", "unix:///var/run/docker.sock")
    os.environ["DOCKER_HOST"] = own
    try:
        image_named(connect(), Runs.image)
        return Engine(address())
    except UserError as error:
        if os.environ.get("MICROSTAGES_REQUIRE_DOCKER") == "1":
            pytest.fail(f"containers are not tested: {error.what}")
        pytest.skip(f"CONTAINERS NOT TESTED: {error.what}")
    finally:
        os.environ["DOCKER_HOST"] = hidden


@pytest.fixture
def boxed_azure(specs: Path, any_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    """Azure ML whose jobs are containers."""
    with Azure(specs, any_engine) as made:
        use(made, monkeypatch)
        yield made
        assert not made.violations


class Runs:
    """Attempts, and what they came to."""

    image = "microstages/prepare-data:latest"  # its shell and its Python are all that is used

    def __init__(self, azure: Azure, folder: Path) -> None:
        self.azure, self.folder = azure, folder
        self.executor = AzureMLExecutor(azure.options, folder)
        self._count = itertools.count(1)

    def attempt(self, script: str, **more: Any) -> Attempt:
        name = f"20260101T000000-{next(self._count):08x}"
        log = self.folder / f"{name}.log"
        values = {
            "command": ("sh", "-c", script),
            "image": self.image,
            "uses": "work",
            "resources": Resources(),
            **more,
        }
        events = values.pop("events", log.with_suffix(".events"))
        return Attempt(name, "work", folder=self.folder, log=log, events=events, **values)

    def wait(self, attempt: Attempt, executor: AzureMLExecutor | None = None) -> tuple[Status, str]:
        """Wait for its end as the scheduler does: how it ended, and what was read."""
        place = executor or self.executor
        said, end = "", time.monotonic() + 60
        while time.monotonic() < end:
            fd = place.wake(attempt)
            poller = select.poll()
            if fd is not None:
                poller.register(fd, select.POLLIN)
            poller.poll(1000)
            status = place.poll(attempt)
            said += place.read(attempt)
            if not status.running:
                place.forget(attempt, leave=status.left)
                return status, said
        raise AssertionError("it never ended")

    def run(self, script: str, **more: Any) -> tuple[Status, str, Attempt]:
        attempt = self.attempt(script, **more)
        self.executor.submit(attempt)
        status, said = self.wait(attempt)
        return status, said, attempt

    def job(self, attempt: Attempt) -> Any:
        return self.azure.jobs[f"microstages-{attempt.name}"]

    def until(self, condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.01)
        raise AssertionError("it never came true")

    def asked(self, method: str, part: str) -> int:
        """How many requests there were."""
        return sum(r.method == method and part in r.path for r in self.azure.requests)


@pytest.fixture
def runs(azure: Azure, tmp_path: Path) -> Runs:
    return Runs(azure, tmp_path)


@pytest.fixture
def boxed_runs(boxed_azure: Azure, tmp_path: Path) -> Runs:
    return Runs(boxed_azure, tmp_path)
