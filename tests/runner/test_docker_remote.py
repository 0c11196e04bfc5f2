"""Containers that read or write addresses elsewhere: their credentials, their network, their cache."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runner.credentials import passed_on
from runner.executors import Attempt
from runner.executors.docker import DockerExecutor
from runner.executors.secrets import Redactor

KEY = "c2VjcmV0LW9mLXRoZS1hY2NvdW50=="
CONNECTION = f"DefaultEndpointsProtocol=https;AccountName=acme;AccountKey={KEY};EndpointSuffix=core.windows.net"
VARIABLES = ("AZURE_", "AWS_", "GOOGLE_", "HF_", "FSSPEC_", "MSI_", "IDENTITY_")


@pytest.fixture
def caller(monkeypatch, tmp_path):
    """The caller's environment without credentials, and a home without files of them."""
    for name in os.environ:
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return monkeypatch


def names(addresses):
    secrets, plain = passed_on(addresses)
    return {s.name for s in secrets}, set(plain)


# --- which credentials ---


def test_each_protocol_gets_its_own_and_nothing_else(caller):
    given = """AZURE_STORAGE_ACCOUNT_KEY AZURE_STORAGE_ACCOUNT_NAME AZURE_CLIENT_SECRET AWS_SECRET_ACCESS_KEY AWS_REGION
        HF_TOKEN HF_ENDPOINT GOOGLE_CLOUD_PROJECT FSSPEC_S3_KEY FSSPEC_S3_ANON UNRELATED_TOKEN"""
    for name in given.split():
        caller.setenv(name, "value-of-it")
    azure = {"AZURE_STORAGE_ACCOUNT_KEY", "AZURE_CLIENT_SECRET"}, {"AZURE_STORAGE_ACCOUNT_NAME"}
    assert names(["abfs://c/x"]) == names(["abfss://c@a.dfs.core.windows.net/x"]) == names(["az://c/x"]) == azure
    aws = {"AWS_SECRET_ACCESS_KEY", "FSSPEC_S3_KEY"}, {"AWS_REGION", "FSSPEC_S3_ANON"}
    assert names(["s3://b/x", "/local", "s3://b/y"]) == aws
    assert names(["gs://b/x"]) == (set(), {"GOOGLE_CLOUD_PROJECT"})
    assert names(["hf://owner/name@main"]) == ({"HF_TOKEN"}, {"HF_ENDPOINT"})
    assert names(["s3://b/x", "hf://a/b"]) == (aws[0] | {"HF_TOKEN"}, aws[1] | {"HF_ENDPOINT"})
    assert names(["https://example.org/x"]) == names(["/local/x", "file:///x"]) == (set(), set())


def test_files_of_credentials_lie_where_their_tools_look(caller, tmp_path):
    aws = tmp_path / "home/.aws/credentials"
    aws.parent.mkdir()
    aws.write_text("[default]\naws_access_key_id = AKIA123456\naws_secret_access_key = very/secret+value\n")
    adc = tmp_path / "home/.config/gcloud/application_default_credentials.json"
    adc.parent.mkdir(parents=True)
    adc.write_text(json.dumps({"type": "authorized_user", "client_id": "x.apps", "refresh_token": "1//refresh"}))
    token = tmp_path / "token"
    token.write_text("a.web.identity\n")
    caller.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    secrets, plain = passed_on(["s3://b/x", "gs://b/x"])
    found = {s.name: s for s in secrets}
    assert found["AWS_SHARED_CREDENTIALS_FILE"].file == aws
    assert found["AWS_SHARED_CREDENTIALS_FILE"].value.split() == ["AKIA123456", "very/secret+value"]
    assert found["GOOGLE_APPLICATION_CREDENTIALS"].value == "1//refresh", "the rest of the file is not secret"
    assert found["AWS_WEB_IDENTITY_TOKEN_FILE"].value == "a.web.identity"
    assert plain == {name: f"/run/secrets/{name}" for name in found}


def test_a_file_that_a_variable_names_and_is_not_there_is_told(caller, tmp_path):
    caller.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "no.json"))
    with pytest.raises(Exception, match=r"no\.json: the file that \w+ names cannot be read"):
        passed_on(["gs://b/x"])


def test_a_part_of_a_credential_is_hidden_as_well():
    sas = "sv=2024-11-04&ss=b&sig=abc%2Fdef%3D&se=2026-01-01"
    redact = Redactor([CONNECTION, sas])
    said = f"key {KEY} sig abc%2Fdef%3D or abc/def= of account acme until 2026-01-01"
    assert redact.clean(said.encode()).decode() == "key *** sig *** or *** of account acme until 2026-01-01"


# --- a real container ---


@pytest.fixture
def remote(boxed, engine, caller, tmp_path):
    """Runs a script in a container as a stage that reads an address elsewhere; what the engine knows, and its log."""
    caller.setenv("DOCKER_HOST", engine.address)
    caller.setenv("MICROSTAGES_CACHE", str(tmp_path / "cache"))
    made = []

    def run(script, addresses=("abfs://models/x",), options=None, well=True):
        log = tmp_path / f"{len(made)}.log"
        attempt = Attempt(
            f"remote-{os.getpid()}-{len(made)}", "work", ("sh", "-c", script), tmp_path, log, log,
            writes=(tmp_path / "out",), image=boxed.image, code_folders=(boxed.stage("work", "true"),),
            remote=addresses,
        )  # fmt: skip
        executor = DockerExecutor(options or {"network": "none"})
        made.append(executor)
        found = engine.client.inspect_container(executor.submit(attempt))
        executor._containers[attempt.name].thread.join(60)
        assert executor.poll(attempt).code == 0 or not well, executor.poll(attempt)
        executor.forget(attempt)
        return found, log.read_text() if well else ""

    return run


def test_credentials_arrive_and_are_seen_nowhere_else(remote, caller):
    caller.setenv("AZURE_STORAGE_CONNECTION_STRING", CONNECTION)
    caller.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acme")
    caller.setenv("AWS_SECRET_ACCESS_KEY", "not-for-this-stage")
    script = (
        'printf "%s" "$AZURE_STORAGE_CONNECTION_STRING" | wc -c; echo "name $AZURE_STORAGE_ACCOUNT_NAME"; '
        'echo "all $AZURE_STORAGE_CONNECTION_STRING"; echo "aws ${AWS_SECRET_ACCESS_KEY:-none}"; '
        'echo "part ${AZURE_STORAGE_CONNECTION_STRING#*AccountKey=}"'
    )
    found, log = remote(script)
    lines = log.splitlines()
    assert lines[:4] == [str(len(CONNECTION)), "name acme", "all ***", "aws none"]
    assert KEY not in log
    assert found["Config"]["Labels"]["microstages.secrets"] == "AZURE_STORAGE_CONNECTION_STRING"
    assert KEY not in json.dumps([found["Args"], found["Config"]["Labels"], found["Config"]["Cmd"]])


def test_a_file_of_credentials_is_there_read_only_for_the_containers_user(remote, caller, tmp_path):
    file = tmp_path / "aws"
    file.write_text("[default]\naws_secret_access_key = very/secret+value\nregion = here\n")
    file.chmod(0o600)
    caller.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    script = 'cat "$AWS_SHARED_CREDENTIALS_FILE"; (echo x >> "$AWS_SHARED_CREDENTIALS_FILE") 2>/dev/null || echo shut'
    _, log = remote(script, ("s3://bucket/x",))
    assert log.splitlines() == ["[default]", "aws_secret_access_key = ***", "region = here", "shut"]


def test_the_cache_is_on_disk_writable_and_shared_with_later_stages(remote, tmp_path):
    found, log = remote(
        'echo "$MICROSTAGES_CACHE"; mkdir "$MICROSTAGES_CACHE/artifacts" && echo x > /cache/artifacts/x'
    )
    assert log == "/cache\n"
    assert remote("cat /cache/artifacts/x")[1] == "x\n"
    source = next(Path(m["Source"]) for m in found["Mounts"] if m["Destination"] == "/cache")
    assert source.is_relative_to(tmp_path / "cache") and (source / "artifacts/x").read_text() == "x\n"


def test_a_local_stage_has_neither_network_nor_cache_nor_credentials(remote, caller):
    caller.setenv("AZURE_STORAGE_CONNECTION_STRING", CONNECTION)
    found, log = remote('echo "${AZURE_STORAGE_CONNECTION_STRING:-none} $MICROSTAGES_CACHE"', (), {"flavor": "cpu"})
    assert log == "none /tmp/.microstages\n"
    assert found["HostConfig"]["NetworkMode"] == "none"
    assert "/cache" not in [m["Destination"] for m in found["Mounts"]]


def test_a_stage_with_an_address_elsewhere_has_a_network(remote):
    found, _ = remote("true", options={"flavor": "cpu"}, well=False)  # whatever networks this machine's engine has
    assert found["HostConfig"]["NetworkMode"] == "bridge"
