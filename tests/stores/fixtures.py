"""Fixtures of object stores: `azurite`, `s3`, `remote` (a test runs with each), `spoiled` (each, behind a proxy).

    def test_…(remote):                                 # this process reaches the store
        uri = remote.uri("models")                      # abfs://models-1-…/models, then s3://…
        run_program([…], env={**os.environ, **remote.environment})

    def test_…(spoiled):
        spoiled.proxy.follow(Plan(script=("pass", "truncate")))

`@pytest.mark.parametrize("remote", ["azurite"], indirect=True)` takes one of them. Where a server cannot be run, such
tests are left out loudly; with $MICROSTAGES_REQUIRE_STORES=1 they fail.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from stores import servers
from stores.proxy import Proxy
from stores.servers import Store, UnavailableError

STORES = ("azurite", "s3")


def running(make: Callable[[Path], Store], factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store for as long as a session lasts; where there is none, the test that asked is left out, or fails."""
    try:
        store = make(factory.mktemp("store"))
    except UnavailableError as why:
        if os.environ.get("MICROSTAGES_REQUIRE_STORES") == "1":
            pytest.fail(f"object stores are not tested: {why}")
        pytest.skip(f"OBJECT STORES NOT TESTED: {why}")
    yield store
    store.server.stop()


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Azure Blob storage, its data on this disk."""
    yield from running(servers.azurite, tmp_path_factory)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """S3, its data in memory."""
    yield from running(servers.s3, tmp_path_factory)


@pytest.fixture(params=STORES)
def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store that this process reaches while the test runs; the test runs once with each."""
    store: Store = request.getfixturevalue(request.param)
    store.start()
    store.use(monkeypatch)
    yield store
    servers.forget()


@dataclass(frozen=True)
class Spoiled:
    """A store that is reached through a proxy; as long as the proxy has no plan, nothing is spoiled."""

    store: Store
    proxy: Proxy

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which drivers find the proxy."""
        return self.store.environment_at(self.proxy.port)

    def uri(self, name: str = "store") -> str:
        """As Store.uri; the container is made past the proxy."""
        return self.store.uri(name)


@pytest.fixture(params=STORES)
def spoiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spoiled]:
    """A store that this process reaches through a proxy; the test runs once with each."""
    store: Store = request.getfixturevalue(request.param)
    store.start()
    proxy = Proxy(store.port).start()
    found = Spoiled(store, proxy)
    servers.use(found.environment, monkeypatch)
    yield found
    servers.forget()
    proxy.stop()
