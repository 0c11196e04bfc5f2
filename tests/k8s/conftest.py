"""Attempts as Jobs of a real cluster. Without one these tests are left out loudly; with
$MICROSTAGES_REQUIRE_KUBERNETES=1 they fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ENGINE
from k8s.cluster import IMAGE, Started, bridge, engine
from microstages.errors import UserError
from relay import Relay

from runner.executors import Attempt, Status
from runner.executors.kubernetes.api import Cluster, MissingError
from runner.executors.kubernetes.executor import KubernetesExecutor
from runner.store import new_attempt

LIMIT = 90.0  # seconds after which an attempt that did not end is a failure of the test


@dataclass(frozen=True)
class Ended:
    """How an attempt ended, and what it said."""

    status: Status
    log: str
    events: str

    @property
    def code(self) -> int | None:
        return self.status.code

    @property
    def words(self) -> list[str]:
        """The lines of the log that the program wrote."""
        return [line for line in self.log.splitlines() if not line.startswith("[kubernetes] ")]

    @property
    def told(self) -> list[str]:
        """The lines of the log that say what the cluster did."""
        return [line for line in self.log.splitlines() if line.startswith("[kubernetes] ")]


class Bench:
    """Starts attempts in the test's namespace."""

    def __init__(self, place: Cluster, folder: Path) -> None:
        self.place, self.folder = place, folder
        self.running: list[tuple[KubernetesExecutor, Attempt]] = []

    def executor(self, **options: Any) -> KubernetesExecutor:
        return KubernetesExecutor({"namespace": self.place.namespace, **options})

    def attempt(self, script: str, **more: Any) -> Attempt:
        """An attempt that runs a shell script."""
        name = new_attempt()
        return Attempt(
            name, more.pop("stage", "work"), ("sh", "-c"), self.folder, self.folder / f"{name}.log",
            self.folder / f"{name}.events", image=more.pop("image", IMAGE), arguments=(script,), **more,
        )  # fmt: skip

    def begin(self, script: str, options: Mapping[str, Any] | None = None, **more: Any) -> Running:
        executor, attempt = self.executor(**(options or {})), self.attempt(script, **more)
        token = executor.submit(attempt)
        self.running.append((executor, attempt))
        return Running(self, executor, attempt, token)

    def run(self, script: str, options: Mapping[str, Any] | None = None, **more: Any) -> Ended:
        return self.begin(script, options, **more).ended()

    def refused(self, script: str, options: Mapping[str, Any] | None = None, **more: Any) -> UserError:
        """What is said of an attempt that cannot be submitted."""
        with pytest.raises(UserError) as error:
            self.begin(script, options, **more)
        return error.value

    def left(self, attempt: Attempt) -> list[str]:
        """What the cluster still has of an attempt."""
        found = []
        for kind in ("jobs", "pods", "secrets", "services"):
            items = self.place.listed(kind, f"microstages/attempt={attempt.name}")["items"]
            found += [f"{kind}/{i['metadata']['name']}" for i in items if not i["metadata"].get("deletionTimestamp")]
        return found


@dataclass
class Running:
    """An attempt under way."""

    bench: Bench
    executor: KubernetesExecutor
    attempt: Attempt
    token: str

    def ended(self) -> Ended:
        end = time.monotonic() + LIMIT
        while (status := self.executor.poll(self.attempt)).running:
            assert time.monotonic() < end, f"it did not end: {self.log()}"
            time.sleep(0.02)
        return Ended(status, self.log(), self.attempt.events.read_text())

    def log(self) -> str:
        return self.attempt.log.read_text() if self.attempt.log.exists() else ""

    @property
    def job(self) -> str:
        return str(json.loads(self.token)["name"])

    def pod(self) -> dict[str, Any]:
        """The newest pod."""
        found = self.bench.place.listed("pods", f"job-name={self.job}")["items"]
        return max(found, key=lambda p: str(p["metadata"]["creationTimestamp"])) if found else {}

    def gone(self) -> bool:
        with suppress(MissingError):
            self.bench.place.get("jobs", self.job)
            return False
        return True


@pytest.fixture
def bench(namespace: Cluster, tmp_path: Path) -> Iterator[Bench]:
    """A place to start attempts from. What a test that failed left there is removed."""
    made = Bench(namespace, tmp_path)
    yield made
    for executor, attempt in made.running:
        with suppress(KeyError, UserError):
            executor.forget(attempt)
    for job in namespace.listed("jobs")["items"]:
        namespace.delete("jobs", job["metadata"]["name"])


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], Any]:
    """Wait until something is true, and return it."""

    def wait(condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError("it never came true")

    return wait


@pytest.fixture
def gate(cluster: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """Lets this process reach the API through a port that can be shut."""
    if not cluster.port:
        pytest.skip("this cluster is not on this machine")
    made = Relay(cluster.port)
    config = cluster.config
    for entry in config["clusters"]:
        entry["cluster"]["server"] = f"https://127.0.0.1:{made.port}"
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(file))
    yield made
    made.close()


class Asked:
    """A server of this machine that pods ask; it gives its answers one after the other."""

    def __init__(self, host: str) -> None:
        self.answers: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(outer.answers.pop(0).encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer((host, 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        address = f"http://{host}:{self.server.server_port}"
        self.get = f"python3 -c 'import urllib.request as u; print(u.urlopen(\"{address}\").read().decode())'"


@pytest.fixture
def asked(cluster: Started) -> Iterator[Asked]:
    """What pods can ask of this machine."""
    if not cluster.port:
        pytest.skip("pods of this cluster do not reach this machine")
    made = Asked(bridge(engine(ENGINE)))
    yield made
    made.server.shutdown()
    made.server.server_close()
