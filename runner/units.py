"""Numbers, sizes and times as a pipeline file writes them."""

from __future__ import annotations

import re
from typing import Any

_SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def read_number(text: str) -> float | None:
    """`1.5`: a number, 0 or more; None for anything else."""
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else None


def read_bytes(text: str) -> float | None:
    """`48GiB`, `500 MB`, `1000`: bytes; None for anything else."""
    m = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i?))?b?", text.lower())
    if not m:
        return None
    return float(m.group(1)) * (1024 if m.group(3) else 1000) ** " kmgt".index(m.group(2) or " ")


def read_seconds(text: str) -> float | None:
    """`90`, `90s`, `30min`, `1.5h`, `2d`: seconds; None for anything else."""
    m = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|d)?", text)
    return float(m.group(1)) * _SECONDS[m.group(2) or ""] if m else None


def in_our_words(text: str) -> str:
    """`2 hours` as `2h`, as far as one can know; anything else as it is."""
    m = re.fullmatch(r"([0-9.]+)\s*(sec|min|hour|hr|day)[a-z]*", text.lower())
    return m[1] + {"sec": "s", "min": "min", "day": "d"}.get(m[2], "h") if m else text


def shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value)
