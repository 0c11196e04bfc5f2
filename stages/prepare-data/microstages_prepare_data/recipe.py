"""How a row becomes text: by a template, by two fields, or by chat messages.

The text of a row is a list of parts that alternate: given to the model, answered by it, given, answered, … The last
part is what the model should answer; all before it is the prompt. A row whose text has no known answer is two parts:
an empty one and the text. Field names are checked against the data before anything else is done.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from microstages.errors import UserError, nearest

from microstages_prepare_data.settings import Settings
from microstages_prepare_data.sources import Row, kind_of

Parts = list[str]


_MEND = {
    "this is not UTF-8": "convert the file: iconv -f <its encoding> -t utf-8 (often cp1252)",
    "this is not JSON: names and texts": "write the rows with a JSON library, such as json.dumps",
}


class BadRowError(Exception):
    """A row that cannot be used; says why."""


def remedy(reason: str) -> str:
    """What to do about a row that cannot be used for a reason."""
    fix = next((fix for start, fix in _MEND.items() if reason.startswith(start)), "correct this row")
    return f"{fix}, or leave such rows out: --bad-rows skip"


class Recipe(Protocol):
    """Makes the parts of a row from its `fields`. `answer`: whether the last part is a known answer."""

    @property
    def answer(self) -> bool: ...

    @property
    def fields(self) -> tuple[str, ...]: ...

    def parts(self, row: Row) -> Parts:
        """The parts. Raises BadRowError."""

    def describe(self) -> dict[str, Any]:
        """How rows became text, for the metadata: `kind`, and the parameters of the kind."""


def value(row: Row, field: str) -> str:
    """The text of a field. Raises BadRowError where it is missing or holds no text or number."""
    try:
        v = row[field]
    except KeyError:
        raise BadRowError(f"it has no field {field!r}{nearest(field, row)}; its fields: {_names(row)}") from None
    if isinstance(v, str):
        return v
    if isinstance(v, bool):
        return "true" if v else "false"
    if v is None or isinstance(v, (list, dict, bytes)):
        raise BadRowError(f"the field {field!r} holds {kind_of(v)}, not text")
    return str(v)


@dataclass(frozen=True)
class Template:
    """Text with `{field}` in it. `pieces` alternate: text, field, text, …; the answer begins at piece `begins`."""

    source: str
    completion: str | None
    pieces: tuple[str, ...]
    begins: int
    fields: tuple[str, ...]
    answer: bool
    allow_empty: bool = False

    @staticmethod
    def parse(source: str, completion: str | None, where: str = "--template") -> Template:
        """Raises UserError where the template is malformed or `completion` is no field of it.

        Spaces before the answer belong to it: a tokenizer joins a space to the word behind it, so a prompt that ends in
        one would end in tokens that the model never saw there.
        """
        pieces: list[str] = [""]
        try:
            for text, field, spec, conversion in string.Formatter().parse(source):
                pieces[-1] += text
                if field is None:
                    continue
                name = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                if not name:
                    raise UserError("{} names no field", where=where, fix="write {field}; for braces write {{ and }}")
                pieces += [name, ""]
        except ValueError as error:
            raise UserError(
                f"this template cannot be read: {error}", where=where, fix="for braces in the text write {{ and }}"
            ) from None
        fields = tuple(dict.fromkeys(pieces[1::2]))
        if not fields:
            raise UserError("it names no field, so all rows would be equal", where=where, fix="write {field} in it")
        begins = 0
        if completion is not None:
            if completion not in fields:
                raise UserError(
                    f"the template has no {{{completion}}}{nearest(completion, fields)}; it has {_names(fields)}",
                    where="--completion",
                    fix="name one of them",
                )
            begins = max(i for i in range(1, len(pieces), 2) if pieces[i] == completion)
            if begins == 1 and not pieces[0].strip():
                raise UserError(
                    f"the template begins with {{{completion}}}, so there is no prompt",
                    where="--completion",
                    fix="put the answer behind the prompt, or leave --completion out to train on everything",
                )
            before = pieces[begins - 1]
            pieces[begins - 1] = before.rstrip(" ")
            spaces = before[len(before.rstrip(" ")) :]
            pieces[begins:begins] = ["", spaces] if spaces else []
            begins += 1 if spaces else 0
        return Template(source, completion, tuple(pieces), begins, fields, completion is not None)

    def parts(self, row: Row) -> Parts:
        pieces = list(self.pieces)
        for i in range(1, len(pieces), 2):
            if pieces[i]:
                pieces[i] = value(row, pieces[i])
        if not self.answer:
            return ["", "".join(pieces)]
        answer = value(row, self.completion or "")
        if not self.allow_empty:
            if not answer.strip():
                raise BadRowError(f"the field {self.completion!r}, the answer, is empty")
            asked = [name for name in self.pieces[1 : self.begins : 2] if name]
            if asked and not any(value(row, name).strip() for name in asked):
                one = len(set(asked)) == 1
                what = (
                    f"the field {asked[0]!r}, the prompt, is" if one else f"the fields {_names(asked)}, the prompt, are"
                )
                raise BadRowError(f"{what} empty")
        return ["".join(pieces[: self.begins]), "".join(pieces[self.begins :])]

    def describe(self) -> dict[str, Any]:
        return {"kind": "template", "template": self.source, "completion": self.completion}


@dataclass(frozen=True)
class Fields:
    """Two fields, the answer right behind the prompt."""

    prompt: str
    completion: str
    allow_empty: bool = False
    answer: bool = True

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.prompt, self.completion)

    def parts(self, row: Row) -> Parts:
        parts = [value(row, self.prompt), value(row, self.completion)]
        for text, field in zip(parts, self.fields, strict=True):
            if not text.strip() and not self.allow_empty:
                raise BadRowError(f"the field {field!r} is empty")
        return parts

    def describe(self) -> dict[str, Any]:
        return {"kind": "fields", "prompt_field": self.prompt, "completion_field": self.completion}


def parts_of(row: Row, recipe: Recipe, settings: Settings) -> Parts:
    """The parts of a row, where it has a text. Raises BadRowError."""
    parts = recipe.parts(row)
    if not recipe.answer and not parts[1].strip() and settings.empty_rows == "bad":
        raise BadRowError("its text is empty")
    return parts


# Where nothing is said, the first of these whose fields are all there.
_FIELDS = (("prompt", "completion"), ("prompt", "response"))
CHAT_FIELDS = ("messages", "conversations")


def wanted(settings: Settings, columns: Sequence[str]) -> Recipe | str:
    """The recipe that the parameters ask for, else the one that the columns suggest; the name of the field for chat.

    Raises UserError where a field does not exist, or nothing is asked for and the columns suggest nothing.
    """
    from microstages_prepare_data.texts import asked

    recipe: Recipe
    allow_empty = settings.empty_rows != "bad"
    if found := asked(settings):
        recipe, flags = found
    elif settings.template is not None:
        recipe = replace(Template.parse(settings.template, settings.completion), allow_empty=allow_empty)
        flags = dict.fromkeys(recipe.fields, "--template")
    elif settings.prompt_field is not None and settings.completion_field is not None:
        recipe = Fields(settings.prompt_field, settings.completion_field, allow_empty)
        flags = {settings.prompt_field: "--prompt-field", settings.completion_field: "--completion-field"}
    elif settings.messages_field is not None:
        exists(settings.messages_field, columns, "--messages-field")
        return settings.messages_field
    else:
        if chat := next((c for c in CHAT_FIELDS if c in columns), None):
            return chat
        if pair := next((p for p in _FIELDS if set(p) <= set(columns)), None):
            return Fields(*pair, allow_empty)
        if "text" in columns:
            return Template.parse("{text}", None)
        shown = [c.replace("{", "{{").replace("}", "}}") for c in columns[:2]]
        fix = f"to train on all of a row: --template '{' '.join('{' + c + '}' for c in shown)}'"
        if len(columns) > 1:
            fix += f"; on an answer: --prompt-field {columns[0]!r} --completion-field {columns[1]!r}"
        raise UserError(f"nothing says which fields to train on; there are: {_names(columns)}", fix=fix)
    for field, flag in flags.items():
        exists(field, columns, flag)
    return recipe


def exists(field: str, columns: Sequence[str], flag: str) -> None:
    if field not in columns:
        raise UserError(
            f"the data has no field {field!r}{nearest(field, columns)}",
            where=flag,
            fix=f"its fields: {_names(columns)}",
        )


def _names(names: Sequence[str] | Row) -> str:
    shown = [repr(n) for n in list(names)[:30]]
    return ", ".join(shown) + (f" and {len(names) - 30} more" if len(names) > 30 else "") or "none"
