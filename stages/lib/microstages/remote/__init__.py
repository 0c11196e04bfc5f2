"""Object stores, reached through fsspec's drivers.

A `Driver` is the few operations that artifacts need, for one protocol. What all of them share is here:

- Every operation runs on fsspec's event loop, in a thread of its own; a caller waits for it, or gives it up.
- Trouble that may pass (no answer, a lost connection, 429, 5xx, a body cut short) is tried again, with growing pauses
  and jitter, for `patience()` seconds after it began. Operations are such that to repeat one does no harm.
- What cannot pass (denied, no such container, a wrong name) is told at once.
- No message holds a credential.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeVar, runtime_checkable

from microstages.errors import TemporaryError, UserError, from_os_error
from microstages.storage import Entry, public
from microstages.watch import Watch

T = TypeVar("T")

CONNECT = 10  # seconds that a connection may take
SILENCE = 30  # seconds that a store may be silent in the middle of an answer
SLOWEST = 50_000  # bytes a second: a transfer slower than that is given up and begun anew
CHATTY = ("adlfs", "azure", "s3fs", "aiobotocore", "botocore", "gcsfs", "asyncio", "huggingface_hub", "fsspec")
OWN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # of this machine's disk, not the store
PAUSES = (0.2, 10.0)  # seconds: the first pause before a new try, and the longest


class Upload(Protocol):
    """A large file on its way. Parts may be given in any order, and again."""

    async def part(self, number: int, data: bytes) -> None: ...

    async def finish(self) -> None:
        """Make the file of its parts; only now it can be seen."""

    async def abort(self) -> None:
        """Let the store forget the parts, where it would keep them."""


class Driver(Protocol):
    """One protocol. Paths are fsspec's (`container/name`). Errors are Python's own: FileNotFoundError, FileExistsError,
    PermissionError, UserError; anything else may pass."""

    async def read(self, path: str, start: int = 0, length: int | None = None, tag: str = "") -> bytes:
        """Some bytes, or all. With `tag`, UserError where the file is not that one any more."""

    async def write(self, path: str, data: bytes, create: bool = False) -> None:
        """A whole file at once. `create`: FileExistsError where there is one already, decided by the store."""

    async def entries(self, path: str) -> dict[str, Entry]:
        """All files below a path (posix, relative to it); a file itself has the name ''."""

    async def folders(self, path: str) -> list[str]: ...

    async def remove(self, path: str, names: list[str]) -> None: ...

    async def upload(self, path: str, size: int, resume: bool) -> Upload | None:
        """Begin a large file, or with `resume` go on with one that was cut off; None where files go whole (`Whole`)."""


@runtime_checkable
class Whole(Protocol):
    """A driver that moves large files whole, and files whose size the store does not tell."""

    async def put(self, path: str, file: str) -> None: ...

    async def get(self, path: str, file: str) -> None: ...


def patience() -> float:
    """Seconds for which a store that does not answer is asked again: $MICROSTAGES_PATIENCE, otherwise 60."""
    with suppress(ValueError):
        return float(os.environ.get("MICROSTAGES_PATIENCE", "60"))
    return 60.0


_given_up = False


def give_up(now: bool = True) -> None:
    """Let every call that waits for a store end with a TemporaryError within a second, and those to come after one
    try; `give_up(False)` takes it back."""
    global _given_up  # noqa: PLW0603
    _given_up = now


def given_up() -> bool:
    """Whether nobody waits for a store any longer."""
    return _given_up


def scrub(text: str) -> str:
    """Text without what may be a credential in it."""
    text = re.sub(r"(?i)\b(sig|signature|token|password|secret|x-amz-[a-z-]*)=[^&\s\"']+", r"\1=***", text)
    text = re.sub(r"(?i)(AccountKey|SharedAccessSignature)=[^;\s]+", r"\1=***", text)
    return re.sub(r"//[^/@\s:]+:[^/@\s]+@", "//", text)


def driver(uri: str) -> tuple[Driver, str]:
    """The driver and the path of a remote URI. Raises UserError where there is none, or no credential."""
    import fsspec

    for name in CHATTY:  # what matters is told by us, in one line
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {}
    protocol = uri.partition("://")[0]
    if protocol == "azureml":
        from microstages.remote import azureml

        return azureml.driver(uri)
    if protocol in ("s3", "s3a"):
        from microstages.remote.s3 import options as s3_options

        options = s3_options()
    try:
        fs, path = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        fix = f"pip install 'microstages[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else "install it"
        raise UserError(f"the driver of {protocol}:// is not installed: {error}", where=public(uri), fix=fix) from None
    except ValueError as error:
        if "rotocol not known" in str(error):
            fix = "check the spelling; known are abfs, s3, gs, hf, azureml, https, file and fsspec's others"
            raise UserError(f"nothing here reads {protocol}:// addresses", where=public(uri), fix=fix) from None
        fix = "put its credentials into the environment; docs/stores.md names the variables"
        raise UserError(f"it cannot be opened: {scrub(str(error))}", where=public(uri), fix=fix) from None
    if protocol in ("abfs", "abfss", "az", "adl"):
        from microstages.remote.azure import Azure

        return Azure(fs), path
    if protocol in ("s3", "s3a"):
        from microstages.remote.s3 import S3

        return S3(fs), path
    from microstages.remote.other import Other

    return Other(fs), path


_EXTRAS = {"abfs": "azure", "abfss": "azure", "az": "azure", "adl": "azure", "s3": "s3", "s3a": "s3", "gs": "gcs",
           "gcs": "gcs", "hf": "hf", "http": "http", "https": "http"}  # fmt: skip


async def persist(work: Callable[[], Awaitable[T]], where: str, size: int = 0, heard: Watch | None = None) -> T:
    """What `work` returns, tried again while the trouble may pass. `size`: bytes that it moves.

    Raises FileNotFoundError, FileExistsError, UserError; TemporaryError when it did not pass.
    """
    since: float | None = None
    trouble: UserError
    pause, longest = PAUSES
    told = False
    while True:
        try:
            return await asyncio.wait_for(work(), CONNECT + SILENCE + size / SLOWEST)
        except (FileNotFoundError, FileExistsError):
            raise
        except UserError as error:
            trouble = error if error.where else type(error)(error.what, where=where, fix=error.fix)
            if not isinstance(trouble, TemporaryError):
                raise trouble from None
        except PermissionError as error:
            fix = "check that the credentials are right, have not expired, and may do this"
            raise UserError(f"access denied: {scrub(str(error))}", where=where, fix=fix) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in OWN and (own := from_os_error(error)):
                raise own from None
            trouble = _explained(error, where)
        now = time.monotonic()
        since = since or now
        if _given_up or now - since >= patience():
            raise trouble
        if heard and not told and now - since > 1:
            heard.note(f"{trouble.where}: {trouble.what}; trying again for {patience():.0f} s")
            told = True
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(longest, pause * 2)


def _explained(error: Exception, where: str) -> TemporaryError:
    text = scrub(str(error).strip()).split("\n")[0] or type(error).__name__
    if isinstance(error, TimeoutError):
        text = "the store does not answer"
    return TemporaryError(text[:300], where=where, fix="check the address and the network; then run again")


def call(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on fsspec's loop and wait for it; a caller that is interrupted ends it."""
    from fsspec.asyn import get_loop

    future = asyncio.run_coroutine_threadsafe(work, get_loop())
    try:
        while True:
            with suppress(TimeoutError):
                return future.result(1.0)  # short, so that a signal is seen
            if future.done():
                return future.result()
            if _given_up:
                raise TemporaryError("the store does not answer, and it is not waited for any longer", fix="run again")
    except BaseException:
        if future.cancel():
            with suppress(BaseException):
                call(asyncio.sleep(0))  # so that it has left what it was in
        raise
