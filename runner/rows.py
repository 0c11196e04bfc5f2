"""What `prepare-data` would say of a file of this machine, told by its own reader before it runs.

Its reader is light (no numpy, no torch), and is loaded only where a pipeline or `runner init` has such a file. Where
the stage is not installed beside the runner, nothing is told: the stage tells it when it runs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from microstages.errors import UserError

LOOKED_AT = 100  # rows in which the stage looks for the names of fields
SMALL = 8 << 20  # bytes of a file of which all rows are looked at


def installed() -> bool:
    """Whether the stage's reader is here."""
    try:
        import microstages_prepare_data  # noqa: F401
    except ImportError:
        return False
    return True


def fields(path: Path, kind: str = "auto", delimiter: str = "auto") -> tuple[str, ...]:
    """The names of a file's fields, as its first rows have them. Raises UserError where the stage would refuse it."""
    names: dict[str, None] = {}
    bad: tuple[int, str] | None = None
    seen = 0
    for number, row in _read(path, kind, delimiter):
        if isinstance(row, str):
            bad = bad or (number, row)
            continue
        names.update(dict.fromkeys(row))
        seen += 1
        if seen == LOOKED_AT:
            break
    if not seen and bad:
        from microstages_prepare_data.sources import way_out

        raise UserError(f"no row can be read; the first: {bad[1]}", where=f"{path}:{bad[0]}", fix=way_out(bad[1]))
    if not seen:
        raise UserError("there are no rows in it", where=path, fix="give a file with rows in it")
    return tuple(names)


def _read(path: Path, kind: str, delimiter: str) -> Iterator[tuple[int, Any]]:
    from microstages_prepare_data.sources import chunks, parse

    for chunk in chunks(0, path, _format(path, kind, delimiter)):
        yield from zip(*parse(chunk), strict=True)


def _format(path: Path, kind: str, delimiter: str) -> Any:
    """The stage's word for what a file is. Raises UserError where it is nothing that can be read."""
    from microstages_prepare_data.formats import sniff

    if _is_workbook(path):
        raise UserError("this is an Excel workbook", where=path, fix="save it as CSV UTF-8")
    form = sniff(path, kind, delimiter)
    if form is None:
        raise UserError("the file is empty", where=path, fix="give a file with rows in it")
    return form


def _is_workbook(path: Path) -> bool:
    with path.open("rb") as f:
        if f.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as packed:
            return any(name.startswith("xl/") for name in packed.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def recipe(params: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """How the stage makes text of a row, by its parameters; the name of a field for chats. Raises UserError."""
    from microstages_prepare_data.recipe import wanted

    return wanted(_settings(params), names)


def _settings(params: Mapping[str, Any]) -> Any:
    from microstages_prepare_data.settings import Settings

    known = {f.name for f in fields_of(Settings)}
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in params.items() if k in known and v is not None
    }
    return Settings(**given)


def check_all(path: Path, params: Mapping[str, Any], made_by: Any) -> None:
    """Look at every row of a small file as the stage will, by a `recipe`. Raises UserError for the first one that the
    stage would refuse. Where a part of the file is chosen by a split, or bad rows are left out, nothing is looked at.
    """
    from microstages_prepare_data.recipe import BadRowError, parts_of, remedy
    from microstages_prepare_data.selection import Condition, Part, selected
    from microstages_prepare_data.sources import SourceFile, parse

    settings = _settings(params)
    if settings.bad_rows == "skip" or settings.split or settings.files or path.stat().st_size > SMALL:
        return
    files = [(SourceFile(path, ""), _format(path, settings.input_format, settings.delimiter))]
    wanted = () if isinstance(made_by, str) else made_by.fields
    conditions = tuple(Condition.parse(w) for w in settings.where)
    for chunk in selected([Part((0,))], files, wanted, conditions, settings.max_rows):
        for number, row in zip(*parse(chunk), strict=True):
            try:
                if isinstance(row, str):
                    raise BadRowError(row)
                if isinstance(made_by, str):  # chats: the model's template says what is wrong with one
                    continue
                parts_of(row, made_by, settings)
            except BadRowError as reason:
                raise UserError(str(reason), where=f"{path}:{number}", fix=remedy(str(reason))) from None
