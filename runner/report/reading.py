"""Reads what a report shows beside manifests: curves, token lengths, reports of data, the ends of logs.

Nothing of it is needed: what is missing, damaged or too large to fetch for a page is left out, and `Note` says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.errors import UserError
from microstages.manifest import MANIFEST, Manifest
from microstages.reporting import size

from runner.events import event_of
from runner.excerpt import covered

FETCHED = 64 << 20  # bytes: larger files of a remote artifact are not fetched for a page
EVENTS = 16 << 20  # bytes of events that are read
TAIL_BYTES, TAIL = 64 << 10, 16  # of a log
AT_ONCE = 8
BINS = 40
POINTS = 600  # of a curve
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x08\x0b-\x1f\x7f]")

Note = Callable[[str], None]


def manifests(uris: Mapping[str, str], note: Note) -> dict[str, Manifest]:
    """The manifests of artifacts (name -> address), read side by side where they are far away."""

    def read(name: str) -> Manifest | None:
        where = storage.public(uris[name])
        try:
            data = storage.read(storage.join(uris[name], MANIFEST))
            if data is None:
                note(f"{name} is not in the store any more")
                return None
            return Manifest.from_json(data, where)
        except (UserError, OSError) as error:
            note(f"{name} cannot be read: {first_line(error)}")
            return None

    if all(storage.local_path(u) is not None for u in uris.values()):
        found = [read(u) for u in uris]
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(read, uris))
    return {name: m for name, m in zip(uris, found, strict=True) if m is not None}


def first_line(error: BaseException) -> str:
    return str(getattr(error, "what", "") or error).split("\n", maxsplit=1)[0]


def content(uri: str, manifest: Manifest, name: str, note: Note) -> bytes | None:
    """A small file of an artifact, checked against its manifest; None where it has none, or it cannot be shown."""
    entry = next((f for f in manifest.files if f.path == name), None)
    if entry is None:
        return None
    if entry.size > FETCHED:
        note(f"{name} is too large for a page")
        return None
    try:
        data = storage.read(storage.join(uri, name))
    except (UserError, OSError) as error:
        note(f"{name} cannot be read: {first_line(error)}")
        return None
    if data is None or hashlib.sha256(data).hexdigest() != entry.sha256:
        note(f"{name} is missing" if data is None else f"{name} was altered: its sha256 differs")
        return None
    return data


def json_of(uri: str, manifest: Manifest, name: str, note: Note) -> dict[str, Any] | None:
    """A JSON object among the files of an artifact."""
    data = content(uri, manifest, name, note)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        note(f"{name} is no JSON object")
        return None
    return value


# --- curves ---


def curve_of(steps: Sequence[Any], evaluations: Sequence[Any]) -> dict[str, Any] | None:
    """A curve as columns: step, loss, learning_rate and gradient_norm of the training steps, and `held_out` points
    (step, loss). None where there is nothing to draw."""
    points = [p for p in steps if isinstance(p, dict) and _number(p.get("step")) and _number(p.get("loss"))]
    held = [[e["step"], e["loss"]] for e in evaluations
            if isinstance(e, dict) and _number(e.get("step")) and _number(e.get("loss"))]  # fmt: skip
    if not (points or held):
        return None
    columns = {k: [p.get(k) if _number(p.get(k)) else None for p in points]
               for k in ("step", "loss", "learning_rate", "gradient_norm")}  # fmt: skip
    return thinned({**columns, "held_out": held}, POINTS)


def thinned(curve: Mapping[str, list[Any]], points: int) -> dict[str, list[Any]]:
    """A curve with at most so many points, the first and the last among them."""

    def fewer(values: list[Any]) -> list[Any]:
        every = -(-len(values) // (points - 1))
        return [*values[:-1:every], values[-1]] if len(values) > points else values

    return {k: fewer(v) for k, v in curve.items()}


def _number(v: Any) -> bool:
    return isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e30  # false for nan too


def told(log: str, note: Note | None = None) -> list[dict[str, Any]]:
    """The last events that a stage told so far; none where its log is not here. `note` is told where some are left
    out."""
    for file in (Path(log).with_suffix(".events"), Path(log)) if log else ():
        try:
            with file.open("rb") as f:
                first = max(0, f.seek(0, os.SEEK_END) - EVENTS)
                f.seek(max(0, first - 1))
                data = f.read(EVENTS + (first > 0))
        except OSError:
            continue
        if first:
            data = data.partition(b"\n")[2]
            if note:
                note(f"only the last {size(EVENTS)} of what it told are read: what came before is not in its curve")
        return [event for line in data.split(b"\n") if line.startswith(b"{") and (event := event_of(line))]
    return []


def curve_told(events: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The curve that a training told so far."""
    metrics = [e for e in events if e["event"] == "metric"]
    held = [{"step": e.get("step"), "loss": e.get("eval_loss")} for e in metrics if "eval_loss" in e]
    return curve_of([e for e in metrics if "loss" in e], held)


# --- token lengths ---


def histogram(uri: str, manifest: Manifest, note: Note) -> dict[str, Any] | None:
    """Tokens of the examples, counted: `edges` (BINS and fewer bins between them, whole numbers), `train`, `test`."""
    counts = {s: c for s in ("train", "test") if (c := _lengths(uri, manifest, f"{s}.safetensors", note))}
    if not counts:
        return None
    low, high = min(min(c) for c in counts.values()), max(max(c) for c in counts.values())
    width = -(-(high - low + 1) // BINS)
    edges = list(range(low, high + 1, width))
    out: dict[str, Any] = {"width": width, "edges": edges}
    for split, count in counts.items():
        bins = [0] * len(edges)
        for length, n in count.items():
            bins[(length - low) // width] += n
        out[split] = bins
    return out


def _lengths(uri: str, manifest: Manifest, name: str, note: Note) -> Counter[int]:
    """How often each length of `example_lengths` is there; of a local file only that tensor is read."""
    entry = next((f for f in manifest.files if f.path == name), None)
    if entry is None:
        return Counter()
    folder = storage.local_path(uri)
    try:
        if folder is not None:
            with (folder / name).open("rb") as f:
                size = int.from_bytes(f.read(8), "little")
                if size > entry.size:
                    raise ValueError("no header")
                first, last = json.loads(f.read(size))["example_lengths"]["data_offsets"]
                f.seek(8 + size + first)
                raw = f.read(last - first)
        else:
            data = content(uri, manifest, name, note)
            if data is None:
                return Counter()
            size = int.from_bytes(data[:8], "little")
            first, last = json.loads(data[8 : 8 + size])["example_lengths"]["data_offsets"]
            raw = data[8 + size + first : 8 + size + last]
        values = array("i", raw)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        note(f"the lengths in {name} cannot be read")
        return Counter()
    if sys.byteorder == "big":
        values.byteswap()
    return Counter(values)


# --- words ---


class Cleaner:
    """Makes what programs said fit for other people: without control characters, without paths of this machine where
    they are known, dots in the place of what looks like a secret."""

    def __init__(self, folder: Path | None) -> None:
        self._paths = [(f"{folder}/", "")] if folder and str(folder) != "/" else []
        home = str(Path.home())
        self._paths += [(f"{home}/", "~/")] if home not in ("/", "") else []

    def __call__(self, text: str) -> str:
        for path, shown in self._paths:
            text = text.replace(path, shown)
        return covered(_CONTROL.sub("", text))

    def tail(self, log: str) -> list[str]:
        """The last lines of a log."""
        try:
            with open(log, "rb") as f:
                f.seek(max(0, f.seek(0, 2) - TAIL_BYTES))
                lines = f.read(TAIL_BYTES).decode(errors="replace").splitlines()
        except OSError:
            return []
        said = [line.rsplit("\r", 1)[-1] for line in lines if not line.startswith('{"event"')]
        return [self(line)[:400] for line in said[-TAIL:]]
