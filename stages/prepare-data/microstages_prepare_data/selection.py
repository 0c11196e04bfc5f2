"""Which rows of the source are read: files by name, splits and slices of them, rows with a value.

Splits are those of `datasets`. In a folder the names tell which file belongs to which split: `data/<split>-00000-of-…`,
else a folder named like a split, else a file; without any such name all files are `train`. A single file, a pattern and
`--files` are `train`. A slice is `name[from:to]`, whole numbers or percent, negative ones from the end; percent are
rounded to the nearest row. `+` puts several behind one another.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from microstages.artifact import Artifact
from microstages.errors import UserError, nearest

from microstages_prepare_data.formats import Format
from microstages_prepare_data.sources import Chunk, Row, Rows, SourceFile, chunks, limited, parse, source_files

Files = list[tuple[SourceFile, Format]]

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SEPARATOR = "[-._ 0-9]"
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\..*")
_PART = re.compile(
    r"\s*(?P<split>\w+(?:\.\w+)*)\s*"
    r"(\[(?:(?P<first>-?[\d_]+)(?P<first_pct>%)?)?:(?:(?P<last>-?[\d_]+)(?P<last_pct>%)?)?\])?"
    r"(?:\((?P<rounding>[^)]*)\))?\s*"
)


@dataclass(frozen=True)
class Slice:
    """A split, or the rows of it from `first` to before `last`; `unit` is % or empty, `whole` rounds percent down."""

    split: str
    first: int | None = None
    last: int | None = None
    unit: str = ""
    whole: bool = False

    @staticmethod
    def parse(text: str, where: str) -> list[Slice]:
        """The slices of `a[:10%]+b`. Raises UserError."""
        out = []
        for part in text.split("+"):
            found = _PART.fullmatch(part)
            first, last = (found["first"], found["last"]) if found else (None, None)
            unit = "%" if found and (found["first_pct"] or found["last_pct"]) else ""
            too_much = unit and any(abs(int(v)) > 100 for v in (first, last) if v)
            rounding = found["rounding"] if found else None
            if not found or too_much or rounding not in (None, "closest", "pct1_dropremainder"):
                raise UserError(
                    f"{part!r} is no split", where=where, fix="write train, train[:90%], train[100:200] or train+test"
                )
            begin, end = (int(v) if v else None for v in (first, last))
            out.append(Slice(found["split"], begin, end, unit, rounding == "pct1_dropremainder"))
        return out

    @property
    def is_whole(self) -> bool:
        return self.first is None and self.last is None

    def bounds(self, rows: int) -> tuple[int, int]:
        """First row and the one behind the last, of `rows`."""

        def place(value: int | None, otherwise: int) -> int:
            if value is None:
                return otherwise
            if self.unit:
                value = value * (rows // 100) if self.whole else round(value * rows / 100)
            return min(max(rows + value, 0) if value < 0 else value, rows)

        return place(self.first, 0), place(self.last, rows)


@dataclass(frozen=True)
class Part:
    """Files by number, read as one list of rows, of which those from `first` to before `last` are taken (None: all)."""

    files: tuple[int, ...]
    first: int = 0
    last: int | None = None


def named(source: Artifact, patterns: Sequence[str]) -> list[SourceFile]:
    """The files of the source, of several patterns one after another. Raises UserError where one matches nothing."""
    files = source_files(source)
    if not patterns:
        return files
    every = {n: SourceFile(source.path / n, n) for n in source.files} if not source.path.is_file() else {}
    out: dict[str, SourceFile] = {}
    for pattern in patterns:
        name = pattern.removeprefix("./")
        form = re.compile(_translated(name))
        found = [n for n in sorted(every) if n == name or form.fullmatch(n)]
        if not found:
            raise UserError(
                f"the source has no file {pattern!r}{nearest(pattern, every)}", where="--files", fix=_of(source)
            )
        out.update((n, every[n]) for n in found)
    return list(out.values())


def _of(source: Artifact) -> str:
    if source.path.is_file():
        return "leave it out: the source is a file"
    names = sorted(source.files)
    return f"it has: {', '.join(names[:10])}{' …' if len(names) > 10 else ''}"


def _translated(pattern: str) -> str:
    """A pattern as a regular expression: `*` and `?` stop at a slash, `**` does not."""
    out = []
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern):
        known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(piece)
        is_set = piece.startswith("[") and len(piece) > 2
        out.append(known or (piece.replace("[!", "[^", 1) if is_set else re.escape(piece)))
    return "".join(out)


def splits(source: Artifact, files: Sequence[SourceFile], patterns: Sequence[str]) -> dict[str, list[SourceFile]]:
    """Which files make which split."""
    if patterns or source.path.is_file() or glob.has_magic(source.uri):
        return {"train": list(files)}
    shards: dict[str, list[SourceFile]] = {}
    for file in files:
        if found := _SHARD.fullmatch(file.name):
            shards.setdefault(found[1], []).append(file)
    if shards:
        return shards
    for of in (lambda name: name.split("/")[:-1], lambda name: name.split("/")[-1:]):
        by_name: dict[str, list[SourceFile]] = {}
        for split, words in _KEYWORDS.items():
            for word in words:
                form = re.compile(f"(?:.*{_SEPARATOR})?{word}(?:{_SEPARATOR}.*)?")
                for file in files:
                    if any(form.fullmatch(p) for p in of(file.name)) and file not in by_name.get(split, []):
                        by_name.setdefault(split, []).append(file)
        if by_name:
            return by_name
    return {"train": list(files)}


def parts(text: str, files_of: Callable[[str], Files], names: Iterable[str], files: Files, where: str) -> list[Part]:
    """What the text of a split means, of the splits with these names; the files it needs are put behind `files`.

    Raises UserError.
    """
    out, names = [], list(names)
    for piece in Slice.parse(text, where):
        if piece.split not in names:
            raise UserError(
                f"the source has no split {piece.split!r}{nearest(piece.split, names)}",
                where=where,
                fix=f"it has {', '.join(names)}",
            )
        mine = files_of(piece.split)
        numbers = tuple(range(len(files), len(files) + len(mine)))
        files += mine
        first, last = (0, None) if piece.is_whole else piece.bounds(sum(_count(f, form) for f, form in mine))
        out.append(Part(numbers, first, last))
    return out


def _count(file: SourceFile, form: Format) -> int:
    if form.kind == "parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(file.path) as table:
            return int(table.metadata.num_rows)
    return sum(len(parse(chunk)[1]) for chunk in chunks(0, file.path, form))


@dataclass(frozen=True)
class Condition:
    """Rows whose field has this value: the JSON value of the text, or the text itself."""

    field: str
    values: tuple[Any, ...]

    @staticmethod
    def parse(text: str) -> Condition:
        """From `field=value`. Raises UserError."""
        field, equals, value = text.partition("=")
        if not equals or not field:
            raise UserError(f"{text!r} is no field=value", where="--where", fix="write --where language=Python")
        try:
            return Condition(field, (json.loads(value), value))
        except ValueError:
            return Condition(field, (value,))

    def holds(self, row: Row) -> bool:
        """Whether the row has the value; 1 is not true here."""
        found = row.get(self.field)
        return any(found == v and isinstance(found, bool) == isinstance(v, bool) for v in self.values)


def selected(
    wanted: Sequence[Part],
    files: Files,
    fields: tuple[str, ...],
    conditions: Sequence[Condition],
    max_rows: int | None,
) -> Iterator[Chunk]:
    """The chunks of the rows that are wanted."""
    names = (*fields, *(c.field for c in conditions)) if fields else fields
    every: Iterator[Chunk] = chain.from_iterable(_of_part(p, files, names) for p in wanted)
    if conditions:
        every = _that_hold(every, conditions)
    return every if max_rows is None else limited(every, max_rows)


def _of_part(part: Part, files: Files, fields: tuple[str, ...]) -> Iterator[Chunk]:
    every = chain.from_iterable(chunks(n, files[n][0].path, files[n][1], fields) for n in part.files)
    if part.last is None and not part.first:
        yield from every
        return
    at = 0
    for chunk in every:
        numbers, rows = parse(chunk)
        a, b = max(part.first - at, 0), len(rows) if part.last is None else part.last - at
        if rows[a : max(b, 0)]:
            yield Rows(chunk.file, numbers[a:b], rows[a:b], chunk.read)
        at += len(rows)
        if part.last is not None and at >= part.last:
            return


def _that_hold(source: Iterator[Chunk], conditions: Sequence[Condition]) -> Iterator[Chunk]:
    """The rows for which all conditions hold; rows that cannot be read stay, to be told."""
    for chunk in source:
        pairs = zip(*parse(chunk), strict=True)
        found = [(n, r) for n, r in pairs if isinstance(r, str) or all(c.holds(r) for c in conditions)]
        if found:
            yield Rows(chunk.file, [n for n, _ in found], [r for _, r in found], chunk.read)
