"""Source files as chunks of rows: memory holds a chunk, never a file.

JSON Lines are handed on unparsed: parsing them is the larger part of reading, and the workers do it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from microstages.artifact import Artifact
from microstages.errors import UserError, json_mistake
from microstages.reporting import number_of

from microstages_prepare_data.formats import BOM, Format, opened
from microstages_prepare_data.json_stream import JsonStream, bad_utf8

CHUNK = 1 << 19  # bytes of JSON Lines in a chunk
CHUNK_ROWS = 2048  # rows in a chunk of the other formats
CELL = 1 << 27  # characters in a CSV cell at most: a quote that is never closed must not swallow a large file
_NO_DATA = ("readme", "license", "notice", "changelog", "_success", "_committed", "_started")

Row = dict[str, Any]


@dataclass(frozen=True)
class SourceFile:
    """A file of the source; `name` is what a report calls it (a single file: nothing, its name is no content)."""

    path: Path
    name: str


@dataclass(frozen=True)
class Lines:
    """Whole lines of JSON Lines, unparsed; `first` is the number of the first line."""

    file: int
    first: int
    data: bytes
    read: int  # bytes of the file that are read so far


@dataclass(frozen=True)
class Rows:
    """Parsed rows; `numbers` are their lines (Parquet: rows) from 1. A text in place of a row says what is bad."""

    file: int
    numbers: list[int]
    rows: list[Row | str]
    read: int


Chunk = Lines | Rows


def source_files(source: Artifact) -> list[SourceFile]:
    """The files of the source in the order of their names; of a folder without its README and the like."""
    if source.path.is_file():
        return [SourceFile(source.path, "")]
    names = sorted(source.files)
    data = [n for n in names if not n.lower().rsplit("/", 1)[-1].startswith(_NO_DATA) and not n.endswith(".md")]
    return [SourceFile(source.path / n, n) for n in data or names]


def chunks(file: int, path: Path, form: Format, columns: Iterable[str] | None = None) -> Iterator[Chunk]:
    """The rows of a file in chunks. `columns`: the fields that are needed (Parquet reads only these); None: all.

    Raises UserError with file and line where reading cannot go on. What is wrong in a single row is said in its place.
    """
    if form.kind == "parquet":
        yield from _parquet(file, path, columns)
        return
    with opened(path, form.gzip) as (raw, source):
        if form.kind == "jsonl":
            yield from _lines(file, source, raw)
        else:
            rows = _json(source, path) if form.kind == "json" else _csv(source, path, form.delimiter)
            yield from _grouped(file, rows, raw)


def _lines(file: int, source: BinaryIO, raw: BinaryIO) -> Iterator[Chunk]:
    first, rest = 1, b""
    while block := source.read(CHUNK):
        if first == 1 and not rest:
            block = block.removeprefix(BOM)
        cut = block.rfind(b"\n") + 1
        if not cut:
            rest += block
            continue
        data = rest + block[:cut]
        rest = block[cut:]
        yield Lines(file, first, data, raw.tell())
        first += data.count(b"\n")
    if rest:
        yield Lines(file, first, rest, raw.tell())


def _grouped(file: int, rows: Iterator[tuple[int, Row | str]], raw: BinaryIO) -> Iterator[Chunk]:
    numbers: list[int] = []
    values: list[Row | str] = []
    for number, row in rows:
        numbers.append(number)
        values.append(row)
        if len(values) == CHUNK_ROWS:
            yield Rows(file, numbers, values, raw.tell())
            numbers, values = [], []
    if values:
        yield Rows(file, numbers, values, raw.tell())


def _json(source: BinaryIO, path: Path) -> Iterator[tuple[int, Row | str]]:
    head = source.read(len(BOM))
    joined = _Prefixed(head.removeprefix(BOM), source)
    for line, value in JsonStream(joined, path):  # type: ignore[arg-type]
        yield line, value if isinstance(value, dict) else f"this is {kind_of(value)}, not an object"


def _csv(source: BinaryIO, path: Path, delimiter: str) -> Iterator[tuple[int, Row | str]]:
    csv.field_size_limit(CELL)
    dirty = False

    def text() -> Iterator[str]:
        nonlocal dirty
        for n, raw in enumerate(source):
            line = raw.removeprefix(BOM) if n == 0 else raw
            try:
                yield line.decode()
            except UnicodeDecodeError:
                dirty = True
                yield line.decode("utf-8", "surrogateescape")

    try:
        reader = csv.reader(text(), delimiter=delimiter, strict=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"this delimiter cannot be used: {error}", where="--delimiter", fix="give another") from None
    number = 1
    try:
        names = next((row for row in reader if row), [])
        if dirty:
            raise bad_utf8(f"{path}:1")
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise UserError(f"the header names the column {twice!r} twice", where=f"{path}:1", fix="rename one")
        number = reader.line_num + 1
        for cells in reader:
            if dirty:
                dirty = False
                yield number, str(bad_utf8("").what)
            elif len(cells) == len(names):
                yield number, dict(zip(names, cells, strict=True))
            elif cells:
                yield number, f"{number_of(len(cells), 'cell')}, where the header has {len(names)}"
            number = reader.line_num + 1
    except csv.Error as error:
        what, fix = str(error), "correct this line, or write the file with a CSV library"
        if "unexpected end" in what or "limit" in what:
            what, fix = "a quote is never closed", "close it; a quote inside a cell is written twice"
        elif "new-line" in what:
            what, fix = "its lines end in \\r alone", r"convert the file: tr '\r' '\n'"
        raise UserError(f"this is not CSV: {what}", where=f"{path}:{number}", fix=fix) from None


def _parquet(file: int, path: Path, columns: Iterable[str] | None) -> Iterator[Chunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    try:
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            wanted = [c for c in names if c in set(columns or ())] or None
            first, total = 1, max(1, table.metadata.num_rows)
            for batch in table.iter_batches(CHUNK_ROWS, columns=wanted, use_threads=False):
                n = batch.num_rows
                yield Rows(file, list(range(first, first + n)), batch.to_pylist(), size * (first + n - 1) // total)
                first += n
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        with path.open("rb") as f:
            if f.read(4) != b"PAR1":
                raise UserError("this is not a Parquet file", where=path, fix="leave --input-format out") from None
        text = str(error).split("\n")[0].rstrip(".")
        what = "it is cut off or damaged" if "footer" in text else text
        fix = "copy it again, or write it again from its source"
        raise UserError(f"this Parquet file cannot be read: {what}", where=path, fix=fix) from None


def parse(chunk: Chunk) -> tuple[list[int], list[Row | str]]:
    """The rows of a chunk and their numbers. A text in place of a row says what is bad. Blank lines are no rows."""
    if isinstance(chunk, Rows):
        return chunk.numbers, chunk.rows
    try:
        lines: list[Any] = chunk.data.decode().split("\n")
    except UnicodeDecodeError:
        lines = [_text(line) for line in chunk.data.split(b"\n")]
    numbers: list[int] = []
    rows: list[Row | str] = []
    decode = json.JSONDecoder().raw_decode
    for number, whole in enumerate(lines, chunk.first):
        if whole is None:
            numbers.append(number)
            rows.append("this is not UTF-8")
            continue
        line = whole.strip(" \t\r")
        if not line:
            continue
        numbers.append(number)
        try:
            value, end = decode(line)
            if end != len(line):
                value = f"this is not JSON: more follows the row at column {end + 1}"
            elif not isinstance(value, dict):
                value = f"this is {kind_of(value)}, not an object"
        except json.JSONDecodeError as error:
            value = f"this is not JSON: {json_mistake(error)[1]} (column {error.colno})"
        except ValueError as error:
            value = f"this is not JSON: {json_mistake(error)[1]}"
        except RecursionError:
            value = "this is not JSON: it is nested too deeply"
        rows.append(value)
    return numbers, rows


def limited(source: Iterator[Chunk], rows: int) -> Iterator[Chunk]:
    """The chunks of the first so many rows."""
    for chunk in source:
        numbers, values = parse(chunk)
        if len(values) >= rows:
            yield Rows(chunk.file, numbers[:rows], values[:rows], chunk.read)
            return
        rows -= len(values)
        yield chunk


def way_out(reason: str) -> str:
    """What to do about a file of which no row can be read, the first for a reason."""
    if "not an object" in reason:
        return 'write each row as an object with named fields, such as {"prompt": "…", "completion": "…"}'
    return "give JSON, JSON Lines, CSV or Parquet; see --input-format"


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    known = {list: "a list", dict: "an object", bool: "true or false", int: "a number", float: "a number", str: "text"}
    return "null" if value is None else known.get(type(value), f"a {type(value).__name__}")


def _text(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


class _Prefixed:
    """A stream with some bytes in front."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int) -> bytes:
        head, self._head = self._head, b""
        return head + self._rest.read(size) if head else self._rest.read(size)
