"""The few operations on URIs that artifacts need.

A local place (a plain path, `file://`) never goes through fsspec: it is read in place, renamed atomically, and costs
no import. Everything else goes to `remote`, file by file: no step relies on a rename or on a listing being fresh.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from microstages.errors import DamagedError
from microstages.watch import watching

if TYPE_CHECKING:
    from microstages.remote import Driver

T = TypeVar("T")


UNKNOWN = -1  # the size of a file of which its store does not tell it


@dataclass(frozen=True)
class Entry:
    """A file in a store: its size in bytes; its `tag`, which changes whenever it is written (an etag; empty where the
    store has none); when it was `written`, in seconds since 1970 by the store's clock, where it says so."""

    size: int
    tag: str = ""
    written: float | None = None


def local_path(uri: str) -> Path | None:
    """The path of a local URI, None for a remote one."""
    if re.match(r"^file:", uri):
        return Path(unquote(urlsplit(uri).path))
    if re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:/?/?", uri) and "://" in uri:
        return None
    return Path(uri).expanduser()


def join(uri: str, *parts: str) -> str:
    """A URI below another one."""
    return "/".join([uri.rstrip("/"), *parts])


def public(uri: str) -> str:
    """A URI as it may be shown and recorded: without user, password, query and fragment."""
    if local_path(uri) is not None:
        return uri
    parts = urlsplit(uri)
    # `container@account.dfs.core.windows.net` is an address, not a credential; `user:password@host` is one.
    netloc = parts.netloc.rsplit("@", 1)[-1] if ":" in parts.netloc.rsplit("@", 1)[0] else parts.netloc
    return f"{parts.scheme}://{netloc}{parts.path}"


def _ask(uri: str, work: Callable[[Driver, str], Awaitable[T]], size: int = 0) -> T:
    """One operation on a remote place, tried again while its trouble may pass."""
    from microstages import remote

    driver, path = remote.driver(uri)
    return remote.call(remote.persist(lambda: work(driver, path), public(uri), size, watching()))


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    if (path := local_path(uri)) is not None:
        return path.exists()
    return bool(entries(uri))


def read(uri: str) -> bytes | None:
    """The bytes of a small file, None where it is not there."""
    if (path := local_path(uri)) is not None:
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
    try:
        return _ask(uri, lambda driver, name: driver.read(name))
    except FileNotFoundError:
        return None


def create(uri: str, data: bytes) -> bool:
    """Write a small file whole, unless it is there already: True for the one writer that made it.

    Local: a finished file is linked into place. Remote: the store's own create-if-absent.
    """
    if (path := local_path(uri)) is not None:
        new = _beside(path, data)
        try:
            os.link(new, path)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            return _create_plainly(path, data)  # some shares have no hard links
        finally:
            os.unlink(new)
    try:
        _ask(uri, lambda driver, name: driver.write(name, data, create=True), len(data))
        return True
    except FileExistsError:
        return read(uri) == data  # it may be ours: made by a request whose answer got lost


def replace(uri: str, data: bytes) -> None:
    """Write a small file whole, over what is there; readers see the old or the new one."""
    if (path := local_path(uri)) is not None:
        new = _beside(path, data)
        try:
            os.replace(new, path)
        except BaseException:
            os.unlink(new)
            raise
        return
    _ask(uri, lambda driver, name: driver.write(name, data), len(data))


def _create_plainly(path: Path, data: bytes) -> bool:
    try:
        with path.open("xb") as f:
            f.write(data)
        return True
    except FileExistsError:
        return False


def _beside(path: Path, data: bytes) -> str:
    """A new file with the data in the folder of `path`, which is made."""
    for last in (False, True):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            break
        except FileNotFoundError:  # somebody removed the empty folder in between
            if last:
                raise
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
        os.chmod(new, 0o644)
    except BaseException:
        os.unlink(new)
        raise
    return new


def listing(uri: str) -> dict[str, int]:
    """All files below a URI: posix path below it -> size in bytes. Empty where there is nothing."""
    return {name: entry.size for name, entry in entries(uri).items()}


def entries(uri: str) -> dict[str, Entry]:
    """All files below a URI: posix path below it -> size and tag; of a remote file itself the name is ''. Empty where
    there is nothing. Never stale."""
    if (path := local_path(uri)) is not None:
        found = {}
        for top, _, names in os.walk(path):
            for file in (Path(top, name) for name in names):
                with suppress(OSError):  # it vanished meanwhile
                    s = file.stat()
                    found[file.relative_to(path).as_posix()] = Entry(s.st_size, "", s.st_mtime)
        return found
    return _ask(uri, lambda driver, name: driver.entries(name))


def folders(uri: str) -> list[str]:
    """The names of the folders directly below a URI, sorted; empty where there is nothing."""
    if (path := local_path(uri)) is not None:
        return sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    return _ask(uri, lambda driver, name: driver.folders(name))


def remove(uri: str) -> None:
    """Remove a file, or everything below a URI. Nothing there: nothing is done."""
    if (path := local_path(uri)) is not None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return

    async def work(driver: Driver, name: str) -> None:
        await driver.remove(name, list(await driver.entries(name)))

    _ask(uri, work, size=50_000_000)


def upload(
    folder: Path, uri: str, names: Sequence[str], known: Mapping[str, str] | None = None, resume: bool = False
) -> dict[str, str]:
    """Copy files of a local folder to a remote URI: name -> sha256 (hex), computed on the way unless `known`.

    `resume`: go on with large files that an earlier call to the same URI was cut off in.
    """
    from microstages import remote
    from microstages.remote.transfer import send

    driver, path = remote.driver(uri)
    return remote.call(send(driver, folder, path, names, known or {}, public(uri), watching(), resume))


def download(
    uri: str, folder: Path, sizes: Mapping[str, int], hashes: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Copy files below a remote URI (name -> bytes) into a local folder, checked against their sha256 (hex).

    What lies there from a download that was cut off is not fetched again. Raises DamagedError naming a missing or
    altered file, TemporaryError where the store does not answer.
    """
    from microstages import remote
    from microstages.remote.transfer import REMEDY, receive

    driver, path = remote.driver(uri)
    work = receive(driver, path, folder, sizes, hashes or {}, public(uri), tags, watching())
    try:
        remote.call(work)
    except FileNotFoundError as error:
        where = public(uri).rstrip("/") + str(error.args[0] if error.args else "").removeprefix(path.rstrip("/"))
        raise DamagedError("this file of the artifact is missing", where=where, fix=REMEDY) from None


def fetch_whole(uri: str, file: Path) -> None:
    """Copy a remote file whose size its store does not tell."""
    from microstages.remote import Whole

    async def work(driver: Driver, name: str) -> None:
        assert isinstance(driver, Whole)  # the others tell sizes
        await driver.get(name, str(file))

    _ask(uri, work, size=1 << 30)


def hashes(uri: str, sizes: Mapping[str, int]) -> dict[str, str | None]:
    """Read files below a remote URI through (name -> bytes): name -> sha256 (hex), None where one is not there."""
    from microstages import remote
    from microstages.remote.transfer import hash_remote

    driver, path = remote.driver(uri)
    return remote.call(hash_remote(driver, path, sizes, public(uri), watching()))
