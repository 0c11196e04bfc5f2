"""Mistakes and their places: file, line and column, the line itself with a caret, the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

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


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake: where, what, and the remedy. `used`: what refers to a value there, and the places of that; `common`:
    what is said where several of them find the same mistake."""

    place: Place
    what: str
    fix: str = ""
    used: tuple[tuple[str, Place], ...] = ()
    common: str = ""

    def grouped(self) -> Problem:
        """The same with `used` in its remedy: `params.data is used at pipeline.yaml:3:7, 5:9 and 8:11`."""
        places: dict[str, list[Place]] = {}
        for word, place in self.used:
            places.setdefault(word, []).append(place)
        said = []
        for word, at in places.items():
            first, *rest = sorted(set(at))
            more = [f"{p.line}:{p.column}" if p.file == first.file and p.line else str(p) for p in rest]
            listed = [str(first), *more]
            said.append(f"{word} is used at {' and '.join([*([', '.join(listed[:-1])] if more else []), listed[-1]])}")
        return Problem(self.place, self.what, "; ".join(s for s in (self.fix, *said) if s))

    def __str__(self) -> str:
        shown = self.place.excerpt()
        return f"{self.place}: {self.what}" + (f"\n{shown}" if shown else "") + (f"\n  {self.fix}" if self.fix else "")


def _grouped(problems: Iterable[Problem]) -> list[Problem]:
    """Each mistake once: what several references find in one value is told with all their places."""
    alike: dict[tuple[Place, str, str], list[Problem]] = {}
    for p in dict.fromkeys(problems):
        alike.setdefault((p.place, (p.used and p.common) or p.what, p.fix), []).append(p)
    out = []
    for (_, words, _), many in alike.items():
        used = tuple(u for p in many for u in p.used)
        what = words if len(set(used)) > 1 else many[0].what
        out.append(replace(many[0], what=what, used=used).grouped())
    return out


class PipelineError(UserError):
    """A pipeline with mistakes: all of them, in the order of their places."""

    exit_code = EXIT_USER

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(_grouped(problems)))
        super().__init__("\n".join(str(p) for p in self.problems))


class Problems:
    """Collects mistakes, so that all of them are told at once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, place: Place, what: str, fix: str = "") -> None:
        self.found.append(Problem(place, what, fix))

    def add_in(self, place: Place, origin: Origin | None, what: str, fix: str, common: str = "") -> None:
        """A mistake in a value: it is told where that was written, with the place that refers to it. `common`: what is
        said of several that refer to it."""
        used = () if origin is None else ((origin.word, place),)
        self.found.append(Problem(origin.place if origin else place, what, fix, used, common))

    def check(self) -> None:
        """Raises PipelineError where there is any."""
        if self.found:
            raise PipelineError(self.found)


def guess(word: str, known: Iterable[str]) -> str:
    """The known word nearest to `word`, as `nearest` finds it; empty where none is near."""
    found = nearest(word, list(known))
    return found.partition("'")[2].rpartition("'")[0]
