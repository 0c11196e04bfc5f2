"""A cluster for tests, `cluster`, and a namespace of the test run's own in it, `namespace`.

Where there is none, such tests are left out loudly; with $MICROSTAGES_REQUIRE_KUBERNETES=1 they fail.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import ENGINE, code_of
from k8s.cluster import OWN, Started, UnavailableError, bridge, engine, start, stop
from stores import servers
from stores.fixtures import running
from stores.servers import Store

from runner.executors.engine import image_of
from runner.executors.images import tag
from runner.executors.kubernetes.api import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Started]:
    """The cluster; one that was started here is stopped at the end."""
    try:
        found = start(ENGINE)
    except UnavailableError as why:
        if os.environ.get("MICROSTAGES_REQUIRE_KUBERNETES") == "1":
            pytest.fail(f"Kubernetes is not tested: {why}")
        pytest.skip(f"KUBERNETES NOT TESTED: {why}")
    yield found
    if found.own:
        stop(ENGINE)


@pytest.fixture(scope="session")
def namespace(cluster: Started) -> Iterator[Cluster]:
    """A namespace of this test run's own."""
    before, os.environ["KUBECONFIG"] = os.environ.get("KUBECONFIG"), str(cluster.kubeconfig)
    name = f"{OWN}{secrets.token_hex(3)}"
    made = Cluster("", name)
    namespaces = "/api/v1/namespaces"
    made._call("POST", namespaces, "create", body={"kind": "Namespace", "metadata": {"name": name}})
    yield made
    made._call("DELETE", f"{namespaces}/{name}", "delete")
    os.environ.pop("KUBECONFIG")
    if before:
        os.environ["KUBECONFIG"] = before


@pytest.fixture(scope="session")
def pod_store(cluster: Started, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Azurite where pods reach it."""
    if not cluster.port:
        pytest.skip("pods of this cluster do not reach this machine")
    host = bridge(engine(ENGINE))
    yield from running(lambda folder: servers.azurite(folder, host), tmp_path_factory)


@contextmanager
def tagged(client: Any, stages: Iterable[str]) -> Iterator[None]:
    """Stages' images under the names that a cluster looks for."""
    made = []
    for stage in stages:
        name = f"microstages/{stage}", tag(code_of(stage), "cpu")
        if not client.images(":".join(name)):
            client.tag(image_of(client, stage, code_of(stage), "cpu").id, *name)
            made.append(":".join(name))
    yield
    for image in made:
        client.remove_image(image)
