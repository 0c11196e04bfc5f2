"""The command `diff`, and a difference as text. See `differences` for what it is."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from microstages.errors import EXIT_OK
from microstages.reporting import duration, size

from runner.differences import Change, Difference, Reader, Side, StageDifference, as_data, compare
from runner.lineage_forms import short
from runner.plan import on_a_line, shown

GOOD, BAD, BOLD = "32", "31", "1"
# Which way a metric is good, by a part of its name; the first that fits counts.
BETTER: Sequence[tuple[str, int]] = (
    ("loss", -1), ("kl", -1), ("difference", -1), ("perplexity", -1), ("_s", 0), ("seconds", 0), ("bytes", -1),
    ("accuracy", 1), ("f1", 1), ("agreement", 1), ("equal_answers", 1), ("correct", 1), ("ended_share", 1),
)  # fmt: skip
# What is told first, by parts of names; then all else that is not a MINOR, which only --all tells: times, memory,
# threads, and counts and bounds that follow from something else that is shown.
FIRST = ("accuracy", "f1", "loss", "perplexity", "kl", "agreement", "equal_answers", "share")
MINOR = re.compile(
    r"(^|_)(seconds|s|second|per_s|per_second|low|high|threads|tokens|rows|references|prompts|positions|steps|cores)(_|$)"
    r"|memory|latency|batch|_before$|^source_|^correct$|^unanswered$|^labels\.|^confusion|parameters"
)
SHARES = ("accuracy", "f1", "share", "agreement")  # numbers from 0 to 1, told as they are
ROWS = re.compile(r"(^|[._])rows$")
LONG, LONGEST = 40, 2000  # characters of a value: with a line of its own, and at most
TOO_MUCH = 10  # times the value before: a percentage says nothing then


def diff(args: argparse.Namespace) -> int:
    """What differs between two runs, tags or artifacts."""
    from runner import records
    from runner.artifacts import _show_transfers, print_json
    from runner.named import Finder
    from runner.view import colored

    _show_transfers()
    reader = Reader(
        Finder(args.pipeline, args.set), lambda: records.open_history(args.pipeline, args.set),
        lambda: records.open_store(args.pipeline, args.set),
    )  # fmt: skip
    found = compare(*reader.read(args.words))
    if args.json:
        print_json(as_data(found))
    else:
        print(as_text(found, colored(sys.stdout), args.all))
    return EXIT_OK


def as_text(d: Difference, color: bool = False, everything: bool = False) -> str:
    """What came of it, what changed, and what is the same; aligned. Minor figures only with `everything`."""

    def paint(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if color and text.strip() else text

    parts = [paint(f"{d.before.name} → {d.after.name}", BOLD)]
    about = [a for a in (_about(d.before), _about(d.after)) if a]
    parts[0] += "".join(f"\n  {a}" for a in about)
    found = [(s.stage, c) for s in d.stages if s.state != "same" for c in _shown(s)]
    rows = [(stage, c) for stage, c in found if everything or not MINOR.search(c.name)]
    if rows:
        parts.append(_results(d, _in_order(rows), paint))
    causes, counts = _causes(d.stages, everything)
    if causes:
        parts.append(paint("what changed", BOLD) + "\n" + _aligned(causes))
    lines = [_line(word, names) for word, names in _groups(d)]
    parts.append("\n".join(line for line in lines if line) if any(lines) else "nothing to compare")
    if hidden := len(found) - len(rows) + counts:
        parts[-1] += f"\n{hidden} more figures differ (times, memory, counts): runner diff --all"
    return "\n\n".join(parts)


def _rank(name: str) -> int:
    return next((i for i, part in enumerate(FIRST) if part in name), len(FIRST))


def _in_order(rows: Sequence[tuple[str, Change]]) -> list[tuple[str, Change]]:
    """The stages that tell how good something is before the others, else as they were; in each the quality first."""
    minor = len(FIRST) + 1
    best: dict[str, int] = {}
    for stage, c in rows:
        rank = minor if MINOR.search(c.name) else _rank(c.name)
        best[stage] = min(rank, best.get(stage, minor))
    places = {stage: i for i, stage in enumerate(best)}
    return sorted(
        rows, key=lambda r: (best[r[0]], places[r[0]], bool(MINOR.search(r[1].name)), _rank(r[1].name))
    )  # fmt: skip


def _about(side: Side) -> str:
    a = side.about
    words = [str(a.get("pipeline") or a.get("kind") or ""), str(a.get("when") or "").replace("T", " ").rstrip("Z")]
    words += [str(a.get("who") or ""), str(a.get("status") or ""), short(str(a.get("digest") or ""))]
    words += [duration(a["seconds"])] if a.get("seconds") is not None else []
    told = ", ".join(w for w in words if w)
    return f"{side.name}: {told}" if told else ""


def _causes(stages: Sequence[StageDifference], everything: bool) -> tuple[list[tuple[str, str, str]], int]:
    """What was made otherwise: the name, and the value before and after; and how many counts of data are left out."""
    rows: list[tuple[str, str, str]] = []
    left_out = 0
    places: dict[str, list[str]] = {}
    for s in stages:
        rows += [(f"{s.stage}.{c.name}", _whole(c.before), _whole(c.after)) for c in s.params]
        rows += [(f"{s.stage} ← {c.name}", _digest(c.before), _digest(c.after)) for c in s.inputs]
        data = [c for c in s.data if everything or ROWS.search(c.name)]
        left_out += len(s.data) - len(data)
        rows += [(f"{s.stage}: {c.name}", _value(c.before), _value(c.after)) for c in data]
        if s.status:
            rows.append((f"{s.stage}: status", _value(s.status.before), _value(s.status.after)))
        elsewhere = [*s.software, *s.where] if s.state not in ("same", "only before", "only after") else []
        for c in [*([s.code] if s.code else []), *elsewhere]:
            row = (c.name, _digest(c.before), _digest(c.after))
            places.setdefault("\0".join(row), []).append(s.stage)
    for key, names in places.items():
        name, before, after = key.split("\0")
        rows.append((f"{name} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})", before, after))
    return list(dict.fromkeys(rows)), left_out


def _whole(v: Any) -> str:
    """A parameter, however long: what differs may stand at its end."""
    return "–" if v is None else on_a_line(v)[:LONGEST]


def _value(v: Any) -> str:
    return "–" if v is None else shown(v)


def _digest(v: Any) -> str:
    text = _value(v)
    return short(str(v)).removeprefix("sha256:") if str(v).startswith("sha256:") else text


def _aligned(rows: Sequence[tuple[str, str, str]]) -> str:
    """A line for each; values that are long have lines of their own."""
    plain = [r for r in rows if max(map(len, r[1:])) <= LONG]
    left, middle = (max((len(r[i]) for r in plain), default=0) for i in (0, 1))
    forms = {True: f"  {{0:<{left}}}  {{1:<{middle}}} → {{2}}", False: "  {0}\n      {1}\n    → {2}"}
    return "\n".join(forms[max(map(len, r[1:])) <= LONG].format(*r) for r in rows)


def _shown(s: StageDifference) -> list[Change]:
    """The results that differ."""
    changed = [c for c in s.results if c.before != c.after]
    return [*changed, *([s.seconds] if s.seconds and not any(c.name == "seconds" for c in changed) else [])]


def _results(d: Difference, rows: Sequence[tuple[str, Change]], paint: Any) -> str:
    table = []
    for stage, c in rows:
        change = c.difference
        text = share = color = ""
        if change:
            text = f"{'+' if change > 0 else '−'}{_number(abs(change), c.name)}"
            share = _relative(c)
            color = {1: GOOD, 0: "", -1: BAD}[_good(c.name) * (1 if change > 0 else -1)]
        table.append((stage, c.name, _number(c.before, c.name), _number(c.after, c.name), text, share, color))
    heads = ("stage", "result", d.before.name, d.after.name, "difference", "", "")
    widths = [max(len(r[i]) for r in [heads, *table]) for i in range(6)]
    lines = [paint("what came of it", BOLD)]
    last = ""
    for row in [heads, *table]:
        stage = "" if row[0] == last else row[0]
        last = row[0]
        cells = f"  {stage:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  "
        change_ = f"{row[4]:>{widths[4]}}  {row[5]:>{widths[5]}}".rstrip()
        lines.append((cells + (paint(change_, row[6]) if row[6] else change_)).rstrip())
    return "\n".join(lines)


def _good(name: str) -> int:
    """1: the more the better, -1: the less; 0: neither, or what differs from run to run."""
    if name.endswith(("per_s", "per_second")):
        return 1
    return next((way for part, way in BETTER if part in name), 0)


def _relative(c: Change) -> str:
    """A difference as a part of what was before; of shares the difference itself tells more."""
    if not c.before or not c.difference or any(part in c.name for part in SHARES):
        return ""
    part = c.difference / abs(c.before)
    if abs(part) >= TOO_MUCH:
        return f"×{c.after / c.before:,.0f}" if c.after / c.before > 0 else ""
    return f"{part:+,.1%}".replace("-", "−")


def _number(v: Any, name: str = "") -> str:
    """A value in words, with its unit where the name tells it."""
    if v is None:
        return "–"
    if isinstance(v, (int, float)) and not isinstance(v, bool) and -1e18 < v < 1e18:  # not nan either
        if name.endswith("bytes"):
            return size(v) if v >= 0 else f"−{size(-v)}"
        if name.endswith(("per_s", "per_second")):
            return f"{v:,.0f}/s" if abs(v) >= 10 else f"{v:.2g}/s"
        if name.endswith(("_s", "seconds")):
            return f"{v * 1000:,.0f} ms" if abs(v) < 1 else f"{v:,.1f} s"
    if isinstance(v, float):
        if any(part in name for part in SHARES):
            return f"{v:.3f}"
        return f"{v:,.4g}" if abs(v) < 1000 else f"{v:,.0f}"
    return f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else shown(v)


def _groups(d: Difference) -> list[tuple[str, list[str]]]:
    words = {
        "same": "the same", "same bytes": "made otherwise, and the same bytes", "changed": "not the same",
        "only before": f"only in {d.before.name}", "only after": f"only in {d.after.name}",
    }  # fmt: skip
    return [(word, [s.stage for s in d.stages if s.state == state]) for state, word in words.items()]


def _line(word: str, names: Sequence[str]) -> str:
    return f"{word}: {', '.join(names)}" if names else ""
