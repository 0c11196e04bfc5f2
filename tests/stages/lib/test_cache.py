"""The local cache: shared by processes, bounded, and never pulled away from under a reader."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from microstages import cache
from microstages.errors import UserError

SIZE = 1_000_000


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MICROSTAGES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


ENTRY = """
import sys, time
from microstages import cache
def fill(folder):
    (folder / "data").write_bytes(b"x" * 1_000_000)
    print("filled", flush=True)
for key in sys.argv[2:]:
    cache.entry("artifacts", key, 1_000_000, fill)
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
"""


def program(seconds: float, *keys: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ENTRY, str(seconds), *keys]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def add(*keys: str) -> None:
    """Entries that were made, and used for the last time, one after the other by processes that have ended."""
    for age, key in enumerate(keys):
        out, err = program(0, key).communicate(timeout=60)
        assert "filled" in out, err
        then = time.time() - 1000 + age
        os.utime(cache.cache_folder() / "locks" / f"artifacts-{key}", (then, then))


def keys(place: Path) -> set[str]:
    return {p.name for p in (place / "artifacts").iterdir()}


def test_many_processes_fill_an_entry_once():
    children = [program(0, "a") for _ in range(8)]
    said = [child.communicate(timeout=60)[0] for child in children]
    assert sorted(said) == ["filled\nready\n", *["ready\n"] * 7]


def test_beyond_the_limit_what_was_not_used_for_longest_goes(place: Path, monkeypatch: pytest.MonkeyPatch):
    add("a", "b", "c")
    monkeypatch.setenv("MICROSTAGES_CACHE_SIZE", "3.2MB")
    program(0, "a").communicate()  # used again, so b is the oldest
    cache.make_room(SIZE)
    assert keys(place) == {"a", "c"}


def test_what_a_living_process_uses_stays(place: Path, monkeypatch: pytest.MonkeyPatch):
    add("a", "b")
    reader = program(60, "a")
    assert reader.stdout and reader.stdout.readline() == "ready\n"
    monkeypatch.setenv("MICROSTAGES_CACHE_SIZE", "1kB")
    cache.make_room(SIZE)
    assert keys(place) == {"a"}
    reader.kill()
    reader.communicate()
    cache.make_room(SIZE)
    assert keys(place) == set()


def test_what_dead_processes_left_is_removed_and_a_cut_off_fetch_is_kept(place: Path):
    folder, lock = cache.outgoing()
    (folder / "data").write_bytes(b"x")
    (place / "artifacts" / ".a.partial").mkdir(parents=True)
    (place / "artifacts" / ".b.0123.gone").mkdir()
    cache.make_room(SIZE)
    assert folder.exists() and keys(place) == {".a.partial"}
    os.close(lock)
    cache.make_room(SIZE)
    assert not folder.exists() and keys(place) == {".a.partial"}


def test_a_damaged_entry_is_dropped_and_made_again(place: Path):
    add("a")
    (place / "artifacts" / "a" / "data").write_bytes(b"y")
    cache.drop("artifacts", "a")
    add("a")
    assert (place / "artifacts" / "a" / "data").read_bytes() == b"x" * SIZE


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(place: Path):
    with pytest.raises(UserError, match="the disk is full") as told:
        cache.entry("artifacts", "a", 10**18, lambda folder: (folder / "data").write_bytes(b"") and None)
    assert "MICROSTAGES_CACHE" in told.value.fix
    assert not (place / "artifacts" / "a").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("20GB", 20e9), ("1.5 GiB", 1.5 * 2**30), ("300m", 3e8), ("17", 17), ("", 50e9)]
)
def test_the_limit_is_a_size(text: str, size: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MICROSTAGES_CACHE_SIZE", text)
    assert cache.limit() == size


def test_a_limit_that_is_no_size_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MICROSTAGES_CACHE_SIZE", "much")
    with pytest.raises(UserError, match="'much' is no size"):
        cache.limit()
