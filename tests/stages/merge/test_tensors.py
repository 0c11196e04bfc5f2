"""Files of tensors are written once and hashed on the way, and what is said of them is checked."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from microstages.artifact import Draft, open_artifact
from microstages.errors import UserError
from microstages.tensors import HashingWriter, Weights, header, read_shard


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    layout = [("b", "F32", (3, 5)), ("a", "BF16", (7,)), ("empty", "I64", (0, 2)), ("flag", "BOOL", ())]
    numbers = np.arange(15, dtype=np.float32)
    with HashingWriter(tmp_path / "x.safetensors") as out:
        out.write(header(layout, {"format": "pt"}))
        out.write(numbers.data.cast("B"))
        out.write(bytes(14) + b"\1")
    assert out.sha256 == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()
    shard = read_shard(tmp_path / "x.safetensors")
    assert [(t.name, t.dtype, t.shape) for t in shard.tensors] == layout
    assert shard.metadata == {"format": "pt"}
    with Weights([tmp_path / "x.safetensors"]) as weights:
        assert np.array_equal(weights.read(weights.tensors["b"]), numbers)
        assert np.array_equal(weights.read(weights.tensors["b"], 4, 9), numbers[4:9])
        assert weights.read(weights.tensors["a"]).dtype.name == "bfloat16"
        assert weights.read_bytes(weights.tensors["flag"], 0, 1) == b"\1"
        with pytest.raises(UserError, match="flag is of type BOOL"):
            weights.read(weights.tensors["flag"])


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.numpy").load_file
    with HashingWriter(tmp_path / "x.safetensors") as out:
        out.write(header([("näme", "F32", (2, 2))], {}))
        out.write(np.ones(4, np.float32).data.cast("B"))
    assert np.array_equal(load_file(tmp_path / "x.safetensors")["näme"], np.ones((2, 2), np.float32))


def test_pieces_are_written_by_many_threads_and_hashed_in_order(tmp_path: Path) -> None:
    pieces = [bytes([n % 256]) * (1000 + n) for n in range(2000)]
    starts = [0, *accumulate(map(len, pieces))]
    with HashingWriter(tmp_path / "x") as out, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(out.write_at, start, p) for start, p in zip(starts, pieces, strict=False)]:
            done.result()
        for piece in pieces:
            out.written(piece)
    assert (tmp_path / "x").read_bytes() == b"".join(pieces)
    assert out.sha256 == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / f"{name}.safetensors").write_bytes(header([("a", "U8", (1,))], {}) + b"\0")
    with pytest.raises(UserError, match=r"a is in x\.safetensors too"):
        Weights([tmp_path / "x.safetensors", tmp_path / "y.safetensors"])


@pytest.mark.parametrize("size", [1000, 30_000_000])
def test_a_hash_computed_on_the_way_is_used(tmp_path: Path, size: int) -> None:
    with Draft(str(tmp_path / "out"), "dataset") as draft:
        with HashingWriter(draft.path / "data") as out:
            out.write(bytes(size))
        draft.hashed("data", out.sha256)
        manifest = draft.commit({})
    assert manifest.files[0].sha256 == hashlib.sha256(bytes(size)).hexdigest()
    remembered = json.loads((tmp_path / "out" / ".verified.json").read_text())
    assert remembered["data"][5] == out.sha256
    assert open_artifact(str(tmp_path / "out"), ["dataset"]).digest == manifest.digest


def test_a_file_that_changed_after_it_was_hashed_is_hashed_again(tmp_path: Path) -> None:
    with Draft(str(tmp_path / "out"), "dataset") as draft:
        with HashingWriter(draft.path / "data") as out:
            out.write(b"first")
        draft.hashed("data", out.sha256)
        (draft.path / "data").write_bytes(b"other")
        manifest = draft.commit({})
    assert manifest.files[0].sha256 == hashlib.sha256(b"other").hexdigest()
