"""More ways from a row to text: joined columns, templates as Python's `str.format` reads them, pairs of templates.

`str.format` takes null for `None`, true for `True`, and knows `{field!r}`, `{field:>8}` and `{field[name]}`. A field
that a row does not have is null there.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Any, Protocol

from microstages.errors import UserError

from microstages_prepare_data.recipe import BadRowError, Parts, Template, value
from microstages_prepare_data.settings import Settings
from microstages_prepare_data.sources import Row


class Text(Protocol):
    """Makes one text of a row from its `fields`."""

    @property
    def fields(self) -> tuple[str, ...]: ...

    def text(self, row: Row) -> str:
        """The text. Raises BadRowError."""


@dataclass(frozen=True)
class Columns:
    """The values of fields, joined by one space."""

    fields: tuple[str, ...]

    def text(self, row: Row) -> str:
        return " ".join([value(row, f) for f in self.fields])


@dataclass(frozen=True)
class Plain:
    """A template whose fields hold text or numbers."""

    template: Template

    @property
    def fields(self) -> tuple[str, ...]:
        return self.template.fields

    def text(self, row: Row) -> str:
        return self.template.parts(row)[1]


@dataclass(frozen=True)
class Formatted:
    """A template that `str.format` fills."""

    source: str
    fields: tuple[str, ...]

    @staticmethod
    def parse(source: str, where: str) -> Formatted:
        """Raises UserError where the template is malformed or names no field."""
        try:
            fields = tuple(dict.fromkeys(_fields(source)))
        except ValueError as error:
            raise UserError(
                f"this template cannot be read: {error}", where=where, fix="for braces in the text write {{ and }}"
            ) from None
        if not all(fields) or any(f.isdigit() for f in fields):
            raise UserError("{} names no field", where=where, fix="write {field}; for braces write {{ and }}")
        if not fields:
            raise UserError("it names no field, so all rows would be equal", where=where, fix="write {field} in it")
        return Formatted(source, fields)

    def text(self, row: Row) -> str:
        try:
            return self.source.format_map({f: row.get(f) for f in self.fields})
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise BadRowError(f"the template does not fit it: {type(error).__name__}: {error}") from None


def _fields(source: str) -> list[str]:
    """The top-level names in a template, those within format specifications too."""
    out = []
    for _, field, spec, _ in string.Formatter().parse(source):
        if field is not None:
            out += [re.split(r"[.\[]", field)[0], *_fields(spec or "")]
    return out


@dataclass(frozen=True)
class Whole:
    """A row is one text, and no answer in it is known."""

    of: Text
    kind: dict[str, Any]
    answer: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        return self.of.fields

    def parts(self, row: Row) -> Parts:
        return ["", self.of.text(row)]

    def describe(self) -> dict[str, Any]:
        return self.kind


@dataclass(frozen=True)
class Pair:
    """A prompt and its answer, each a text of its own."""

    prompt: Text
    completion: Text
    kind: dict[str, Any]
    allow_empty: bool
    answer: bool = True

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.prompt.fields, *self.completion.fields)))

    def parts(self, row: Row) -> Parts:
        parts = [self.prompt.text(row), self.completion.text(row)]
        if not self.allow_empty:
            for text, name in zip(parts, ("prompt", "answer"), strict=True):
                if not text.strip():
                    raise BadRowError(f"its {name} is empty")
        return parts

    def describe(self) -> dict[str, Any]:
        return self.kind


def asked(settings: Settings) -> tuple[Whole | Pair, dict[str, str]] | None:
    """What columns, pairs of templates and `--values python` ask for, and the flag of each field; None if nothing.

    Raises UserError.
    """
    python = settings.values == "python"
    how = {"values": "python"} if python else {}

    def template(source: str, flag: str) -> Text:
        if python:
            return Formatted.parse(source, flag)
        return Plain(Template.parse(source, None, flag))

    def pair(
        prompt: Text, completion: Text, kind: dict[str, Any], flags: tuple[str, str]
    ) -> tuple[Pair, dict[str, str]]:
        made = Pair(prompt, completion, {**kind, **how}, settings.empty_rows != "bad")
        by_field = {**dict.fromkeys(completion.fields, flags[1]), **dict.fromkeys(prompt.fields, flags[0])}
        return made, by_field

    if settings.columns:
        columns = Columns(settings.columns)
        return Whole(columns, {"kind": "columns", "columns": list(columns.fields)}), dict.fromkeys(
            columns.fields, "--columns"
        )
    if settings.prompt_template is not None and settings.completion_template is not None:
        flags = ("--prompt-template", "--completion-template")
        sources = (settings.prompt_template, settings.completion_template)
        kind: dict[str, Any] = {"kind": "templates", "prompt_template": sources[0], "completion_template": sources[1]}
        return pair(template(sources[0], flags[0]), template(sources[1], flags[1]), kind, flags)
    if python and settings.template is not None:
        text = template(settings.template, "--template")
        kind = {"kind": "template", "template": settings.template, "completion": None, **how}
        return Whole(text, kind), dict.fromkeys(text.fields, "--template")
    return None
