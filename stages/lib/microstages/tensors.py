"""safetensors files read and written piece by piece, so that memory does not grow with the model. No torch.

A reader never maps a file: it reads the bytes that are asked for, into memory that is reused. A file is checked when it
is opened: a header that does not describe exactly the bytes that follow it is an error that names the file.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

from microstages.errors import UserError, redo

if TYPE_CHECKING:
    import numpy as np

KEEP_SIZE = 1  # Linux: reserve room, and let the file be as long as what was written
WRITE_AT_ONCE = 32 << 20  # bytes after which the disk begins to write
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # what `Weights.read` gives as numbers
_MAX_HEADER = 100_000_000  # as safetensors' own reader


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `nbytes` bytes from `start` in `file`, row after row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its header as it stands (with the 8 bytes of its length), its tensors as they lie."""

    file: Path
    header: bytes
    metadata: Mapping[str, str]
    tensors: tuple[Tensor, ...]


def read_shard(file: Path) -> Shard:
    """The header of a safetensors file, checked. Raises UserError where it is damaged or none."""

    def broken(what: str) -> UserError:
        return UserError(f"this is not a whole safetensors file: {what}", where=file, fix=redo(file))

    try:
        with file.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER, size - 8):
                raise broken("it is cut off or damaged")
            raw = f.read(length)
    except FileNotFoundError:
        raise UserError("there is no such file", where=file, fix="check that the folder is complete") from None
    try:
        value = json.loads(raw)
        metadata = value.pop("__metadata__", None) or {}
        begin = 8 + length
        found = [
            Tensor(name, v["dtype"], tuple(map(int, v["shape"])), file, begin + int(v["data_offsets"][0]))
            for name, v in value.items()
        ]
        ends = {name: begin + int(v["data_offsets"][1]) for name, v in value.items()}
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        raise broken("its header is damaged") from None
    found.sort(key=lambda t: (t.start, t.start + t.count))
    at = begin
    for t in found:
        if t.dtype not in BITS or any(n < 0 for n in t.shape):
            raise broken(f"{t.name} has the type {t.dtype} and the shape {list(t.shape)}")
        if t.start != at or ends[t.name] != at + t.nbytes:
            raise broken(f"{t.name} does not lie where the header says")
        at += t.nbytes
    if at != size:
        raise broken(f"it is cut off: {size:,} of {at:,} bytes are there" if size < at else "more follows its end")
    return Shard(file, length.to_bytes(8, "little") + raw, metadata, tuple(found))


class Weights:
    """The tensors of some safetensors files, by name. A context manager that closes them; reading is thread-safe."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.shards = [read_shard(f) for f in files]
        self.tensors: dict[str, Tensor] = {}
        for shard in self.shards:
            for t in shard.tensors:
                if t.name in self.tensors:
                    raise UserError(
                        f"{t.name} is in {self.tensors[t.name].file.name} too",
                        where=t.file,
                        fix="remove the wrong file",
                    )
                self.tensors[t.name] = t
        self._open = {s.file: os.open(s.file, os.O_RDONLY) for s in self.shards}

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def read_bytes(self, t: Tensor, start: int, stop: int) -> bytearray:
        """Bytes `start` to `stop` of a tensor."""
        out = bytearray(stop - start)
        self._fill(t, start, memoryview(out))
        return out

    def read(self, t: Tensor, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        """Elements `start` to `stop` of a tensor in its own type, flat. Raises UserError for a type not in `FLOATS`."""
        import numpy as np

        stop = t.count if stop is None else stop
        out = np.empty(stop - start, numpy_type(t))
        self.read_into(t, start, out)
        return out

    def read_into(self, t: Tensor, start: int, out: np.ndarray[Any, Any]) -> None:
        """Fill an array, flat and of the tensor's type, with the elements from `start` on."""
        self._fill(t, start * out.itemsize, out.view("u1").data)

    def _fill(self, t: Tensor, start: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            n = os.preadv(self._open[t.file], [view[done:]], t.start + start + done)
            if n == 0:
                raise UserError("the file became shorter while it was read", where=t.file, fix="run again")
            done += n


def numpy_type(t: Tensor) -> Any:
    """numpy's (or ml_dtypes') type of a tensor. Raises UserError where it is no plain floating point type."""
    if t.dtype not in FLOATS:
        raise UserError(
            f"{t.name} is of type {t.dtype}; only {', '.join(FLOATS)} can be computed with",
            where=t.file,
            fix="give the model in bf16, fp16 or fp32, before any quantization",
        )
    import numpy as np

    if t.dtype == "BF16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(FLOATS[t.dtype])


def model_files(folder: Path) -> list[Path]:
    """The weight files of a model folder as transformers finds them: one file, or those that the index names.

    Raises UserError where there are none, or the index names a missing file.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        raise UserError(
            f"there is neither {SINGLE} nor {INDEX}",
            where=folder,
            fix="save the model with save_pretrained(folder, safe_serialization=True)",
        )
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        files = [folder / n for n in names if Path(n).name == n]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"this index cannot be read ({error})", where=index, fix=redo(index)) from None
    if len(files) != len(names) or not files:
        raise UserError("this index names files outside its folder, or none", where=index, fix="get the file again")
    for f in files:
        if not f.is_file():
            raise UserError(f"{f.name} is missing, which the index names", where=folder, fix="complete the download")
    return files


def header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The header of a file that holds tensors (name, dtype, shape) in this order, padded to 8 bytes."""
    value: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, shape in tensors:
        end = at + prod(shape) * BITS[dtype] // 8
        value[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _kernel(name: str, descriptor: int, *arguments: int) -> int:
    """A call of Linux that Python has no name for; its error number, 0 where it went well or is not to be had."""
    import ctypes

    try:
        call = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return 0
    call.argtypes = (ctypes.c_int, *([ctypes.c_int64] * len(arguments)))
    return ctypes.get_errno() if call(descriptor, *arguments) < 0 else 0


class HashingWriter:
    """A new file of pieces that are written in any order, by any thread, and hashed from front to back while they are
    in memory: no second pass over a large output. The disk begins to write at once, so that little is left to do when
    the file is complete."""

    def __init__(self, file: Path, size: int = 0) -> None:
        """`size`: bytes that will be written, reserved now where the file system can. An OSError names the file."""
        self.file, self.size = file, 0
        self._hash = hashlib.sha256()
        self._begun = self._unwritten = 0  # bytes that the disk was told to write, and those since
        self._waiting: deque[tuple[int, memoryview]] = deque()
        self._writing = Lock()
        self._out = file.open("xb", buffering=0)
        os.fchmod(self._out.fileno(), 0o644)
        if size and _kernel("fallocate64", self._out.fileno(), KEEP_SIZE, 0, size) == errno.ENOSPC:
            self._out.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    def __enter__(self) -> HashingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes. An OSError names the file."""
        self.write_at(self.size, data)
        self.written(data)

    def write_at(self, start: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes from byte `start` on, in any thread; the one that writes just now may take them over. An OSError
        names the file. What was given must not change until the file is closed."""
        self._waiting.append((start, memoryview(data)))
        # The kernel lets one thread at a time write to a file. The others leave their bytes to it and go on.
        while self._waiting and self._writing.acquire(blocking=False):
            try:
                while self._waiting:
                    self._write(*self._waiting.popleft())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.file)) from None
            finally:
                self._writing.release()

    def _write(self, start: int, view: memoryview) -> None:
        while view:
            done = os.pwrite(self._out.fileno(), view, start)
            view, start = view[done:], start + done
            self._unwritten += done
        if self._unwritten >= WRITE_AT_ONCE:  # whatever lies before here: pieces come almost in order
            flags = 2  # SYNC_FILE_RANGE_WRITE: begin, do not wait
            _kernel("sync_file_range", self._out.fileno(), self._begun, max(0, start - self._begun), flags)
            self._begun, self._unwritten = max(self._begun, start), 0

    def written(self, data: bytes | bytearray | memoryview) -> None:
        """Hash the bytes that follow those hashed before; they were given to `write_at`."""
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """In hex, of all that was hashed: for `Draft.hashed`."""
        return self._hash.hexdigest()
