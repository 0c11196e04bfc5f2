"""Shows a place in a text: the line, and a caret under what is meant. Values that look secret are covered."""

from __future__ import annotations

import re
import unicodedata

WIDTH = 110  # columns of a line that are shown
_BREAKS = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
# What stands between a name and its value, both of which may be in quotes.
_IS, _BE = r"['\"]?\s*[:=]\s*['\"]?", r"['\"]?\s*=\s*['\"]?"
# `sig=…`, `AccountKey=…`, `HF_TOKEN: …`, `"password": "…"`, `Bearer …`, `https://user:password@…`, a token of the
# Hugging Face hub. A value in angles is a token of text, `<|end|>`.
_SECRETS = (
    re.compile(
        rf"(?i)\b(?:sig|\w*(?:signature|key|secret|token|passw(?:or)?d)){_BE}(?!\$\{{\{{|<)([^\s&;,'\"}}]{{4,}})"
    ),
    re.compile(rf"\b[A-Z][A-Z0-9_]*(?:KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?){_IS}([^\s,'\"}}\]$]{{4,}})"),
    re.compile(rf"(?i)\b\w*(?:key|secret|token|credentials?){_IS}(?=\S*[0-9])([A-Za-z0-9+/_=.-]{{12,}})"),
    re.compile(rf"(?i)\b\w*passw(?:or)?d{_IS}([^\s,'\"}}\]$]{{4,}})"),
    re.compile(rf"(?i)\b(?:bearer|authorization{_IS}basic)\s+([^\s'\"]{{8,}})"),
    re.compile(r"://[^/\s:@]+:([^/\s@]+)@"),
    re.compile(r"\b(hf_[A-Za-z0-9]{8,})"),
    re.compile(r"\bvalue\s*:\s*['\"]?([^\s,'\"}\]$]+)"),
)
# What stands below `secrets:` on its line, but for the names and files that belong there.
_BELOW = re.compile(r"(?<![\w-])(?!(?:name|file)\s*:)[\w-]+\s*:\s*['\"]?([^\s,'\"{}\[\]$]+)")


def lines(text: str) -> list[str]:
    """The lines of a text, as YAML counts them."""
    return _BREAKS.split(text)


def covered(text: str) -> str:
    """A line with dots in the place of secrets, so that the columns stay."""
    for pattern in _SECRETS:
        for m in list(pattern.finditer(text)):
            text = text[: m.start(1)] + "•" * len(m[1]) + text[m.end(1) :]
    head, word, below = text.partition("secrets:")
    return head + word + _BELOW.sub(lambda m: m[0][: m.start(1) - m.start()] + "•" * len(m[1]), below)


def excerpt(text: str, line: int, column: int, width: int = 1) -> str:
    """Two lines: `text` with its number (0: none), and below it a caret under `width` characters from `column`
    (from 1). Long lines are cut around it; of what has no width or no picture a blank or a question mark is shown."""
    at = max(0, min(column - 1, len(text)))
    shown = covered(text)
    width = max(1, min(width, len(shown) - at))
    first = 0 if at + min(width, 20) < WIDTH else max(0, at - WIDTH // 2)
    last = min(len(shown), first + WIDTH)
    width = max(1, min(width, last - at))
    before, under = _plain(shown[first:at]), _plain(shown[at : at + width])
    cut = "…" if first else ""
    drawn = cut + before + under + _plain(shown[at + width : last]) + ("…" if last < len(shown) else "")
    head = f"{line or '':>5} | "
    return f"{head}{drawn.rstrip()}\n{'':>5} | {' ' * (_columns(cut + before))}{'^' * max(1, _columns(under))}"


def _plain(text: str) -> str:
    return "".join(" " if c == "\t" else c if c.isprintable() else "?" for c in text)


def _columns(text: str) -> int:
    """How wide a text stands on a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
