"""The same pipeline, the same bytes, with its store in Azure and in S3 (on real servers of this machine)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from microstages import storage
from stores.servers import Store
from system.conftest import Project, new_project

SHORT = ("--set", "stages.adapter.params.epochs=2")  # of eight


def outputs(done: Any) -> dict[str, str]:
    """stage -> digest of its one output, of `up --json`; which must have ended well."""
    assert done.returncode == 0, done.stderr
    return {s["stage"]: next(iter(s["outputs"].values()))["digest"] for s in json.loads(done.stdout)["stages"]}


def weights(done: Any) -> str:
    """The sha256 of the adapter's weights. Its configuration names the base model's digest, which is the store's."""
    stage = next(s for s in json.loads(done.stdout)["stages"] if s["stage"] == "adapter")
    manifest = json.loads((Path(stage["outputs"]["adapter"]["uri"]) / "artifact.json").read_text())
    return next(str(f["sha256"]) for f in manifest["files"] if f["path"] == "adapter_model.safetensors")


def states(done: Any) -> set[str]:
    return {s["status"] for s in json.loads(done.stdout)["stages"]}


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The committed pipeline in a folder and with a cache of its own, as on another machine."""
    monkeypatch.setenv("MICROSTAGES_CACHE", str(tmp_path / "cache"))
    return new_project(tmp_path / "away")


def test_the_pipeline_on_each_store_gives_the_digests_of_a_local_run(
    project: Project, away: Project, remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    local = outputs(project.runner("up", "--json", *SHORT))
    store = f"store={remote.uri()}"
    there = away.runner("up", "--json", *SHORT, "--set", store)
    assert outputs(there) == local and states(there) == {"done"}
    for name, value in remote.environment.items():
        if "KEY" in name or "CONNECTION" in name:
            secret = value.partition("AccountKey=")[2].partition(";")[0] or value
            everything = [*(tmp_path / "away").rglob("*.log"), *(tmp_path / "away").rglob("*.events")]
            assert not [f for f in everything if secret in f.read_text()]
    monkeypatch.setenv("MICROSTAGES_CACHE", str(tmp_path / "another"))
    shutil.rmtree(away.folder / ".runner")
    again = away.runner("up", "--json", *SHORT, "--set", store)
    assert outputs(again) == local and states(again) == {"reused"}
    assert not (tmp_path / "another" / "artifacts").exists()  # nothing was fetched to know it


@pytest.mark.parametrize("remote", ["s3"], indirect=True)
def test_inputs_from_a_store_train_the_same_weights(project: Project, away: Project, remote: Store):
    run = project.runner("up", "--json", *SHORT)
    local = outputs(run)
    place = remote.uri()
    model = away.folder / "examples/tiny-phi3"
    files = [p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()]
    storage.upload(model, f"{place}/phi", files)
    storage.upload(away.folder / "examples", place, ["tones.jsonl"])
    given = (*SHORT, "--set", f"params.data={place}/tones.jsonl", "--set", f"params.base_model={place}/phi")
    shutil.rmtree(away.folder / "examples")
    planned = away.plan(*given)
    assert not list(Path(os.environ["MICROSTAGES_CACHE"]).rglob("*.safetensors"))  # a plan fetches nothing
    assert planned["data"]["action"] == "run"
    there = away.runner("run", "data", "--json", *given)
    assert outputs(there)["data"] == local["data"]
    there = away.runner("run", "adapter", "--json", *given)
    assert outputs(there) and weights(there) == weights(run)
