"""A real cluster for tests: that of $KUBECONFIG, or a Kubernetes of this machine's own on its Docker engine."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
HOME = Path(os.environ.get("KUBE_HOME") or Path("~/.cache/kube-test").expanduser())
BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
PAUSE = "microstages/pause:test"
# Its shell and its Python are all that is used.
IMAGE = os.environ.get("MICROSTAGES_TEST_IMAGE") or "microstages/prepare-data:latest"
# What holds a pod's namespaces: it sleeps, and ends when it is told to.
SLEEP = ["sh", "-c", 'trap "exit 0" TERM; sleep infinity & wait']
NAMESPACE, OWN = "io.kubernetes.pod.namespace", "microstages-test-"  # the label of a pod's container; a test's own
NO_STAGE = "LABEL microstages.stage= microstages.code= microstages.interface="


class UnavailableError(Exception):
    """Why there is no cluster here."""


@dataclass(frozen=True)
class Started:
    """A cluster: its kubeconfig, and whether a test run started it."""

    kubeconfig: Path
    own: bool

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(self.kubeconfig.read_text())
        return found

    @property
    def port(self) -> int:
        """Where the API answers on this machine; 0 where it is another one."""
        server = str(self.config["clusters"][0]["cluster"]["server"])
        return int(server.rpartition(":")[2].strip("/")) if server.startswith("https://127.0.0.1:") else 0


def script() -> Path:
    """What builds and starts a cluster, beside the shared real inputs."""
    shared = Path(os.environ.get("MICROSTAGES_SHARED") or ROOT.parent / "shared")
    return shared / "tools" / "kubernetes.sh"


def engine(address: str = "") -> Any:
    """A client of this machine's Docker engine. Raises UnavailableError where there is none with the tests' image."""
    import docker

    try:
        client = docker.APIClient(base_url=address or "unix:///var/run/docker.sock", version="auto", timeout=60)
        client.inspect_image(IMAGE)
    except (docker.errors.APIError, docker.errors.DockerException, OSError) as error:
        raise UnavailableError(f"there is no Docker engine with {IMAGE}: {error}") from None
    return client


def start(address: str = "") -> Started:
    """A cluster, started on the Docker engine at an address where none is given. Raises UnavailableError."""
    if own := os.environ.get("KUBECONFIG"):
        return Started(Path(own), False)
    if not script().is_file():
        raise UnavailableError("KUBECONFIG names no cluster")
    if missing := [name for name in BINARIES if not (HOME / "bin" / name).is_file()]:
        raise UnavailableError(f"{', '.join(missing)} is not built: {script().name} build, or set KUBECONFIG")
    if list((HOME / "run").glob("*.pid")):
        raise UnavailableError(f"one is there that another test run started: set KUBECONFIG={HOME}/run/kubeconfig")
    make_pause(engine(address))
    done = _script("up", PAUSE)
    if done.returncode:
        stop(address)
        raise UnavailableError(f"the cluster did not start: {done.stderr.strip()[-500:]}")
    return Started(Path(done.stdout.strip().splitlines()[-1]), True)


def stop(address: str = "") -> None:
    """Stop what `start` started, by its process ids, and remove what its pods left on the Docker engine."""
    _script("down")
    client = engine(address)
    for made in client.containers(all=True, filters={"label": NAMESPACE}):
        if made["Labels"][NAMESPACE].startswith(OWN):
            client.remove_container(made["Id"], force=True)


def _script(*words: str) -> subprocess.CompletedProcess[str]:
    # Its programs stay: they must not hold a pipe of ours open.
    out, err = HOME / "out", HOME / "err"
    with out.open("w") as o, err.open("w") as e:
        done = subprocess.run(
            ["bash", str(script()), *words], stdout=o, stderr=e, check=False, timeout=300, stdin=subprocess.DEVNULL,
            env={**os.environ, "KUBE_HOME": str(HOME)},
        )  # fmt: skip
    return subprocess.CompletedProcess(done.args, done.returncode, out.read_text(), err.read_text())


def make_pause(client: Any) -> None:
    """The image that holds a pod's namespaces, made from one that is here."""
    made = client.create_container(IMAGE, SLEEP)
    try:
        client.commit(made["Id"], *PAUSE.split(":"), changes=f"ENTRYPOINT {json.dumps(SLEEP)}\n{NO_STAGE}")
    finally:
        client.remove_container(made["Id"])


def bridge(client: Any) -> str:
    """The address at which pods of this machine's engine reach it."""
    return str(client.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"])
