"""Stores that fail: a full disk, one that turns read-only, an expired credential, a server that goes away.

Each is told in a line with what to do, leaves nothing half-visible, and `up` goes on after the cause is gone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from microstages import storage
from stores.fixtures import Spoiled
from stores.servers import Store, signature

from runner.store import _listing

MANIFEST = "artifact.json"


def fill(project: Any, store: str) -> None:
    """Two stages: `small` writes a few bytes, `large` 3 MB from them."""
    project.stage("small", 'echo small > "$out/x"')
    project.stage(
        "large", 'cat "$x/x" > "$out/x"; head -c 3000000 /dev/zero > "$out/zeros"', inputs={"x": ["dataset"]}
    )  # fmt: skip
    project.pipeline(f"""\
        name: demo
        store: {store}
        stages:
          small: {{uses: ./small}}
          large: {{uses: ./large, inputs: {{x: "${{{{ stages.small.out }}}}"}}}}
        """)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk of its own: `disk("size=2M")` mounts it, or mounts it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if os.path.ismount(folder) else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}{options}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("FULL DISKS NOT TESTED: only root can mount one")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def test_a_full_disk(project: Any, disk: Callable[[str], Path]):
    place = disk("size=2M")
    fill(project, str(place / "store"))
    done = project.run("up")
    assert done.code == 2
    assert "the disk is full" in done.out + done.err and "free some space" in done.out + done.err
    assert not list((place / "store/artifacts/large").glob(f"*/*/out/{MANIFEST}"))
    assert not list((place / "store/artifacts/large").rglob("*commit.json"))
    disk("size=40M")
    assert project.up() == {"small": "reused", "large": "done"}


def test_a_disk_that_turns_read_only(project: Any, disk: Callable[[str], Path]):
    place = disk("size=40M")
    fill(project, str(place / "store"))
    project.up("--only", "small")
    disk("ro")
    done = project.run("up")
    assert done.code == 2
    assert "read-only" in done.out + done.err
    assert project.plan()["small"][0] == "reuse"  # what is there can be read
    disk("rw")
    assert project.up() == {"small": "reused", "large": "done"}


@pytest.mark.parametrize(("permission", "hours"), [("rwdlc", -1), ("rl", 1)], ids=["expired", "may only read"])
def test_a_credential_that_does_not_do(
    project: Any, azurite: Store, monkeypatch: pytest.MonkeyPatch, permission: str, hours: float
):
    azurite.use(monkeypatch)
    uri = azurite.uri()
    fill(project, uri)
    right = azurite.environment
    project.environment |= right
    project.up("--only", "small")
    wrong = {**right, "AZURE_STORAGE_CONNECTION_STRING": signature(azurite, permission, hours)}
    before = storage.entries(uri)
    done = project.run("up", environment=wrong)
    assert done.code == 2
    assert "access denied" in done.out + done.err and "check that the credentials" in done.out + done.err
    assert wrong["AZURE_STORAGE_CONNECTION_STRING"].partition("sig=")[2] not in done.out + done.err
    assert {k: v for k, v in storage.entries(uri).items() if "/large/" in k} == {}
    assert before.items() <= storage.entries(uri).items()
    assert project.up() == {"small": "reused", "large": "done"}


def test_a_store_that_goes_away_and_comes_back(project: Any, spoiled: Spoiled):
    uri = spoiled.uri()
    fill(project, uri)
    project.environment |= {**spoiled.environment, "MICROSTAGES_PATIENCE": "1"}
    project.up("--only", "small")
    spoiled.proxy.off()
    done = project.run("up")
    assert done.code == 75
    assert "run again" in done.out + done.err or "trying again" in done.out + done.err
    spoiled.proxy.on()
    assert project.up() == {"small": "reused", "large": "done"}


@pytest.mark.parametrize("how", ["a flipped byte", "cut short", "removed"])
def test_a_damaged_result_in_a_store_is_named_and_made_again(project: Any, remote: Store, how: str):
    uri = remote.uri()
    fill(project, uri)
    project.environment |= remote.environment
    project.up()
    name = next(n for n in storage.entries(uri) if n.endswith("small") or (n.endswith("/out/x") and "/small/" in n))
    file = storage.join(uri, name)
    if how == "removed":
        storage.remove(file)
    else:
        storage.replace(file, b"smalL\n" if how == "a flipped byte" else b"sma")
    action, reason = project.plan()["small"]
    assert action == "run" and name.rsplit("/", 1)[-1] in reason
    assert project.up() == {"small": "done", "large": "reused"}
    assert storage.read(storage.join(uri, _result(uri, "small"), "out/x")) == b"small\n"
    assert project.up() == {"small": "reused", "large": "reused"}


@pytest.mark.parametrize("reads", ["the runner", "the stage"])
def test_damage_that_the_store_does_not_show_is_found_by_who_reads_it(
    project: Any, remote: Store, tmp_path: Path, reads: str
):
    uri = remote.uri()
    fill(project, uri)
    if reads == "the stage":
        project.stage("large", "", inputs={"x": ["dataset"]}, manifest="stage", command=[sys.executable, "./tool.py"])
        (project.folder / "large" / "tool.py").write_text(READER)
    project.environment |= remote.environment
    project.up("--only", "small")
    place = _result(uri, "small")
    storage.replace(storage.join(uri, place, "out/x"), b"smalL\n")
    # the store says that nothing was written since the commit
    commit = storage.join(uri, place.rsplit("/", 1)[0], "commit.json")
    value = json.loads(storage.read(commit) or b"")
    value["outputs"]["out"]["listing"] = _listing(storage.entries(storage.join(uri, place, "out")))
    storage.replace(commit, json.dumps(value).encode())
    project.environment["MICROSTAGES_CACHE"] = str(tmp_path / "another")
    assert project.plan()["small"][0] == "reuse"
    done = project.run("up")
    assert done.code == 2 and "altered" in done.out + done.err and place in done.out + done.err
    assert project.up() == {"small": "done", "large": "done"}


@pytest.mark.parametrize("where", ["folder", "store"])
def test_a_result_that_vanishes_before_it_is_read_is_told_as_such_and_made_again(
    project: Any, request: pytest.FixtureRequest, tmp_path: Path, where: str
):
    uri = str(tmp_path / "store")
    if where == "store":
        store = request.getfixturevalue("azurite")
        uri, project.environment = store.uri(), project.environment | store.environment
    fill(project, uri)
    project.stage("large", "", inputs={"x": ["dataset"]}, manifest="stage", command=[sys.executable, "./tool.py"])
    once = """
import os, shutil
from microstages import storage
if not os.path.exists("removed"):
    open("removed", "w").close()
    storage.remove(flags["x"])
"""
    (project.folder / "large" / "tool.py").write_text(READER.replace("try:", f"{once}try:", 1))
    done = project.run("up", environment={"MICROSTAGES_CACHE": str(tmp_path / "cold")})
    said = done.out + done.err
    assert done.code == 2 and "the result of small was removed or altered meanwhile: " in said, said
    assert "made anew" in said and "credentials" not in said
    assert project.up() == {"small": "done", "large": "done"}


READER = """
import json, sys
from microstages.artifact import Draft, open_artifact
from microstages.errors import UserError
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
try:
    text = open_artifact(flags["x"], ["dataset"]).file("x").read_bytes()
except UserError as error:
    event = {"event": "error", "what": error.what, "where": f"--x {error.where}", "fix": error.fix}
    event["damaged"] = getattr(error, "artifact", "")
    sys.exit(print(json.dumps(event), flush=True) or 2)
with Draft(flags["out"], "dataset") as draft:
    (draft.path / "x").write_bytes(text)
    draft.commit({})
"""


def _result(uri: str, stage: str) -> str:
    """The folder of a stage's committed attempt, below the store."""
    commit = next(n for n in storage.entries(uri) if f"/{stage}/" in n and n.endswith("commit.json"))
    attempt = json.loads(storage.read(storage.join(uri, commit)) or b"")["attempt"]
    return f"{commit.rsplit('/', 1)[0]}/{attempt}"


def test_a_store_that_was_copied_is_read_through_once_and_believed(project: Any, azurite: Store, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch):  # fmt: skip
    azurite.use(monkeypatch)
    first, second = azurite.uri(), azurite.uri()
    project.environment |= azurite.environment
    fill(project, first)
    project.up()
    sizes = storage.listing(first)
    storage.download(first, tmp_path / "copy", sizes)
    storage.upload(tmp_path / "copy", second, list(sizes))
    fill(project, second)
    assert project.up() == {"small": "reused", "large": "reused"}
    assert len(list((tmp_path / "cache" / "verified").iterdir())) == 2
