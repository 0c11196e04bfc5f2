"""Where the pipeline runs while things die: processes or containers, a store in a folder or on Azurite.

Azurite is reached through a proxy: it counts exchanges, so that a kill can meet a certain one, and spoils them where
the place says so. What checks the store does not go through it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from chaos.audit import Blobs, Files, Folder
from chaos.engine import EngineError, OwnEngine
from stores import servers
from stores.proxy import Plan, Proxy
from stores.servers import Store, UnavailableError

RUNNER, STAGE, BOTH = "runner", "stage", "runner and stage"
STORE_KILLED, STORE_STOPPED = "store, kill -9", "store, stopped"
SPOILED, CUT = "network, spoiled", "network, cut"
ENGINE = "engine"

NAMES = (
    "process, folder", "process, Azurite", "process, bad network to Azurite", "docker, folder", "docker, Azurite",
)  # fmt: skip
BAD_DAY = Plan(seed=1, drop=0.01, lose=0.01, delay=0.03, truncate=0.01, seconds=0.3)


@dataclass
class Place:
    """One way to run the pipeline. `usual` is what its network does all the time; `address` is its Docker engine's."""

    name: str
    target: str = "process"
    store: Store | None = None
    proxy: Proxy | None = None
    usual: Plan = field(default_factory=Plan)
    address: str = ""
    engine: OwnEngine | None = None
    container: str = ""
    _counted: int = 0

    @property
    def victims(self) -> tuple[str, ...]:
        """What can die here."""
        out = [RUNNER, STAGE, BOTH]
        if self.store:
            out += [STORE_KILLED, STORE_STOPPED]
        if self.usual != Plan():
            out += [SPOILED, CUT]
        return (*out, *([ENGINE] if self.engine else []))

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which its store and its engine are found."""
        out = {"DOCKER_HOST": self.address} if self.address else {}
        if self.store and self.proxy:
            out |= self.store.environment_at(self.proxy.port)
        return out

    def uri(self, name: str) -> str:
        """The address of a fresh store; a folder below the pipeline's where it is local."""
        return f"{self.container}/{name}" if self.store else ".runner/store"

    def files(self, folder: Path, uri: str) -> Files:
        """The store of a pipeline's folder, read directly."""
        if self.store is None:
            return Folder(folder / uri)
        return Blobs(self.store.environment["AZURE_STORAGE_CONNECTION_STRING"], uri)

    def follow(self, plan: Plan) -> None:
        """Let the network do something else from now on."""
        if self.proxy:
            self._counted += sum(self.proxy.seen.values())
            self.proxy.follow(plan)

    def confirmed(self, uri: str, name: str) -> bool:
        """Whether the server of a store said that it keeps a file of it. Who asked it past the proxy does not count."""
        path = f"/{uri.partition('://')[2]}/{name}"
        return self.proxy is not None and any(held.endswith(path) for held in self.proxy.held)

    def exchanges(self) -> int:
        """How often the store was asked so far."""
        return self._counted + sum(self.proxy.seen.values()) if self.proxy else 0


def _on_azurite(stack: ExitStack, store: Store, place: Place) -> Place:
    """Put a place's store on Azurite, its container so that even `kill -9` does not make the server forget it."""
    place.store, place.container = store, store.uri("chaos")
    store.restart()
    place.proxy = Proxy(store.port).start()
    stack.callback(place.proxy.stop)
    place.follow(place.usual)
    return place


@contextmanager
def places(
    folder: Path, address: str, own_engine: bool, wanted: Sequence[str] = ("",)
) -> Iterator[tuple[list[Place], list[str]]]:
    """The places that can be had here, and why others cannot.

    `address`: a Docker engine with the stages' images; `own_engine`: start a second one, which can be killed;
    `wanted`: only places whose name begins with one of these.
    """
    chosen = [name for name in NAMES if any(name.startswith(w) for w in wanted)]
    found: list[Place] = []
    absent: list[str] = []
    with ExitStack() as stack:
        store, own = None, {}
        if any("Azurite" in name for name in chosen):
            (folder / "azurite").mkdir()
            try:
                store = servers.azurite(folder / "azurite")
                stack.callback(store.server.stop)
            except UnavailableError as why:
                absent.append(f"Azurite: {why}")
        boxed = any(name.startswith("docker") for name in chosen)
        without = without_images(address) if boxed else ""
        if boxed and without:
            absent.append(f"containers: {without}")
        elif boxed:
            own = {"address": address}
            try:
                if own_engine:
                    engine = stack.enter_context(OwnEngine(address))
                    own = {"address": engine.address, "engine": engine}
            except EngineError as why:
                absent.append(f"the engine's death: {why}")
        for name in chosen:
            elsewhere, container = "Azurite" in name, name.startswith("docker")
            if (elsewhere and not store) or (container and not own):
                continue
            target = ("host" if elsewhere else "docker") if container else "process"
            place = Place(name, target, usual=BAD_DAY if "bad" in name else Plan(), **(own if container else {}))
            found.append(_on_azurite(stack, store, place) if elsewhere and store else place)
        yield found, absent


def without_images(address: str) -> str:
    """Why containers cannot run here; empty where they can."""
    from microstages.errors import UserError

    from runner import stages
    from runner.executors import engine

    root = Path(__file__).parent.parent.parent
    hidden = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = address
    try:
        client = engine.connect()
        for name in ("prepare-data", "train-lora", "merge"):
            engine.image_of(client, name, stages.find(name, root).code_identity(), "cpu")
        return ""
    except UserError as error:
        return error.what
    finally:
        if hidden is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = hidden
