"""What the rows of a file hold, as far as its beginning tells: the names of its columns, which of them is the prompt
and which the answer. It is a guess to start from, and is told; who knows better gives the names.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages.errors import UserError, nearest

HEAD = 1 << 20  # bytes that are looked at
MOST = 1000  # rows that are looked at
_PROMPTS = ("prompt", "question", "instruction", "text", "message", "query", "input")
_ANSWERS = ("answer", "completion", "response", "output", "reply", "label", "class", "category", "target")
_CHATS = ("messages", "conversations")

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Columns:
    """The columns of a file. `prompt` and `answer` are empty where they are not known.

    `chat`: the column with messages; `first`: the prompt of its first row; `bad_line`: the number of the first line
    that is not UTF-8, or 0. `characters` of prompts and answers in all rows; 0 where there are many, or none is known.
    """

    names: tuple[str, ...] = ()
    prompt: str = ""
    answer: str = ""
    chat: str = ""
    first: str = ""
    bad_line: int = 0
    characters: int = 0


def look(file: Path | None, prompt: str = "", answer: str = "") -> Columns:
    """The columns of a file; of no file, or one that is no table of text, those that were given.

    Raises UserError where a name that was given is no column, or cannot stand in a template.
    """
    names, rows, bad = _rows(file) if file else ((), [], 0)
    for option, name in (("--prompt", prompt), ("--answer", answer)):
        if name and names and name not in names:
            raise UserError(
                f"there is no column {name!r}{nearest(name, names)}",
                where=f"{option} {name}",
                fix=f"name one of {', '.join(names)}",
            )
        if name and not _fits(name):
            raise UserError("this name cannot stand in a template", where=f"{option} {name}", fix="rename the column")
    if prompt and prompt == answer:
        raise UserError("prompt and answer are the same column", where=f"--answer {answer}", fix="name another one")
    chat = next((n for n in names if n in _CHATS), "")
    if chat and not prompt and not answer:
        return Columns(names, chat=chat, bad_line=bad)
    if not (prompt and answer):
        prompt, answer = _choose([n for n in names if _fits(n)], rows, prompt, answer)
    if not (prompt and answer) or prompt == answer:
        prompt = answer = ""
    first = next((r[prompt] for r in rows if r.get(prompt)), "")
    few = bool(prompt) and len(rows) < MOST and file is not None and file.stat().st_size < HEAD
    characters = sum(len(r.get(n, "")) for r in rows for n in (prompt, answer)) if few else 0
    return Columns(names, prompt, answer, first=first, bad_line=bad, characters=characters)


def _fits(name: str) -> bool:
    """Whether `{name}` in a template in YAML's double quotes means the column."""
    return bool(name.strip()) and name.isprintable() and not set(name) & set('{}[]:!"\\')


# --- which is which


def _choose(names: Sequence[str], rows: Rows, prompt: str, answer: str) -> tuple[str, str]:
    """Prompt and answer, where they are not given: empty where there are too few columns.

    The answer is a column that is called so, or the one with the fewest different texts, or, where each row has its
    own, the last one. The prompt is a column that is called so, or the one with the longest texts. Columns with empty
    cells come behind full ones: such a row is refused.
    """
    values = {n: [r[n] for r in rows if r.get(n, "").strip()] for n in names}

    def full(among: Sequence[str]) -> list[str]:
        return [n for n in among if len(values[n]) == len(rows)] or list(among)

    def longest(among: Sequence[str]) -> str:
        running = [n for n in among if not _is_class(values[n])]  # an empty cell makes no class a prompt
        return _named(among, _PROMPTS) or max(full(running or among), key=lambda n: _length(values[n]), default="")

    free = [n for n in names if n not in (prompt, answer)]
    worded = [n for n in free if not rows or any(c.isalpha() for v in values[n] for c in v)]
    wanted = (not prompt) + (not answer)
    pools = ([n for n in worded if n.lower() in _PROMPTS + _ANSWERS or not _is_id(values[n])], worded, free)
    texts = next((p for p in pools if len(p) >= wanted), free)
    if not answer:
        main = prompt or longest(pools[0])
        classes = [[n for n in pool if n != main and _is_class(values[n])] for pool in pools]
        few = full(next((c for c in classes if c), []))
        answer = _named([n for n in texts if n != main], _ANSWERS)
        answer = answer or min(reversed(few), key=lambda n: len(set(values[n])), default="")
        answer = answer or _last(full([n for n in texts if n.lower() not in _PROMPTS and n != main] or texts), values)
    return prompt or longest([n for n in texts if n != answer]), answer


def _named(names: Sequence[str], known: Sequence[str]) -> str:
    return next((n for k in known for n in names if n.lower() == k), "")


def _last(names: Sequence[str], values: dict[str, list[str]]) -> str:
    """The last column of single words, where the others are running text; or else the last one."""
    words = [n for n in names if values[n] and not any(" " in v.strip() for v in values[n])]
    return next(reversed(words or names), "")


def _is_id(values: Sequence[str]) -> bool:
    """Whether they only tell rows apart: single words without one twice."""
    return len(values) > 2 and len(set(values)) == len(values) and not any(re.search(r"\s", v.strip()) for v in values)


def _is_class(values: Sequence[str]) -> bool:
    return 1 < len(set(values)) <= len(values) / 2


def _length(values: Sequence[str]) -> float:
    return sum(map(len, values)) / max(1, len(values))


# --- reading


def _rows(file: Path) -> tuple[tuple[str, ...], Rows, int]:
    """The names and first rows of a JSON, JSON Lines or CSV file, and its first line that is not UTF-8."""
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(file) if packed else file.open("rb") as f:
            head = f.read(HEAD)
            if b"\0" in head:  # Parquet, UTF-16, or no data at all: what prepare-data says of it is better
                return (), [], 0
            f.seek(0)
            bad = next((i for i, line in enumerate(f, 1) if not _is_utf8(line)), 0)
    except (gzip.BadGzipFile, EOFError):
        return (), [], 0
    if len(head) == HEAD:
        head = head[: head.rfind(b"\n") + 1] or head
    text = head.decode("cp1252" if bad else "utf-8-sig", "replace").lstrip()
    found = _json(text) if text[:1] in ("{", "[") else _csv(text)
    names = tuple(dict.fromkeys(n for row in found[:MOST] for n in row))
    return names, [{k: _text(v) for k, v in row.items()} for row in found[:MOST] if any(row.values())], bad


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None or isinstance(value, (list, dict)) else str(value)


def _json(text: str) -> list[dict[str, Any]]:
    """The objects that a text begins with, one after the other or in a list."""
    decoder, at = json.JSONDecoder(), int(text[:1] == "[")
    found: list[dict[str, Any]] = []
    while len(found) < MOST:
        while text[at : at + 1] in (",", " ", "\t", "\r", "\n"):
            at += 1
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict):
            break
        found.append(value)
    return found


def _csv(text: str) -> list[dict[str, Any]]:
    """The rows below a header, whatever stands between its names; a header alone gives a row without values."""
    header = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    between = max(",;\t|", key=header.count)
    try:
        lines = list(csv.reader(text.splitlines(keepends=True), delimiter=between))
    except csv.Error:
        lines = list(csv.reader(text.splitlines()[:1], delimiter=between))
    names = [n.strip() for n in lines[0]] if lines else []
    rows = [dict(zip(names, row, strict=False)) for row in lines[1 : MOST + 1] if any(row)]
    return rows or [dict.fromkeys(names, "")] if len(names) > 1 else []
