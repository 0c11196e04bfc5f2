"""Secrets for containers: where their values come from, and how they are kept out of what is written.

`NAME` is a variable of the caller's environment and becomes one of the container. `{name, file}` is a file, relative to
the pipeline's folder, and appears as /run/secrets/NAME.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from microstages.errors import UserError, from_os_error

PLACE = "/run/secrets"
COPIES = "microstages-secret-"  # folders of copies for a container's user
HIDDEN = b"***"
SHORT = 4  # characters; hiding shorter ones would take ordinary words with them
_NAMES = re.compile(r"key|secret|token|password|passwd|credential|signature|\bsig$", re.IGNORECASE)
_NOT = re.compile(r"(ur[il]|file|path|type|expiry|expiration)$", re.IGNORECASE)


@dataclass(frozen=True)
class Secret:
    """One secret. `file`: what is mounted in place of a variable."""

    name: str
    value: str
    file: Path | None = None


def read(wanted: Iterable[Any], folder: Path) -> list[Secret]:
    """The values of `secrets`. Raises UserError for one that is not there."""
    out = []
    for entry in wanted:
        name = entry if isinstance(entry, str) else str(entry["name"])
        file = None if isinstance(entry, str) else folder / Path(str(entry["file"])).expanduser()
        try:
            value = os.environ[name] if file is None else file.read_bytes().decode(errors="replace")
        except (KeyError, OSError):
            what = f"the secret {name} is not set" if file is None else f"the file of the secret {name} cannot be read"
            fix = f"export {name}=…" if file is None else "check its path and its mode"
            raise UserError(what, where=file or "", fix=fix) from None
        out.append(Secret(name, value.strip() if file else value, file))
    return out


def source(secret: Secret, user: int) -> Path:
    """The file to mount for a secret: its own, or, where the caller is root, a copy that only the container's user can
    read. `drop` removes a copy."""
    assert secret.file is not None
    if os.geteuid() != 0:
        return secret.file.absolute()
    copy = Path()
    try:
        copy = Path(tempfile.mkdtemp(prefix=COPIES)) / secret.name
        copy.touch(mode=0o400)
        copy.write_bytes(secret.file.read_bytes())
        os.chown(copy, user, user)
    except OSError as error:
        drop(copy)
        raise from_os_error(error, secret.file) or UserError(str(error), where=secret.file) from None
    return copy


def drop(mounted: Path) -> None:
    """Remove a copy; the caller's own file stays."""
    if mounted.parent.name.startswith(COPIES):
        shutil.rmtree(mounted.parent, ignore_errors=True)


def is_secret(name: str) -> bool:
    """Whether what has this name is likely to be secret."""
    return bool(_NAMES.search(name)) and not _NOT.search(name)


def parts(text: str) -> list[str]:
    """The secret values inside a text that has a structure: JSON, an INI file, `AccountKey=…;…`, a query with `sig=`.
    A library may say one of them without the rest."""
    try:
        return list(_leaves(json.loads(text)))
    except ValueError:
        pairs = (piece.partition("=") for piece in re.split(r"[;&?\n]", text))
        values = [value.strip() for name, _, value in pairs if value and is_secret(name.strip())]
        return [form for value in values for form in dict.fromkeys((value, unquote(value)))]


def _leaves(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, name)
    elif isinstance(value, str) and is_secret(name):
        yield value


class Redactor:
    """Puts `***` in the place of secrets, as they are and as JSON, Python and addresses write them, in a stream of
    bytes that may be cut anywhere."""

    def __init__(self, secrets: Iterable[str]) -> None:
        lines = {line for s in secrets for line in (s, *s.splitlines(), *parts(s)) if len(line) >= SHORT}
        forms = {f for line in lines for f in _forms(line) if "\n" not in f}
        self._secrets = sorted((f.encode() for f in forms), key=len, reverse=True)

    def clean(self, data: bytes) -> bytes:
        """The bytes without secrets."""
        for secret in self._secrets:
            data = data.replace(secret, HIDDEN)
        return data

    def stream(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks; the end of a line that is not complete is held back as far as a secret could begin in it."""
        if not self._secrets:
            yield from chunks
            return
        most, rest = len(self._secrets[0]) - 1, b""
        for chunk in chunks:
            data = self.clean(rest + chunk)
            hold = min(most, len(data) - 1 - data.rfind(b"\n"))
            rest = data[len(data) - hold :]
            if out := data[: len(data) - hold]:
                yield out
        if rest:
            yield rest


def _forms(text: str) -> set[str]:
    return {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1],
            quote(text, safe="")}  # fmt: skip
