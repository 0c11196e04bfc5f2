"""What lies on this machine, as a cluster reads it: the same thing, with the same digest, below the store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from microstages import storage
from microstages.artifact import Draft, identify, open_artifact
from microstages.errors import UserError
from stores.servers import Store

from runner import store as runner_store
from runner.staging import staged


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSTAGES_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def things(tmp_path: Path) -> Path:
    """A file, a folder, more of them, and an artifact."""
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "same.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "folder/deep").mkdir(parents=True)
    (tmp_path / "folder/deep/x").write_text("x")
    (tmp_path / "folder/.hidden").write_text("no part of it")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "weights").write_bytes(b"weights")
    (tmp_path / "model/model.safetensors").symlink_to(tmp_path / "weights")  # as a hub's cache has it
    with Draft(str(tmp_path / "artifact"), "dataset") as draft:
        (draft.path / "train").write_text("train")
        draft.metadata["rows"] = 1
        draft.commit({})
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("rows.jsonl", ("files",)), ("folder", ("files",)), ("*.jsonl", ("files",)), ("model", ("model",)),
     ("artifact", ("dataset",)), ("artifact", ("files",))],
)  # fmt: skip
def test_it_is_elsewhere_what_it_is_here(things: Path, remote: Store, name: str, kinds: tuple[str, ...]):
    store = runner_store.Store(remote.uri())
    uri = str(things / name)
    here = open_artifact(uri, kinds)
    place = staged(store, uri, kinds, here.digest)
    assert place.startswith(f"{store.uri}/inputs/")
    os.environ["MICROSTAGES_CACHE"] = str(things / "another machine's")
    there = open_artifact(place, kinds)
    assert (there.kind, there.digest, there.metadata) == (here.kind, here.digest, here.metadata)
    assert [p.read_bytes() for p in there.paths()] == [p.read_bytes() for p in here.paths()]
    assert there.path.is_file() == here.path.is_file() and (not there.path.is_file() or there.path.name == name)
    assert identify(place, kinds) == here.digest
    before = storage.entries(place)
    assert staged(store, uri, kinds, here.digest) == place and storage.entries(place) == before


def test_equal_files_under_other_names_are_two_and_addresses_stay(things: Path, azurite: Store, monkeypatch):
    azurite.use(monkeypatch)
    store = runner_store.Store(azurite.uri())
    files = [str(things / n) for n in ("rows.jsonl", "same.jsonl")]
    digest = identify(files[0], ("files",))
    assert len({staged(store, f, ("files",), digest) for f in files}) == 2
    assert staged(store, "abfs://x/y", ("files",), "") == "abfs://x/y"


def test_what_changed_since_it_was_planned_is_told(things: Path, azurite: Store, monkeypatch):
    azurite.use(monkeypatch)
    store, file = runner_store.Store(azurite.uri()), things / "rows.jsonl"
    digest = identify(str(file), ("files",))
    file.write_text("other")
    with pytest.raises(UserError, match="it changed since the run began"):
        staged(store, str(file), ("files",), digest)
    assert storage.entries(store.uri) == {}


@pytest.mark.parametrize("left", ["nothing", "a mark", "some files", "all of it"])
def test_an_attempt_that_is_started_once_more_writes_where_its_forerunner_did(
    remote: Store, left: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("MICROSTAGES_ATTEMPT", "20261121T000000-abcdef01")
    for base in (remote.uri(), str(tmp_path / "local")):
        uri = storage.join(base, "20261121T000000-abcdef01", "out")
        if left in ("a mark", "some files"):
            storage.create(storage.join(uri, ".writing"), b"of a process that was killed")
        if left == "some files":
            storage.create(storage.join(uri, "old"), b"old")
        if left == "all of it":
            write(uri, "old")
        write(uri, "new")
        assert [p.read_text() for p in open_artifact(uri, ("dataset",)).paths()] == ["new"]
        assert not [n for n in storage.listing(uri) if n.endswith((".writing", "old"))]
        monkeypatch.setenv("MICROSTAGES_ATTEMPT", "20261121T000000-abcdef02")  # of another one it is in the way
        with pytest.raises(UserError, match="there already"):
            write(uri, "other")
        monkeypatch.setenv("MICROSTAGES_ATTEMPT", "20261121T000000-abcdef01")


def write(uri: str, text: str) -> None:
    with Draft(uri, "dataset") as draft:
        (draft.path / "file").write_text(text)
        draft.commit({})
