"""`runner tag`: names for results."""

import json

import pytest


def test_a_tag_names_the_results_as_they_are_now(shelf):
    shelf.project.up()
    (made,) = shelf.ok("tag", "v1.0")
    assert (made["name"], made["pipeline"], set(made["stages"])) == ("v1.0", "demo", {"first", "second", "side"})
    assert "@" in made["who"]
    digest = made["stages"]["first"]["outputs"]["out"]["digest"]
    shelf.project.up("--set", "params.word=x")
    assert shelf.ok("tag")[0]["stages"]["first"]["outputs"]["out"]["digest"] == digest
    assert shelf.run("tag").out.splitlines()[1].startswith("v1.0  ")


def test_no_tags_yet(shelf):
    assert shelf.run("tag").out == "no tags yet\n"


def test_a_tag_of_some_stages(shelf):
    shelf.project.up("--only", "first")
    done = shelf.run("tag", "all")
    assert done.code == 2
    assert "the stage second is not done: new" in done.err
    assert list(shelf.ok("tag", "some", "first")[0]["stages"]) == ["first"]


def test_a_name_that_is_taken_is_moved_only_when_told(shelf):
    shelf.project.up()
    before = shelf.ok("tag", "v1")
    shelf.project.up("--set", "params.word=x")
    done = shelf.run("tag", "v1", "--set", "params.word=x")
    assert done.code == 2
    assert "there is a tag 'v1' already" in done.err
    assert "--move" in done.err
    assert shelf.ok("tag") == before
    assert shelf.ok("tag", "v1", "--move", "--set", "params.word=x")[0]["stages"] != before[0]["stages"]


def test_a_tag_is_deleted(shelf):
    shelf.project.up()
    shelf.ok("tag", "release-1")
    done = shelf.run("tag", "--delete", "relase-1")
    assert done.code == 2
    assert "there is no tag 'relase-1' (did you mean 'release-1'?)" in done.err
    assert shelf.run("tag", "--delete", "release-1").out == "release-1: removed\n"
    assert shelf.ok("tag") == []


WRONG = [
    (("a/b",), "cannot be a tag's name"),
    (("-x",), "unrecognized arguments: -x"),
    ((".hidden",), "cannot be a tag's name"),
    (("a b",), "cannot be a tag's name"),
    (("x" * 101,), "cannot be a tag's name"),
    (("first",), "would be taken for the stage first"),
    (("first.out",), "would be taken for the stage first"),
    (("v1", "frst"), "there is no stage 'frst' (did you mean 'first'?)"),
    (("--delete",), "--delete takes the name of one tag"),
    (("--delete", "../runs"), "there is no tag"),
    (("--move",), "--move needs the name of a tag"),
]


@pytest.mark.parametrize(("args", "what"), WRONG, ids=[" ".join(w[0])[:20] for w in WRONG])
def test_a_wrong_tag_is_told_and_nothing_is_made(shelf, args, what):
    shelf.project.up()
    before = shelf.files()
    done = shelf.run("tag", *args)
    assert done.code == 2
    assert what in done.err
    assert shelf.files() == before


def test_a_damaged_result_is_not_tagged(shelf):
    shelf.project.up()
    (shelf.project.output("first") / "text").write_text("altered")
    done = shelf.run("tag", "v1", "first")
    assert done.code == 2
    assert "its result is damaged" in done.err


def test_a_tag_that_cannot_be_read_is_told_and_can_be_removed(shelf):
    shelf.project.up()
    shelf.ok("tag", "v1")
    file = shelf.project.folder / ".runner/store/tags/v1.json"
    file.write_text(json.dumps({"schema": 1}))
    done = shelf.run("gc", "--yes", "--older-than", "0s")
    assert done.code == 2
    assert f"{file}: this tag cannot be read" in done.err, "what it keeps is not known: nothing goes"
    assert shelf.run("tag", "--delete", "v1").code == 0
    assert shelf.run("gc").code == 0


def test_tags_in_a_store_elsewhere(far):
    far.project.up()
    far.ok("tag", "v1")
    assert "already" in far.run("tag", "v1").err
    assert [t["name"] for t in far.ok("tag")] == ["v1"]
    far.ok("tag", "--delete", "v1")
    assert far.ok("tag") == []
