"""JSON documents read row by row: memory holds a row and a buffer, never the document.

Rows are the elements of an array, the elements of the one list of objects within an object (`{"data": [{…}, …]}`), or
top-level objects one after another. A document that is cut off or malformed is an error that names its line.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from microstages.errors import UserError, json_mistake

BUFFER = 1 << 18  # characters read at once
_SPACE = re.compile(r"[ \t\r\n]*")
_NEAR = 16  # an error so near the end of the buffer may be due to the end: `\u00`, `tru`, `1e`


class JsonStream:
    """Iterates over `(line, row)` of a document. `where` names the file in errors."""

    def __init__(self, file: BinaryIO, where: object) -> None:
        self._file, self._where = file, where
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._text, self._at, self._end = "", 0, False
        self._line = 1  # of self._text[self._counted]
        self._counted = 0
        self._read_lines = 0

    def __iter__(self) -> Iterator[tuple[int, object]]:
        while self._peek():
            if self._peek() == "[":
                yield from self._elements()
            elif self._peek() == "{":
                yield from self._object()
            else:
                raise self._broken("an object or an array was expected")

    def _elements(self) -> Iterator[tuple[int, object]]:
        self._at += 1
        if self._peek() == "]":
            self._at += 1
            return
        yield self._element()
        yield from self._more_elements()

    def _more_elements(self) -> Iterator[tuple[int, object]]:
        while (mark := self._peek()) != "]":
            if mark != ",":
                raise self._broken("a comma or the end of the array was expected")
            self._at += 1
            yield self._element()
        self._at += 1

    def _element(self) -> tuple[int, object]:
        self._peek()
        return self._here(), self._value()

    def _object(self) -> Iterator[tuple[int, object]]:
        """The rows of the list of objects in this object, or the object itself where it has none."""
        row: dict[str, object] = {}
        line, found = self._here(), ""
        self._at += 1
        while (mark := self._peek()) != "}":
            if row or found:
                if mark != ",":
                    raise self._broken("a comma or the end of the object was expected")
                self._at += 1
                self._peek()
            name = self._value()
            if not isinstance(name, str):
                raise self._broken("a name was expected")
            if self._peek() != ":":
                raise self._broken("a colon was expected")
            self._at += 1
            if self._peek() == "[" and self._peek(1) == "{":
                self._at += 1
                first = self._element()
                if is_nested(name, first[1]):
                    row[name] = [first[1], *(value for _, value in self._more_elements())]
                    continue
                if found:
                    raise UserError(
                        f"it holds two lists of rows: {found!r} and {name!r}",
                        where=f"{self._where}:{self._here()}",
                        fix="put each into a file of its own",
                    )
                found = name
                yield first
                yield from self._more_elements()
            else:
                row[name] = self._value()
        self._at += 1
        if not found:
            yield line, row

    def _value(self) -> object:
        """The JSON value here; reads on until it is whole."""
        size = BUFFER
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
                if end < len(self._text) or self._end:  # else a number might go on
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _NEAR
                if self._end or not cut:
                    self._at = min(error.pos, len(self._text))
                    what = "the file ends within a value" if self._end and cut else json_mistake(error)[1]
                    raise self._broken(what) from None
            except RecursionError:
                raise self._broken("it is nested too deeply") from None
            except ValueError as error:  # a number of too many digits
                raise self._broken(json_mistake(error)[1]) from None
            self._fill(size)
            size *= 2

    def _peek(self, after: int = 0) -> str:
        """The next character that is no space, or the one behind it (`after`=1); empty at the end of the file.

        The position moves to the first one.
        """
        while True:
            at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if at < len(self._text):
                self._at = at
                if not after:
                    return self._text[at]
                behind = _SPACE.match(self._text, at + 1).end()  # type: ignore[union-attr]
                if behind < len(self._text):
                    return self._text[behind]
            if self._end:
                return ""
            self._fill(BUFFER)

    def _fill(self, size: int) -> None:
        """Read on; forget what was read before the position."""
        self._here()
        data = self._file.read(size)
        try:
            more = self._decode.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line = self._read_lines + error.object[: error.start].count(b"\n") + 1
            raise bad_utf8(f"{self._where}:{line}") from None
        self._read_lines += data.count(b"\n")
        self._text, self._at, self._counted = self._text[self._at :] + more, 0, 0
        self._end = not data

    def _here(self) -> int:
        """The line of the position."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _broken(self, what: str) -> UserError:
        if self._end and self._at >= len(self._text):
            what = "the file ends too early"
        return UserError(
            f"this is not JSON: {what}",
            where=f"{self._where}:{self._here()}",
            fix="the file is damaged or cut off: get or write it again",
        )


def is_nested(name: str, first: object) -> bool:
    """Whether a list of objects belongs to one row: chat messages and tools do."""
    message = isinstance(first, dict) and ({"role", "content"} <= first.keys() or {"from", "value"} <= first.keys())
    return message or name in ("messages", "conversations", "tools")


def bad_utf8(where: object) -> UserError:
    """The error for bytes that are no text."""
    return UserError(
        "this is not UTF-8", where=where, fix="convert the file: iconv -f <its encoding> -t utf-8 (often cp1252)"
    )
