"""The part of the page about data sets: what came in, what became of it, how long it is, and what is trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from runner.compare.columns import percent
from runner.compare.html import short, text
from runner.report.words import DASH, LONGEST, plot, table, value

Data = Mapping[str, Any]
_MASK = re.compile("⟦([^⟦⟧]*)⟧")
ROWS = {
    "read": "rows read", "bad": "bad", "duplicate": "duplicate", "dropped_too_long": "dropped: too long",
    "dropped_nothing_to_train": "dropped: nothing to train", "dropped_too_short": "dropped: too short",
    "dropped_empty": "dropped: empty", "train": "rows to train on", "held_out": "rows held out", "truncated": "cut",
}  # fmt: skip


def data(data: Data) -> str:
    return "\n".join(_one_data(i, d) for i, d in enumerate(data["data"]))


def _one_data(i: int, d: Data) -> str:
    r = d["report"]
    rows = _dict(r.get("rows"))
    splits = [(s, _dict(r.get(s))) for s in ("train", "test") if r.get(s)]
    lines = [[text(words), text(counted(rows[k]))] for k, words in ROWS.items()
             if rows.get(k) or (k in ("read", "train") and k in rows)]  # fmt: skip
    facts = []
    for key, words in (("tokens", "tokens"), ("trained_tokens", "tokens trained on"), ("bins", "sequences")):
        if any(key in s for _, s in splits):
            facts.append([words, *(text(counted(s.get(key))) for _, s in splits)])
    for key, words in (("trained_share", "share trained on"), ("packing_efficiency", "how full")):
        if any(isinstance(s.get(key), (int, float)) for _, s in splits):
            facts.append([words, *(percent(s[key]) if isinstance(s.get(key), (int, float)) else DASH
                                   for _, s in splits)])  # fmt: skip
    for key in ("min", "p50", "p95", "max"):
        if any(_dict(s.get("lengths")) for _, s in splits):
            facts.append([f"tokens of a row, {key}", *(text(counted(_dict(s.get("lengths")).get(key)))
                                                       for _, s in splits)])  # fmt: skip
    answers = list(dict.fromkeys(a for _, s in splits for a in _dict(s.get("answers"))))
    said = [[text(short(str(a), 80)), *(text(counted(_dict(s.get("answers")).get(a, 0))) for _, s in splits)]
            for a in answers[:30]]  # fmt: skip
    names = [{"train": "train", "test": "held out"}[s] for s, _ in splits]
    told = [str(w) for k in ("warnings", "notes") for w in _list(r.get(k))]
    how = _dict(r.get("how"))
    parts = [
        f"<h3>{text(d['artifact'])}</h3>",
        *(f'<p class="note">{text(w)}</p>' for w in told),
        '<div class="grid">',
        plot(f"lengths-{i}", "Token lengths", f"examples by their tokens; at most {value(d['max_length'])} a sequence")
        if d["lengths"] else "",
        f'<div class="card">{table(("", *names), facts, "facts")}</div>' if facts else "",
        f'<div class="card">{table(("", ""), lines, "facts")}</div>' if lines else "",
        f'<div class="card">{table(("answer", *names), said, "facts")}</div>' if said else "",
        "</div>",
        f'<p class="soft">Rows became text by <code>{text(value(how))}</code></p>' if how else "",
        _examples(_list(r.get("examples"))),
    ]  # fmt: skip
    return "\n".join(p for p in parts if p)


def counted(v: Any) -> str:
    """A count with its thousands apart."""
    return f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else value(v)


def _examples(found: Sequence[Any]) -> str:
    shown = [e for e in found if isinstance(e, dict) and isinstance(e.get("text"), str)]
    if not shown:
        return ""
    blocks = "".join(
        f'<figure class="example"><figcaption>{text(value(e.get("tokens")))} tokens</figcaption>'
        f"<pre>{_masked(e['text'][:LONGEST])}</pre></figure>"
        for e in shown
    )
    return f'<h4>Examples</h4><p class="soft">The loss is taken on what is <mark>marked</mark>.</p>{blocks}'


def _masked(example: str) -> str:
    """What is trained, between ⟦ and ⟧, as marks."""
    if example.count("⟦") != example.count("⟧") or "⟦⟧" in example:
        return text(example)
    parts = _MASK.split(example)
    return "".join(f"<mark>{text(p)}</mark>" if i % 2 else text(p) for i, p in enumerate(parts))


def _dict(v: Any) -> dict[str, Any]:
    return v if isinstance(v, dict) else {}


def _list(v: Any) -> list[Any]:
    return v if isinstance(v, list) else []
