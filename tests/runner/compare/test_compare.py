"""Given predictions of several forms, when they are compared, then table, JSON and page show what they hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import Browser

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """A page taken apart: cells of its tables, addresses in it, its scripts; elements must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset", "data", "poster"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), f"{name} on {tag}"
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.scripts[-1] += data
        elif "table" in self.open and ("td" in self.open or "th" in self.open):
            self.tables[-1][-1][-1] += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


def compared(project: Any, forms: list[Path], *more: object) -> Any:
    done = project.run("compare", *forms, *more)
    assert done.code == 0, done.err
    return done


def test_the_table_of_a_terminal(project: Any, forms: list[Path]) -> None:
    text = compared(project, forms).out
    head, base, merged, int4 = text.splitlines()[:4]
    assert head.split()[:4] == ["form", "size", "accuracy", "loss"]
    assert "0.992 (0.400–0.900)" in merged and "0.1000" in merged and "400 MB" in merged
    assert "0.983" in int4 and "0.012" in int4 and "3.0 MB" in int4
    assert merged.count("–") == 2  # within its interval, and no KL
    assert "0.000" in base
    assert "120 rows; the forms disagree on 1" in text and "a lower bound" in text


def test_the_json_holds_the_figures(project: Any, forms: list[Path]) -> None:
    data = compared(project, forms, "--json").json
    assert data["rows"] == 120 and [f["form"] for f in data["forms"]] == ["model", "model", "onnx"]
    for folder, form in zip(forms, data["forms"], strict=True):
        manifest = json.loads((folder / "artifact.json").read_text())
        assert form["metrics"] == manifest["metrics"] and form["digest"] == manifest["digest"]
        assert form["confusion"] == manifest["metadata"]["confusion"]
    assert data["forms"][2]["reference"] == data["forms"][1]["name"]


def test_forms_that_know_nothing_do_not_decide_where_forms_disagree(project: Any, forms: list[Path]) -> None:
    found = compared(project, forms, "--json").json["disagreement"]
    base, merged, int4 = (str(f) for f in forms)
    assert found["count"] == 1 and found["considered"] == [merged, int4]
    row = found["rows"][0]
    assert (row["row"], row["prompt"], row["completion"]) == (7, "Text 6", "joy")
    assert row["said"] == {
        base: {"prediction": "I do not know", "correct": False},
        merged: {"prediction": "joy", "correct": True},
        int4: {"prediction": "fear", "correct": False},
    }


def test_at_most_fifty_rows_of_disagreement_are_shown(project: Any, make: Any, right: list[str]) -> None:
    wrong = [{"joy": "fear", "fear": "joy"}[s] if i < 55 else s for i, s in enumerate(right)]
    found = compared(project, [make("a", right), make("b", wrong)], "--json").json["disagreement"]
    assert found["count"] == 55 and [r["row"] for r in found["rows"]] == list(range(1, 51))


def test_the_page_is_whole_and_alone(project: Any, forms: list[Path]) -> None:
    said = compared(project, forms, "-o", "out/page.html").out
    assert said.endswith("\nout/page.html\n")
    file = project.folder / "out" / "page.html"
    text = file.read_text()
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and file.stat().st_size < 1_000_000
    assert page.addresses == [] and len(set(page.ids)) == len(page.ids)
    vendored = max(page.scripts, key=len)
    ours = text.replace(vendored, "")
    assert not re.search(r"https?:|//\w+\.\w|url\(|@import|fetch\(|XMLHttpRequest|sourceMappingURL", ours)
    assert "sourceMappingURL" not in vendored and "default-src 'none'" in text
    assert "MIT" in vendored[:300]  # its licence's notice goes with it


def test_the_page_shows_the_numbers_of_the_json(project: Any, forms: list[Path]) -> None:
    value = compared(project, forms, "--json").json
    compared(project, forms, "-o", "page.html")
    page = Page((project.folder / "page.html").read_text())
    for form in value["forms"]:
        del form["uri"]  # a page goes to other people
    assert page.data == value
    quality, agreement, cost = ([dict(zip(t[0], row, strict=True)) for row in t[1:]] for t in page.tables[:3])
    for form, good, dear in zip(value["forms"], quality, cost, strict=True):
        m = form["metrics"]
        assert good["form"] == dear["form"] == form["name"] and good["loss"] == f"{m['loss']:.4f}"
        assert good["accuracy"] == f"{m['accuracy']:.3f} ({m['accuracy_low']:.3f}–{m['accuracy_high']:.3f})"
        assert dear["decode tok/s"] == (f"{m['decode_tokens_per_s']:,.0f}" if "decode_tokens_per_s" in m else "–")
    merged, int4 = value["forms"][1:]
    assert agreement == [{"form": int4["name"], "reference": merged["name"], "KL": "0.012", "top-1": "97.0%"}]
    for form, matrix in zip(value["forms"], page.tables[3:6], strict=True):
        shown = [[int(c) for c in line[1:]] for line in matrix[1:]]
        counts = form["confusion"]["counts"]
        assert shown == (counts if any(row[-1] for row in counts) else [row[:-1] for row in counts])


def test_what_others_wrote_is_escaped(project: Any, make: Any) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u2028"
    rows = [{"prompt": evil, "completion": evil}, {"prompt": "b", "completion": "c"}]
    forms = [make("<b>one", [evil, "c"], rows), make("two", ["x\"'", evil], rows)]
    compared(project, forms, "-o", "page.html")
    page = Page((project.folder / "page.html").read_text())
    assert page.addresses == [] and len(page.scripts) == 3
    assert page.data["disagreement"]["rows"][0]["prompt"] == evil
    assert page.tables[0][1][0].endswith("<b>one")
    said = page.tables[-1]
    assert said[1][1] == evil and said[1][4] == "x\"'"


def test_forms_of_other_rows_are_told_of(project: Any, make: Any, right: list[str]) -> None:
    forms = [make("a", ["joy"], [{"prompt": "x", "completion": "joy"}]), make("b", right)]
    done = compared(project, forms, "-o", "page.html")
    assert "did not answer the same rows" in done.out
    assert Page((project.folder / "page.html").read_text()).data["rows"] is None


def test_other_machines_and_batches_are_told_of(project: Any, make: Any, right: list[str]) -> None:
    forms = [make("a", right, metrics={"batch_size": 1}),
             make("b", right, metrics={"batch_size": 8}, hardware={"machine": "arm64"})]  # fmt: skip
    said = compared(project, forms).out
    assert "different machines" in said and "different batch sizes" in said


def test_predictions_without_figures(project: Any) -> None:
    """As another stage may write them: nothing but the rows."""
    from microstages.artifact import Draft

    with Draft(str(project.folder / "bare"), "predictions") as draft:
        (draft.path / "predictions.jsonl").write_text('{"prompt": "a", "prediction": "b"}\n')
        draft.commit({})
    compared(project, [project.folder / "bare"], "-o", "page.html")
    page = Page((project.folder / "page.html").read_text())
    assert page.tables[0] == [["form"], [str(project.folder / "bare")]]


def test_stages_of_a_pipeline(project: Any) -> None:
    """Without words, all stages whose output is predictions, in the order of the pipeline; what is not done is told."""
    project.stage("answer", 'printf \'{"prompt": "a", "prediction": "%s"}\\n\' "$word" > "$out/predictions.jsonl"',
                  outputs={"out": "predictions"}, params={"word": {"type": "string"}})  # fmt: skip
    project.stage("other", 'echo x > "$out/x"')
    project.pipeline("""\
        name: demo
        stages:
          other: {uses: ./other}
          one: {uses: ./answer, params: {word: yes}}
          two: {uses: ./answer, params: {word: no}}
          three: {uses: ./answer, params: {word: maybe}}
        """)
    nothing = project.run("compare")
    assert nothing.code == 2 and "nothing is there to compare yet" in nothing.err
    for stage in ("other", "one", "two"):
        assert project.run("run", stage).code == 0
    data = project.run("compare", "--json").json
    assert [f["name"] for f in data["forms"]] == ["one", "two"] and data["pipeline"] == "demo"
    assert data["notes"] == ["three is not done: new"] and data["disagreement"]["count"] == 1
    assert [f["name"] for f in project.run("compare", "two", "--json").json["forms"]] == ["two"]
    wrong = project.run("compare", "other")
    assert wrong.code == 2 and "other is of kind dataset; predictions are wanted" in wrong.err
    assert project.run("tag", "v1", "other", "one").code == 0
    assert [f["name"] for f in project.run("compare", "v1", "--json").json["forms"]] == ["v1/one"]


def test_a_stage_with_a_matrix_is_all_its_variants(project: Any) -> None:
    project.stage("answer", 'printf \'{"prompt": "a", "prediction": "%s"}\\n\' "$word" > "$out/predictions.jsonl"',
                  outputs={"out": "predictions"}, params={"word": {"type": "string"}})  # fmt: skip
    project.pipeline("""\
        stages:
          plain: {uses: ./answer, params: {word: c}}
          one: {uses: ./answer, matrix: {word: [a, b]}}
        """)
    assert project.run("up").code == 0
    assert [f["name"] for f in project.run("compare", "one", "--json").json["forms"]] == ["one-a", "one-b"]


def test_results_in_a_store(project: Any, azurite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    azurite.start()
    azurite.use(monkeypatch)
    project.stage("answer", 'echo \'{"prompt": "a", "prediction": "b"}\' > "$out/predictions.jsonl"',
                  outputs={"out": "predictions"})  # fmt: skip
    project.pipeline("stages:\n  one: {uses: ./answer}\n")
    there = ("--set", f"store={azurite.uri('store')}")
    options = {"environment": azurite.environment}
    assert project.run("up", *there, **options).code == 0
    data = project.run("compare", "--json", *there, **options).json
    assert data["rows"] == 1 and data["forms"][0]["uri"].startswith("abfs://")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "neither a stage"),
        (("./nowhere",), "no artifact lies there"),
        (("-o", "page.pdf"), "a name that ends in .html"),
        (("--outptu", "x.html"), "did you mean '--output'?"),
    ],
)
def test_mistakes(words: tuple[str, ...], said: str, project: Any) -> None:
    project.stage("other", 'echo x > "$out/x"')
    project.pipeline("stages:\n  a: {uses: ./other}\n")
    done = project.run("compare", *words)
    assert done.code == 2 and said in done.err and len(done.err.strip().splitlines()) <= 2


def test_a_pipeline_without_predictions(project: Any) -> None:
    project.stage("other", 'echo x > "$out/x"')
    project.pipeline("stages:\n  a: {uses: ./other}\n")
    done = project.run("compare")
    assert done.code == 2 and "no stage of this pipeline makes predictions" in done.err


def test_altered_predictions(project: Any, forms: list[Path]) -> None:
    (forms[0] / "predictions.jsonl").write_text("{}\n")
    done = project.run("compare", *forms)
    assert done.code == 2 and "predictions.jsonl: this file of the artifact was altered" in done.err


def test_a_single_one_is_told_as_one(project: Any, make: Any) -> None:
    hardware = {"machine": "x86_64", "cores": 1, "processor": "P"}
    form = make("one", ["b"], [{"prompt": "a", "completion": "b"}], hardware=hardware)
    assert "\n1 row; " in compared(project, [form], "-o", "page.html").out
    assert "1 form of a model · 1 row · 1 core of P" in (project.folder / "page.html").read_text()


NAMES = ["Rückerstattung", "Lieferung", "Produktberatung und mehr", "Kündigung"]


def test_what_a_browser_shows_of_long_names_and_close_figures(project: Any, make: Any, browser: Browser) -> None:
    """Matrices fit; every bar of a logarithmic axis is seen; its numbers do not touch; no accuracy is above 1."""
    rows = [{"prompt": f"T {i}", "completion": NAMES[i % 4]} for i in range(40)]
    said = [r["completion"] for r in rows]
    speeds = {"slow": (1001.0, 30_000.0), "fast": (4000.0, 20_000.0)}
    forms = [
        make(name, ["?", *said[1:]] if name == "slow" else said, rows,
             metrics={"decode_tokens_per_s": d, "prefill_tokens_per_s": p, "kl_mean": 0.0 if name == "slow" else 0.01})
        for name, (d, p) in speeds.items()
    ]  # fmt: skip
    compared(project, forms, "-o", "page.html")
    for width in (1400, 390):
        with browser.open((project.folder / "page.html").as_uri(), width=width) as page:
            page.wait("charts.length > 4")
            assert page.errors == []
            found = "[...document.querySelectorAll('.matrices .card')].map((c) => [c.scrollWidth, c.clientWidth])"
            cards = page.eval(found)
            assert len(cards) == 2 and all(needed <= there for needed, there in cards)
            heads = "[...document.querySelectorAll('.matrix thead th')].map((h) => h.title)"
            assert page.eval(heads)[:5] == [*sorted(NAMES), "none"]
            chart = "charts.find((c) => c.canvas.closest('#plot-{}')).chart"
            speed = chart.format("speed")
            assert page.eval(f"{speed}.scales.x.type") == "logarithmic" and page.eval(f"{speed}.scales.x.min") == 100
            assert page.eval(f"{speed}.getDatasetMeta(0).data.every((bar) => bar.width > 20)")
            ticks = page.eval(
                f"((s) => s.ticks.map((t) => [s.getPixelForValue(t.value), s.ctx.measureText(t.label).width]))"
                f"({speed}.scales.x)"
            )
            assert len(ticks) > 2
            assert all(b[0] - a[0] > (a[1] + b[1]) / 2 for a, b in pairwise(ticks))
            assert page.eval(f"{chart.format('speed-quality')}.scales.y.max") == 1
            assert page.eval(f"{chart.format('kl')}.scales.x.type") == "linear", "a small range"


def test_the_page_is_drawn_by_a_browser(project: Any, forms: list[Path]) -> None:
    """All scripts run: every plot has a canvas that was laid out, or is gone where nothing was measured.

    $MICROSTAGES_REQUIRE_BROWSER=1: without a browser it fails.
    """
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        what = "THE PAGE IS NOT TESTED: there is no chromium to draw it"
        pytest.fail(what) if os.environ.get("MICROSTAGES_REQUIRE_BROWSER") == "1" else pytest.skip(what)

    compared(project, forms, "-o", "page.html")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom",
         f"--user-data-dir={project.folder / 'profile'}", (project.folder / "page.html").as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    drawn = set(re.findall(r'<figure id="plot-([a-z-]+)"', done.stdout))
    assert drawn == {"accuracy", "size-quality", "speed-quality", "loss", "kl", "speed", "first", "memory"}
    assert all(
        re.search(rf'<figure id="plot-{name}".*?<canvas[^>]* width="[1-9]\d+"', done.stdout, re.S) for name in drawn
    )
