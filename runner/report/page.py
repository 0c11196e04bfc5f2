"""The page of a run: its parts in order. `collect` says what stands in it, `sections` and `pictures` how it looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from microstages.reporting import duration

from runner.compare.html import document, file, text
from runner.history import History
from runner.pipeline import Pipeline
from runner.records import counts
from runner.report import dataset, origin, sections
from runner.report.collect import as_data
from runner.report.pictures import badge, graph, timeline, when
from runner.report.reading import thinned
from runner.report.which import Shown, meant
from runner.store import Store

Data = Mapping[str, Any]
MOST_POINTS = 9000  # of all curves: so a page stays small, however many stages trained
SECTIONS: tuple[tuple[str, str, Callable[[Data], str]], ...] = (
    ("failures", "What went wrong", sections.failures),
    ("graph", "Stages", lambda d: graph(d["stages"], d["edges"], d["run"]["now"])),
    ("timeline", "Timeline", timeline),
    ("evaluation", "Evaluation", sections.evaluation),
    ("quantization", "What quantization cost", sections.quantization),
    ("training", "Training", sections.training),
    ("data", "Data", dataset.data),
    ("lineage", "Lineage", origin.lineage),
    ("details", "Details of the stages", origin.details),
    ("machines", "Software and hardware", origin.machines),
)
END = {
    "running": "It is still running: this is how it stood then.",
    "failed": "It failed. What was done before is kept, and runner up continues from there.",
    "stopped": "It was stopped. What was done before is kept, and runner up continues from there.",
    "died": "Its runner was killed. What was done before is kept, and runner up continues from there.",
}


def page(pipeline: Pipeline | None, store: Store, history: History, run: int | Shown) -> str:
    """The report of a run as one HTML page. `run`: its number in the history, or what `which` found.

    `pipeline`, where it is known, says how stages hang together that were not reached, and what parameters are by
    default. Raises UserError where there is no such run. What cannot be read any more is told on the page.
    """
    shown = meant(store, history, str(run)) if isinstance(run, int) else run
    return page_of(as_data(pipeline, store, shown))


def page_of(data: Data) -> str:
    """The page of what `collect.as_data` gives."""
    run = data["run"]
    titles = {"failures": "Where it stopped"} if run["status"] == "stopped" else {}
    made = [(name, titles.get(name, title), content) for name, title, draw in SECTIONS if (content := draw(data))]
    links = "".join(f'<li><a href="#part-{name}">{text(title)}</a></li>' for name, title, _ in made)
    parts = [
        '<a class="skip" href="#main">to the content</a>',
        "<header>",
        f'<p class="soft kicker">{text(_which(run))}</p>',
        f"<h1>{text(run['pipeline'])} {badge(run['status'])}</h1>",
        f'<p class="soft">{text(_introduction(data))}</p>',
        f'<p class="note">{text(END[run["status"]])}</p>' if run["status"] in END else "",
        *(f'<p class="note">Not shown: {text(n)}</p>' for n in data["notes"]),
        sections.tiles(data),
        f'<nav aria-label="parts of this page"><ul>{links}</ul></nav>',
        "</header>",
        '<main id="main">',
    ]
    for name, title, content in made:
        head = f'<h2 id="h-{name}">{text(title)}</h2>'
        parts += [f'<section id="part-{name}" aria-labelledby="h-{name}">', head, content, "</section>"]
    parts += [
        "</main>",
        f'<footer class="soft">Put together {text(when(run["now"]))}. Digests are of the bytes: equal bytes, equal '
        "digest. Point at one to see all of it, click to copy it.</footer>",
        '<p id="told" class="unseen" role="status" aria-live="polite"></p>',
    ]
    points = max(40, MOST_POINTS // max(1, len(data["training"])))
    drawn = {"training": [{"stage": t["stage"], "curve": thinned(t["curve"], points)} for t in data["training"]],
             "data": [{"lengths": d["lengths"], "max_length": d["max_length"]} for d in data["data"]]}  # fmt: skip
    style = file("page.css") + file("page.css", "runner.report")
    code = file("plots.js") + file("page.js", "runner.report")
    title = f"{run['pipeline']}, {_which(run)}: {run['status']}"
    return document(title, [p for p in parts if p], drawn, style=style, code=code)


def _which(run: Data) -> str:
    return f"run {run['name']}"


def _introduction(data: Data) -> str:
    run = data["run"]
    end = run["finished"] if run["finished"] is not None else run["now"] if run["status"] == "running" else None
    parts = [when(run["started"])]
    if end is not None:
        so_far = " so far" if run["status"] == "running" else ""
        parts.append(f"{duration(max(0.0, end - run['started']))}{so_far}")
    parts.append(counts(s["status"] for s in data["stages"]) or "no stages")
    return " · ".join([*parts, run["who"]] if run["who"] else parts)
