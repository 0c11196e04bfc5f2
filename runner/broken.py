"""Text that is no YAML: where it stops being so, and what most likely mends it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

from runner.excerpt import lines
from runner.problems import Place, Problem

try:
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as Loader  # type: ignore[assignment]


def broken(error: yaml.MarkedYAMLError, source: Sequence[str], file: str) -> Problem:
    """Where text stops being YAML, and what most likely mends it."""
    mark, opened = error.problem_mark or error.context_mark, error.context_mark
    if opened and "end of stream" in (error.problem or ""):
        mark = opened  # where the quote was opened says more than where the file ends
    line, column = (mark.line, mark.column) if mark else (0, 0)
    if line >= len(source) or (line == len(source) - 1 and not source[line].strip()):
        line = max((n for n, text in enumerate(source) if text.strip()), default=0)  # the last that says something
        column = len(source[line].rstrip())
    what = " ".join(str(x) for x in (error.problem, error.context) if x)
    quote = _unclosed(source, line)
    if quote is not None:
        at = _OPENED.match(source[quote])
        assert at is not None
        place = Place(file, quote + 1, at.end(1) + 1, 1, source[quote])
        return Problem(place, "this is not YAML: this quote is not closed", "close it on the same line")
    if reference := _UNQUOTED.search(source[line]):
        text = reference[1]
        place = Place(file, line + 1, reference.start(1) + 1, len(text), source[line])
        return Problem(place, "this is not YAML: the reference is not in quotes", f'write it as "{text}"')
    fix = _remedy(what, source[line], column)
    if opened and "flow" in (error.context or "") and opened.line != line:
        fix += f"; the bracket is opened at {opened.line + 1}:{opened.column + 1}"
    return Problem(Place(file, line + 1, column + 1, 1, source[line]), f"this is not YAML: {what}", fix)


_UNQUOTED = re.compile(r"""[^"'\w ]\s*[\w-]+:\s*(\$\{\{[^}"']*\}\})""")
_OPENED = re.compile(r"""([^"'#]*[:\[,{-]\s*)(?:"(?:[^"\\]|\\.)*|'(?:[^']|'')*)$""")


def _unclosed(source: Sequence[str], line: int) -> int | None:
    """The line of a quote without which what stands up to `line` would be YAML, or would fail further down."""
    for n, text in enumerate(source[: line + 1]):
        if at := _OPENED.match(text):
            closed = [*source[:n], text + text[at.end(1)]]
            loader = Loader("\n".join(closed))
            try:
                loader.get_single_node()
                return n
            except (yaml.YAMLError, RecursionError):
                return None
            finally:
                loader.dispose()
    return None


def _remedy(what: str, line: str, column: int) -> str:
    """What most likely mends text that is no YAML."""
    before, at = line[:column], line[column : column + 1]
    if "\t" in (before[len(before.strip()) :] if not before.strip() else "") or at == "\t":
        return "a tab cannot indent: use spaces"
    if "${{" in line and re.search(r"[^\"'\w ]\s*[\w-]+:\s*\$\{\{", line):
        return 'quote a reference between { and }: "${{ … }}"'
    if "mapping values" in what:
        return "quote a text with `: ` in it, or begin a new line"
    if "cannot start any token" in what:
        return f"quote a text that begins with {at or line[column - 1 : column]}"
    if "quoted scalar" in what or "end of stream" in what:
        return "close the quote, or the bracket, that was opened here"
    if "flow" in what:
        return "put a comma between entries, and close the bracket"
    if "anchor" in what or "alias" in what:
        return "quote a text that begins with * or &"
    if "expected a single document" in what or "another document" in what:
        return "a pipeline is one document: remove the line ---"
    return "check indentation, quotes and colons"


def unreadable(error: BaseException, text: str, file: str) -> Problem:
    what = str(error).split("\n", maxsplit=1)[0]
    bad = next((n for n, c in enumerate(text) if not c.isprintable() and c not in "\n\r\t\x85\u2028\u2029\ufeff"), None)
    if isinstance(error, RecursionError) or bad is None:
        return Problem(Place(file, 1, 1, 1, lines(text)[0]), f"this is not YAML: {what}", "check the text")
    above = lines(text[:bad])
    place = Place(file, len(above), len(above[-1]) + 1, 1, lines(text)[len(above) - 1])
    return Problem(place, f"this is not YAML: the character U+{ord(text[bad]):04X} cannot stand here", "remove it")
