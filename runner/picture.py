"""A graph as SVG: cards joined by curves, for light and dark pages, for paper and for screen readers. No dependency.

Every text is escaped, and what XML cannot hold is left out; a picture holds no script and loads nothing. Its style is
its own, so it looks the same as a file, in an `<img>` and inside a page.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from runner.layout import Edge, Layout, layout

TITLE, SMALL = 14.0, 11.5  # px: the sizes of letters
PAD_X, PAD_Y, LINE = 12.0, 9.0, 16.0  # px: inside a card
MARGIN = 16.0  # px: around the whole
WIDEST = 260.0  # px of text in a card; the rest is cut and stands in the hint
BOLD = 1.14  # how much wider bold letters are
ROUND = 8.0

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NARROW, _BROAD = frozenset("iljtfrI.,:;|!'()[] -"), frozenset("mwMW@%—…")

STYLE = """\
.ms-graph{font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;\
--ink:#1f2328;--quiet:#59636e;--card:#ffffff;--edge:#8c959f;--page:#ffffff;\
--done:#1a7f37;--reused:#0969da;--failed:#cf222e;--stopped:#9a6700;--running:#8250df}
.ms-graph .page{fill:var(--page)}
.ms-graph .card rect{fill:var(--card);stroke:var(--edge);stroke-width:1.25}
.ms-graph .card .mark{stroke:none;fill:var(--edge)}
.ms-graph .source rect.box{stroke-dasharray:4 3}
.ms-graph text{fill:var(--ink)}
.ms-graph .small{fill:var(--quiet)}
.ms-graph .edge{fill:none;stroke:var(--edge);stroke-width:1.5}
.ms-graph .tip{fill:var(--edge)}
.ms-graph .word{fill:var(--quiet);paint-order:stroke;stroke:var(--page);stroke-width:5px;stroke-linejoin:round}
.ms-graph .done .mark{fill:var(--done)}.ms-graph .reused .mark{fill:var(--reused)}
.ms-graph .failed .mark{fill:var(--failed)}.ms-graph .stopped .mark{fill:var(--stopped)}
.ms-graph .running .mark{fill:var(--running)}
@media(prefers-color-scheme:dark){.ms-graph{--ink:#e6edf3;--quiet:#9ea7b3;--card:#1c2128;--edge:#6e7681;--page:#0d1117;\
--done:#3fb950;--reused:#58a6ff;--failed:#ff7b72;--stopped:#d29922;--running:#bc8cff}}
@media print{.ms-graph{--ink:#000;--quiet:#333;--card:#fff;--page:#fff;--edge:#555}}"""


@dataclass(frozen=True)
class Card:
    """One box: its name, smaller lines below it, and a `hint`, which is shown when one points at it. `state`: done,
    reused, failed, stopped, running, not run; `source` for what comes from outside."""

    title: str
    lines: tuple[str, ...] = ()
    state: str = ""
    hint: str = ""
    link: str = ""  # where a click leads: an address within the page's own site


def clean(text: object) -> str:
    """Text that may stand in XML or HTML, in an attribute too."""
    return escape(_NOT_XML.sub("\ufffd", str(text)))


def width(text: str, size: float) -> float:
    """About how wide a text is, in px; rather too wide than too narrow."""
    em = 0.0
    for c in text:
        if unicodedata.combining(c):
            continue
        if unicodedata.east_asian_width(c) in "WF":
            em += 1.05
        else:
            digit = 0.64 if c.isdigit() else 0.58
            em += 0.36 if c in _NARROW else 0.9 if c in _BROAD else 0.7 if c.isupper() else digit
    return em * size


def cut(text: str, size: float, most: float = WIDEST) -> str:
    """A text as far as it fits into so many px; the end is kept too, where names differ."""
    text = " ".join(text.split())
    if width(text, size) <= most:
        return text
    keep = len(text)
    while keep > 2 and width(f"{text[: keep - keep // 3]}…{text[-(keep // 3) :]}", size) > most:
        keep -= 1
    return f"{text[: keep - keep // 3]}…{text[-(keep // 3) :]}"


def svg(
    cards: Mapping[str, Card], edges: Mapping[Edge, str], title: str, *, rightwards: bool = True, page: bool = True
) -> str:
    """The picture of a graph: a card by name, a word for each edge (or none). `page`: with a background of its own;
    inside a page, that page's shows. The text is one `<svg>` element, a file as it stands."""
    shown = {
        name: Card(cut(c.title, TITLE), tuple(cut(line, SMALL) for line in c.lines), c.state, c.hint or c.title, c.link)
        for name, c in cards.items()
    }
    widest = max((width(cut(w, SMALL, 120), SMALL) for w in edges.values()), default=0.0)
    placed = layout(
        {name: _size(c) for name, c in shown.items()}, list(edges), rightwards=rightwards,
        even=True, layer_gap=max(56.0, widest + 32.0) if rightwards else 56.0,
    )  # fmt: skip
    across, high = placed.width + 2 * MARGIN, placed.height + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="ms-graph" width="{across:.0f}" height="{high:.0f}" '
        f'viewBox="{-MARGIN:.0f} {-MARGIN:.0f} {across:.0f} {high:.0f}" role="img" aria-label="{clean(title)}">',
        f"<title>{clean(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    if page:
        parts.append(f'<rect class="page" x="{-MARGIN:.0f}" y="{-MARGIN:.0f}" width="100%" height="100%"/>')
    parts += [_line(placed, edge, edges[edge]) for edge in placed.lines]
    parts += [_card(placed, name, card) for name, card in shown.items()]
    parts += [_word(placed, edge, word) for edge, word in edges.items() if word and edge in placed.lines]
    return "\n".join([*parts, "</svg>", ""])


def _size(card: Card) -> tuple[float, float]:
    texts = [width(card.title, TITLE) * BOLD, *(width(line, SMALL) for line in card.lines)]
    return max(texts) + 2 * PAD_X + 6, TITLE + len(card.lines) * LINE + 2 * PAD_Y


def _line(placed: Layout, edge: Edge, word: str) -> str:
    x, y = placed.lines[edge][-1]
    tip = f"{x:.1f},{y:.1f} {x - 7:.1f},{y - 4:.1f} {x - 7:.1f},{y + 4:.1f}"
    if not placed.rightwards:
        tip = f"{x:.1f},{y:.1f} {x - 4:.1f},{y - 7:.1f} {x + 4:.1f},{y - 7:.1f}"
    hint = f"<title>{clean(word)}</title>" if word else ""
    return f'<path class="edge" d="{placed.path(edge)}">{hint}</path><polygon class="tip" points="{tip}"/>'


def _word(placed: Layout, edge: Edge, word: str) -> str:
    x, y = placed.end(edge)
    return (
        f'<text class="word" x="{x:.1f}" y="{y + SMALL / 3:.1f}" font-size="{SMALL}" text-anchor="middle">'
        f"{clean(cut(word, SMALL, 120))}</text>"
    )


def _card(placed: Layout, name: str, card: Card) -> str:
    b = placed.boxes[name]
    kind = re.sub(r"[^a-z]+", "-", card.state.lower())
    left, y = b.x + PAD_X + 4, b.y + PAD_Y + TITLE * 0.82
    parts = [
        f'<g class="card {kind}"><title>{clean(card.hint)}</title>',
        f'<rect class="box" x="{b.x:.1f}" y="{b.y:.1f}" width="{b.width:.1f}" height="{b.height:.1f}" rx="{ROUND}"/>',
    ]
    if kind and kind != "source":
        parts.append(
            f'<rect class="mark" x="{b.x + 5:.1f}" y="{b.y + 8:.1f}" width="4" height="{b.height - 16:.1f}" rx="2"/>'
        )
    parts.append(f'<text x="{left:.1f}" y="{y:.1f}" font-size="{TITLE}" font-weight="600">{clean(card.title)}</text>')
    for line in card.lines:
        y += LINE
        parts.append(f'<text class="small" x="{left:.1f}" y="{y:.1f}" font-size="{SMALL}">{clean(line)}</text>')
    text = "".join([*parts, "</g>"])
    return f'<a href="{clean(card.link)}">{text}</a>' if card.link else text
