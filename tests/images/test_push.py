"""Images pushed to a registry, a real one, are those that a cluster asks for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, code_of
from stores.servers import HOST, Server

from runner.executors import Attempt
from runner.executors.images import name_of
from runner.executors.kubernetes.registry import pinned

PROGRAM = shutil.which("docker-registry")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry, empty: its address. Engines talk to 127.0.0.1 without TLS."""
    if PROGRAM is None:
        pytest.skip("PUSHING NOT TESTED: apt-get install docker-registry")
    file = tmp_path / "registry.yml"

    def command(port: int) -> list[str]:
        storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
        file.write_text(yaml.safe_dump({"version": 0.1, "storage": storage, "http": {"addr": f"{HOST}:{port}"}}))
        return [str(PROGRAM), "serve", str(file)]

    server = Server(command, tmp_path / "log")
    server.start()
    yield f"{HOST}:{server.port}"
    server.stop()


def build(engine: Any, *words: str) -> subprocess.CompletedProcess[str]:
    """`images/build.py`, of what is built already."""
    environment = {**os.environ, "DOCKER_HOST": engine.address}
    command = [sys.executable, str(ROOT / "images/build.py"), "--base", engine.base, *words, "merge"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)


def test_what_is_pushed_is_what_a_cluster_asks_for(engine: Any, registry: str, tmp_path: Path):
    place = f"{registry}/team/microstages"
    done = build(engine, "--push", place)
    assert done.returncode == 0, done.stderr
    attempt = Attempt("a", "merged", (), tmp_path, tmp_path, tmp_path, uses="merge", code=code_of("merge"))
    name = name_of(attempt, {"registry": place})
    last = done.stdout.strip().splitlines()[-1]
    try:
        assert last.split()[0] == name
        found = pinned(name)
        assert found == f"{place}/merge@{last.split()[1]}"
        known = engine.client.inspect_image(name)
        assert found in known["RepoDigests"]
        assert json.loads(known["Config"]["Labels"]["microstages.interface"])["name"] == "merge"
    finally:
        engine.client.remove_image(name)


def test_a_registry_that_refuses_is_told(engine: Any):
    done = build(engine, "--push", f"{HOST}:1/team")
    assert done.returncode == 2
    assert "was not pushed: " in done.stderr and f"docker login {HOST}:1" in done.stderr
    engine.client.remove_image(done.stderr.split("build: error: ")[1].split(" was not")[0])


def test_make_push_wants_to_know_where_to():
    done = subprocess.run(["make", "push"], cwd=ROOT, capture_output=True, text=True, check=False,
                          env={k: v for k, v in os.environ.items() if k != "REGISTRY"})  # fmt: skip
    assert done.returncode != 0 and "make push REGISTRY=" in done.stderr
