"""Files between a folder and real object stores: whole, checked, resumed, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from microstages import storage
from microstages.artifact import Draft, identify, open_artifact
from microstages.errors import DamagedError, TemporaryError, UserError
from stores.fixtures import Spoiled
from stores.proxy import Plan
from stores.servers import Store, forget, signature

MB = 1_000_000
SIZES = {"config.json": 300, "empty.txt": 0, "a b/ü#1.bin": 70_000, "large.safetensors": 21 * MB, "exact.bin": 16 << 20}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of many sizes."""
    made = tmp_path / "from"
    for name, size in SIZES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(os.urandom(size))
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A cache of its own; `cache("x")` is another machine's."""

    def other(name: str) -> Path:
        monkeypatch.setenv("MICROSTAGES_CACHE", str(tmp_path / "caches" / name))
        return tmp_path / "caches" / name

    other("first")
    return other


def hashes(folder: Path) -> dict[str, str]:
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in SIZES}


def write(uri: str, folder: Path) -> str:
    """Commit the files as an artifact; its digest."""
    with Draft(uri, "model") as draft:
        for name in SIZES:
            (draft.path / name).parent.mkdir(exist_ok=True)
            (draft.path / name).write_bytes((folder / name).read_bytes())
        return draft.commit({}).digest


def test_files_go_and_come_back_as_they_were(remote: Store, folder: Path, tmp_path: Path):
    uri = remote.uri()
    assert storage.upload(folder, uri, list(SIZES)) == hashes(folder)
    assert storage.listing(uri) == SIZES
    storage.download(uri, tmp_path / "to", SIZES, hashes(folder))
    assert hashes(tmp_path / "to") == hashes(folder)
    assert storage.hashes(uri, SIZES) == hashes(folder)
    assert sorted(p.name for p in (tmp_path / "to").rglob("*") if p.is_file()) == sorted(Path(n).name for n in SIZES)


def test_an_artifact_has_the_digest_that_it_has_on_a_disk(remote: Store, folder: Path, tmp_path: Path, cache: Any):
    uri = remote.uri()
    local = write(str(tmp_path / "local"), folder)
    assert write(uri, folder) == local
    cache("second")
    opened = open_artifact(uri, ["model"])
    assert (opened.digest, opened.kind) == (local, "model")
    assert {n: hashlib.sha256(opened.file(n).read_bytes()).hexdigest() for n in SIZES} == hashes(folder)


def test_what_was_sent_from_here_is_not_fetched_again(azurite: Store, folder: Path, monkeypatch: pytest.MonkeyPatch):
    azurite.use(monkeypatch)
    uri = azurite.uri()
    write(uri, folder)
    storage.remove(storage.join(uri, "large.safetensors"))  # it would be missed
    assert open_artifact(uri, ["model"]).file("large.safetensors").stat().st_size == SIZES["large.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "large.safetensors"])
def test_a_damaged_remote_file_is_found_and_named(remote: Store, folder: Path, name: str, cache: Any):
    uri = remote.uri()
    write(uri, folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    storage.replace(storage.join(uri, name), bytes(data))
    cache("second")
    with pytest.raises(DamagedError, match=r"altered") as told:
        open_artifact(uri, ["model"])
    assert told.value.where == storage.join(uri, name) and told.value.artifact == uri
    storage.remove(storage.join(uri, name))
    with pytest.raises(DamagedError, match=r"missing") as told:
        open_artifact(uri, ["model"])
    assert told.value.where == storage.join(uri, name)


def test_a_damaged_copy_in_the_cache_is_fetched_again(remote: Store, folder: Path):
    uri = remote.uri()
    write(uri, folder)
    first = open_artifact(uri, ["model"])
    (first.path / "config.json").write_bytes(b"x" * SIZES["config.json"])
    again = open_artifact(uri, ["model"])
    assert (again.path / "config.json").read_bytes() == (folder / "config.json").read_bytes()


FETCH = """
import sys
from microstages.artifact import open_artifact
print(open_artifact(sys.argv[1], ["model"]).digest)
"""


def program(text: str, *arguments: str) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", text, *arguments], text=True, **streams)  # type: ignore[call-overload]


def test_a_fetch_that_was_killed_goes_on_where_it_was(spoiled: Spoiled, tmp_path: Path, cache: Any):
    uri = spoiled.uri()
    source = tmp_path / "source"
    source.mkdir()
    (source / "large.bin").write_bytes(os.urandom(100 * MB))
    with Draft(uri, "model") as draft:
        os.link(source / "large.bin", draft.path / "large.bin")
        digest = draft.commit({}).digest
    place = cache("second")
    spoiled.proxy.follow(Plan(delay=1.0, seconds=0.2))
    child = program(FETCH, uri)
    key = digest.removeprefix("sha256:")
    journal = place / "artifacts" / f".{key}.partial" / ".large.bin.~parts"
    while not (journal.exists() and journal.stat().st_size >= 3 * 4):
        assert child.poll() is None, child.communicate()
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    done = journal.stat().st_size // 4
    before = spoiled.proxy.carried
    spoiled.proxy.follow(Plan())
    assert open_artifact(uri, ["model"]).digest == digest
    assert spoiled.proxy.carried - before < (100 - 8.3 * (done - 1)) * MB
    assert not journal.exists()


def test_eight_processes_fetch_it_once(spoiled: Spoiled, folder: Path, cache: Any):
    uri = spoiled.uri()
    digest = write(uri, folder)
    cache("second")
    before = spoiled.proxy.carried
    children = [program(FETCH, uri) for _ in range(8)]
    for child in children:
        out, err = child.communicate(timeout=120)
        assert (child.returncode, out.strip()) == (0, digest), err
    assert spoiled.proxy.carried - before < 1.5 * sum(SIZES.values())


def test_a_push_that_was_cut_off_sends_only_the_rest(spoiled: Spoiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MICROSTAGES_PATIENCE", "0")
    monkeypatch.setattr("microstages.remote.transfer.PARTS", 1)  # one after the other
    uri = spoiled.uri()
    (tmp_path / "large.bin").write_bytes(os.urandom(60 * MB))
    known = {"large.bin": hashlib.sha256((tmp_path / "large.bin").read_bytes()).hexdigest()}
    spoiled.proxy.follow(Plan(script=("pass",) * 6 + ("drop",) * 50))
    with pytest.raises(TemporaryError):
        storage.upload(tmp_path, uri, ["large.bin"], known, resume=True)
    spoiled.proxy.follow(Plan())
    assert storage.listing(uri) == {}
    before = spoiled.proxy.carried
    storage.upload(tmp_path, uri, ["large.bin"], known, resume=True)
    assert spoiled.proxy.carried - before < 55 * MB
    assert storage.hashes(uri, {"large.bin": 60 * MB}) == known


@pytest.mark.parametrize("seed", range(3))
def test_a_network_that_drops_loses_delays_and_cuts_does_no_harm(spoiled: Spoiled, folder: Path, seed: int, cache: Any):
    uri = spoiled.uri()
    plan = Plan(seed=seed, drop=0.08, lose=0.08, delay=0.05, truncate=0.08, seconds=0.1)
    spoiled.proxy.follow(plan)
    digest = write(uri, folder)
    cache("second")
    opened = open_artifact(uri, ["model"])
    assert opened.digest == digest
    assert {n: hashlib.sha256(opened.file(n).read_bytes()).hexdigest() for n in SIZES} == hashes(folder)
    assert sum(spoiled.proxy.seen[k] for k in ("drop", "lose", "truncate")) > 0


def test_only_one_of_many_creates_a_file_though_answers_get_lost(spoiled: Spoiled):
    uri = storage.join(spoiled.uri(), "commit.json")
    spoiled.proxy.follow(Plan(seed=5, lose=0.3))
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: storage.create(uri, f"writer {n}".encode()), range(8)))
    assert won.count(True) == 1
    assert storage.read(uri) == f"writer {won.index(True)}".encode()


def test_a_store_that_is_away_for_a_while_is_waited_for(spoiled: Spoiled, folder: Path):
    uri = spoiled.uri()
    spoiled.proxy.off()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(storage.upload, folder, uri, list(SIZES))
        time.sleep(1.5)
        assert not sending.done()
        spoiled.proxy.on()
        assert sending.result(60) == hashes(folder)


def test_a_store_that_stays_away_is_told(spoiled: Spoiled, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MICROSTAGES_PATIENCE", "1")
    uri = spoiled.uri()
    spoiled.proxy.off()
    with pytest.raises(TemporaryError) as told:
        storage.read(storage.join(uri, "x"))
    assert told.value.where == storage.join(uri, "x")


def test_a_wrong_key_is_told_at_once_and_not_shown(azurite: Store, monkeypatch: pytest.MonkeyPatch):
    azurite.use(monkeypatch)
    uri = azurite.uri()
    wrong = "bm90IHRoZSBrZXk="
    text = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    key = text.partition("AccountKey=")[2].partition(";")[0]
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text.replace(key, wrong))

    forget()
    with pytest.raises(UserError, match="access denied") as told:
        storage.read(storage.join(uri, "x"))
    assert not isinstance(told.value, TemporaryError)
    assert wrong not in str(told.value) and key not in str(told.value)


def test_a_container_that_is_not_there_is_named(remote: Store):
    uri = f"{remote.scheme}://nobody-made-this/store"
    assert storage.read(storage.join(uri, "x")) is None
    assert storage.entries(uri) == {}
    with pytest.raises(UserError, match="nobody-made-this"):
        storage.create(storage.join(uri, "x"), b"1")


def test_a_thing_from_outside_is_known_by_its_tags_and_fetched_once(remote: Store, folder: Path, cache: Any):
    uri = remote.uri()
    storage.upload(folder, uri, list(SIZES))
    digest = identify(uri, ["files"])
    assert not (cache("first") / "outside").exists()
    opened = open_artifact(uri, ["files"])
    assert opened.digest == digest and set(opened.files) == set(SIZES)
    single = open_artifact(storage.join(uri, "config.json"), ["files"])
    assert single.path.read_bytes() == (folder / "config.json").read_bytes()
    assert open_artifact(storage.join(uri, "empty.txt"), ["files"]).path.read_bytes() == b""
    assert set(open_artifact(storage.join(uri, "*.bin"), ["files"]).files) == {"exact.bin"}
    storage.replace(storage.join(uri, "config.json"), b"{}")
    assert identify(uri, ["files"]) != digest
    assert open_artifact(uri, ["files"]).file("config.json").read_bytes() == b"{}"


def test_folders_and_removal(remote: Store):
    uri = remote.uri()
    for name in ("a/x", "a/b/y", "ab/z", "top"):
        storage.replace(storage.join(uri, name), b"1")
    assert storage.folders(uri) == ["a", "ab"]
    storage.remove(storage.join(uri, "a"))
    assert set(storage.listing(uri)) == {"ab/z", "top"}
    storage.remove(storage.join(uri, "top"))
    storage.remove(storage.join(uri, "top"))
    assert set(storage.listing(uri)) == {"ab/z"}


@pytest.mark.parametrize(("permission", "hours"), [("rwdlc", -1), ("rl", 1)])
def test_a_signature_that_expired_or_may_only_read_is_told_and_not_shown(
    azurite: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, permission: str, hours: float
):
    azurite.use(monkeypatch)
    uri = azurite.uri()
    text = signature(azurite, permission, hours)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    forget()
    with pytest.raises(UserError, match=r"access denied.*\n.*expired") as told:
        write(uri, folder)
    assert not isinstance(told.value, TemporaryError)
    assert text.partition("sig=")[2] not in str(told.value)
    azurite.use(monkeypatch)
    assert storage.entries(uri) == {}
    write(uri, folder)
    if hours > 0:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
        forget()
        assert set(storage.listing(uri)) > set(SIZES)


def test_a_wrong_file_that_an_earlier_fetch_left_is_not_believed(remote: Store, folder: Path, cache: Any):
    uri = remote.uri()
    digest = write(uri, folder)
    partial = cache("second") / "artifacts" / f".{digest.removeprefix('sha256:')}.partial"
    partial.mkdir(parents=True)
    (partial / "config.json").write_bytes(b"x" * SIZES["config.json"])  # as after a power cut
    opened = open_artifact(uri, ["model"])
    assert opened.file("config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_two_writers_at_one_address_do_not_mix(remote: Store, monkeypatch: pytest.MonkeyPatch):
    uri = remote.uri()
    with Draft(uri, "model") as first, Draft(uri, "model") as second:
        (first.path / "x").write_bytes(b"first")
        (second.path / "x").write_bytes(b"second")
        upload = storage.upload

        def in_the_middle(*given: Any, **more: Any) -> dict[str, str]:
            monkeypatch.setattr(storage, "upload", upload)
            with pytest.raises(UserError, match="somebody else is writing there"):
                second.commit({})
            return upload(*given, **more)

        monkeypatch.setattr(storage, "upload", in_the_middle)
        first.commit({})
        with pytest.raises(UserError, match="lies there already"):
            second.commit({})
    assert storage.read(storage.join(uri, "x")) == b"first"
    assert set(storage.listing(uri)) == {"x", "artifact.json"}


def test_an_upload_that_is_given_up_leaves_no_parts(s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import boto3

    s3.use(monkeypatch)
    monkeypatch.setenv("MICROSTAGES_PATIENCE", "0")
    uri = s3.uri()
    (tmp_path / "large.bin").write_bytes(os.urandom(30 * MB))
    from microstages.remote import s3 as module

    part = module._Upload.part

    async def failing(self: Any, number: int, data: bytes) -> None:
        if number == 2:
            raise TemporaryError("the store fails", fix="try again")
        await part(self, number, data)

    monkeypatch.setattr(module._Upload, "part", failing)
    with pytest.raises(TemporaryError):
        storage.upload(tmp_path, uri, ["large.bin"])
    assert not boto3.client("s3").list_multipart_uploads(Bucket=uri.split("/")[2]).get("Uploads")


def test_files_whose_names_look_like_parts_of_others(remote: Store, cache: Any):
    names = ["m", "m.part", "m.parts", "m.new"]
    uri = remote.uri()
    with Draft(uri, "model") as draft:
        for name in names:
            (draft.path / name).write_bytes(name.encode() * 600_000)
        draft.commit({})
    cache("second")
    opened = open_artifact(uri, ["model"])
    assert all(opened.file(name).read_bytes() == name.encode() * 600_000 for name in names)


def test_what_is_sent_counts_for_the_limit_of_the_cache(azurite: Store, cache: Any, monkeypatch: pytest.MonkeyPatch):
    azurite.use(monkeypatch)
    monkeypatch.setenv("MICROSTAGES_CACHE_SIZE", "25MB")
    place = cache("small")
    for n in range(4):
        code = f"import os\nfrom microstages.artifact import Draft\nwith Draft({azurite.uri()!r}, 'model') as d:\n"
        code += f"    (d.path / 'x').write_bytes(bytes([{n}]) * 10_000_000)\n    d.commit({{}})\n"
        out, err = program(code).communicate(timeout=60)
        assert not err, out
    assert len([p for p in (place / "artifacts").iterdir() if p.is_dir()]) <= 2
    assert not list((place / "locks").glob("outgoing-*"))


def test_whoever_waits_for_a_store_can_be_told_not_to(spoiled: Spoiled):
    from microstages import remote

    uri = spoiled.uri()
    spoiled.proxy.follow(Plan(silence=1.0))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(storage.read, storage.join(uri, "x"))
        time.sleep(0.5)
        assert not waiting.done()
        try:
            remote.give_up()
            with pytest.raises(TemporaryError, match="not waited for"):
                waiting.result(10)
        finally:
            remote.give_up(False)
    spoiled.proxy.follow(Plan())
    assert storage.read(storage.join(uri, "x")) is None
