"""Azure Blob Storage and Data Lake (`abfs://`): adlfs finds the account and the credentials, azure-storage-blob moves
the bytes."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable
from typing import Any, TypeVar

from microstages.errors import TemporaryError, UserError
from microstages.remote import CONNECT, SILENCE, scrub
from microstages.storage import Entry

T = TypeVar("T")

ONCE: dict[str, Any] = {"retry_total": 0, "connection_timeout": CONNECT, "read_timeout": SILENCE}
AT_ONCE = 16  # removals under way


class Azure:
    """See `remote.Driver`."""

    def __init__(self, fs: Any) -> None:
        self.service = fs.service_client
        self.fs = fs

    def _split(self, path: str) -> tuple[str, str]:
        container, name, _ = self.fs.split_path(path)
        return container, name

    def _blob(self, path: str) -> Any:
        return self.service.get_blob_client(*self._split(path))

    async def _told(self, work: Awaitable[T], path: str) -> T:
        """The SDK's errors as Python's own."""
        from azure.core import exceptions as known

        try:
            return await work
        except known.ResourceExistsError as error:
            if _code(error) not in ("BlobAlreadyExists", "UnauthorizedBlobOverwrite", ""):
                raise UserError(f"the store refuses: {_words(error)}", fix="check the address") from None
            raise FileExistsError(path) from None
        except known.ResourceModifiedError:
            what = "it changed while it was read"
            raise UserError(what, fix="wait until it is written, then run again") from None
        except known.ResourceNotFoundError as error:
            if getattr(error, "error_code", "") == "ContainerNotFound":
                raise _NoContainerError(path.partition("/")[0]) from None
            raise FileNotFoundError(path) from None
        except known.ClientAuthenticationError as error:
            raise PermissionError(_words(error)) from None
        except known.HttpResponseError as error:
            if error.status_code in (401, 403):
                raise PermissionError(_words(error)) from None
            if error.status_code in (400, 405) and _code(error) not in ("", "InvalidInput", "Md5Mismatch"):
                fix = "check the address"
                raise UserError(f"the store refuses: {_words(error)}", fix=fix) from None
            raise TemporaryError(f"the store fails: {_words(error)}", fix="try again") from None

    async def read(self, path: str, start: int = 0, length: int | None = None, tag: str = "") -> bytes:
        more: dict[str, Any] = {}
        if tag:
            from azure.core import MatchConditions

            more = {"etag": f'"{tag}"', "match_condition": MatchConditions.IfNotModified}
        if length is not None:
            more |= {"offset": start, "length": length}

        async def work() -> bytes:
            stream = await self._blob(path).download_blob(max_concurrency=1, **more, **ONCE)
            return bytes(await stream.readall())

        data = await self._told(work(), path)
        if length is not None and len(data) != length:
            raise TemporaryError(f"{len(data)} bytes came, not {length}", fix="try again")
        return data

    async def write(self, path: str, data: bytes, create: bool = False) -> None:
        try:
            await self._told(self._blob(path).upload_blob(data, overwrite=not create, length=len(data), **ONCE), path)
        except _NoContainerError as error:
            raise error.told() from None

    async def entries(self, path: str) -> dict[str, Entry]:
        found = await self._listing(path)
        return {name: entry for name, (entry, folder) in found.items() if not folder}

    async def _listing(self, path: str) -> dict[str, tuple[Entry, bool]]:
        """Name below the path -> entry, and whether it is a mere folder (Data Lake has those)."""
        container, prefix = self._split(path)
        prefix = prefix.rstrip("/")

        async def work() -> dict[str, tuple[Entry, bool]]:
            found = {}
            client = self.service.get_container_client(container)
            async for blob in client.list_blobs(name_starts_with=prefix or None, include=["metadata"], **ONCE):
                name = blob.name.removeprefix(prefix).lstrip("/") if prefix else blob.name
                if not prefix or blob.name == prefix or blob.name.startswith(prefix + "/"):
                    facts = blob.metadata or {}
                    folder = "true" in (facts.get("hdi_isfolder"), facts.get("is_directory"))
                    tag, written = str(blob.etag or "").strip('"'), blob.last_modified
                    found[name] = Entry(int(blob.size), tag, written.timestamp() if written else None), folder
            return found

        try:
            return await self._told(work(), path)
        except FileNotFoundError:
            return {}

    async def folders(self, path: str) -> list[str]:
        container, prefix = self._split(path)
        prefix = prefix.rstrip("/") + "/" if prefix else ""

        async def work() -> list[str]:
            client = self.service.get_container_client(container)
            found = client.walk_blobs(name_starts_with=prefix, delimiter="/", **ONCE)
            return sorted([b.name.removeprefix(prefix).rstrip("/") async for b in found if b.name.endswith("/")])

        try:
            return await self._told(work(), path)
        except FileNotFoundError:
            return []

    async def remove(self, path: str, names: list[str]) -> None:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(name: str) -> None:
            full = f"{path.rstrip('/')}/{name}" if name else path
            async with gate:
                try:
                    await self._told(self._blob(full).delete_blob(**ONCE), full)
                except FileNotFoundError:
                    return

        await asyncio.gather(*(one(name) for name in names))
        mere = [n for n, (_, folder) in (await self._listing(path)).items() if folder]
        for name in sorted(mere, key=lambda n: -n.count("/")):  # the deepest first: a folder goes when it is empty
            await one(name)

    async def upload(self, path: str, size: int, resume: bool) -> _Upload:  # noqa: ARG002
        upload = _Upload(self, path, resume)
        return await upload.begun() if resume else upload


class _Upload:
    """Blocks. With `resume` they carry their content's hash in their name, and one that the store has is not sent
    again."""

    def __init__(self, azure: Azure, path: str, resume: bool) -> None:
        self.azure, self.path, self.resume, self.blob = azure, path, resume, azure._blob(path)
        self.own = secrets.token_hex(16)  # blocks of another writer of the same file are never taken for ours
        self.blocks: dict[int, str] = {}
        self.there: set[str] = set()

    async def begun(self) -> _Upload:
        try:
            _, there = await self.azure._told(self.blob.get_block_list("uncommitted", **ONCE), self.path)
            self.there = {b.id for b in there}
        except _NoContainerError as error:
            raise error.told() from None
        except FileNotFoundError:
            pass
        return self

    async def part(self, number: int, data: bytes) -> None:
        name = f"{number:06d}-{hashlib.blake2b(data, digest_size=16).hexdigest() if self.resume else self.own}"
        if name not in self.there:
            try:
                await self.azure._told(self.blob.stage_block(name, data, length=len(data), **ONCE), self.path)
            except _NoContainerError as error:
                raise error.told() from None
        self.blocks[number] = name

    async def finish(self) -> None:
        from azure.storage.blob import BlobBlock

        blocks = [BlobBlock(self.blocks[n]) for n in sorted(self.blocks)]
        await self.azure._told(self.blob.commit_block_list(blocks, **ONCE), self.path)

    async def abort(self) -> None:
        """Blocks that are not committed go by themselves."""


class _NoContainerError(FileNotFoundError):
    def told(self) -> UserError:
        name = str(self.args[0])
        return UserError(f"there is no container {name!r}", fix="create it first, or check the name")


def _code(error: Any) -> str:
    return str(getattr(error, "error_code", "") or "").rpartition(".")[2]


def _words(error: Any) -> str:
    """What the store says, in one line: its code and its first sentence."""
    text = scrub(str(getattr(error, "reason", "") or error).strip().split("\n")[0])
    code = _code(error)
    return f"{code}: {text}"[:300] if code and code not in text else text[:300]
