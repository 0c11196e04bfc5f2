"""Given a run, when its report is written, then one page holds what the run's artifacts hold, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Browser

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """A page taken apart. Elements must be closed in order, and none may have a script or a style of its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {k: v or "" for k, v in attrs}
        assert len(given) == len(attrs)
        assert not [n for n in given if n.startswith("on") or n == "style"], f"{given} on {tag}"
        self.attributes.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if not {"script", "style"} & set(self.open):
            self.words += data + " "

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        """The attributes of the elements with these values."""
        return [a for t, a in self.attributes if t == tag and all(a.get(k) == v for k, v in wanted.items())]

    @property
    def data(self) -> Any:
        return json.loads(self.texts["script"][0])


@pytest.fixture(scope="module")
def text(made: Any) -> str:
    done = made.run("report", "-o", "-")
    assert done.code == 0, done.err
    return str(done.out)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def value(made: Any) -> Any:
    return made.run("report", "--json").json


def artifact(made: Any, stage: str) -> tuple[Path, Any]:
    file = next((made.folder / ".runner/store/artifacts" / stage).glob("*/*/*/artifact.json"))
    return file.parent, json.loads(file.read_text())


def test_it_is_whole_and_alone(text: str, page: Page) -> None:
    assert text.startswith("<!DOCTYPE html>") and len(text.encode()) < 2_000_000
    names = [a["id"] for _, a in page.attributes if "id" in a]
    assert len(names) == len(set(names))
    addresses = [a[k] for _, a in page.attributes for k in ("href", "src", "action", "srcset", "poster") if k in a]
    assert addresses and all(a.startswith("#") and a[1:] in names for a in addresses)  # every link leads somewhere
    vendored = max(page.texts["script"], key=len)
    assert "MIT" in vendored[:300] and "sourceMappingURL" not in vendored
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|innerHTML", text.replace(vendored, ""))


def test_its_policy_names_what_may_run_by_hash(page: Page) -> None:
    policy = dict(
        part.strip().split(" ", 1)
        for part in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"].split(";")
    )
    assert policy["default-src"] == "'none'" and "unsafe" not in json.dumps(policy)

    def hashes(tag: str) -> set[str]:
        return {f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in page.texts[tag]}

    assert set(policy["style-src"].split()) == hashes("style")
    assert set(policy["script-src"].split()) < hashes("script")  # the data is not run


def test_it_shows_every_artifact_with_its_digest(made: Any, page: Page) -> None:
    copied = {a["data-full"] for a in page.all("button")}
    manifests = [json.loads(f.read_text()) for f in made.folder.glob(".runner/store/artifacts/*/*/*/*/artifact.json")]
    assert len(manifests) == 7
    for m in manifests:
        assert m["digest"] in copied and m["digest"][7:19] in page.words
        for taken in m["provenance"]["inputs"].values():
            assert taken["digest"] in copied
    assert str(made.folder) not in page.words  # a page goes to other people
    assert "rows.jsonl" in page.words and "artifacts/train/" in page.words


def test_its_curves_are_those_of_the_training(made: Any, page: Page) -> None:
    log = json.loads((artifact(made, "train")[0] / "training.json").read_text())
    (shown,) = page.data["training"]
    assert shown["stage"] == "adapter" and shown["curve"]["loss"] == [p["loss"] for p in log["steps"]]
    assert shown["curve"]["learning_rate"] == [0.001] * 8 and shown["curve"]["held_out"] == [[0, 6.0], [8, 0.75]]
    assert "loss 5.0000 at step 1, 0.6250 at step 8; on held-out rows 6.0000, then 0.7500" in page.words


def test_the_tile_leads_with_what_ships_and_says_what_a_constant_reaches() -> None:
    from runner.report.sections import tiles

    def stage(name: str, artifact: str) -> dict[str, Any]:
        return {"name": name, "inputs": [{"name": "model", "artifact": artifact}]}

    figures = {"tuned": 0.75, "quantized": 0.625, "untuned": 0.125}
    forms = [{"name": n, "metrics": {"accuracy": a, "majority_share": 0.5}} for n, a in figures.items()]
    stages = [stage("tuned", "merged"), stage("quantized", "onnx"), stage("untuned", "")]
    data = {"stages": stages, "compare": {"forms": forms, "rows": 8}, "quantization": [], "training": []}
    words = Page(tiles(data)).words
    assert "held-out accuracy of quantized 0.625" in words and "always the most frequent answer: 0.500" in words


def test_counts_of_data_have_their_thousands_apart() -> None:
    from runner.report.dataset import counted

    assert [counted(v) for v in (999, 7120, True, None)] == ["999", "7,120", "yes", "none"]


def test_token_lengths_are_counted_from_the_data_itself(page: Page) -> None:
    assert page.data["data"][0]["lengths"] == {
        "width": 1, "edges": [3, 4, 5, 6, 7, 8, 9], "train": [2, 1, 0, 0, 0, 0, 1], "test": [0, 2, 0, 0, 0, 0, 0],
    }  # fmt: skip


def test_long_lengths_are_put_together(tmp_path: Path) -> None:
    from microstages.digest import FileEntry
    from microstages.manifest import Manifest

    from runner.report.reading import histogram

    files = []
    for name, lengths in (("train", [1, 400]), ("test", [1000])):
        data = b"".join(n.to_bytes(4, "little") for n in lengths)
        header = json.dumps({"example_lengths": {"data_offsets": [0, len(data)]}}).encode()
        file = tmp_path / f"{name}.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header + data)
        files.append(FileEntry(file.name, file.stat().st_size, "0" * 64))
    found = histogram(str(tmp_path), Manifest("dataset", "", tuple(files)), pytest.fail)
    assert found and found["width"] == 25 and found["edges"] == list(range(1, 1001, 25))
    assert found["train"] == [1] + [0] * 14 + [1] + [0] * 24 and found["test"] == [0] * 39 + [1]
    (tmp_path / "test.safetensors").write_bytes(b"\xff" * 99)
    told: list[str] = []
    histogram(str(tmp_path), Manifest("dataset", "", tuple(files)), told.append)
    assert told == ["the lengths in test.safetensors cannot be read"]


def test_what_is_trained_is_marked(page: Page) -> None:
    assert "after<|end|>" in page.texts["mark"] and any(t.startswith("before after") for t in page.texts["pre"])


def test_forms_before_and_after(page: Page, value: Any) -> None:
    forms = {f["name"]: f for f in value["compare"]["forms"]}
    assert {n: f["metrics"]["accuracy"] for n, f in forms.items()} == {"tuned": 1.0, "quantized": 0.5, "untuned": 0.0}
    for words in ("Confusions", "Rows on which the forms disagree", "1.000 → 0.500 (-0.500)"):
        assert words in page.words
    assert not any("uri" in f for f in forms.values())


def test_quantization(page: Page, value: Any) -> None:
    (cost,) = value["quantization"]
    assert (cost["source"], cost["source_accuracy"], cost["accuracy"]) == ("merged", 1.0, 0.5)
    for words in ("10.0 MB → 3.0 MB", "0.012", "int4, rtn, cpu", "97.0%", "30% of 10.0 MB"):
        assert words in page.words


def test_parameters_that_were_chosen_stand_before_those_by_default(value: Any, page: Page) -> None:
    adapter = next(s for s in value["stages"] if s["name"] == "adapter")
    assert adapter["params"] == {"rank": 8, "words": "plain", "unused": 0.5}
    assert adapter["defaults"] == {"rank": 4, "words": "plain", "unused": 0.5}
    assert "2 as they are by default" in page.words
    assert "onnx" in page.words and "software.onnx" in page.words and "1.2.3" in page.words
    assert "all stages" in page.words and "2.0 GB" in page.words


def test_the_graph_and_the_timeline(page: Page, value: Any) -> None:
    edges = {tuple(e) for e in value["edges"]}
    assert edges == {
        ("data", "adapter"), ("adapter", "merged"), ("merged", "onnx"), ("data", "onnx"), ("merged", "tuned"),
        ("data", "tuned"), ("onnx", "quantized"), ("data", "quantized"), ("data", "untuned"),
    }  # fmt: skip
    lines = page.all("path", **{"class": "line"})
    assert len(lines) == 2 * len(edges)  # once for wide screens, once for narrow ones
    assert len(page.all("rect", **{"class": "bar done"})) == 7


def test_every_picture_and_table_can_be_read_by_a_reader(page: Page) -> None:
    assert all(a.get("aria-label") for a in page.all("canvas")) and len(page.all("canvas")) == 3
    drawn = [a for a in page.all("svg") if a.get("role")]
    assert len(drawn) == 9 and all(a["aria-label"] for a in drawn)
    assert all(a.get("tabindex") == "0" for a in page.all("div", role="region"))


def test_a_run_of_many_stages_stays_small(value: Any) -> None:
    """Sixty variants of everything: curves of a thousand points, forms that disagree on every row."""
    from runner.report.page import page_of
    from runner.report.reading import curve_of

    curve = curve_of([{"step": i, "loss": 1 / 3, "learning_rate": 1e-3 / 7, "gradient_norm": 1 / 7}
                      for i in range(1000)], [])  # fmt: skip
    assert curve and len(curve["step"]) <= 600 and (curve["step"][0], curve["step"][-1]) == (0, 999)
    names = [f"variant-{i}-of-a-matrix-with-a-long-name" for i in range(60)]
    said = {name: {"prediction": "an answer " * 30, "correct": False} for name in names}
    rows = [{"row": i, "prompt": "a prompt " * 50, "completion": "right", "said": said} for i in range(50)]
    compared = value["compare"]
    many = {
        **value,
        "stages": [{**value["stages"][1], "name": n} for n in names],
        "edges": [[names[0], n] for n in names[1:]],
        "training": [{**value["training"][0], "stage": n, "curve": curve} for n in names],
        "compare": {**compared, "forms": [{**compared["forms"][0], "name": n} for n in names],
                    "disagreement": {"count": 50, "considered": names, "rows": rows}},
    }  # fmt: skip
    text = page_of(many)
    assert len(text.encode()) < 2_000_000 and "The first 6 of them" in text
    Page(text)


def test_what_others_wrote_is_escaped(hostile: Any) -> None:
    evil = re.search(r'^EVIL = (".*")$', (Path(__file__).parent / "conftest.py").read_text(), re.M)
    assert evil
    words = json.loads(evil[1].replace("\\'", "'"))
    done = hostile.run("report", "-o", "page.html")
    assert done.code == 0 and done.out == "page.html\n"
    text = (hostile.folder / "page.html").read_text()
    page = Page(text)  # closes everything, has no handlers
    assert len(page.texts["script"]) == 3 and not page.all("img")
    assert page.words.count("<img src=x onerror=alert(2)>") > 20 and "\u2028" not in page.texts["script"][0]
    assert hostile.run("report", "--json").json["run"]["pipeline"] == words


def test_a_browser_draws_it(made: Any, hostile: Any, browser: Browser) -> None:
    """No errors; nothing wider than a phone; every plot drawn; what is written in names is not run."""
    for project in (made, hostile):
        assert project.run("report", "-o", "seen.html").code == 0
        url = (project.folder / "seen.html").as_uri()
        for width, dark in ((390, False), (1200, True)):
            with browser.open(url, width=width, dark=dark) as page:
                page.wait("charts.length === 3")
                assert page.errors == []
                assert page.eval("document.documentElement.scrollWidth") <= width
                assert page.eval("charts.every((c) => c.canvas.width > 0 && c.chart.data.datasets.length > 0)")
                shown = page.eval("[...document.querySelectorAll('.graph')].map((g) => g.offsetWidth > 0)")
                assert shown == [width > 640, width <= 640]
                assert page.eval("getComputedStyle(document.body).backgroundColor") == (
                    "rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)"
                )


def test_what_can_be_done_on_the_page(made: Any, browser: Browser) -> None:
    made.run("report", "-o", "used.html")
    with browser.open((made.folder / "used.html").as_uri()) as page:
        box = "document.querySelector(\"a[href='#stage-1']\")"  # of the graph: opens the stage's details
        page.eval(f"{box}.dispatchEvent(new MouseEvent('click', {{bubbles: true, cancelable: true}}))")
        page.wait("document.getElementById('stage-1').open")
        full = page.eval("document.querySelector('.digest').dataset.full")
        page.click(".digest")
        page.wait("document.getElementById('told').textContent !== ''")
        assert page.text("#told") in (f"copied {full}", "selected")
        page.eval("dispatchEvent(new Event('beforeprint'))")
        assert page.eval("[...document.querySelectorAll('details.stage')].every((d) => d.open)")
        page.eval("dispatchEvent(new Event('afterprint'))")
        assert page.eval("[...document.querySelectorAll('details[open]')].length") == 1
        assert page.errors == []


def test_it_can_be_read_without_scripts(made: Any, browser: Browser) -> None:
    made.run("report", "-o", "quiet.html")
    with browser.open((made.folder / "quiet.html").as_uri(), scripts=False) as page:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
        assert "The curves need scripts" in page.text("#part-training") and "0.750" in page.text("body")
