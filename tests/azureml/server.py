"""Azure ML on 127.0.0.1, as far as the runner and the stages use it, for tests.

Azure Resource Manager, run history, signed logs, Key Vault and the endpoints where managed identities get their tokens.
Every request body is checked against Microsoft's swagger: what it does not allow is a 400. A job goes through the
states that Azure ML has, and its command really runs, in a container of its environment's image, or, without an engine,
as a process of this machine.

    azure.faults.append(Fault("GET", "/jobs/", 429, times=3))    # the next three answers
    azure.fate["microstages-x"] = Fate(before="quota …")         # this job never starts
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from azureml.life import DONE, GROUP, NAME, SUBSCRIPTION, WORKSPACE, Fate, Job, live
from azureml.swagger import Swagger

SCOPES = {
    "https://management.azure.com": "arm",
    "https://vault.azure.net": "vault",
    "https://storage.azure.com": "storage",
}
PATTERN = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9\-_]{0,254}")


@dataclass
class Fault:
    """What goes wrong with the next requests whose method and path fit. Status 0: the work is done and no answer comes;
    -1: the connection is closed before anything is done."""

    method: str
    path: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Reply = tuple[int, dict[str, str], bytes]


class Azure:
    """`engine`: the Docker engine that jobs run in; None: they are processes."""

    def __init__(self, specs: Path, engine: Any = None) -> None:
        self.swagger = Swagger(specs / "azureml-mfe-2023-10-01.swagger.json")
        self.engine = engine
        self.jobs: dict[str, Job] = {}
        self.environments: dict[str, dict[str, Any]] = {}
        self.vault: dict[str, str] = {}
        self.things: dict[str, dict[str, Any]] = {}  # path after the workspace or registry -> what GET answers
        self.posts: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # path -> what POST answers
        self.faults: list[Fault] = []
        self.fate: dict[str, Fate] = {}
        self.computes = {"gpu-cluster", "kube"}
        self.requests: list[Request] = []
        self.violations: list[str] = []
        self.tokens = {kind: f"{kind}-{secrets.token_hex(16)}" for kind in SCOPES.values()}
        self.header, self.signature = secrets.token_hex(16), secrets.token_hex(16)
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> Azure:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for job in self.jobs.values():
            job.cancel.set()
        for thread in self.threads:
            thread.join(30)
        self.server.shutdown()
        self.server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What somebody has in the environment who works with this workspace: the identity of a machine in Azure."""
        return {
            "AZURE_RESOURCE_MANAGER_URL": self.url, "IDENTITY_ENDPOINT": f"{self.url}/identity",
            "IDENTITY_HEADER": self.header, "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
            "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        }  # fmt: skip

    @property
    def options(self) -> dict[str, Any]:
        """A target of this workspace."""
        return {"subscription_id": SUBSCRIPTION, "resource_group": GROUP, "workspace": NAME, "compute": "gpu-cluster"}

    # --- requests ---

    def answer(self, asked: Request) -> Reply | None:
        parts = urlsplit(asked.path)
        with self.lock:
            self.requests.append(asked)
            for fault in self.faults:
                if fault.method == asked.method and fault.path in parts.path and fault.times > 0:
                    fault.times -= 1
                    if fault.status == 0:
                        self._handled(asked)
                    if fault.status <= 0:
                        return None
                    return fault.status, fault.headers, json.dumps(fault.body or {"error": {"message": "no"}}).encode()
        with self.lock:
            return self._handled(asked)

    def _handled(self, asked: Request) -> Reply:
        parts = urlsplit(asked.path)
        path, query = parts.path, parse_qs(parts.query)
        if path in ("/identity", "/job-identity"):
            return self._identity(asked, path, query)
        if path == "/discovery":
            return _json({"api": self.url, "history": self.url})
        if path.startswith("/logs/"):
            return self._log(asked, path, query)
        kind = "vault" if path.startswith("/secrets/") else "arm"
        if asked.headers.get("authorization") != f"Bearer {self.tokens[kind]}":
            return _json({"error": {"code": "InvalidAuthenticationToken", "message": "The token is not valid"}}, 401)
        if kind == "vault":
            name = path.rpartition("/")[2]
            if name not in self.vault or query.get("api-version") != ["7.4"]:
                return _json({"error": {"code": "SecretNotFound", "message": f"A secret {name} was not found"}}, 404)
            return _json({"value": self.vault[name], "id": asked.path})
        if path.startswith("/history/v1.0"):
            return self._details(path)
        if path.startswith(("/registrymanagement", "/mferp")):
            return self._thing(asked, path)
        if query.get("api-version") != ["2023-10-01"]:
            return _wrong("NoRegisteredProviderFound", f"no api-version {query}")
        if not path.startswith(WORKSPACE):
            return _json({"error": {"code": "ResourceNotFound", "message": f"{path} was not found"}}, 404)
        return self._workspace(asked, path.removeprefix(WORKSPACE))

    def _workspace(self, asked: Request, path: str) -> Reply:
        body = json.loads(asked.body or b"null")
        if not path:
            return _json({"id": WORKSPACE, "properties": {"discoveryUrl": f"{self.url}/discovery"}})
        if path.startswith("/environments/") and asked.method == "PUT":
            return self._environment(path, body)
        if path.startswith("/jobs/"):
            name, _, verb = path.removeprefix("/jobs/").partition("/")
            if asked.method == "PUT":
                return self._submit(name, body)
            if name not in self.jobs:
                return _json({"error": {"code": "UserError", "message": f"Run {name} not found"}}, 404)
            if verb == "cancel" and asked.method == "POST":
                if self.jobs[name].status in DONE:
                    return _wrong("UserError", "Run is already in a terminal state")
                self.jobs[name].cancel.set()
                return 202, {"Location": f"{self.url}/operations/1", "Retry-After": "10"}, b""
            return self._job(name)
        return self._thing(asked, path)

    def _thing(self, asked: Request, path: str) -> Reply:
        if asked.method == "POST" and path in self.posts:
            body = json.loads(asked.body)
            if "datarefs" in path and (wrong := self._wrong("GetBlobReferenceSASRequestDto", body)):
                return wrong
            return _json(self.posts[path](body))
        if asked.method == "GET" and path in self.things:
            return _json(self.things[path])
        return _json({"error": {"code": "UserError", "message": f"{path} was not found"}}, 404)

    def _wrong(self, definition: str, body: Any) -> Reply | None:
        if wrong := self.swagger.wrong(definition, body):
            self.violations.append(wrong)
            return _wrong("ValidationError", wrong)
        return None

    def _environment(self, path: str, body: dict[str, Any]) -> Reply:
        if wrong := self._wrong("EnvironmentVersionResource", body):
            return wrong
        before = self.environments.setdefault(path, body)
        if before != body:
            return _json({"error": {"code": "Conflict", "message": "the version is there, and is another"}}, 409)
        return _json({"id": WORKSPACE + path, **body}, 201)

    def _submit(self, name: str, body: dict[str, Any]) -> Reply:
        if not PATTERN.fullmatch(name):
            return _wrong("ValidationError", f"{name} is no name")
        if wrong := self._wrong("JobBaseResource", body):
            return wrong
        properties = body["properties"]
        if properties["environmentId"].removeprefix(WORKSPACE) not in self.environments:
            return _json({"error": {"code": "UserError", "message": "Environment was not found"}}, 404)
        compute = properties.get("computeId", "").rpartition("/")[2]
        if compute and compute not in self.computes:
            return _json({"error": {"code": "UserError", "message": f"Compute {compute} not found"}}, 404)
        if name not in self.jobs:
            self.jobs[name] = Job(body)
            self.threads.append(threading.Thread(target=live, args=(self, name, self.jobs[name]), daemon=True))
            self.threads[-1].start()
        elif self.jobs[name].body != body:
            return _json({"error": {"code": "Conflict", "message": "the job is there, and is another"}}, 409)
        return self._job(name, 201)

    def _job(self, name: str, status: int = 200) -> Reply:
        job = self.jobs[name]
        services = {
            "Tracking": {"jobServiceType": "Tracking", "endpoint": f"azureml://127.0.0.1/mlflow/v1.0{WORKSPACE}"},
            "Studio": {"jobServiceType": "Studio", "endpoint": f"https://ml.azure.com/runs/{name}"},
        }
        properties = {**job.body["properties"], "status": job.status, "services": services}
        return _json({"id": f"{WORKSPACE}/jobs/{name}", "name": name, "properties": properties}, status)

    def _details(self, path: str) -> Reply:
        name = path.removesuffix("/details").rpartition("/")[2]
        if not path.startswith(f"/history/v1.0{WORKSPACE}/runs/") or name not in self.jobs:
            return _json({"error": {"code": "UserError", "message": f"Run {name} not found"}}, 404)
        job = self.jobs[name]
        nodes = job.body["properties"]["resources"]["instanceCount"]
        files = {"system_logs/cs_capability/cs-capability.log": f"{self.url}/logs/{name}/system?sig={self.signature}"}
        if job.log:
            for node in range(nodes):
                file = "std_log.txt" if nodes == 1 else f"std_log_process_{node}.txt"
                files[f"user_logs/{file}"] = f"{self.url}/logs/{name}/{node}?sig={self.signature}"
        error = {"error": {"error": job.error}} if job.error else {}
        return _json({"runId": name, "status": job.status, "logFiles": files, **job.times, **error})

    def _log(self, asked: Request, path: str, query: dict[str, list[str]]) -> Reply:
        if query.get("sig") != [self.signature] or "authorization" in asked.headers:
            return 403, {}, b"AuthenticationFailed"
        name, _, node = path.removeprefix("/logs/").partition("/")
        data = self.jobs[name].log if node == "0" else b"of another node\n"
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.headers.get("range", ""))
        if not found:
            return 200, {}, data
        start, end = int(found[1]), min(int(found[2]), len(data) - 1)
        if start >= len(data):
            return 416, {"Content-Range": f"bytes */{len(data)}"}, b""
        return 206, {"Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1]

    def _identity(self, asked: Request, path: str, query: dict[str, list[str]]) -> Reply:
        """App Service's form for who submits, Azure ML's for a job."""
        known = asked.headers.get("x-identity-header" if path == "/identity" else "secret")
        resource = query.get("resource", [""])[0]
        if known != self.header or resource not in SCOPES:
            return _wrong("invalid_request", f"no token for {resource}")
        out = {"access_token": self.tokens[SCOPES[resource]], "expires_on": str(int(time.time()) + 3600)}
        return _json({**out, "resource": resource, "token_type": "Bearer"})


def _json(value: Any, status: int = 200) -> Reply:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _wrong(code: str, message: str) -> Reply:
    return _json({"error": {"code": code, "message": message}}, 400)


def _handler(azure: Azure) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = azure.answer(Request(self.command, self.path, headers, body))
            if reply is None:
                self.close_connection = True
                return
            status, more, data = reply
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_PUT = do_POST = do_GET  # noqa: N815

        def log_message(self, *args: Any) -> None: ...

    return Handler
