"""Moves files between a folder and a store: many at once, large ones in parts, hashed on the way, in bounded memory.

- Small files are under way `FILES` at a time, parts of large ones `PARTS` at a time; a part is `PART` bytes.
- Sent files are hashed as they are read. Received files are hashed as their beginning grows, and checked.
- A received large file lies under a hidden name until it is whole; beside it the numbers of the parts that
  are there. So a transfer that was cut off, however hard, goes on from there; only what is whole has its real name.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from microstages.errors import DamagedError, UserError
from microstages.remote import Driver, Upload, Whole, persist
from microstages.watch import SILENT, Watch

PART = 8 << 20  # bytes
PARTS = 8  # parts under way
SMALL = 1 << 20  # bytes; larger files count as parts
FILES = 32  # small files under way
LARGE_FILES = 4  # large files under way: while the last parts of one end, others begin
PARTS_OF_A_FILE = 10_000  # stores take no more: larger files have larger parts
_NUMBER = struct.Struct("<I")


REMEDY = "the artifact is damaged: run the pipeline again and it is made anew, or remove it"


def _altered(where: str) -> DamagedError:
    return DamagedError("this file of the artifact was altered: its sha256 differs", where=where, fix=REMEDY)


class Job:
    """One transfer between a folder and a place in a store; `where` is how the place is called in errors."""

    def __init__(self, driver: Driver, root: str, where: str, watch: Watch = SILENT) -> None:
        self.driver, self.root, self.where, self.watch = driver, root.rstrip("/"), where.rstrip("/"), watch
        self.parts = asyncio.Semaphore(PARTS)
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="hash")

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def named(self, name: str) -> str:
        return f"{self.where}/{name}" if name else self.where

    async def aside(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run what reads a disk or hashes beside the loop."""
        work = asyncio.get_running_loop().run_in_executor(self.pool, function, *args)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:  # it still has hold of files that are closed next
            await asyncio.wait([work])
            raise

    async def each(self, names: Iterable[str], at_once: int, work: Callable[[str], Any]) -> None:
        """`work` for each name; the first error ends all."""
        left = iter(names)

        async def worker() -> None:
            for name in left:
                await work(name)

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())


@asynccontextmanager
async def _job(driver: Driver, root: str, where: str, watch: Watch, label: str, total: int) -> AsyncIterator[Job]:
    job = Job(driver, root, where, watch)
    watch.begin(label, total)
    try:
        yield job
    except BaseExceptionGroup as group:
        raise _first(group) from None
    finally:
        watch.end()
        job.pool.shutdown(wait=False)


def _first(group: BaseExceptionGroup) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


# --- out ---


async def send(
    driver: Driver, folder: Path, root: str, names: Sequence[str], known: Mapping[str, str], where: str,
    watch: Watch = SILENT, resume: bool = False,
) -> dict[str, str]:  # fmt: skip
    """Copy files of a folder to a store; name -> sha256 (hex). `known`: hashes that need not be computed again.
    `resume`: an earlier call for the same place may have been cut off; its parts are used.

    Raises UserError, TemporaryError; what was sent until then stays.
    """
    sizes = {name: (folder / name).stat().st_size for name in names}
    small, large = _split(sizes)
    hashes = dict(known)
    async with _job(driver, root, where, watch, "sending", sum(sizes.values())) as job:

        async def one(name: str) -> None:
            data = (folder / name).read_bytes()
            if name not in hashes:
                hashes[name] = hashlib.sha256(data).hexdigest()
            await persist(lambda: driver.write(job.path(name), data), job.named(name), len(data), watch)
            watch.moved(len(data))

        async def big(name: str) -> None:
            hashes[name] = await _send_large(job, folder / name, name, sizes[name], known.get(name), resume)

        async with asyncio.TaskGroup() as group:
            group.create_task(job.each(small, FILES, one))
            group.create_task(job.each(large, LARGE_FILES, big))
    return {name: hashes[name] for name in names}


async def _send_large(job: Job, file: Path, name: str, size: int, known: str | None, resume: bool) -> str:
    path, where = job.path(name), job.named(name)
    upload: Upload | None = await persist(lambda: job.driver.upload(path, size, resume), where, 0, job.watch)
    if upload is None and isinstance(job.driver, Whole):
        whole = job.driver
        async with job.parts:
            await persist(lambda: whole.put(path, str(file)), where, size, job.watch)
            job.watch.moved(size)
        return known or str(await job.aside(_sha256, file))
    assert upload is not None
    part, h = part_size(size), hashlib.sha256()

    async def one(number: int, data: bytes) -> None:
        try:
            await persist(lambda: upload.part(number, data), where, len(data), job.watch)
            job.watch.moved(len(data))
        finally:
            job.parts.release()

    try:
        with file.open("rb", buffering=0) as f:
            async with asyncio.TaskGroup() as group:
                for number in range(-(-size // part)):
                    await job.parts.acquire()
                    length = min(part, size - number * part)
                    data = await job.aside(_read, f, number * part, length, None if known else h)
                    group.create_task(one(number, data))
        await persist(upload.finish, where, 0, job.watch)
    except BaseException:
        if not resume:
            with suppress(Exception):
                await asyncio.wait_for(upload.abort(), 5)
        raise
    return known or h.hexdigest()


def _read(f: Any, at: int, length: int, h: Any) -> bytes:
    data = os.pread(f.fileno(), length, at)
    while len(data) < length:
        more = os.pread(f.fileno(), length - len(data), at + len(data))
        if not more:
            raise UserError("the file shrank while it was read", where=f.name, fix="run again")
        data += more
    if h is not None:
        h.update(data)
    return data


# --- in ---


async def receive(
    driver: Driver, root: str, folder: Path, sizes: Mapping[str, int], hashes: Mapping[str, str], where: str,
    tags: Mapping[str, str] | None = None, watch: Watch = SILENT,
) -> None:  # fmt: skip
    """Copy files of a store into a folder (name -> size in bytes). Those that lie there already, whole, are not copied.

    `hashes`: the sha256 (hex) that each must have; one without is believed. `tags`: what each must still be.
    Raises DamagedError, UserError, TemporaryError; what came until then stays, and the next call goes on from it.
    """
    for top in {str(Path(name).parent) for name in sizes}:
        (folder / top).mkdir(parents=True, exist_ok=True)
    left = {n: s for n, s in sizes.items() if not _is_there(folder / n, s, hashes.get(n))}
    small, large = _split(left)
    async with _job(driver, root, where, watch, "fetching", sum(sizes.values())) as job:
        watch.moved(sum(sizes.values()) - sum(left.values()))

        async def one(name: str) -> None:
            tag = (tags or {}).get(name, "")
            for last in (False, True):
                data = await persist(
                    lambda: driver.read(job.path(name), tag=tag), job.named(name), left[name], watch
                )  # fmt: skip
                good = name not in hashes or hashlib.sha256(data).hexdigest() == hashes[name]
                if good and len(data) == left[name]:
                    break
                if last:
                    raise _altered(job.named(name))
            _write(folder / name, data)
            watch.moved(len(data))

        async def big(name: str) -> None:
            tag = (tags or {}).get(name, "")
            for last in (False, True):
                found = await _receive_large(job, folder / name, name, left[name], tag)
                if hashes.get(name, found) == found:
                    os.replace(_partial(folder / name), folder / name)
                    _journal(folder / name).unlink(missing_ok=True)
                    return
                _journal(folder / name).unlink(missing_ok=True)  # all of it anew
                _partial(folder / name).unlink(missing_ok=True)
                if last:
                    raise _altered(job.named(name))

        async with asyncio.TaskGroup() as group:
            group.create_task(job.each(small, FILES, one))
            group.create_task(job.each(large, LARGE_FILES, big))


async def _receive_large(job: Job, file: Path, name: str, size: int, tag: str) -> str:
    """Fetch what is missing of a file into its partial file; the sha256 of the whole."""
    part = part_size(size)
    count = -(-size // part)
    arrived = [asyncio.Event() for _ in range(count)]
    fd = os.open(_partial(file), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    journal = os.open(_journal(file), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(fd).st_size == size:
            done = os.pread(journal, 4 * PARTS_OF_A_FILE * 4, 0)
            for at in range(0, len(done) - 3, 4):
                if (number := _NUMBER.unpack_from(done, at)[0]) < count:
                    arrived[number].set()
        else:
            os.ftruncate(journal, 0)
            os.ftruncate(fd, size)
        job.watch.moved(sum(min(part, size - n * part) for n in range(count) if arrived[n].is_set()))

        async def one(number: int) -> None:
            at, length = number * part, min(part, size - number * part)
            try:
                data = await persist(
                    lambda: job.driver.read(job.path(name), at, length, tag), job.named(name), length, job.watch
                )
                await job.aside(_store, fd, journal, number, at, data)
                job.watch.moved(length)
                arrived[number].set()
            finally:
                job.parts.release()

        async def hashed() -> str:
            h = hashlib.sha256()
            for number in range(count):
                await arrived[number].wait()
                await job.aside(_update, h, fd, number * part, min(part, size - number * part))
            return h.hexdigest()

        async with asyncio.TaskGroup() as group:
            whole = group.create_task(hashed())
            for number in [n for n in range(count) if not arrived[n].is_set()]:
                await job.parts.acquire()
                group.create_task(one(number))
        return whole.result()
    finally:
        os.close(fd)
        os.close(journal)


def _store(fd: int, journal: int, number: int, at: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written
    os.write(journal, _NUMBER.pack(number))


def _update(h: Any, fd: int, at: int, length: int) -> None:
    step = 1 << 20
    for start in range(at, at + length, step):
        h.update(os.pread(fd, min(step, at + length - start), start))


def _write(file: Path, data: bytes) -> None:
    """A small file, whole at once under its name."""
    new = file.with_name(f".{file.name}.~new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        with suppress(OSError):
            os.unlink(new)
        raise
    finally:
        os.close(fd)
    os.replace(new, file)


def _is_there(file: Path, size: int, sha256: str | None) -> bool:
    """Whether an earlier call left a whole file; its name and size are no proof."""
    with suppress(OSError):
        return file.stat().st_size == size and (sha256 is None or _sha256(file) == sha256)
    return False


# --- reading through ---


async def hash_remote(
    driver: Driver, root: str, sizes: Mapping[str, int], where: str, watch: Watch = SILENT
) -> dict[str, str | None]:
    """Read files of a store through, keeping nothing: name -> sha256 (hex), None where it is not there."""
    out: dict[str, str | None] = {}
    async with _job(driver, root, where, watch, "reading", sum(sizes.values())) as job:

        async def one(name: str) -> None:
            h, size = hashlib.sha256(), sizes[name]
            try:
                for at in range(0, max(size, 1), PART):
                    length = min(PART, size - at) if size > PART else None
                    data = await persist(
                        lambda at=at, length=length: driver.read(job.path(name), at, length),  # type: ignore[misc]
                        job.named(name), min(size, PART), watch,
                    )  # fmt: skip
                    await job.aside(h.update, data)
                    watch.moved(len(data))
                out[name] = h.hexdigest()
            except FileNotFoundError:
                out[name] = None

        small, large = _split(sizes)
        async with asyncio.TaskGroup() as group:
            group.create_task(job.each(small, FILES // 2, one))
            group.create_task(job.each(large, PARTS, one))
    return out


# --- shared ---


def part_size(size: int) -> int:
    """Bytes of a part of a file."""
    return PART * max(1, -(-size // (PART * PARTS_OF_A_FILE)))


def _split(sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    small = [n for n, s in sizes.items() if s <= SMALL]
    large = sorted((n for n, s in sizes.items() if s > SMALL), key=lambda n: -sizes[n])
    return small, large


def _partial(file: Path) -> Path:
    return file.with_name(f".{file.name}.~part")


def _journal(file: Path) -> Path:
    return file.with_name(f".{file.name}.~parts")


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
