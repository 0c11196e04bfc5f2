"""The graph of a run and its timeline, as SVG inside the page: they need no scripts, and follow the page's colours."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from microstages.reporting import duration, number_of

from runner.compare.html import short, text
from runner.layout import Layout, layout

LETTER = 7.4  # pixels of a letter of a box, about
PADDING, HEIGHT = 12, 58  # pixels of a box
PHONE = 480.0  # pixels: a graph that is wider is not drawn downwards
# Not by colour alone: a sign and a word for each state.
SIGNS = {"done": "✓", "reused": "↺", "failed": "✕", "died": "✕", "stopped": "■", "running": "▸"}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400)

Stage = Mapping[str, Any]


def state(status: str) -> str:
    """The class of a status; the word itself may be anything."""
    return status if status in SIGNS else "waiting"


def badge(status: str) -> str:
    return f'<span class="state {state(status)}">{SIGNS.get(status, "○")} {text(status)}</span>'


def took(stage: Stage, now: float) -> float | None:
    """Seconds that a stage ran in this run, or has run so far."""
    if stage["started"] is None or stage["status"] == "reused":
        return None
    end = stage["finished"] if stage["finished"] is not None else now if stage["status"] == "running" else None
    return None if end is None else max(0.0, end - stage["started"])


def made_in(stage: Stage) -> str:
    """For a stage that was reused: who made its result, and how long that took."""
    made = stage["made"]
    if not made:
        return ""
    parts = [f"made in run {made['run']}"] if made["run"] else []
    if made["started"] and made["finished"]:
        parts.append(f"in {duration(max(0.0, made['finished'] - made['started']))}")
        if not made["run"]:
            parts = [f"made {parts[0]}"]
    return " ".join(parts)


# --- the graph ---


def graph(stages: Sequence[Stage], edges: Sequence[Sequence[str]], now: float) -> str:
    """The stages as boxes, what they hand over as lines; where that helps twice: the page shows the one that fits."""
    sizes = {}
    for s in stages:
        letters = max(len(short(s["name"], 24)) + 2, len(short(s["uses"], 26)), len(_under(s, now)))
        sizes[s["name"]] = (max(104.0, letters * LETTER + 2 * PADDING), float(HEIGHT))
    pairs = [(a, b) for a, b in edges]
    across = layout(sizes, pairs, rightwards=True, gap=18, layer_gap=40)
    down = layout(sizes, pairs, rightwards=False, gap=14, layer_gap=34)
    words = f"The graph: {number_of(len(stages), 'stage')}. " + " ".join(
        f"{b} takes from {', '.join(a for a, other in pairs if other == b)}."
        for b in dict.fromkeys(b for _, b in pairs)
    )
    # One that is too wide for a phone either way is scrolled from where it begins: the left.
    shown = (("across", across), ("down", down)) if down.width <= PHONE else (("both", across),)
    return "\n".join(
        f'<div class="graph {kind}" tabindex="0" role="region" aria-label="graph of the stages">'
        f"{_draw(stages, pairs, lay, words, now)}</div>"
        for kind, lay in shown
    )


def _under(s: Stage, now: float) -> str:
    seconds = took(s, now)
    return s["status"] if seconds is None else f"{s['status']} {duration(seconds)}"


def _draw(stages: Sequence[Stage], edges: Sequence[tuple[str, str]], lay: Layout, words: str, now: float) -> str:
    width, height = lay.width + 4, lay.height + 4
    arrow = "M-7,-4 L0,0 L-7,4 Z" if lay.rightwards else "M-4,-7 L0,0 L4,-7 Z"
    out = [
        f'<svg width="{width:.0f}" height="{height:.0f}" viewBox="-2 -2 {width:.0f} {height:.0f}" role="group" '
        f'aria-label="{text(words)}">'
    ]
    for edge in edges:
        if edge in lay.lines:
            x, y = lay.lines[edge][-1]
            out.append(f'<path class="line" d="{lay.path(edge)}"/>')
            out.append(f'<path class="arrow" transform="translate({x:.1f},{y:.1f})" d="{arrow}"/>')
    for i, s in enumerate(stages):
        box = lay.boxes[s["name"]]
        title = f"{s['name']} ({s['uses']}): {_under(s, now)}. {s['reason']}"
        x = PADDING
        out.append(
            f'<a href="#stage-{i}" aria-label="{text(title)}"><g class="box {state(s["status"])}" '
            f'transform="translate({box.x:.1f},{box.y:.1f})"><title>{text(title)}</title>'
            f'<rect width="{box.width:.1f}" height="{box.height:.1f}" rx="7"/>'
            f'<rect class="edge" width="5" height="{box.height:.1f}" rx="2.5"/>'
            f'<text class="name" x="{x}" y="20">{text(short(s["name"], 24))}</text>'
            f'<text class="under" x="{x}" y="35">{text(short(s["uses"], 26))}</text>'
            f'<text class="what" x="{x}" y="50">{SIGNS.get(s["status"], "○")} {text(_under(s, now))}</text></g></a>'
        )
    return "".join([*out, "</svg>"])


# --- the timeline ---


def timeline(data: Mapping[str, Any]) -> str:
    """A line for each stage that ran: when, and for how long, from the start of the run. Widths are shares, so it is
    as wide as the page."""
    run, stages = data["run"], data["stages"]
    now = run["now"]
    ran = [s for s in stages if took(s, now) is not None]
    if not ran:
        return '<p class="soft">Nothing ran: every result was there already.</p>' if _all_reused(stages) else ""
    begin = min([run["started"], *(s["started"] for s in ran)])
    end = max(s["started"] + (took(s, now) or 0.0) for s in ran)
    end = max(end, run["finished"] or begin)
    whole = max(end - begin, 0.001)
    step = next((t for t in TICKS if whole / t <= 5), TICKS[-1] * max(1, round(whole / TICKS[-1] / 4)))
    lines = ['<div class="time" role="list" aria-label="timeline of the run">']
    for s in ran:
        seconds = took(s, now) or 0.0
        x, w = 100 * (s["started"] - begin) / whole, max(100 * seconds / whole, 0.4)
        said = f"{s['name']}: {s['status']}, began after {duration(s['started'] - begin)}, took {duration(seconds)}"
        lines.append(
            f'<div class="row" role="listitem"><span class="label">{text(s["name"])}</span>'
            f'<svg class="track" role="img" aria-label="{text(said)}"><title>{text(said)}</title>'
            f"{_ticks(step, whole)}"
            f'<rect class="bar {state(s["status"])}" x="{min(x, 99.6):.2f}%" width="{min(w, 100 - x):.2f}%" y="3" '
            f'height="14" rx="3"/></svg><span class="took">{text(duration(seconds))}</span></div>'
        )
    marks = [
        f'<text x="{100 * i * step / whole:.2f}%" y="11" class="{"first" if i == 0 else ""}">'
        f"{text(_clock(i * step))}</text>"
        for i in range(int(whole / step) + 1)
        if i * step / whole < 0.97
    ]
    lines.append(
        '<div class="row scale" aria-hidden="true"><span class="label"></span>'
        f'<svg class="track">{"".join(marks)}</svg><span class="took"></span></div></div>'
    )
    return "".join(lines)


def _ticks(step: float, whole: float) -> str:
    places = [100 * i * step / whole for i in range(int(whole / step) + 1)]
    return "".join(f'<line class="tick" x1="{p:.2f}%" x2="{p:.2f}%" y1="0" y2="20"/>' for p in places)


def _all_reused(stages: Sequence[Stage]) -> bool:
    return bool(stages) and all(s["status"] == "reused" for s in stages)


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s"
    if seconds < 3600:
        return f"{seconds / 60:g} min"
    return f"{seconds / 3600:g} h"


def when(seconds: float | None) -> str:
    """A time for people, in UTC: a page is read elsewhere."""
    return "–" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
