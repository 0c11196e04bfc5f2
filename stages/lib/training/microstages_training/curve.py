"""The loss curve as a picture: an SVG written by hand, so that equal losses give equal bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 48, 52
TRAIN, HELD_OUT, INK, GRID = "#2f6fb0", "#d1492e", "#333333", "#e4e4e4"


def draw(curve: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> str:
    """The training loss (raw, pale; smoothed, bold) and the held-out loss over the steps, as SVG text."""
    steps, losses = [p["step"] for p in curve], [p["loss"] for p in curve]
    eval_steps, eval_losses = [p["step"] for p in evaluations], [p["loss"] for p in evaluations]
    last = max([1, *steps, *eval_steps])
    ticks_y = ticks(min([0.0, *losses, *eval_losses]), max([1e-9, *losses, *eval_losses]))
    low, high = ticks_y[0], ticks_y[-1]

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (loss - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="{INK}">',
        "<title>Loss by step</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for v in ticks_y:
        parts.append(_line([(LEFT, y(v)), (WIDTH - RIGHT, y(v))], GRID, 1))
        parts.append(_text(LEFT - 8, y(v) + 4, f"{v:g}", "end"))
    for v in [t for t in ticks(0, last) if t <= last and float(t).is_integer()]:
        parts.append(_line([(x(v), HEIGHT - BOTTOM), (x(v), HEIGHT - BOTTOM + 5)], INK, 1))
        parts.append(_text(x(v), HEIGHT - BOTTOM + 19, f"{v:,.0f}", "middle"))
    parts.append(_line([(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], INK, 1))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "optimizer step", "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="16" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 16 {middle:.1f})">'
        "loss per trained token (nats)</text>"
    )
    parts.append(_line([(x(s), y(v)) for s, v in zip(steps, losses, strict=True)], TRAIN, 1, opacity=0.35))
    parts.append(_line([(x(s), y(v)) for s, v in zip(steps, smooth(losses), strict=True)], TRAIN, 2))
    parts.append(
        _line([(x(s), y(v)) for s, v in zip(eval_steps, eval_losses, strict=True)], HELD_OUT, 1.2, opacity=0.6)
    )
    parts += [
        f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="3.5" fill="{HELD_OUT}"><title>{escape(f"step {s}: {v:g}")}</title>'
        "</circle>"
        for s, v in zip(eval_steps, eval_losses, strict=True)
    ]
    said = [(TRAIN, f"training, smoothed: {smooth(losses)[-1]:.3f}")] if losses else []
    said += [(HELD_OUT, f"held out: {eval_losses[0]:.3f} → {eval_losses[-1]:.3f}")] if eval_losses else []
    at = LEFT
    for colour, text in said:
        parts.append(_line([(at, 26), (at + 22, 26)], colour, 3))
        parts.append(_text(at + 28, 30, text, "start"))
        at += 240
    return "\n".join([*(p for p in parts if p), "</svg>"]) + "\n"


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a window around each point, a twentieth of all points wide, cut where the curve ends."""
    half = len(values) // 40 + 1 if len(values) > 4 else 0
    out = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        window = values[i - reach : i + reach + 1]
        out.append(sum(window) / len(window))
    return out


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers, evenly spaced, from at most `low` to at least `high`."""
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw)
    first = math.floor(low / step)
    return [round(i * step, 10) for i in range(first, math.ceil(round(high / step, 9)) + 1)]


def _line(points: Sequence[tuple[float, float]], colour: str, width: float, opacity: float = 1.0) -> str:
    if not points:
        return ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    pale = f' stroke-opacity="{opacity}"' if opacity < 1 else ""
    stroke = f'stroke="{colour}" stroke-width="{width}"{pale} stroke-linejoin="round"'
    return f'<polyline points="{path}" fill="none" {stroke}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
