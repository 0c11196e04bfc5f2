"""What a program's line tells as an event: anybody's words, of which only what can be reckoned with is believed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LARGEST = 1e308  # what is more is no float
DEEPEST = 20  # levels of one event


def number(value: object) -> float | None:
    """A number that can be reckoned with, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= LARGEST else None  # false for nan too


def event_of(line: str | bytes) -> dict[str, Any] | None:
    """The event that a line tells; None for any other words, and for what is nested as no event is."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) and _flat(event, DEEPEST) else None


def _flat(value: Any, levels: int) -> bool:
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return levels > 0 and all(_flat(v, levels - 1) for v in inside)
