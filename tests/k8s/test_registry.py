"""A tag becomes the digest that its registry tells, with and without a token; where it does not tell, that is said."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from microstages.errors import UserError

from runner.executors import Attempt
from runner.executors.kubernetes.executor import KubernetesExecutor
from runner.executors.kubernetes.registry import TYPES, host_of, pinned

DIGEST = f"sha256:{'a' * 64}"
LOGIN = base64.b64encode(b"me:secret").decode()


@dataclass
class Registry:
    """A registry on this machine with one image, `team/merge:1`. `closed`: it wants a token, and a login for that."""

    closed: bool = False
    asked: list[str] = field(default_factory=list)

    def start(self) -> ThreadingHTTPServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                outer.asked.append(self.headers["Accept"])
                if outer.closed and self.headers["Authorization"] != "Bearer token":
                    self.send_response(401)
                    realm = f"http://127.0.0.1:{self.server.server_port}/token"  # type: ignore[attr-defined]
                    scope = "repository:team/merge:pull"
                    self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="here",scope="{scope}"')
                elif self.path == "/v2/team/merge/manifests/1":
                    self.send_response(200)
                    self.send_header("Docker-Content-Digest", DIGEST)
                else:
                    self.send_response(404)
                self.end_headers()

            def do_GET(self) -> None:
                good = self.headers["Authorization"] == f"Basic {LOGIN}" and "scope=repository" in self.path
                self.send_response(200 if good else 401)
                self.end_headers()
                self.wfile.write(json.dumps({"token": "token"} if good else {}).encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


@pytest.fixture(params=[False, True], ids=["open", "closed"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The registry's name."""
    made = Registry(request.param)
    server = made.start()
    host = f"127.0.0.1:{server.server_port}"
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": LOGIN}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    yield host
    assert all(kind in made.asked[0] for kind in TYPES)
    server.shutdown()
    server.server_close()


def test_a_tag_becomes_a_digest(registry):
    assert pinned(f"{registry}/team/merge:1") == f"{registry}/team/merge@{DIGEST}"
    with pytest.raises(UserError, match="has no image"):
        pinned(f"{registry}/team/merge:2")


def test_a_stage_gets_it(registry, tmp_path):
    attempt = Attempt("a", "merge", (), tmp_path, tmp_path / "log", tmp_path / "log", uses="merge", code="sha256:1")
    options = {"registry": f"{registry}/team", "images": {"merge": f"{registry}/team/merge:1"}}
    assert KubernetesExecutor(options).given(attempt).image == f"{registry}/team/merge@{DIGEST}"


def test_without_a_login_it_is_not_told(monkeypatch, tmp_path):
    server = Registry(closed=True).start()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    with pytest.raises(UserError, match="does not tell its digest"):
        pinned(f"127.0.0.1:{server.server_port}/team/merge:1")
    server.shutdown()
    server.server_close()


def test_a_registry_that_is_not_reached_leaves_the_tag(tmp_path):
    attempt = Attempt("a", "merge", (), tmp_path, tmp_path / "log", tmp_path / "log", uses="merge", code="sha256:1")
    executor = KubernetesExecutor({"registry": "127.0.0.1:9/team"})
    assert executor.given(attempt).image == "127.0.0.1:9/team/merge:1-cpu"


@pytest.mark.parametrize(
    ("image", "host"),
    [("merge:1", ""), ("team/merge:1", ""), ("ghcr.io/team/merge", "ghcr.io"), ("localhost/x", "localhost"),
     ("registry:5000/x:1", "registry:5000")],
)  # fmt: skip
def test_the_registry_of_a_name(image, host):
    assert host_of(image) == host


def test_what_has_a_digest_stays_as_it_is():
    assert pinned(f"127.0.0.1:9/x@{DIGEST}") == f"127.0.0.1:9/x@{DIGEST}"
    assert pinned("merge:1") == "merge:1"
