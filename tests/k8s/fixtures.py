"""A cluster for tests, `cluster`, and a namespace of the test run's own in it, `namespace`.

Where there is none, such tests are left out loudly; with $MICROSTAGES_REQUIRE_KUBERNETES=1 they fail.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest
from conftest import ENGINE
from k8s.cluster import OWN, Started, UnavailableError, start, stop

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
