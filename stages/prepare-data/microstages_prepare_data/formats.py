"""What a file is, told by its bytes and not its suffix: JSON, JSON Lines, CSV or Parquet, packed by gzip or not."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from microstages.errors import UserError

from microstages_prepare_data.json_stream import is_nested

HEAD = 1 << 18  # bytes that are looked at to tell the format
BLOCK = 1 << 19
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Format:
    """What a file is: `kind` is json, jsonl, csv or parquet."""

    kind: str
    gzip: bool = False
    delimiter: str = ","


def sniff(path: Path, wanted: str = "auto", delimiter: str = "auto") -> Format | None:
    """The format of a file from its first bytes; None where it is empty. Raises UserError where it is none known.

    Parquet and gzip are told by their magic, JSON by its first character, JSON Lines by a first line that is an object
    of its own. What remains is CSV with a header.
    """
    with path.open("rb") as f:
        head = f.read(HEAD)
    packed = head[:2] == b"\x1f\x8b"
    if packed:
        with opened(path, packed) as (_, f):
            head = f.read(HEAD)
    if head[:4] == b"PAR1" or wanted == "parquet":
        if packed:
            raise UserError("this is Parquet within gzip", where=path, fix="unpack it: gunzip")
        return Format("parquet")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError("this is UTF-16", where=path, fix="convert the file: iconv -f utf-16 -t utf-8")
    if b"\0" in head[:4096]:
        raise UserError(
            "this is binary, and not Parquet or gzip", where=path, fix="give JSON, JSON Lines, CSV or Parquet"
        )
    text = head.removeprefix(BOM).lstrip()
    if not text:
        return None
    kind = wanted if wanted != "auto" else _json_kind(text) if text[:1] in (b"{", b"[") else "csv"
    if kind != "csv":
        return Format(kind, packed)
    mark = {"auto": "", "tab": "\t"}.get(delimiter, delimiter) or _delimiter(text)
    return Format("csv", packed, mark)


def _json_kind(text: bytes) -> str:
    if text[:1] == b"[":
        return "json"
    line, newline, rest = text.partition(b"\n")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        # A broken row ends as a row does; the first line of an indented document does not.
        return "jsonl" if newline and line.rstrip().endswith(b"}") else "json"
    if rest.strip():
        return "jsonl"
    lists = ((k, v[0]) for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict))
    return "jsonl" if all(is_nested(k, first) for k, first in lists) else "json"


def _delimiter(text: bytes) -> str:
    """The most frequent of comma, tab, semicolon and bar outside quotes in the header."""
    quoted, counts = False, dict.fromkeys(",\t;|", 0)
    for c in text.decode("utf-8", "replace"):
        if c == '"':
            quoted = not quoted
        elif not quoted and c in counts:
            counts[c] += 1
        elif not quoted and c == "\n":
            break
    return max(counts, key=lambda c: counts[c])


@contextmanager
def opened(path: Path, packed: bool) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file as it lies, and its unpacked content. Raises UserError where gzip is damaged."""
    with path.open("rb") as raw:
        if not packed:
            yield raw, raw
            return
        with gzip.GzipFile(fileobj=raw) as f:
            yield raw, _Unpacked(f, path)  # type: ignore[misc]


class _Unpacked(io.RawIOBase):
    """A gzip stream whose faults name the file."""

    def __init__(self, f: Any, path: Path) -> None:
        self._f, self._path = f, path

    def read(self, size: int = -1) -> bytes:
        import zlib

        try:
            return bytes(self._f.read(size))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"this gzip file cannot be read: {error}",
                where=self._path,
                fix="it is damaged or cut off: get it again",
            ) from None

    def __iter__(self) -> Iterator[bytes]:  # type: ignore[override]
        rest = b""
        while block := self.read(BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield line + b"\n"
        if rest:
            yield rest
