"""Checks of the options of targets: each takes a value as the file has it, and returns what is wrong and what to write,
or None."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

Wrong = tuple[str, str]
Check = Callable[[Any], Wrong | None]
FLAVORS = ("cpu", "cuda")


def text(fix: str) -> Check:
    """Text that is not empty."""
    return lambda value: None if isinstance(value, str) and value else ("must be text", fix)


def one_of(words: Collection[str], fix: str) -> Check:
    """One of some words."""
    wanted = " or ".join(words)
    return lambda value: None if value in words else (f"must be {wanted}, not {value!r}", fix)


def whole(least: int, fix: str) -> Check:
    """A whole number."""

    def check(value: Any) -> Wrong | None:
        good = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return None if good else (f"must be a whole number, {least} or more", fix)

    return check


def flag(fix: str) -> Check:
    """true or false."""
    return lambda value: None if isinstance(value, bool) else ("must be true or false", fix)


def words(fix: str) -> Check:
    """A list of text."""

    def check(value: Any) -> Wrong | None:
        good = isinstance(value, list) and all(isinstance(v, str) and v for v in value)
        return None if good else ("must be a list of text", fix)

    return check


def mapping(fix: str) -> Check:
    """A mapping of text to text."""

    def check(value: Any) -> Wrong | None:
        good = isinstance(value, dict) and all(isinstance(v, str) for kv in value.items() for v in kv)
        return None if good else ("must be a mapping of text to text", fix)

    return check


def entries(value: Any, keys: Sequence[str], fix: str, plain: bool = False) -> Wrong | None:
    """A list of mappings with just these keys, all text; with `plain` names of variables too."""
    if not isinstance(value, list):
        return "must be a list", fix
    for entry in value:
        if plain and isinstance(entry, str):
            if not entry.replace("_", "").isalnum():
                return "holds what is no name of a variable", fix
        elif (
            not isinstance(entry, dict)
            or set(entry) != set(keys)
            or not all(isinstance(v, str) for v in entry.values())
        ):
            return f"holds what is not `{{{', '.join(f'{k}: …' for k in keys)}}}`", fix
    return None


def secrets(value: Any) -> Wrong | None:
    """Names of variables, and files."""
    fix = "name variables of your environment, or give `{name: …, file: …}`; a value never stands here"
    if not isinstance(value, list):
        return "must be a list", fix
    for entry in value:
        name = entry.get("name") if isinstance(entry, dict) else entry
        if isinstance(entry, dict) and (set(entry) != {"name", "file"} or not isinstance(entry["file"], str)):
            return "holds a mapping that is not `{name: …, file: …}`", fix
        if not isinstance(name, str) or not name.replace("_", "").isalnum():
            return "holds what is no name of a variable", fix
    return None
