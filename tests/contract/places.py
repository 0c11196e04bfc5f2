"""How each place of the contract is made. A context manager each: (request, folder) -> Place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ENGINE, code_of  # at once: later the engine's address is hidden

from runner.executors import Attempt

IMAGE = "microstages/prepare-data:latest"  # its shell is all that is used


def _base(folder: Path, **more: Any) -> Attempt:
    return Attempt("", "work", (), folder, folder / "log", folder / "events", **more)


@contextmanager
def process(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:  # noqa: ARG001
    from contract.conftest import Place

    from runner.executors.process import ProcessExecutor

    yield Place("process", folder, ProcessExecutor, _base(folder))


@contextmanager
def docker(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    from contract.conftest import Place

    from runner.executors.docker import LABEL, DockerExecutor

    engine = request.getfixturevalue("engine")
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = engine.address
    (folder / "code").mkdir()

    def count(attempt: Attempt) -> int:
        return len(engine.client.containers(all=True, filters={"label": f"{LABEL}={attempt.name}"}))

    base = _base(folder, image=IMAGE, code_folders=(folder / "code",))
    try:
        yield Place("docker", folder, DockerExecutor, base, count)
    finally:
        if before is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = before


@contextmanager
def kubernetes(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    from contract.conftest import Place

    from runner.executors.kubernetes.executor import KubernetesExecutor
    from runner.executors.kubernetes.manifests import selector

    namespace = request.getfixturevalue("namespace")
    options = {"namespace": namespace.namespace}

    def count(attempt: Attempt) -> int:
        return len(namespace.listed("jobs", selector(attempt.name))["items"])

    base = _base(folder, image=IMAGE)
    yield Place("kubernetes", folder, lambda: KubernetesExecutor(options), base, count)


@contextmanager
def kubernetes_command(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    """A plain command of a cluster: what brings its inputs runs before it, what publishes its outputs after it."""
    from k8s.cluster import engine
    from k8s.fixtures import tagged

    from runner.executors import Carried
    from runner.executors.porter import BEGAN

    orders = {"stage": "work", "inputs": {}, "code": [], "outputs": {}, "began": BEGAN, "provenance": {}}
    carried = Carried(json.dumps(orders), "merge", code_of("merge"))
    with kubernetes(request, folder) as place, tagged(engine(ENGINE), ["merge"]):
        place.base = replace(place.base, carried=carried)
        place.other = "inputs are there"
        place.stopped = (143, -15)  # kubelets before 1.22 do not tell the code of an init container that they stop
        yield place


@contextmanager
def azureml(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    """A stand-in of Azure ML on this machine, whose jobs are processes."""
    from azureml.conftest import use
    from azureml.server import Azure
    from contract.conftest import Place

    from runner.executors.azureml.body import job_name
    from runner.executors.azureml.executor import AzureMLExecutor

    patch = pytest.MonkeyPatch()
    specs = request.getfixturevalue("shared") / "specs"
    if not specs.is_dir():
        pytest.skip(f"AZURE ML NOT TESTED: Microsoft's swagger is not in {specs}")
    with Azure(specs) as azure, patch.context() as patched:
        use(azure, patched)

        def count(attempt: Attempt) -> int:
            return int(job_name(attempt.name) in azure.jobs)

        base = _base(folder, uses="work")
        yield Place("azureml", folder, lambda: AzureMLExecutor(azure.options, folder), base, count)


PLACES: dict[str, Callable[[pytest.FixtureRequest, Path], AbstractContextManager[Any]]] = {
    "process": process,
    "docker": docker,
    "kubernetes": kubernetes,
    "kubernetes-command": kubernetes_command,
    "azureml": azureml,
}
