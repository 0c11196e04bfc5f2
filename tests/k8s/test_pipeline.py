"""The committed pipeline as Jobs of a real cluster, its store on Azurite: the same bytes as processes here make."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, STAGES, Engine
from k8s.fixtures import tagged
from stores.servers import Store

from runner.executors.kubernetes.api import Cluster


@dataclass(frozen=True)
class Project:
    """The committed pipeline with a cluster as a target."""

    folder: Path
    environment: Mapping[str, str]

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "runner.cli", *words]

    def up(self, *words: str) -> dict[str, Any]:
        """What `up --json` says, by stage."""
        done = subprocess.run(
            self.command("up", "--json", *words), cwd=self.folder, env=self.environment, capture_output=True,
            text=True, check=False, stdin=subprocess.DEVNULL, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return {s["stage"]: s for s in json.loads(done.stdout)["stages"]}


def digests(stages: Mapping[str, Any]) -> dict[str, str]:
    return {f"{n}.{k}": o["digest"] for n, s in stages.items() for k, o in s["outputs"].items()}


@pytest.fixture(scope="module")
def images(engine: Engine) -> Iterator[None]:
    """The stages' images under the names that a cluster looks for."""
    with tagged(engine.client, STAGES):
        yield


@pytest.fixture
def project(images: None, namespace: Cluster, pod_store: Store, tmp_path: Path) -> Project:  # noqa: ARG001
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copytree(ROOT / "examples", folder / "examples")
    text = (ROOT / "pipeline.yaml").read_text()
    target = f"targets:\n  cluster: {{type: kubernetes, namespace: {namespace.namespace}, pull_policy: Never}}\n"
    (folder / "pipeline.yaml").write_text(text + "\n" + target)
    values = {**os.environ, **pod_store.environment}
    return Project(folder, {k: v for k, v in values.items() if not k.startswith("AWS_")})


def test_the_same_bytes_as_processes(project, pod_store, namespace):
    here = project.up("--target", "process")
    there = project.up("--target", "cluster", "--set", f"store={pod_store.uri()}")
    assert {s["status"] for s in there.values()} == {"done"}
    assert digests(there) == digests(here)
    assert {n: s["fingerprint"] for n, s in there.items()} == {n: s["fingerprint"] for n, s in here.items()}
    assert not namespace.listed("jobs", "app.kubernetes.io/managed-by=microstages")["items"]


def test_a_killed_runner_is_followed_by_one_that_takes_up_what_runs(project, pod_store, namespace):
    uri = pod_store.uri()
    words = project.command("up", "--json", "--target", "cluster", "--set", f"store={uri}", "--only", "data")
    first = subprocess.Popen(words, cwd=project.folder, env=project.environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (found := namespace.listed("pods", "microstages/stage=data")["items"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    stages = project.up("--target", "cluster", "--set", f"store={uri}", "--only", "data")
    assert stages["data"]["status"] in ("done", "reused")
    assert found[0]["metadata"]["labels"]["microstages/attempt"] in stages["data"]["outputs"]["dataset"]["uri"]


def test_stages_of_one_pipeline_run_in_different_places(project, pod_store, namespace, engine):
    """Data and answers in containers of this machine's engine, what trains and builds on the cluster."""
    project = replace(project, environment={**project.environment, "DOCKER_HOST": engine.address})
    here = project.up("--target", "process")
    file = project.folder / "pipeline.yaml"
    lines = []
    for line in file.read_text().splitlines():
        lines.append(line)
        if line.strip() in ("adapter:", "merged:", "onnx:"):
            lines.append("    target: cluster")
    file.write_text("\n".join(["target: docker", *lines, ""]))
    there = project.up("--set", f"store={pod_store.uri()}")
    assert digests(there) == digests(here) and {s["status"] for s in there.values()} == {"done"}
    logs = [p for p in (project.folder / ".runner").rglob("*.log") if "[kubernetes] " in p.read_text()]
    assert {p.stem for p in logs} == {"adapter", "merged", "onnx"}
    assert not namespace.listed("jobs", "app.kubernetes.io/managed-by=microstages")["items"]


def test_doctor_finds_the_cluster(project, pod_store, namespace):
    words = project.command("doctor", "--json", "--target", "cluster", "--set", f"store={pod_store.uri()}")
    done = subprocess.run(
        words, cwd=project.folder, env=project.environment, capture_output=True, text=True, check=False
    )
    found = {f["what"]: f for f in json.loads(done.stdout)}["cluster (kubernetes)"]
    assert found["state"] == "ok" and f"namespace {namespace.namespace}" in found["text"]
