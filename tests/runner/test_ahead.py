"""Files are hashed while a command still writes others; whatever happens to them later, the digest is right."""

import hashlib
import os
import sys
import time

import pytest
from microstages.artifact import Draft, open_artifact

from runner.ahead import Ahead

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
BIG = bytes(range(256)) * (40 << 10)  # 10 MiB


@pytest.fixture
def draft(tmp_path):
    with Draft(str(tmp_path / "out"), "dataset") as made:
        yield made


def committed(draft) -> dict[str, str]:
    manifest = draft.commit({})
    found = open_artifact(draft.uri, ["dataset"])
    assert {f.path: f.sha256 for f in manifest.files} == {
        name: hashlib.sha256((found.path / name).read_bytes()).hexdigest() for name in found.files
    }
    return {f.path: f.sha256 for f in manifest.files}


def test_finished_files_are_hashed_wherever_they_lie(draft, eventually):
    (draft.path / "before.bin").write_bytes(BIG)
    ahead = Ahead([draft])
    (draft.path / "a" / "b").mkdir(parents=True)
    time.sleep(0.1)
    (draft.path / "a" / "b" / "deep.bin").write_bytes(BIG)
    (draft.path / "moved.tmp").write_bytes(BIG)
    (draft.path / "moved.tmp").rename(draft.path / "moved.bin")
    (draft.path / "small.txt").write_text("small")
    eventually(lambda: {"before.bin", "a/b/deep.bin", "moved.bin"} <= set(draft.known))
    ahead.stop()
    assert "small.txt" not in draft.known
    assert set(committed(draft)) == {"before.bin", "a/b/deep.bin", "moved.bin", "small.txt"}


@pytest.mark.parametrize("change", ["same size and time", "longer", "replaced", "removed"])
def test_a_file_that_changes_after_it_was_hashed_is_hashed_again(draft, eventually, change):
    ahead = Ahead([draft])
    file = draft.path / "x.bin"
    (draft.path / "other.txt").write_text("other")
    file.write_bytes(BIG)
    eventually(lambda: "x.bin" in draft.known)
    ahead.stop()
    old = draft.known["x.bin"][5]
    assert old == hashlib.sha256(BIG).hexdigest()
    times = file.stat()
    if change == "same size and time":
        with file.open("r+b") as f:
            f.write(b"\xff")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "longer":
        file.write_bytes(BIG + b"x")
    elif change == "replaced":
        file.unlink()
        file.write_bytes(BIG[::-1])
    else:
        file.unlink()
    found = committed(draft)
    assert found.get("x.bin") != old


def test_a_file_that_is_written_for_long_is_not_taken_for_finished(draft, eventually):
    ahead = Ahead([draft])
    with (draft.path / "slow.bin").open("wb") as f:
        f.write(BIG)
        f.flush()
        time.sleep(0.2)
        assert not draft.known
        f.write(BIG)
    eventually(lambda: "slow.bin" in draft.known)
    ahead.stop()
    assert draft.known["slow.bin"][5] == hashlib.sha256(BIG + BIG).hexdigest()
    committed(draft)


def test_stopping_twice_and_at_once_is_fine(draft):
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        ahead = Ahead([draft])
        ahead.stop()
        ahead.stop(wait=False)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_command_that_takes_its_time_makes_the_right_artifact(project):
    script = """
        head -c 20000000 /dev/urandom > "$out/first.bin"
        sleep 0.5
        head -c 20000000 /dev/urandom > "$out/second.bin"
        sleep 0.5
        printf x | dd of="$out/first.bin" bs=1 seek=1000 conv=notrunc 2> /dev/null
    """
    project.stage("write", script)
    project.stage("read", 'cat "$data"/*.bin | wc -c > "$out/bytes"', inputs={"data": ["dataset"]})
    project.pipeline("""\
        stages:
          write: {uses: ./write}
          read: {uses: ./read, inputs: {data: "${{ stages.write.out }}"}}
        """)
    project.up()
    found = open_artifact(str(project.output("write")), ["dataset"])
    for f in found.manifest.files:
        assert hashlib.sha256((found.path / f.path).read_bytes()).hexdigest() == f.sha256
    assert (project.output("read") / "bytes").read_text().strip() == "40000000"
