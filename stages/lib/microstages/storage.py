"""The few operations on URIs that artifacts need.

A local place (a plain path, `file://`) never goes through fsspec: it is read in place, renamed atomically, and costs
no import. Everything else is fsspec's, file by file: no step relies on a rename or on a listing being fresh.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from microstages.errors import TemporaryError, UserError, from_os_error

TRANSFERS = 4  # files in flight at once


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


def filesystem(uri: str) -> tuple[Any, str]:
    """fsspec's file system and path of a remote URI. Raises UserError where the protocol has no driver here."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"this address cannot be opened: {error}",
            where=public(uri),
            fix="install the fsspec driver of its protocol, or check the spelling",
        ) from None


class _Remote:
    """Names the URI in the errors of a remote operation."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PermissionError):
            raise UserError(f"access denied: {error}", where=public(self.uri), fix="check the credentials") from None
        if isinstance(error, FileNotFoundError):
            raise UserError("no such file or folder", where=public(self.uri), fix="check the address") from None
        if isinstance(error, OSError) and not isinstance(error, FileExistsError):
            known = from_os_error(error, public(self.uri))
            raise known or TemporaryError(str(error), where=public(self.uri), fix="try again") from None


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    if (path := local_path(uri)) is not None:
        return path.exists()
    with _Remote(uri):
        fs, name = filesystem(uri)
        return bool(fs.exists(name))


def read(uri: str) -> bytes | None:
    """The bytes of a small file, None where it is not there."""
    if (path := local_path(uri)) is not None:
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
    with _Remote(uri):
        fs, name = filesystem(uri)
        try:
            return bytes(fs.cat_file(name))
        except FileNotFoundError:
            return None


def create(uri: str, data: bytes) -> bool:
    """Write a small file whole, unless it is there already: True for the one writer that made it.

    Local: a finished file is linked into place. Remote: the store's own create-if-absent.
    """
    if (path := local_path(uri)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "wb") as f:
                f.write(data)
            os.chmod(new, 0o644)
            os.link(new, path)
            return True
        except FileExistsError:
            return False
        finally:
            os.unlink(new)
    with _Remote(uri):
        fs, name = filesystem(uri)
        try:
            fs.pipe_file(name, data, mode="create")
            return True
        except FileExistsError:
            return False


def replace(uri: str, data: bytes) -> None:
    """Write a small file whole, over what is there; readers see the old or the new one."""
    if (path := local_path(uri)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "wb") as f:
                f.write(data)
            os.chmod(new, 0o644)
            os.replace(new, path)
        except BaseException:
            os.unlink(new)
            raise
        return
    with _Remote(uri):
        fs, name = filesystem(uri)
        fs.pipe_file(name, data)


def listing(uri: str) -> dict[str, int]:
    """All files below a URI: posix path below it -> size in bytes. Empty where there is nothing."""
    if (path := local_path(uri)) is not None:
        found = (p for p in path.rglob("*") if p.is_file())
        return {p.relative_to(path).as_posix(): p.stat().st_size for p in found}
    with _Remote(uri):
        fs, name = filesystem(uri)
        fs.invalidate_cache()
        root = fs._strip_protocol(name).rstrip("/") + "/"
        return {
            k.removeprefix(root): int(v["size"]) for k, v in fs.find(name, detail=True).items() if v["type"] == "file"
        }


@dataclass(frozen=True)
class Entry:
    """A file in a store: its size in bytes, and its `tag`, which changes whenever it is written (an etag; empty where
    the store has none)."""

    size: int
    tag: str = ""


def entries(uri: str) -> dict[str, Entry]:
    """All files below a URI: posix path below it -> entry. Empty where there is nothing. Never stale."""
    if local_path(uri) is not None:
        return {name: Entry(size) for name, size in listing(uri).items()}
    with _Remote(uri):
        fs, name = filesystem(uri)
        fs.invalidate_cache()
        root = fs._strip_protocol(name).rstrip("/") + "/"
        return {
            k.removeprefix(root): Entry(int(v["size"]), str(v.get("etag") or v.get("ETag") or ""))
            for k, v in fs.find(name, detail=True).items()
            if v["type"] == "file"
        }


def folders(uri: str) -> list[str]:
    """The names of the folders directly below a URI, sorted; empty where there is nothing."""
    if (path := local_path(uri)) is not None:
        return sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    with _Remote(uri):
        fs, name = filesystem(uri)
        fs.invalidate_cache()
        try:
            return sorted(str(v["name"]).rstrip("/").rsplit("/", 1)[-1] for v in fs.ls(name) if v["type"] != "file")
        except FileNotFoundError:
            return []


def remove(uri: str) -> None:
    """Remove a file, or everything below a URI. Nothing there: nothing is done."""
    if (path := local_path(uri)) is not None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return
    with _Remote(uri):
        fs, name = filesystem(uri)
        fs.invalidate_cache()
        if fs.exists(name):
            fs.rm(name, recursive=True)


def upload(folder: Path, uri: str, names: list[str]) -> None:
    """Copy files of a local folder to a remote URI."""
    fs, root = filesystem(uri)

    def one(name: str) -> None:
        with _Remote(join(uri, name)):
            fs.put_file(str(folder / name), f"{root.rstrip('/')}/{name}")

    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(one, names))


def download(uri: str, folder: Path, names: list[str]) -> None:
    """Copy files below a remote URI into a local folder."""
    fs, root = filesystem(uri)

    def one(name: str) -> None:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with _Remote(join(uri, name)):
            fs.get_file(f"{root.rstrip('/')}/{name}", str(target))

    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(one, names))
