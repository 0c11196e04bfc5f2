"""The pages in a real browser: nothing that they do may be held against them in its console."""

import json
from pathlib import Path
from typing import Any

from runner.history import History
from runner.records import STATES
from runner.ui.logs import PIECE

# A loss that goes up and down; ended after step 3, it goes on from step 2.
RESUMED = r"""
tell() { echo "{\"event\": \"metric\", \"step\": $1, \"loss\": $2, \"eval_loss\": 2, \"learning_rate\": 0.$1}"; }
if [ ! -e "$TRACE.once" ]; then : > "$TRACE.once"; tell 1 1; tell 2 7; tell 3 1; exit 70; fi
echo '{"event": "checkpoint", "step": 2, "resumed": true}'
tell 3 1; tell 4 7
echo x > "$out/x"
"""
ROWS = "document.querySelectorAll('tbody tr').length"
CARDS = "document.querySelectorAll('svg .card').length"
SIDEWAYS = "document.documentElement.scrollWidth > innerWidth"
LOG = "document.querySelector('pre.log')?.textContent ?? ''"


def test_the_runs_are_listed_and_two_of_them_are_compared(browser: Any, shown: Any):
    with browser.open(shown.url("/")) as page:
        page.wait(f"{ROWS} === 4")
        assert "token" not in page.eval("location.href") and page.eval("document.cookie") == ""
        text = page.text("main")
        assert "#3" in text and "failed" in text and "exit code 3" in text and "2 reused" in text
        assert page.eval("document.querySelector('main button').disabled")
        for number in (1, 2):
            page.click(f"input[aria-label='compare run {number}']")
        page.click("main button")
        page.wait("location.pathname === '/compare/1/2' && document.querySelectorAll('canvas').length > 0")
        drawn = page.wait("Object.values(Chart.instances)[0]?.data.datasets.map((d) => [d.label, d.data.length])")
        assert ["loss, trained, run 1", 8] in drawn and ["loss, trained, run 2", 8] in drawn
        size = page.eval("(() => { const c = document.querySelector('canvas'); return [c.width, c.height]; })()")
        assert min(size) > 100
        assert "parameter rank" in page.text("main") and "model of stages before it" in page.text("main")
        page.eval("history.back()")
        page.wait(f"location.pathname === '/' && {ROWS} === 4")
        page.click("tbody tr:nth-child(2) a")
        page.wait(f"location.pathname === '/runs/3' && {CARDS} === 2")
        assert page.errors == []


def test_what_stages_wrote_is_never_read_as_markup(browser: Any, shown: Any):
    places = ("/runs/3", "/runs/3/stages/checked", "/runs/1/stages/trained/outputs/out", "/compare/3/1")
    for place in places:
        with browser.open(shown.url(place)) as page:
            page.wait("document.querySelector('main').innerText.length > 60")
            if place.endswith("checked"):
                page.wait(f"({LOG}).includes('<script>window.pwned')")
            if place.endswith("out"):
                page.eval(
                    "[...document.querySelectorAll('button.file')].find((b) => b.innerText === 'words.txt').click()"
                )
                page.wait(f"({LOG}).includes('<script>window.pwned')")
                page.eval(
                    "[...document.querySelectorAll('button.file')].find((b) => b.innerText === 'curve.svg').click()"
                )
                page.wait("document.querySelector('img.shown')?.complete")
            assert page.eval("window.pwned === undefined") and page.eval("document.scripts.length") == 1
            assert page.errors == [], place


def test_a_run_is_seen_as_it_goes(browser: Any, waits: Any):
    with browser.open(waits.url("/")) as page:
        page.wait("document.querySelector('main').innerText.includes('No runs yet')")
        with waits.running():
            page.wait(f"{ROWS} === 1 && !!document.querySelector('.state.running')")
            page.click("tbody a")
            page.wait(f"{CARDS} === 3 && !!document.querySelector('svg .card.running')")
            seen = page.wait("Number(document.querySelector('.progress')?.innerText.match(/(\\d+) \\/ 100,000/)?.[1])")
            page.wait(f"Number(document.querySelector('.progress')?.innerText.match(/(\\d+) \\//)[1]) > {seen}")
            assert "running" in page.text("svg") and "working" in page.text(".progress")
            page.click("svg .card.running")
            page.wait("location.pathname === '/runs/1/stages/slow'")
            assert page.eval("getComputedStyle(document.activeElement).outlineStyle") == "none"
            page.wait(f"({LOG}).includes('line 2 of words')")
            page.wait(f"({LOG}).includes('line 1 of words\\n')")
            before = page.eval(f"({LOG}).split('\\n').length")
            page.wait(f"({LOG}).split('\\n').length > {before}")
            waits.go()
            page.wait(f"({LOG}).endsWith('the last words\\n') && !!document.querySelector('h1 .state.done')")
            assert page.eval(f"({LOG}).split('line 1 of words').length") == 2
            page.eval("document.querySelector('.crumbs a').click()")
            page.wait(
                "document.querySelectorAll('svg .card.done').length === 3 && document.querySelector('h1 .state.done')"
            )
        assert page.errors == []


def test_earlier_lines_come_once_however_often_they_are_asked_for(browser: Any, own: Any):
    own.project.stage("long", f'seq 1 99999 | head -c {2 * PIECE} >&2; echo x > "$out/x"')
    own.project.pipeline("name: shown\nstages:\n  a: {uses: ./long}\n")
    own.project.up()
    with browser.open(own.url("/runs/1/stages/a")) as page:
        page.wait(f"({LOG}).length > 1000")
        button = "[...document.querySelectorAll('button')].find((b) => b.innerText === 'Earlier lines')"
        before = page.eval(f"({LOG}).length")
        assert page.eval(
            f"(() => {{ const b = {button}; b.click(); const off = b.disabled; b.click(); return off; }})()"
        )
        page.wait(f"({LOG}).length > {before} && !({button}).disabled")
        page.eval("new Promise((done) => setTimeout(done, 300))")
        numbers = page.eval(f"({LOG}).split('\\n').filter(Boolean).map(Number)")[:-1]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)) and page.errors == []


def test_how_long_a_run_took_that_died(browser: Any, own: Any):
    own.project.up("--only", "trained")
    history = History(own.project.folder / ".runner")
    gone = f"{2**22 + 5}:{history.me.partition(':')[2]}"
    history.db.execute("UPDATE runs SET runner=?, started=100, finished=NULL, status='running'", (gone,))
    history.db.execute("UPDATE stages SET started=100, finished=160")
    history.close()
    with browser.open(own.url("/")) as page:
        page.wait(f"{ROWS} === 1 && !!document.querySelector('.state.died')")
        assert page.eval("document.querySelector('td[data-head=Took]').innerText") == "60 s"


def test_a_server_that_ends_is_told(browser: Any, own: Any):
    own.project.up("--only", "trained")
    with browser.open(own.url("/")) as page:
        page.wait(f"{ROWS} === 1")
        own.server.over.set()
        own.server.shutdown()
        own.server.server_close()
        page.wait("document.getElementById('trouble').innerText.includes('Is runner ui still running?')")
        assert page.eval(ROWS) == 1


def test_a_loss_is_smoothed_over_its_single_steps_and_says_where_it_went_on(browser: Any, own: Any):
    """By the report's method: a mean over the points around, a twentieth of all wide and at least one on each side."""
    own.project.stage("train", RESUMED)
    own.project.pipeline("name: shown\nstages:\n  trained: {uses: ./train}\n")
    assert [own.project.run("up").code for _ in range(2)] == [70, 0]
    for place, name, color in (
        ("/runs/2/stages/trained", "loss", "--soft"), ("/compare/1/2", "loss, trained, run 2", "--running"),
    ):  # fmt: skip
        with browser.open(own.url(place)) as page:
            page.wait("globalThis.Chart && Object.values(Chart.instances).length === 2")
            lines = page.eval(
                "Object.values(Chart.instances)[0].data.datasets.map((d) => [d.label, !!d.raw, d.data.map((p) => p.y)])"
            )
            lines = [line for line in lines if line[0].startswith(name)]
            assert lines == [[f"{name}, single steps", True, [1, 7, 1, 7]], [name, False, [4, 3, 5, 4]]]
            legend = "Object.values(Chart.instances)[0].legend.legendItems.map((i) => i.text)"
            assert name in page.eval(legend) and not any("single" in text for text in page.eval(legend))
            assert page.eval("Object.values(Chart.instances)[1].data.datasets.every((d) => !d.raw)")
            for chart in (0, 1):
                marks = f"Object.values(Chart.instances)[{chart}].config.options.plugins.again.marks"
                ink = f"getComputedStyle(document.documentElement).getPropertyValue('{color}').trim()"
                assert page.eval(marks) == [{"step": 2, "color": page.eval(ink)}]
            caption = page.text("figcaption")
            assert "mean of the points around" in caption and "went on from a checkpoint at step 2" in caption
            assert page.errors == [], place


def test_measures_of_a_kind_are_written_alike(browser: Any, shown: Any):
    cases = {
        "peak_memory_bytes": (903e6, "peak memory", "903 MB"), "model_bytes": (10.1e6, "model size", "10.1 MB"),
        "size_bytes": (5, "size", "5 B"), "decode_tokens_per_s": (1421.4, "decode tokens/s", "1,421"),
        "prefill_tokens_per_s": (1283, "prefill tokens/s", "1,283"), "rows_per_second": (2, "rows/s", "2.0"),
        "accuracy": (0, "accuracy", "0.000"), "top1_agreement": (1, "top1 agreement", "1.000"),
        "ended_share": (0.5, "ended share", "0.500"), "eval_loss": (2, "eval loss", "2.0000"),
        "train_loss_before": (1.28341, "train loss before", "1.2834"), "load_seconds": (3.1, "load time", "3.1 s"),
        "time_to_first_token_p50_s": (0.012, "time to first token p50", "12.0 ms"), "seconds": (12, "time", "12 s"),
        "threads": (2, "threads", "2"), "learning_rate": (0.0005, "learning rate", "0.0005"),
        "kl_mean": (0.0000123456, "kl mean", "1.23e-5"), "steps": (1234, "steps", "1,234"),
    }  # fmt: skip
    with browser.open(shown.url("/")) as page:
        js = "import('/static/dom.js').then(({words, value}) => %s.map(([k, v]) => [words(k), value(k, v)]))"
        found = page.eval(js % json.dumps([[k, v[0]] for k, v in cases.items()]))
        assert dict(zip(cases, found, strict=True)) == {k: [*v[1:]] for k, v in cases.items()}
        js = "import('/static/dom.js').then(({many, inOrder, tick}) => [%s.map(([n, noun]) => many(n, noun)),"
        js = js % json.dumps([[1, "files"], [2, "files"], [1, "entries"], [1000, "rows"]])
        found = page.eval(f"{js} inOrder({json.dumps([*STATES[::-1], 'x', 'done'])}), tick('loss', 1.5)])")
        assert found == [["1 file", "2 files", "1 entry", "1,000 rows"], [*STATES, "x"], "1.5"]
        page.wait(f"{ROWS} === 4")
        assert page.text("main select[aria-label='how it ended']").splitlines()[1:] == ["done", "failed"]
        told = "import('/static/runs.js').then(({counts}) => counts([['a', 'failed'], ['b', 'done'], ['c', 'done']]))"
        assert page.eval(told) == "2 done, 1 failed"


def test_what_is_not_there_is_told_and_not_asked_for_again(browser: Any, shown: Any):
    words = {
        "/runs/77": "there is no run 77", "/compare/1/77": "there is no run 77",
        "/runs/1/stages/none": "has no stage 'none'", "/runs/1/stages/trained/outputs/none": "no output 'none'",
    }  # fmt: skip
    for place, text in words.items():
        with browser.open(shown.url(place)) as page:
            page.wait(f"document.getElementById('trouble').innerText.includes({json.dumps(text)})")


def test_on_a_phone_and_in_the_dark(browser: Any, shown: Any, tmp_path: Path):
    canvas = "document.querySelector('canvas')"
    ready = {
        "/": f"{ROWS} === 4", "/runs/2": f"{CARDS} === 2", "/runs/2/stages/trained": canvas,
        "/runs/2/stages/trained/outputs/out": f"{ROWS} >= 4", "/compare/1/2": canvas,
    }  # fmt: skip
    for place, condition in ready.items():
        with browser.open(shown.url(place), width=390, dark=True) as page:
            page.wait(f"!!({condition})")
            assert not page.eval(SIDEWAYS), place
            light = page.eval("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            assert max(light) < 60 and page.errors == [], place
            assert page.picture(tmp_path / "page.png").stat().st_size > 5000


def test_the_report_is_shown(browser: Any, shown: Any):
    with browser.open(shown.url("/runs/1/report")) as page:
        page.wait("document.querySelector('h1') !== null")
        assert "trained" in page.text() and page.errors == []
        assert page.eval("fetch('/api/runs').then(() => 'answered', () => 'refused')") == "refused"
