"""Mistakes and their places: file, line and column, the line itself with a caret, the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from microstages.errors import EXIT_USER, UserError, nearest

from runner.excerpt import excerpt


@dataclass(frozen=True, order=True)
class Place:
    """Where a value was written: a line and column of a file, or a column of a `--set` option (line 0). `width`
    characters of `source`, the line or the option, are meant."""

    file: str
    line: int = 0
    column: int = 0
    width: int = field(default=1, compare=False)
    source: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    def excerpt(self) -> str:
        """The line with a caret under the place; empty where it is not known."""
        return excerpt(self.source, self.line, self.column, self.width) if self.source.strip() else ""


@dataclass(frozen=True)
class Origin:
    """Where the value of a reference was given: `params.NAME`, and its place."""

    word: str
    place: Place


def told(place: Place, origin: Origin | None, what: str, fix: str) -> tuple[Place, str, str]:
    """A mistake in a value: it is told where that was written, with the place that refers to it."""
    if origin is None:
        return place, what, fix
    return origin.place, what, f"{fix}; {origin.word} is used at {place}"


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake: where, what, and the remedy."""

    place: Place
    what: str
    fix: str = ""

    def __str__(self) -> str:
        shown = self.place.excerpt()
        return f"{self.place}: {self.what}" + (f"\n{shown}" if shown else "") + (f"\n  {self.fix}" if self.fix else "")


class PipelineError(UserError):
    """A pipeline with mistakes: all of them, in the order of their places."""

    exit_code = EXIT_USER

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems)))
        super().__init__("\n".join(str(p) for p in self.problems))


class Problems:
    """Collects mistakes, so that all of them are told at once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, place: Place, what: str, fix: str = "") -> None:
        self.found.append(Problem(place, what, fix))

    def check(self) -> None:
        """Raises PipelineError where there is any."""
        if self.found:
            raise PipelineError(self.found)


def guess(word: str, known: Iterable[str]) -> str:
    """The known word nearest to `word`, as `nearest` finds it; empty where none is near."""
    found = nearest(word, list(known))
    return found.partition("'")[2].rpartition("'")[0]
