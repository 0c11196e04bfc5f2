"""`runner verify`: every byte is read again; what is wrong is named, and `runner up` makes it again."""

import json
import os
import shutil
from pathlib import Path

import pytest
from microstages import storage


def test_what_is_as_it_was_made_is_said_so(shelf):
    shelf.project.up()
    done = shelf.run("verify")
    assert done.code == 0
    assert [line.split()[:2] for line in done.out.splitlines()[:3]] == [
        ["first", "ok"],
        ["second", "ok"],
        ["side", "ok"],
    ]
    assert "3 artifacts, 34 B: all as they were made" in done.out


def alter(folder: Path) -> str:
    times = (folder / "text").stat()
    (folder / "text").write_bytes((folder / "text").read_bytes().swapcase())
    os.utime(folder / "text", ns=(times.st_atime_ns, times.st_mtime_ns))
    return "altered: its sha256 differs"


def rot(folder: Path) -> str:
    """The disk returns other bytes than were written, and no time has changed."""
    words = alter(folder)
    s = (folder / "text").stat()
    good = json.loads((folder / "artifact.json").read_text())["files"][0]["sha256"]
    memory = {"text": [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_ctime_ns + 10**9, good]}
    (folder / ".verified.json").write_text(json.dumps(memory))
    return words


def shorten(folder: Path) -> str:
    (folder / "text").write_text("one")
    return "3 bytes, not 14"


def lose(folder: Path) -> str:
    (folder / "text").unlink()
    return "missing"


def link_out(folder: Path) -> str:
    shutil.move(folder / "text", folder.parent / "text")
    (folder / "text").symlink_to(folder.parent / "text")
    return "a link that leaves its folder"


@pytest.mark.parametrize("damage", [alter, rot, shorten, lose, link_out])
def test_a_damaged_file_is_named_and_made_again(shelf, damage):
    shelf.project.up()
    folder = shelf.project.output("first")
    words = damage(folder)
    done = shelf.run("verify")
    assert done.code == 2
    assert f"{folder}/text: {words}" in done.out
    assert "3 artifacts" in done.out, "what is made of a damaged one is looked at as well"
    assert "1 damaged" in done.out
    shelf.project.ran()
    assert shelf.project.up() == {"first": "done", "second": "reused", "side": "reused"}
    assert shelf.run("verify").code == 0


@pytest.mark.parametrize("text", [None, "{}", '{"schema": 1}'])
def test_a_damaged_manifest_is_named(shelf, text):
    shelf.project.up()
    manifest = shelf.project.output("second") / "artifact.json"
    manifest.unlink() if text is None else manifest.write_text(text)
    done = shelf.run("verify", "second")
    assert done.code == 2
    assert f"{manifest}: " in done.out


def test_another_artifact_in_its_place_is_told(shelf):
    shelf.project.up()
    first, second = shelf.project.output("first"), shelf.project.output("second")
    shutil.rmtree(second)
    shutil.copytree(first, second)
    assert "it is not the artifact that was committed" in shelf.run("verify", "second").out


def test_files_that_do_not_belong_to_it_are_a_note(shelf):
    shelf.project.up()
    (shelf.project.output("first") / "extra.txt").write_text("")
    done = shelf.run("verify", "first")
    assert done.code == 0
    assert "note: no part of it: extra.txt" in done.out


def test_stages_that_are_not_done_are_told(shelf):
    shelf.project.up("--only", "first")
    done = shelf.run("verify")
    assert done.code == 0
    assert "second  not done: new" in done.out
    assert "the stage second is not done" in shelf.run("verify", "second").err


def test_everything_in_the_store(shelf):
    shelf.project.up()
    older = shelf.project.output("first")
    shelf.project.up("--set", "params.word=x")
    (shelf.project.folder / "pipeline.yaml").write_text(shelf.project.file.read_text().replace("hello", "y"))
    alter(older)
    assert shelf.run("verify").code == 0, "the pipeline as it stands has nothing yet"
    done = shelf.run("verify", "--all")
    assert done.code == 2
    assert "6 artifacts" in done.out
    assert str(older) in done.out
    commit = older.parent.parent / "commit.json"
    commit.write_text("{")
    assert f"{commit}: it cannot be read" in shelf.run("verify", "--all").out


def test_a_tag_an_output_and_an_address(shelf):
    shelf.project.up()
    shelf.ok("tag", "v1", "first", "side")
    found = shelf.ok("verify", "v1", "second.out", shelf.output("side"))["artifacts"]
    assert [f["name"] for f in found] == ["v1/first", "v1/side", "second"]
    (path := shelf.project.folder / "elsewhere").mkdir()
    done = shelf.run("verify", "./elsewhere")
    assert done.code == 2
    assert f"{path.name}/artifact.json: missing" in done.out


def test_as_json(shelf):
    shelf.project.up()
    alter(shelf.project.output("first"))
    done = shelf.run("verify", "--json")
    assert done.code == 2
    assert done.json["ok"] is False
    assert {a["name"]: a["state"] for a in done.json["artifacts"]} == {"first": "damaged", "second": "ok", "side": "ok"}
    assert done.json["artifacts"][0]["wrong"] == {"text": "altered: its sha256 differs"}


def test_words_and_all_exclude_each_other(shelf):
    assert "--all excludes words" in shelf.run("verify", "first", "--all").err


def test_damage_in_a_store_elsewhere_is_found_and_made_again(far):
    """Also bytes that have changed where the size has not."""
    far.project.up()
    first, second = far.output("first"), far.output("second")
    storage.replace(storage.join(first, "text"), far.read(first).swapcase())
    storage.remove(storage.join(second, "text"))
    done = far.run("verify", "--json")
    assert done.code == 2
    assert [a["wrong"] for a in done.json["artifacts"]] == [
        {"text": "altered: its sha256 differs"}, {"text": "missing"}, {},
    ]  # fmt: skip
    assert far.run("verify", "first").code == 2, "again the same"
    assert far.project.plan()["first"] == ("run", "its result is damaged: out/text: altered: its sha256 differs")
    assert far.project.up() == {"first": "done", "second": "done", "side": "reused"}
    assert far.run("verify").code == 0
