"""Everything else that fsspec reads (`gs://`, `https://`, `memory://`, …), by fsspec's own methods."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import Any

from microstages.errors import TemporaryError, UserError
from microstages.remote import scrub
from microstages.storage import UNKNOWN, Entry

TAGS = ("etag", "ETag", "md5Hash", "Content-MD5", "generation", "mtime", "created", "last_modified")


class Other:
    """See `remote.Driver`."""

    def __init__(self, fs: Any) -> None:
        if not fs.async_impl:
            from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

            fs = AsyncFileSystemWrapper(fs)
        self.fs = fs

    async def read(self, path: str, start: int = 0, length: int | None = None, tag: str = "") -> bytes:  # noqa: ARG002
        end = None if length is None else start + length
        with _told(path):
            data = bytes(await self.fs._cat_file(path, start=start if length is not None else None, end=end))
        if length is not None and len(data) != length:
            raise TemporaryError(f"{len(data)} bytes came, not {length}", fix="try again")
        return data

    async def write(self, path: str, data: bytes, create: bool = False) -> None:
        with _told(path):
            try:
                await self.fs._pipe_file(path, data, mode="create" if create else "overwrite")
            except NotImplementedError:
                raise UserError("nothing can be written there", fix="choose another place") from None

    async def entries(self, path: str) -> dict[str, Entry]:
        self.fs.invalidate_cache()
        try:
            with _told(path):
                found = await self._find(path)
        except FileNotFoundError:
            return {}
        root = self.fs._strip_protocol(path).rstrip("/")
        out = {}
        for name, info in found.items():
            if info.get("type") == "file":
                out[name.removeprefix(root).lstrip("/")] = Entry(
                    UNKNOWN if info.get("size") is None else int(info["size"]), _tag(info), _written(info)
                )
        return out

    async def _find(self, path: str) -> dict[str, dict[str, Any]]:
        if path.startswith(("http:", "https:")):  # a page of links is no folder
            return {path: await self.fs._info(path)}
        found: dict[str, dict[str, Any]] = await self.fs._find(path, detail=True)
        return found

    async def folders(self, path: str) -> list[str]:
        self.fs.invalidate_cache()
        try:
            with _told(path):
                found = await self.fs._ls(path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(str(v["name"]).rstrip("/").rsplit("/", 1)[-1] for v in found if v["type"] == "directory")

    async def remove(self, path: str, names: list[str]) -> None:
        for name in names:
            try:
                with _told(path):
                    await self.fs._rm_file(f"{path.rstrip('/')}/{name}" if name else path)
            except FileNotFoundError:
                continue

    async def upload(self, path: str, size: int, resume: bool) -> None:  # noqa: ARG002
        return None

    async def put(self, path: str, file: str) -> None:
        with _told(path):
            await self.fs._put_file(file, path)

    async def get(self, path: str, file: str) -> None:
        with _told(path):
            await self.fs._get_file(path, file)


class _told:  # noqa: N801
    """fsspec's errors as Python's own."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        status = getattr(error, "status", None) or getattr(error, "code", None)
        if status in (401, 403, "401", "403"):
            raise PermissionError(scrub(str(error))) from None
        if isinstance(error, asyncio.CancelledError) or status not in (404, 410, "404", "410"):
            return
        raise FileNotFoundError(self.path) from None


def _tag(info: dict[str, Any]) -> str:
    return next((str(info[k]).strip('"') for k in TAGS if info.get(k) is not None), "")


def _written(info: dict[str, Any]) -> float | None:
    found = next(
        (info[k] for k in ("mtime", "LastModified", "last_modified", "created", "updated") if info.get(k)), None
    )
    if isinstance(found, str):
        with suppress(ValueError):
            found = datetime.fromisoformat(found)
    return found.timestamp() if isinstance(found, datetime) else None
