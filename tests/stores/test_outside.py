"""Inputs from the web and from a Hugging Face hub."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from microstages.artifact import identify, open_artifact
from microstages.errors import UserError
from stores.web import Hub, Web

MODEL = {"config.json": b"{}", "model.safetensors": b"w" * 3_000_000, "pytorch_model.bin": b"pickle", "README.md": b"#"}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSTAGES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MICROSTAGES_PATIENCE", "1")


@pytest.mark.parametrize(
    ("tags", "ranges", "sizes"), [(True, True, True), (True, False, True), (False, True, True), (False, False, False)]
)
def test_a_file_of_the_web_is_fetched_and_known_again(tags: bool, ranges: bool, sizes: bool):
    with Web(tags, ranges, sizes) as web:
        web.files["/data/rows.jsonl"] = b'{"a": 1}\n' * 300_000
        first = open_artifact(f"{web.url}/data/rows.jsonl", ["files"])
        assert first.path.name == "rows.jsonl"
        assert first.path.read_bytes() == web.files["/data/rows.jsonl"]
        assert identify(f"{web.url}/data/rows.jsonl", ["files"]) == first.digest
        web.files["/data/rows.jsonl"] = b'{"a": 2}\n' * 300_000
        second = open_artifact(f"{web.url}/data/rows.jsonl", ["files"])
        assert second.digest != first.digest and second.path.read_bytes() == web.files["/data/rows.jsonl"]


def test_a_file_that_the_web_does_not_have_is_named():
    with Web() as web:
        with pytest.raises(UserError, match="nothing is there") as told:
            open_artifact(f"{web.url}/rows.jsonl?token=secret", ["files"])
        assert told.value.where == f"{web.url}/rows.jsonl"


PROGRAM = """
import sys
from microstages.artifact import identify, open_artifact
from microstages.errors import UserError
try:
    print(identify(sys.argv[1], sys.argv[2:]))
    found = open_artifact(sys.argv[1], sys.argv[2:])
    print(found.digest, found.kind, found.path, *sorted(found.files))
except UserError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as made:
        yield made


class Client:
    """A process of its own: the hub's client reads its environment when it is imported."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        import os

        self.environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hub.url}
        self.environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}

    def open(self, uri: str, *kinds: str, **more: str) -> list[str]:
        command = [sys.executable, "-c", PROGRAM, uri, *kinds]
        done = subprocess.run(
            command, env={**self.environment, **more}, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        identity, opened = done.stdout.splitlines()
        assert opened.split()[0] == identity
        return opened.split()


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(hub, tmp_path)


def test_a_model_of_the_hub_is_its_commit_and_no_pickle_is_fetched(hub: Hub, client: Client):
    commit = hub.commit("models", "team/phi", MODEL)
    digest, kind, path, *files = client.open("hf://team/phi", "model")
    assert kind == "model" and files == ["README.md", "config.json", "model.safetensors"]
    assert (Path(path) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert not [request for request in hub.asked if "pytorch_model.bin" in request]
    assert client.open(f"hf://team/phi@{commit}", "model")[0] == digest
    hub.commit("models", "team/phi", {**MODEL, "config.json": b'{"a": 1}'})
    assert client.open("hf://team/phi@main", "model")[0] != digest
    assert client.open(f"hf://team/phi@{commit}", "model")[0] == digest


def test_what_was_downloaded_before_is_there_without_a_network(hub: Hub, client: Client):
    hub.commit("models", "team/phi", MODEL)
    online = client.open("hf://team/phi", "model")
    assert client.open("hf://team/phi", "model", HF_HUB_OFFLINE="1") == online
    assert client.open("hf://team/phi", "model", HF_ENDPOINT="http://127.0.0.1:9") == online


def test_data_of_the_hub_by_its_path(hub: Hub, client: Client):
    hub.commit("datasets", "team/tones", {"data/train.jsonl": b'{"x": 1}\n', "other.csv": b"a,b\n"})
    _, kind, path, *_ = client.open("hf://datasets/team/tones/data/train.jsonl", "files")
    assert kind == "files" and Path(path).read_bytes() == b'{"x": 1}\n'


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("hf://team", "not the address of a repository"),
        ("hf://team/nothing", "no such repository"),
        ("hf://team/phi@nobranch", "no revision 'nobranch'"),
    ],
)
def test_a_wrong_address_is_told(hub: Hub, client: Client, uri: str, words: str):
    hub.commit("models", "team/phi", MODEL)
    with pytest.raises(RuntimeError, match=f"UserError: .*{words}"):
        client.open(uri, "model")


def test_a_gated_model_needs_its_token_which_is_never_shown(hub: Hub, client: Client):
    hub.commit("models", "team/phi", MODEL)
    hub.token = "hf_right"
    with pytest.raises(RuntimeError, match="HF_TOKEN") as told:
        client.open("hf://team/phi", "model", HF_TOKEN="hf_wrong")
    assert "hf_wrong" not in str(told.value)
    assert client.open("hf://team/phi", "model", HF_TOKEN="hf_right")[1] == "model"


def test_the_same_tag_at_two_addresses_is_two_things(monkeypatch: pytest.MonkeyPatch):
    with Web() as web:
        monkeypatch.setattr(web, "tag", lambda _: "2-7d0")  # as some servers make them: of time and size
        web.files |= {"/v1/rows.jsonl": b"11", "/v2/rows.jsonl": b"22"}
        first, second = (open_artifact(f"{web.url}/{v}/rows.jsonl", ["files"]) for v in ("v1", "v2"))
        assert first.digest != second.digest
        assert (first.path.read_bytes(), second.path.read_bytes()) == (b"11", b"22")


def test_what_changes_while_it_is_fetched_is_told_and_not_kept():
    with Web() as web:
        web.files["/rows.jsonl"] = b"1" * 100
        answer = web.answer

        def changing(path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
            found = answer(path, authorization)
            if web.asked[-1].startswith("GET") and path == "/rows.jsonl":
                web.files[path] = b"2" * 100  # from the next answer on
            return found

        web.answer = changing  # type: ignore[method-assign]
        with pytest.raises(UserError, match="changed while it was fetched"):
            open_artifact(f"{web.url}/rows.jsonl", ["files"])
        found = open_artifact(f"{web.url}/rows.jsonl", ["files"])
        assert found.path.read_bytes() == b"2" * 100
