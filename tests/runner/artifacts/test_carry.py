"""`runner push` and `runner pull`: an artifact copied between places, checked, and continued where it was cut off."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from microstages import storage

from runner.artifacts import placed


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, without what this machine remembers of it."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".verified.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture
def many(shelf):
    """`first` makes forty files in folders."""
    script = 'for i in $(seq 40); do mkdir -p "$out/d$((i % 4))"; echo "$i $word" > "$out/d$((i % 4))/$i"; done'
    shelf.project.stage(
        "append", script, inputs={"text": ["files"]}, params={"word": {"type": "string", "default": "e"}}
    )
    text = shelf.project.file.read_text()
    shelf.project.pipeline(text[: text.index("  second:")])
    shelf.project.up()
    return shelf


def test_a_stage_is_copied_with_its_manifest(shelf):
    shelf.project.up()
    (row,) = shelf.ok("pull", "first", "copies/first")
    assert (row["name"], row["to"], row["copied"]) == ("first", "copies/first", True)
    assert content(shelf.project.folder / "copies/first") == content(shelf.project.output("first"))
    assert row["digest"] == json.loads((shelf.project.folder / "copies/first/artifact.json").read_text())["digest"]
    assert [p.name for p in (shelf.project.folder / "copies").iterdir()] == ["first"], "nothing else is left there"


def test_the_copy_is_an_artifact_that_a_pipeline_takes(shelf):
    shelf.project.up()
    shelf.ok("push", "first", "copy")
    plan = shelf.project.plan("--set", "stages.side.inputs.text=copy")
    assert plan["side"] == ("reuse", "unchanged"), "the same bytes in another place"


def test_several_get_their_stages_names_below_a_folder(shelf):
    shelf.project.up()
    shelf.ok("push", "first", "side.out", "both")
    assert sorted(p.name for p in (shelf.project.folder / "both").iterdir()) == ["first", "side"]
    shelf.ok("tag", "v1", "first")
    shelf.ok("push", "v1", "tagged")
    assert [p.name for p in (shelf.project.folder / "tagged").iterdir()] == ["first"], "a tag is a folder of artifacts"
    shelf.ok("push", "v1/first", "one")
    assert (shelf.project.folder / "one/artifact.json").is_file()


def test_outputs_of_one_stage_have_names_of_their_own(shelf):
    shelf.project.stage(
        "two", 'echo a > "$left/x"; echo b > "$right/x"', outputs={"left": "dataset", "right": "dataset"}
    )
    shelf.project.pipeline("stages:\n  both: {uses: ./two}\n")
    shelf.project.up()
    shelf.ok("push", "both", "out")
    assert {k for k in content(shelf.project.folder / "out") if k.endswith("x")} == {"both/left/x", "both/right/x"}
    shelf.ok("push", "both.right", "b")
    assert content(shelf.project.folder / "b")["x"] == b"b\n"


def test_a_tag_names_what_was_even_when_the_pipeline_has_changed(shelf):
    shelf.project.up()
    shelf.ok("tag", "v1")
    shelf.project.pipeline("stages:\n  other: {uses: ./append, inputs: {text: data.txt}}\n")
    shelf.ok("pull", "v1/first", "old")
    assert content(shelf.project.folder / "old")["text"] == b"one\ntwo\nhello\n"


def test_an_address_needs_no_pipeline(shelf):
    shelf.project.up()
    uri = shelf.output("first")
    shelf.project.file.unlink()
    assert shelf.ok("pull", uri, "copy")[0]["copied"] is True
    assert shelf.ok("pull", "copy", "again")[0]["copied"] is True
    assert "there is no such pipeline file" in shelf.run("pull", "nowhere", "again").err


def test_what_is_there_already_is_left_alone(shelf):
    shelf.project.up()
    shelf.ok("push", "first", "copy")
    before = (shelf.project.folder / "copy/text").stat()
    assert "there already, nothing to do" in shelf.run("push", "first", "copy").out
    assert (shelf.project.folder / "copy/text").stat() == before
    done = shelf.run("push", "second", "copy")
    assert done.code == 2
    assert "another artifact lies there" in done.err
    (shelf.project.folder / "copy/text").write_text("x")
    assert "this file of it is missing or altered" in shelf.run("push", "first", "copy").err


@pytest.mark.parametrize("there", ["file", "folder with a file"])
def test_something_else_there_is_an_error(shelf, there):
    shelf.project.up()
    place = shelf.project.folder / "place"
    if there == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "text").write_text("mine")
    done = shelf.run("push", "first", "place")
    assert done.code == 2
    assert "something else lies there" in done.err
    assert (place if there == "file" else place / "text").read_text() == "mine"


def test_an_empty_folder_is_as_good_as_none(shelf):
    shelf.project.up()
    (shelf.project.folder / "place").mkdir()
    assert shelf.ok("pull", "first", "place")[0]["copied"] is True


@pytest.mark.parametrize("damage", ["altered", "missing", "manifest"])
def test_a_damaged_artifact_is_not_copied(shelf, damage):
    shelf.project.up()
    folder = shelf.project.output("first")
    if damage == "altered":
        (folder / "text").write_bytes((folder / "text").read_bytes().swapcase())
    else:
        (folder / ("text" if damage == "missing" else "artifact.json")).unlink()
    done = shelf.run("push", "first", "copy")
    assert done.code == 2
    assert str(folder) in done.err
    assert "runner up makes" in done.err
    assert not (shelf.project.folder / "copy").exists()
    shelf.project.up()
    assert shelf.ok("push", "first", "copy")[0]["copied"] is True
    assert not list(shelf.project.folder.glob(".copy*"))


WRONG = [
    (("push", "frist", "x"), "(did you mean 'first'?)"),
    (("push", "first.oot", "x"), "has no output 'oot' (did you mean 'out'?)"),
    (("push", "v1/secnd", "x"), "names no stage 'secnd' (did you mean 'second'?)"),
    (("push", "relase", "x"), "(did you mean 'release'?)"),
    (("push", "./data.txt", "x"), "no artifact is there (no artifact.json)"),
    (("push", "first", "second"), None),
    (("push", "first"), "required: DEST"),
    (("push", "first", "v1/first", "x"), None),
    (("pull", "first", "abfs://models/phi3"), "runner push copies to other places"),
    (("push", "first", "nosuch://place/x"), "nosuch"),
    (("push", "first", "data.txt/x"), "a part of the path is a file"),
]


@pytest.mark.parametrize(("args", "what"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_wrong_words_are_told(shelf, args, what):
    shelf.project.up()
    shelf.ok("tag", "v1")
    shelf.ok("tag", "release")
    done = shelf.run(*args)
    assert done.code == (0 if what is None else 2), done.err
    if what is not None:
        assert what in done.err
        assert not (shelf.project.folder / "x").exists()


def test_two_artifacts_of_one_name_are_not_mixed(shelf):
    shelf.project.up()
    shelf.ok("tag", "v1")
    shelf.project.up("--set", "params.word=x")
    done = shelf.run("push", "first", "v1/first", "out", "--set", "params.word=x")
    assert done.code == 2
    assert "would both be called 'first'" in done.err


def test_a_copy_killed_at_any_moment_is_continued(many, killed_at_every_step, tmp_path):
    """Nothing is an artifact before it is whole; the files that came are not copied again."""
    source = many.project.output("first")
    place = tmp_path / "place"
    seen = []

    def then() -> None:
        assert not (place / "copy").exists() or content(place / "copy") == content(source)
        partial = list(place.glob(".copy.*.partial"))
        seen.append(len(content(partial[0])) if partial else 0)

    command = ["pull", "first", str(place / "copy")]
    folder, environment = many.project.folder, many.project.environment
    assert killed_at_every_step(folder, place, environment, command, fresh=lambda: None, then=then) > 10
    assert content(place / "copy") == content(source)
    assert [p.name for p in place.iterdir()] == ["copy"]
    assert max(seen) > 10
    assert seen == sorted(seen), "each try goes on from the one before"


# Kills itself before the Nth file is sent.
CUT_OFF = """
import os, sys
from microstages import storage
from runner.artifacts import placed
from runner import carry, cli
carry.BATCH_FILES = 1
send, left = storage.upload, int(os.environ["NTH"])
def upload(*args, **options):
    global left
    left -= 1
    if left == 0:
        os._exit(137)
    return send(*args, **options)
storage.upload = upload
sys.exit(cli.call(sys.argv[1:]))
"""


def cut_off(shelf, nth: int, *args: object) -> int:
    environment = {**shelf.project.environment, "NTH": str(nth)}
    command = [sys.executable, "-c", CUT_OFF, *map(str, args)]
    return subprocess.run(command, cwd=shelf.project.folder, env=environment, check=False).returncode


def test_to_a_store_and_back(many, remote, tmp_path):
    many.project.environment |= remote.environment
    dest = storage.join(remote.uri("models"), "first")
    (row,) = many.ok("push", "first", dest)
    assert row["copied"] is True
    assert many.ok("push", "first", dest)[0]["copied"] is False
    many.ok("pull", dest, tmp_path / "back")
    assert content(tmp_path / "back") == content(many.project.output("first"))
    many.ok("push", dest, storage.join(remote.uri("models"), "again"))
    assert many.run("verify", dest).code == 0
    storage.replace(storage.join(dest, "d1/1"), b"1 HELLO\n")
    done = many.run("pull", dest, tmp_path / "other")
    assert done.code == 2
    assert "d1/1" in done.err
    assert not (tmp_path / "other").exists()


def test_a_push_to_a_store_that_was_killed_is_continued(many, remote):
    many.project.environment |= remote.environment
    dest = storage.join(remote.uri("models"), "first")
    assert cut_off(many, 11, "push", "first", dest) == 137
    sent = storage.entries(dest)
    assert "artifact.json" not in sent
    assert len([n for n in sent if n.startswith("d")]) == 10
    many.ok("push", "first", dest)
    now = storage.entries(dest)
    assert {n: now[n] for n in sent if n.startswith("d")} == {n: e for n, e in sent.items() if n.startswith("d")}
    assert set(now) == set(content(many.project.output("first")))
    assert many.run("verify", dest).code == 0


def test_what_somebody_else_wrote_over_a_push_that_was_killed_is_sent_again(many, remote):
    many.project.environment |= remote.environment
    dest = storage.join(remote.uri("models"), "first")
    assert cut_off(many, 40, "push", "first", dest) == 137
    name = next(n for n in storage.entries(dest) if n.startswith("d"))
    storage.replace(storage.join(dest, name), b"x" * storage.entries(dest)[name].size)
    many.ok("push", "first", dest)
    assert many.run("verify", dest).code == 0


def test_a_damaged_artifact_is_no_artifact_in_a_store_either(shelf, remote):
    shelf.project.environment |= remote.environment
    shelf.project.up()
    folder = shelf.project.output("first")
    good = (folder / "text").read_bytes()
    (folder / "text").write_bytes(good.swapcase())
    dest = storage.join(remote.uri("models"), "first")
    done = shelf.run("push", "first", dest)
    assert done.code == 2
    assert f"{folder}/text: this file of the artifact was altered" in done.err
    assert list(storage.entries(dest)) == ["artifact.json.partial"]
    (folder / "text").write_bytes(good)
    shelf.ok("push", "first", dest)
    assert shelf.run("verify", dest).code == 0


def test_a_place_in_a_store_with_something_else_is_left_alone(shelf, remote):
    shelf.project.environment |= remote.environment
    shelf.project.up()
    dest = storage.join(remote.uri("models"), "raw")
    storage.replace(storage.join(dest, "text"), b"somebody's own\n")
    done = shelf.run("push", "first", dest)
    assert done.code == 2
    assert "something else lies there" in done.err
    assert storage.read(storage.join(dest, "text")) == b"somebody's own\n"
    half = storage.join(remote.uri("models"), "half")
    storage.replace(storage.join(half, "artifact.json.partial"), b"sha256:0\n")
    assert "a copy of another artifact was begun there" in shelf.run("push", "first", half).err


def test_from_a_store_elsewhere_to_this_machine(far, tmp_path):
    far.project.up()
    far.ok("tag", "v1")
    far.ok("pull", "v1", tmp_path / "v1")
    assert (tmp_path / "v1/second/text").read_bytes() == b"one\ntwo\nhello\nend\n"
    assert sorted(os.listdir(tmp_path / "v1")) == ["first", "second", "side"]


def test_a_folder_named_in_metadata_never_leads_out():
    assert placed({"folder": "team/tones/cpu/tones-int4-cpu"}) == "team/tones/cpu/tones-int4-cpu"
    for wrong in ("../x", "/etc", "a/../b", "a//b", ".ssh", "a/.b", "", "a\n", 3, None):
        assert placed({"folder": wrong}) == ""


def test_a_result_replaces_another_where_that_is_told(shelf):
    shelf.project.up()
    place = shelf.project.folder / "copies/first"
    shelf.ok("pull", "first", "copies/first")
    assert "pull --replace" in shelf.run("pull", "second", "copies/first").err
    (place / "README.md").write_text("a card, as pull writes one")
    assert shelf.ok("pull", "second", "copies/first", "--replace")[0]["copied"] is True
    assert content(place) == content(shelf.project.output("second"))
    assert shelf.ok("pull", "second", "copies/first", "--replace")[0]["copied"] is False
    (place / "text").write_text("x")
    assert shelf.ok("pull", "second", "copies/first", "--replace")[0]["copied"] is True, "a damaged copy too"
    assert content(place) == content(shelf.project.output("second"))
    assert [p.name for p in place.parent.iterdir()] == ["first"], "nothing else is left there"


@pytest.mark.parametrize("mine", ["artifact", "no artifact", "link"])
def test_what_is_not_of_an_artifact_is_never_replaced(shelf, mine):
    shelf.project.up()
    place = shelf.project.folder / "copy"
    if mine == "artifact":
        shelf.ok("pull", "first", "copy")
    elif mine == "link":
        shelf.ok("pull", "first", "real")
        place.symlink_to("real")
    else:
        place.mkdir()
    (place / "sub").mkdir()
    (place / "sub/notes.txt").write_text("mine")
    done = shelf.run("pull", "second", "copy", "--replace")
    assert done.code == 2
    assert (place / "sub/notes.txt").read_text() == "mine"
    assert ("sub/notes.txt lies there" if mine == "artifact" else "lies there") in done.err


def test_what_the_last_run_made_otherwise_is_told(shelf):
    shelf.project.up()
    assert "note:" not in shelf.run("pull", "second", "a").err
    setting = ("--set", "stages.second.params.word=other")
    shelf.project.up(*setting)
    for words in (("pull", "second", "b"), ("lineage", "second"), ("tag", "v1", "second")):
        done = shelf.run(*words)
        assert (done.code, "note: second of run 2, the last one, is another (word other, not " in done.err) == (0, True)
        assert "pipeline.yaml as it is called here; for that give the same --set" in done.err
    assert "note:" not in shelf.run("pull", "second", "c", *setting).err
    done = shelf.run("pull", "second", "d", "--set", "stages.second.params.word=third")
    assert done.code == 2
    assert "run 2 made another (word other, not third): give the same --set for that" in done.err
