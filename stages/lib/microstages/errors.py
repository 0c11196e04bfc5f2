"""The errors that end a stage, each with the exit code of the contract.

0 done · 2 the caller's mistake (never retried) · 70 our bug · 75 temporary, try again · 143 told to stop.
"""

from __future__ import annotations

import errno

EXIT_OK = 0
EXIT_USER = 2
EXIT_BUG = 70
EXIT_TEMPORARY = 75
EXIT_STOPPED = 143


class UserError(Exception):
    """What the caller can mend: `what` is wrong, `where` it is (file:line, field, URI), what to do (`fix`)."""

    exit_code = EXIT_USER

    def __init__(self, what: str, *, where: object = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, str(where), fix
        super().__init__(what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f"\n  {self.fix}" if self.fix else ""
        return f"{place}{self.what}{remedy}"


class TemporaryError(UserError):
    """What may pass by itself: a store that does not answer, a lost connection. Retried by the runner."""

    exit_code = EXIT_TEMPORARY


class DamagedError(UserError):
    """A file of an artifact is missing or altered. `artifact`: the URI of the artifact, as it was given."""

    artifact = ""


class Stopped(BaseException):
    """SIGTERM or Ctrl-C: everything worth keeping is saved, the rest is removed."""


_WORDS = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose a place with more, and run again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another place, and run again"),
    errno.EFBIG: ("the file is larger than this place allows", "choose another place, or raise the limit"),
    errno.EROFS: ("the file system is read-only", "choose a place that can be written"),
    errno.EACCES: ("permission denied", "check who owns it and its mode"),
    errno.EPERM: ("operation not permitted", "check who owns it and its mode"),
    errno.ENAMETOOLONG: ("the name is too long", "use a shorter path"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "check the path"),
    errno.EEXIST: ("a file lies where a folder is wanted", "choose another place, or remove it"),
    errno.EISDIR: ("it is a folder, not a file", "check the path"),
    errno.ENOENT: ("no such file or folder", "check the path"),
}


def from_os_error(error: OSError, where: object = "") -> UserError | None:
    """The user's side of an operating system error, or None where it is not the user's to mend."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return TemporaryError(str(error) or type(error).__name__, where=where, fix="try again")
    if error.errno in _WORDS:
        what, fix = _WORDS[error.errno]
        return UserError(what, where=error.filename or where, fix=fix)
    return None


def as_user_error(error: BaseException | None) -> UserError | None:
    """The user's side of any error, or None where it has none: a bug, a stop."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError):
        fix = "use a machine with more, or a smaller model or batch"
        return UserError("there is not enough memory", fix=fix)
    return from_os_error(error) if isinstance(error, OSError) else None


_JSON = {
    "Expecting property name enclosed in double quotes": "a name in double quotes is wanted",
    "Expecting value": "a value is wanted",
    "Expecting ',' delimiter": "a comma or a closing bracket is wanted",
    "Expecting ':' delimiter": "a colon is wanted",
    "Extra data": "more follows its end",
    "Unterminated string starting at": "a text has no closing quote",
    "Invalid control character at": "a line break or a tab in a text must be written as \\n or \\t",
    "Invalid \\escape": "a backslash in a text must be written twice",
    "Invalid \\uXXXX escape": "\\u needs four hexadecimal digits",
}


def json_mistake(error: ValueError) -> tuple[str, str]:
    """What the json module complains of: the place (`:line:column`, or empty), and in plain words what is wrong."""
    import json

    if not isinstance(error, json.JSONDecodeError):
        if isinstance(error, UnicodeDecodeError):
            return "", "it is not UTF-8 text"
        return "", "a number has too many digits" if "digits" in str(error) else str(error)
    place = f":{error.lineno}:{error.colno}"
    if not error.doc.strip():
        return place, "it is empty"
    if error.pos >= len(error.doc.rstrip()):
        return place, "it ends too early"
    if error.doc[error.pos : error.pos + 1] == "'":
        return place, "names and texts take double quotes, not single ones"
    return place, _JSON.get(error.msg.rstrip(": "), error.msg[:1].lower() + error.msg[1:])


def redo(file: object) -> str:
    """What to do about a file that is damaged."""
    import os

    made = os.path.basename(str(file)).startswith("adapter_")
    return "get it again, or train the adapter again" if made else "get it again, or make it again"


def nearest(word: str, known: object) -> str:
    """` (did you mean X?)` for the known word nearest to `word`, or the empty string."""
    import difflib

    found = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)  # type: ignore[attr-defined]
    return f" (did you mean {found[0]!r}?)" if found else ""
