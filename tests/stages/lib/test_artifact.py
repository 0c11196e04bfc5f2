"""Artifacts: written whole or not at all, read only as they were written."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from microstages import storage
from microstages.artifact import Draft, open_artifact, outside_digest
from microstages.errors import UserError
from microstages.manifest import MANIFEST, Manifest, safe_path


def write(uri: str, files: dict[str, bytes], kind: str = "dataset", **metadata: object) -> Manifest:
    with Draft(uri, kind) as draft:
        for name, data in files.items():
            path = draft.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        draft.metadata.update(metadata)
        return draft.commit({"stage": "test"})


FILES = {"a.txt": b"alpha", "sub/b.bin": bytes(range(256)) * 50}


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that artifacts can be written below: a folder, or another store."""
    return str(tmp_path) if request.param == "file" else f"memory://{tmp_path.name}"


def test_what_is_written_is_read_back(place: str):
    manifest = write(f"{place}/out", FILES, rows=7)
    artifact = open_artifact(f"{place}/out", ("dataset",))
    assert artifact.digest == manifest.digest
    assert artifact.metadata == {"rows": 7}
    assert {n: (artifact.path / n).read_bytes() for n in artifact.files} == FILES


def test_equal_bytes_have_equal_digests_wherever_they_lie(tmp_path: Path, place: str):
    one = write(f"{place}/one", FILES, rows=1)
    two = write(str(tmp_path / "elsewhere" / "two"), FILES, rows=2)
    assert one.digest == two.digest
    assert one.digest != write(f"{place}/three", {**FILES, "a.txt": b"Alpha"}).digest
    assert one.digest != write(f"{place}/four", {"b.txt": FILES["a.txt"], "sub/b.bin": FILES["sub/b.bin"]}).digest


def test_the_files_of_an_artifact_are_exactly_those_written(tmp_path: Path):
    write(str(tmp_path / "out"), FILES)
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert found == ["out/.verified.json", "out/a.txt", "out/artifact.json", "out/sub/b.bin"]


def test_nothing_is_visible_when_the_writer_fails(place: str):
    with pytest.raises(RuntimeError), Draft(f"{place}/out", "dataset") as draft:
        (draft.path / "half").write_text("…")
        raise RuntimeError
    assert not storage.exists(f"{place}/out")
    assert storage.listing(place) == {}


def test_an_artifact_is_never_overwritten(place: str):
    write(f"{place}/out", FILES)
    with pytest.raises(UserError, match="already"):
        write(f"{place}/out", {"c": b"other"})
    assert open_artifact(f"{place}/out", ("dataset",)).files == ("a.txt", "sub/b.bin")


def test_a_folder_with_other_things_is_not_overwritten(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already"):
        write(str(tmp_path / "out"), FILES)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path: Path):
    (tmp_path / "out").mkdir()
    write(str(tmp_path / "out"), FILES)
    assert open_artifact(str(tmp_path / "out"), ("dataset",)).files


def test_the_first_of_two_writers_wins(tmp_path: Path):
    with Draft(str(tmp_path / "out"), "dataset") as slow:
        (slow.path / "a").write_text("slow")
        write(str(tmp_path / "out"), FILES)
        with pytest.raises(UserError, match="already"):
            slow.commit({})
    assert open_artifact(str(tmp_path / "out"), ("dataset",)).files == ("a.txt", "sub/b.bin")


@pytest.mark.parametrize("file", sorted(FILES))
def test_an_altered_byte_is_found_and_named(tmp_path: Path, file: str):
    write(str(tmp_path / "out"), FILES)
    path = tmp_path / "out" / file
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had been written
    with pytest.raises(UserError, match="altered") as error:
        open_artifact(str(tmp_path / "out"), ("dataset",))
    assert file in str(error.value)


def test_an_altered_byte_is_found_after_a_first_good_read(tmp_path: Path):
    write(str(tmp_path / "out"), FILES)
    for _ in range(2):
        open_artifact(str(tmp_path / "out"), ("dataset",))
    (tmp_path / "out" / "a.txt").write_bytes(b"alphb")
    with pytest.raises(UserError, match=r"a\.txt: .*altered"):
        open_artifact(str(tmp_path / "out"), ("dataset",))


def test_a_missing_and_a_truncated_file_are_named(tmp_path: Path):
    write(str(tmp_path / "out"), FILES)
    os.truncate(tmp_path / "out/sub/b.bin", 100)
    with pytest.raises(UserError, match=r"b\.bin.*100 bytes, not 12800"):
        open_artifact(str(tmp_path / "out"), ("dataset",))
    (tmp_path / "out/sub/b.bin").unlink()
    with pytest.raises(UserError, match=r"b\.bin.*missing"):
        open_artifact(str(tmp_path / "out"), ("dataset",))


def test_an_altered_remote_artifact_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import fsspec

    uri = f"memory://{tmp_path.name}/out"
    monkeypatch.setenv("MICROSTAGES_CACHE", str(tmp_path / "writer"))
    write(uri, {**FILES, "a.txt": b"never read before"})
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/out/a.txt", b"alphb")
    monkeypatch.setenv("MICROSTAGES_CACHE", str(tmp_path / "reader"))
    with pytest.raises(UserError, match=r"a\.txt.*altered"):
        open_artifact(uri, ("dataset",))


def test_a_copied_artifact_is_the_same_artifact(tmp_path: Path):
    digest = write(str(tmp_path / "out"), FILES).digest
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    assert open_artifact(str(tmp_path / "copy"), ("dataset",)).digest == digest


@pytest.mark.parametrize(
    "change, phrase",
    [
        (lambda m: m["files"][0].update(path="../x"), "outside its folder"),
        (lambda m: m["files"][0].update(path="/etc/passwd"), "outside its folder"),
        (lambda m: m["files"][0].update(path="a//b"), "outside its folder"),
        (lambda m: m["files"][0].update(path="c:\\x"), "outside its folder"),
        (lambda m: m["files"][0].update(path="artifact.json"), "outside its folder"),
        (lambda m: m["files"][0].update(sha256="0"), "no sha256"),
        (lambda m: m["files"][0].update(size=-1), "size"),
        (lambda m: m["files"][0].update(sha256="0" * 64), "was altered: its digest"),
        (lambda m: m["files"].append(m["files"][0]), "twice"),
        (lambda m: m.update(schema=99), "schema 99"),
        (lambda m: m.update(kind="cake"), "unknown kind 'cake'"),
        (lambda m: m.pop("files"), "lacks 'files'"),
        (lambda m: m.update(metadata=[]), "not an object"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, change, phrase: str):
    write(str(tmp_path / "out"), FILES)
    file = tmp_path / "out" / MANIFEST
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=phrase) as error:
        open_artifact(str(tmp_path / "out"), ("dataset",))
    assert MANIFEST in str(error.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path):
    write(str(tmp_path / "out"), FILES)
    (tmp_path / "secret").write_bytes(FILES["a.txt"])
    (tmp_path / "out/a.txt").unlink()
    (tmp_path / "out/a.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="leaves its folder"):
        open_artifact(str(tmp_path / "out"), ("dataset",))


@pytest.mark.parametrize("path", ["a", "a/b.c", "a b/ü.txt", "..a", "a..b"])
def test_paths_inside(path: str):
    assert safe_path(path)


@pytest.mark.parametrize("path", ["", ".", "..", "../a", "a/../b", "/a", "a/", "./a", "a\0b", "a\\b", ".verified.json"])
def test_paths_outside(path: str):
    assert not safe_path(path)


def test_kinds_are_checked(tmp_path: Path):
    write(str(tmp_path / "out"), FILES, kind="adapter")
    with pytest.raises(UserError, match="it is of kind adapter; model or onnx-model is wanted"):
        open_artifact(str(tmp_path / "out"), ("model", "onnx-model"))


# --- things from outside ---


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("{}")
    assert outside_digest(tmp_path / "a.json") == outside_digest(tmp_path / "b.json")
    (tmp_path / "b.json").write_text("[]")
    assert outside_digest(tmp_path / "a.json") != outside_digest(tmp_path / "b.json")


def test_an_edit_of_equal_size_and_time_changes_the_digest(tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_text("one")
    first = outside_digest(file)
    assert outside_digest(file) == first
    times = file.stat()
    file.write_text("two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert outside_digest(file) != first


def test_edits_in_quick_succession_are_all_seen(tmp_path: Path):
    file = tmp_path / "a.json"
    seen = set()
    for i in range(50):
        file.write_text(f"{i:02}")
        seen.add(outside_digest(file))
    assert len(seen) == 50


def test_a_folder_from_outside_equals_the_artifact_of_the_same_files(tmp_path: Path):
    manifest = write(str(tmp_path / "out"), FILES)
    shutil.copytree(tmp_path / "out", tmp_path / "plain")
    (tmp_path / "plain" / MANIFEST).unlink()
    (tmp_path / "plain" / ".hidden").write_text("not a part of it")
    assert outside_digest(tmp_path / "plain") == manifest.digest


def test_a_pattern_takes_the_files_that_match(tmp_path: Path):
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        (tmp_path / name).write_text(name)
    artifact = open_artifact(str(tmp_path / "*.jsonl"), ("files",))
    assert [p.name for p in artifact.paths()] == ["a.jsonl", "b.jsonl"]
    assert artifact.digest != open_artifact(str(tmp_path), ("files",)).digest


def test_outside_refusals(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    cases = [
        ("empty", ("files",), "empty"),
        ("modle", ("model",), "did you mean 'model'"),
        ("*.csv", ("files",), "no file matches"),
        ("model", ("adapter",), "it is of kind model; adapter is wanted"),
        ("model", ("dataset",), "it is of kind model; dataset is wanted"),
        ("model", ("model",), "no weights"),
        ("model/config.json", ("model",), "it is a file"),
    ]
    for name, kinds, phrase in cases:
        with pytest.raises(UserError) as error:
            open_artifact(str(tmp_path / name), kinds)
        assert phrase in str(error.value), name


def test_pickled_weights_are_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(UserError, match="pickled"):
        open_artifact(str(tmp_path), ("model",))


# --- the commit of one small file ---


def test_of_many_creators_one_wins(tmp_path: Path):
    uri, wins = str(tmp_path / "commit.json"), []

    def race(i: int) -> None:
        if storage.create(uri, str(i).encode()):
            wins.append(i)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(wins) == 1
    assert storage.read(uri) == str(wins[0]).encode()
    assert os.listdir(tmp_path) == ["commit.json"]


def test_create_does_not_replace_remotely(tmp_path: Path):
    uri = f"memory://{tmp_path.name}/commit.json"
    assert storage.create(uri, b"1")
    assert not storage.create(uri, b"2")
    assert storage.read(uri) == b"1"
    storage.replace(uri, b"3")
    assert storage.read(uri) == b"3"


@pytest.mark.parametrize(
    "uri, shown",
    [
        ("abfs://c@account.dfs.core.windows.net/x", "abfs://c@account.dfs.core.windows.net/x"),
        ("https://u:secret@host/x?sig=abc#f", "https://host/x"),
        ("s3://bucket/x?token=abc", "s3://bucket/x"),
        ("/a b/c", "/a b/c"),
    ],
)
def test_a_recorded_uri_carries_no_secret(uri: str, shown: str):
    assert storage.public(uri) == shown


def test_an_unknown_protocol_is_the_users_mistake():
    with pytest.raises(UserError, match="nosuch://"):
        open_artifact("nosuch://x/y", ("files",))
