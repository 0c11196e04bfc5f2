"""The page of `runner compare`, as one HTML file. Without scripts the tables are there, and the plots are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from microstages.reporting import number_of

from runner.compare.collect import machine
from runner.compare.columns import AGREEMENT, COST, QUALITY, Column, number, present, written
from runner.compare.html import document, file, short, text

UPRIGHT, MANY = 8, 6  # letters of a class, and classes, up to which a matrix has its heads upright, two in a row
LONGEST = 400  # characters of a prompt or an answer that are shown
LEFT_OUT = "; forms below the most frequent answer are left out"
PLOTS: Sequence[tuple[str, str, str]] = (
    ("accuracy", "Accuracy", "share of right answers; the line is the 95 % interval (Wilson)"),
    ("loss", "Loss of the right answers", "nats a token; less is better"),
    ("size-quality", "Size and quality", f"up and to the left is better{LEFT_OUT}"),
    ("speed-quality", "Speed and quality", f"up and to the right is better{LEFT_OUT}"),
    ("kl", "Divergence from the reference", "KL in nats a token; less is better"),
    ("neutral", "Forgetting", "perplexity on a text that is not of the task; less is better"),
    ("speed", "Speed", "tokens a second; more is better"),
    ("first", "Time to the first token", "from the start of a row's batch; less is better"),
    ("memory", "Memory and size", "of the process that answered, and of the files; less is better"),
)


def page_of(data: Mapping[str, Any]) -> str:
    """The page of what `collect.as_data` gives. Where predictions lie is left out: a page goes to other people."""
    data = {**data, "forms": [{k: v for k, v in f.items() if k != "uri"} for f in data["forms"]]}
    parts = [
        f"<h1>{text(data['pipeline'])}</h1>",
        f'<p class="soft">{text(_introduction(data))}</p>',
        *(f'<p class="note">{text(n)}</p>' for n in data["notes"]),
        *figures(data),
        "<h2>Plots</h2>",
        '<noscript><p class="note">The plots need scripts, which are off here.</p></noscript>',
        '<div class="grid">',
        *(_plot(*p) for p in PLOTS),
        "</div>",
        *answers(data),
    ]
    code = file("plots.js") + file("page.js")
    return document(f"{data['pipeline']}: forms compared", parts, data, style=file("page.css"), code=code)


def figures(data: Mapping[str, Any], level: int = 2) -> list[str]:
    """The tables of quality, agreement and cost, and how to read them, below headings of a level."""
    return [*(_table(data["forms"], kind, level) for kind in (QUALITY, AGREEMENT, COST)), _legend(data["forms"])]


def answers(data: Mapping[str, Any], level: int = 2) -> list[str]:
    """Confusions, classes, and the rows on which the forms disagree, below headings of a level."""
    return [_matrices(data["forms"], level), _classes(data["forms"], level), _disagreement(data, level)]


def _introduction(data: Mapping[str, Any]) -> str:
    forms = data["forms"]
    parts = [f"{number_of(len(forms), 'form')} of a model"]
    if data["rows"] is not None:
        parts.append(f"{'the same ' if len(forms) > 1 else ''}{number_of(data['rows'], 'row')}")
    hardware = [f["hardware"] for f in forms]
    if len({machine(f) for f in forms}) == 1 and "processor" in hardware[0]:
        gpus: list[Any] = next((h["gpus"] for h in hardware if h.get("gpus")), [])
        cores = number_of(hardware[0]["cores"], "core")
        parts.append(", ".join([f"{cores} of {hardware[0]['processor']}", *map(str, gpus)]))
    sizes = {number(f, "batch_size") for f in forms}
    if len(sizes) == 1 and (size := next(iter(sizes))) is not None:
        parts.append(f"batches of up to {size:,.0f}")
    return " · ".join(parts)


def _dot(form: Mapping[str, Any]) -> str:
    kind = form["form"] if form["form"] in ("model", "adapter", "onnx") else "other"
    return f'<span class="dot {kind}"></span>'


def _table(forms: Sequence[Mapping[str, Any]], kind: str, level: int) -> str:
    """The columns of one kind; of the agreement only the forms that were compared with another."""
    columns = [c for c in present(forms, long=True) if c.of == kind]
    if kind == AGREEMENT:
        forms = [f for f in forms if f["reference"]]
    if not (columns and forms) and kind != QUALITY:
        return ""
    best = {c.key: _best(forms, c) for c in columns}
    head = "".join(f'<th scope="col" title="{text(c.help)}">{text(c.words)}</th>' for c in columns)
    against = '<th scope="col">reference</th>' if kind == AGREEMENT else ""
    lines = [f"<h{level}>{kind}</h{level}>", '<div class="wide">', "<table>",
             f'<thead><tr><th scope="col">form</th>{against}{head}</tr></thead>', "<tbody>"]  # fmt: skip
    for f in forms:
        cells = [f"<td>{text(f['reference'])}</td>"] if kind == AGREEMENT else []
        for c in columns:
            value = number(f, c.key)
            marked = ' class="best"' if value is not None and value == best[c.key] else ""
            cells.append(f"<td{marked}>{text(written(f, c))}</td>")
        lines.append(f'<tr><th scope="row">{_dot(f)}{text(f["name"])}</th>{"".join(cells)}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>", "</div>"])


def _best(forms: Sequence[Mapping[str, Any]], column: Column) -> float | None:
    """The best value of a column; None where none is better than another, or more than half of the forms have it."""
    values = [v for f in forms if (v := number(f, column.key)) is not None]
    if not column.better or len(set(values)) < 2:
        return None
    best = max(values) if column.better > 0 else min(values)
    return best if 2 * values.count(best) <= len(values) else None


def _legend(forms: Sequence[Mapping[str, Any]]) -> str:
    kinds = {"model": "run by transformers", "adapter": "base and adapter, unmerged", "onnx": "ONNX Runtime GenAI"}
    shown = [(k, words) for k, words in kinds.items() if any(f["form"] == k for f in forms)]
    dots = " &nbsp; ".join(f'<span class="dot {k}"></span>{text(words)}' for k, words in shown)
    words = "The best of a column is bold. What a column means: point at its name."
    if any(number(f, "kl_mean") is not None for f in forms):
        words += " KL is over the reference's 64 likeliest tokens and one bin for all others: a lower bound."
    return f'<p class="soft">{dots}</p>\n<p class="soft">{text(words)}</p>'


def _plot(name: str, title: str, caption: str) -> str:
    return (
        f'<figure id="plot-{name}"><h3>{text(title)}</h3><figcaption>{text(caption)}</figcaption>'
        f'<div class="plot"><canvas role="img" aria-label="{text(title)}: {text(caption)}"></canvas></div></figure>'
    )


def _matrices(forms: Sequence[Mapping[str, Any]], level: int) -> str:
    found = [f for f in forms if f["confusion"]]
    if not found:
        return ""
    cards = "\n".join(_matrix(f) for f in found)
    words = "Each line is a right class, each column what was answered (none: no class); shades are shares of the line."
    head = f"<h{level}>Confusions</h{level}>"
    return f'{head}\n<p class="soft">{words}</p>\n<div class="matrices">\n{cards}\n</div>'


def _matrix(form: Mapping[str, Any]) -> str:
    classes, counts = form["confusion"]["classes"], form["confusion"]["counts"]
    other = any(row[-1] for row in counts)
    heads = [*classes, *(["none"] if other else [])]
    head = "".join(f'<th scope="col" title="{text(c)}"><span>{text(short(c, 24))}</span></th>' for c in heads)
    lines = []
    for i, (name, row) in enumerate(zip(classes, counts, strict=True)):
        total = sum(row) or 1
        cells = []
        for j, n in enumerate(row if other else row[:-1]):
            share = n / total
            kinds = "".join(f" {k}" for k, is_ in (("right", i == j), ("full", share > 0.55)) if is_)
            cells.append(f'<td class="s{round(20 * share)}{kinds}" title="{share:.1%}">{n:,}</td>')
        lines.append(f'<tr><th scope="row" title="{text(name)}">{text(short(name, 24))}</th>{"".join(cells)}</tr>')
    turned = " turned" if max(map(len, heads)) > UPRIGHT or len(heads) > MANY else ""
    broad = " broad" if len(heads) > MANY else ""
    return (
        f'<div class="card{broad}"><h3>{_dot(form)}{text(form["name"])}</h3><table class="matrix{turned}">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _classes(forms: Sequence[Mapping[str, Any]], level: int) -> str:
    """F1 of each class, with precision and recall where they are known; a line for each form."""
    found = [f for f in forms if any("f1" in v for v in f["labels"].values())]
    names = list(dict.fromkeys(c for f in found for c in f["labels"]))
    if not names:
        return ""
    rows = {c: v["rows"] for f in reversed(found) for c, v in f["labels"].items()}
    head = "".join(f'<th scope="col">{text(short(c, 24))} ({rows[c]:,})</th>' for c in names)
    lines = []
    for f in found:
        cells = []
        for c in names:
            v = f["labels"].get(c)
            words = f"{v['f1']:.3f} ({v['precision']:.3f}, {v['recall']:.3f})" if v else "–"
            cells.append(f"<td>{words}</td>")
        lines.append(f'<tr><th scope="row">{_dot(f)}{text(f["name"])}</th>{"".join(cells)}</tr>')
    return (
        f"<h{level}>Classes</h{level}>\n"
        '<p class="soft">F1 (precision, recall) of each class; behind its name its rows.</p>\n'
        f'<div class="wide"><table><thead><tr><th scope="col">form</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _disagreement(data: Mapping[str, Any], level: int) -> str:
    found, forms = data["disagreement"], data["forms"]
    if data["rows"] is None or len(forms) < 2:
        return ""
    title = f"Rows on which the forms disagree: {found['count']:,} of {data['rows']:,}"
    head = f"<h{level}>{title}</h{level}>"
    if not found["rows"]:
        return head
    left = [f["name"] for f in forms if f["name"] not in found["considered"]]
    words = "All of them." if found["count"] == len(found["rows"]) else f"The first {len(found['rows'])} of them."
    if left:
        words += f" {', '.join(left)}: no better than the most frequent answer, shown but not counted."
    names = "".join(f'<th scope="col">{text(f["name"])}</th>' for f in forms)
    lines = []
    for r in found["rows"]:
        cells = []
        for f in forms:
            said = r["said"][f["name"]]
            kind = {True: "correct", False: "wrong"}.get(said["correct"], "")
            cells.append(f'<td class="{kind}">{text(short(said["prediction"] or "", LONGEST))}</td>')
        right = text(short(r["completion"] or "", LONGEST))
        prompt = text(short(r["prompt"] or "", LONGEST))
        lines.append(f'<tr><td>{r["row"]:,}</td><td class="prompt">{prompt}</td><td>{right}</td>{"".join(cells)}</tr>')
    return (
        f'{head}\n<p class="soft">{text(words)}</p>\n<div class="wide"><table class="said"><thead><tr>'
        f'<th scope="col">row</th><th scope="col">prompt</th><th scope="col">right</th>{names}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
