"""A store or a history that is damaged, lost or cannot be written: it is told, and what can be made again is."""

import hashlib
import json
import os

import pytest
from microstages.errors import UserError

from runner.history import History

DAMAGES = [
    "file removed",
    "file altered",
    "same size",
    "manifest removed",
    "manifest altered",
    "commit cut",
    "folder gone",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_noticed_told_and_made_again(work, damage):
    work.up()
    good = work.output("bad")
    commit = good.parent.parent / "commit.json"
    if damage == "file removed":
        (good / "x").unlink()
    elif damage == "file altered":
        (good / "x").write_text("altered")
    elif damage == "same size":
        times = (good / "x").stat()
        (good / "x").write_text("1\n")
        os.utime(good / "x", ns=(times.st_atime_ns, times.st_mtime_ns))
    elif damage == "manifest removed":
        (good / "artifact.json").unlink()
    elif damage == "manifest altered":
        (good / "artifact.json").write_text("{}")
    elif damage == "commit cut":
        commit.write_text('{"schema": 1, "att')
    else:
        good.rename(good.parent / "elsewhere")
    action, reason = work.plan()["bad"]
    assert action == "run"
    assert reason.startswith("its result is damaged: ")
    work.ran()
    assert work.up() == {"bad": "done", "after": "reused", "beside": "reused"}, "equal bytes again: the rest stays"
    assert work.ran() == ["work"]
    assert (work.output("bad") / "x").read_text() == "0\n"
    assert set(work.plan().values()) == {("reuse", "unchanged")}


def test_a_lost_history_loses_no_result(work):
    work.up()
    (work.folder / ".runner" / "history.db").unlink()
    assert set(work.up().values()) == {"reused"}


def test_a_damaged_history_is_set_aside(work):
    work.up()
    (work.folder / ".runner" / "history.db").write_bytes(b"this is no database, and it is long enough" * 100)
    assert set(work.up().values()) == {"reused"}
    assert list((work.folder / ".runner").glob("history.damaged-*.db"))


def test_a_store_that_cannot_be_made_is_told(work):
    (work.folder / "file").write_text("")
    done = work.run("up", "--set", "store=file/store")
    assert done.code == 2
    assert "a part of the path is a file" in done.err
    assert work.ran() == []


def test_a_history_that_cannot_be_opened_is_told(work):
    (work.folder / ".runner" / "history.db").mkdir(parents=True)
    done = work.run("up")
    assert done.code == 2
    assert "the history cannot be opened" in done.err
    assert work.ran() == []


def test_a_full_disk_is_told_with_its_remedy(tmp_path):
    """SQLite's words for it are its own; its limit on pages stands for the disk's."""
    history = History(tmp_path)
    history.db.execute("PRAGMA max_page_count=1")
    with pytest.raises(UserError) as told:
        for _ in range(1000):
            history.start_run("demo" * 100, "pipeline.yaml")
    history.close()
    assert str(told.value).startswith(f"{tmp_path / 'history.db'}: the disk is full\n  free some space")


def test_a_history_that_may_not_be_written_is_told(tmp_path):
    history = History(tmp_path)
    history.db.execute("PRAGMA query_only=ON")
    with pytest.raises(UserError) as told:
        history.start_run("demo", "pipeline.yaml")
    history.close()
    assert "permission denied" in str(told.value)


@pytest.mark.parametrize("what", ["commit", "manifest"])
def test_what_a_newer_version_wrote_is_told_and_not_made_again(work, what):
    work.up()
    manifest = work.output("bad") / "artifact.json"
    commit = manifest.parent.parent.parent / "commit.json"
    value = json.loads(commit.read_text())
    if what == "manifest":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 99}))
        value["outputs"]["out"]["manifest"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
    commit.write_text(json.dumps(value if what == "manifest" else {**value, "schema": 99}))
    before = commit.read_bytes(), manifest.read_bytes()
    work.ran()
    for command in ("plan", "up"):
        done = work.run(command)
        assert done.code == 2
        assert "schema 99 is not known here" in done.err and "use " in done.err
    assert work.ran() == []
    assert (commit.read_bytes(), manifest.read_bytes()) == before
