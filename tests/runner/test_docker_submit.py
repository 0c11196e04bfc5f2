"""What a container is given, and what is left where it cannot be made. No engine is needed."""

from __future__ import annotations

import os
import tempfile

import pytest
from microstages.errors import UserError

from runner.executors import Attempt
from runner.executors.docker import DockerExecutor
from runner.executors.engine import Image
from runner.executors.mounts import mounts
from runner.executors.secrets import Secret

IMAGE = Image("sha256:0", "work", "sha256:0", 1000, {})


@pytest.fixture
def attempt(tmp_path):
    log = tmp_path / "log"
    return Attempt("a", "work", ("true",), tmp_path, log, log, image="work", writes=(tmp_path / "out",))


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """Where copies of secrets lie, which only root makes."""
    if os.geteuid() != 0:
        pytest.skip("COPIES OF SECRETS NOT TESTED: only root makes them")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "key").write_text("private")
    return lambda: list((tmp_path / "tmp").iterdir())


def test_no_secret_is_left_where_an_engine_goes_away_before_the_container_is_made(attempt, copies, monkeypatch):
    import docker

    executor = DockerExecutor({"secrets": [{"name": "KEY", "file": "key"}]})
    monkeypatch.setattr(DockerExecutor, "image", lambda *_: IMAGE)  # it was there a moment ago
    executor._client = docker.APIClient("unix:///nonexistent/docker.sock", version="1.41")
    with pytest.raises(UserError):
        executor.submit(attempt)
    assert copies() == []


def test_no_secret_is_left_where_another_one_cannot_be_read(attempt, copies, tmp_path):
    given = [Secret("KEY", "private", tmp_path / "key"), Secret("GONE", "", tmp_path / "gone")]
    with pytest.raises(UserError, match="no such file"):
        mounts(attempt, given, 1000)
    assert copies() == []


@pytest.mark.parametrize("remote", [(), ("abfs://models/x",)], ids=["local", "elsewhere"])
def test_how_stores_and_the_cache_are_used_is_the_callers_to_say(attempt, monkeypatch, remote):
    monkeypatch.setenv("MICROSTAGES_CACHE_SIZE", "5GB")
    monkeypatch.delenv("MICROSTAGES_PATIENCE", raising=False)
    found = DockerExecutor()._environment(Attempt(**{**attempt.__dict__, "remote": remote}), IMAGE, [], "none")
    assert found["MICROSTAGES_CACHE_SIZE"] == "5GB"
    assert "MICROSTAGES_PATIENCE" not in found
    monkeypatch.setenv("MICROSTAGES_PATIENCE", "7")
    assert DockerExecutor()._environment(attempt, IMAGE, [], "none")["MICROSTAGES_PATIENCE"] == "7"
