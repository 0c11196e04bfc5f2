"""Small parts that the page is made of: digests, tables, values in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from microstages.reporting import size

from runner.compare.html import short, text

Data = Mapping[str, Any]
DASH = "–"
LONGEST = 2000  # characters of a value


def digest(value: str, full: bool = False) -> str:
    """A digest, short or whole, that copies itself whole."""
    if not value:
        return DASH
    shown = value if full else value.removeprefix("sha256:")[:12]
    return (
        f'<button type="button" class="digest" data-full="{text(value)}" title="{text(value)}">{text(shown)}</button>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already; the first cell of a line is its head."""
    lines = [f'<tr><th scope="row">{first}</th>{"".join(f"<td>{c}</td>" for c in rest)}</tr>' for first, *rest in rows]
    if not lines:
        return ""
    top = "".join(f'<th scope="col">{h}</th>' for h in head)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="table"><table class="{kind}">'
        + (f"<thead><tr>{top}</tr></thead>" if head else "")
        + f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def value(v: Any) -> str:
    """A parameter or a measured value, as text."""
    if v is None:
        return "none"
    if isinstance(v, bool):
        return "yes" if v else "no"
    if isinstance(v, float):
        return f"{v:,.6g}"
    if isinstance(v, int):
        return f"{v:,}" if abs(v) >= 10_000 else str(v)
    return short(v if isinstance(v, str) else json.dumps(v, ensure_ascii=False), LONGEST)


def plot(name: str, title: str, caption: str, said: str = "") -> str:
    label = f"{title}: {said or caption}"
    return (
        f'<figure id="plot-{name}"><h4>{text(title)}</h4><figcaption>{text(caption)}</figcaption>'
        f'<div class="plot"><canvas role="img" aria-label="{text(label)}"></canvas></div></figure>'
    )


def flat(values: Data, before: str = "") -> list[tuple[str, str]]:
    """Nested values as `outer.inner`, in words; sizes and shares as people read them."""
    out: list[tuple[str, str]] = []
    for k, v in values.items():
        name = f"{before}{k}"
        if isinstance(v, dict) and len(out) < 300:
            out += flat(v, f"{name}.")
        elif isinstance(v, (int, float)) and not isinstance(v, bool) and k.endswith("_bytes"):
            out.append((name, size(v)))
        else:
            out.append((name, value(v)))
    return out
