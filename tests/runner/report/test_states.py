"""Given runs that failed, go on, were killed, made nothing, or are not whole any more, the report says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from runner.pipeline import read
from runner.records import open_history, open_store
from runner.report import reading
from runner.report.collect import as_data
from runner.report.which import meant

EXPECTED = {"data": "done", "adapter": "failed", "untuned": "done", "merged": "not run"}


def report(project: Any, *args: object, **environment: str) -> Any:
    done = project.run("report", "--json", *args, environment=environment)
    assert done.code == 0, done.err
    return done.json


def page(project: Any, *args: object, **environment: str) -> str:
    done = project.run("report", "-o", "-", *args, environment=environment)
    assert done.code == 0, done.err
    return str(done.out)


def by_name(value: Any) -> dict[str, Any]:
    return {s["name"]: s for s in value["stages"]}


def test_a_run_that_failed(fresh: Any) -> None:
    assert fresh.run("up", "-q", environment={"ACT": "fail"}).code == 70
    value, text = report(fresh), page(fresh)
    stages = by_name(value)
    assert (
        value["run"]["status"] == "failed" and EXPECTED.items() <= {n: s["status"] for n, s in stages.items()}.items()
    )
    adapter = stages["adapter"]
    assert "no memory left" in adapter["error"] and adapter["exit_code"] == 70
    assert adapter["log"] == ["loss is falling, HF_TOKEN=" + "•" * 15]  # no colours, no secrets, no events
    assert "It failed." in text and "What went wrong" in text and "no memory left for plain" in text
    (curve,) = value["training"]  # what it told until then
    assert not curve["finished"] and curve["curve"]["step"] == [1, 2, 3, 4] and curve["curve"]["held_out"] == [[4, 4.5]]
    # what was not reached hangs together as the pipeline file says
    assert ["merged", "onnx"] in value["edges"] and ["adapter", "merged"] in value["edges"]


def test_a_run_that_goes_on_and_one_that_was_killed(fresh: Any, eventually: Any) -> None:
    fresh.environment["ACT"] = "wait"
    runner = fresh.start("up", "-q")
    log = fresh.folder / ".runner/logs/1/adapter.events"
    eventually(lambda: log.exists() and '"progress"' in log.read_text())
    value = report(fresh)
    adapter = by_name(value)["adapter"]
    assert value["run"]["status"] == adapter["status"] == "running" and value["run"]["finished"] is None
    assert adapter["progress"] == "training  50%  4/8 steps  loss 1.25" and adapter["finished"] is None
    assert value["training"][0]["curve"]["step"] == [1, 2, 3, 4]
    text = page(fresh)
    assert "It is still running" in text and "so far" in text and "What went wrong" not in text
    runner.kill()
    runner.communicate()
    value = report(fresh)
    assert value["run"]["status"] == by_name(value)["adapter"]["status"] == "died"
    assert "Its runner was killed" in page(fresh)
    (fresh.folder / "trace.go").touch()
    fresh.up()  # takes up what went on
    assert report(fresh)["run"]["status"] == "done" and report(fresh, 1)["run"]["status"] == "died"


def test_of_long_events_the_last_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "EVENTS", 1000)
    file, log = tmp_path / "a.events", str(tmp_path / "a.log")
    lines = [json.dumps({"event": "metric", "step": n, "loss": 0.5}) for n in range(100)]
    lines += ['{"event": "metric", "x": ' + "[" * 600 + "]" * 600 + "}", '{"event": "progress", "done": 99}']
    file.write_text("".join(f"{line}\n" for line in lines))
    notes: list[str] = []
    *metrics, last = reading.told(log, notes.append)
    assert last == {"event": "progress", "done": 99} and metrics == []
    assert len(notes) == 1 and "only the last 1.0 kB" in notes[0]
    file.write_text("".join(f"{line}\n" for line in lines[:100]))
    size = len(lines[50]) + 1
    for whole in (3, 7):  # where a line begins, none is lost
        monkeypatch.setattr(reading, "EVENTS", whole * size)
        assert [e["step"] for e in reading.told(log)] == list(range(100 - whole, 100))
        monkeypatch.setattr(reading, "EVENTS", whole * size - 1)
        assert [e["step"] for e in reading.told(log)] == list(range(101 - whole, 100))
    monkeypatch.setattr(reading, "EVENTS", 1 << 20)
    notes.clear()
    assert len(reading.told(log, notes.append)) == 100 and notes == []
    file.write_text("[" * 100_000 + "\n{" + '"a":{' * 100_000 + "\n" + lines[-1] + "\n")
    assert reading.told(log) == [last]


def test_a_curve_that_is_cut_says_so(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.run("up", "-q", environment={"ACT": "fail"})
    size = (fresh.folder / ".runner/logs/1/adapter.events").stat().st_size
    store, history = open_store(fresh.file, []), open_history(fresh.file, [])
    found = []
    for most in (size, size - 1):
        monkeypatch.setattr(reading, "EVENTS", most)
        value = as_data(read(fresh.file, commands=False), store, meant(store, history, "1"))
        found.append([n for n in value["notes"] if "what came before is not in its curve" in n])
    history.close()
    assert found[0] == [] and len(found[1]) == 1 and found[1][0].startswith("adapter: ")


def test_a_run_that_reused_everything(made: Any) -> None:
    made.up()
    assert report(made)["run"]["name"] == "1", "the last that made something"
    value = report(made, "2")
    (run,) = {s["made"]["run"] for s in value["stages"]}
    assert run == 1 and all(s["status"] == "reused" and s["metrics"] is not None for s in value["stages"])
    text = page(made, "2")
    assert "Nothing ran: every result was there already" in text and "made in run 1 in" in text
    assert value["training"] and value["compare"] and value["data"]  # what was made before is shown
    assert report(made, "1")["run"]["name"] == "1"


def test_a_run_of_somebody_else_on_the_store(made: Any) -> None:
    """By the name of its record: nothing is needed but the store."""
    shutil.move(made.folder / ".runner/history.db", made.folder / "kept.db")
    try:
        name = made.run("ps", "--all", "--json").json[-1]["run"]
        value = report(made, name)
        stages = by_name(value)
        assert value["run"]["name"] == name and "@" in value["run"]["who"] and len(stages) == 7
        assert stages["adapter"]["params"] == {"rank": 8} and stages["adapter"]["started"] == 1767323045
        assert ["data", "adapter"] in value["edges"] and value["compare"]["rows"] == 2
        assert stages["data"]["inputs"][0]["place"] == "rows.jsonl"
        done = made.run("report")
        assert done.code == 2 and "there are no runs yet" in done.err
    finally:
        (made.folder / ".runner/history.db").unlink(missing_ok=True)
        shutil.move(made.folder / "kept.db", made.folder / ".runner/history.db")


def test_results_that_are_not_whole_any_more(fresh: Any) -> None:
    fresh.up()
    artifacts = fresh.folder / ".runner/store/artifacts"
    shutil.rmtree(artifacts / "merge")
    log = next(artifacts.glob("train/*/*/adapter/training.json"))
    log.write_text(log.read_text() + " ")
    next(artifacts.glob("build/*/*/model/artifact.json")).write_text("{")
    shutil.copy(next(artifacts.glob("prepare/*/*/dataset/artifact.json")),
                next(artifacts.glob("answer/*/*/predictions/artifact.json")))  # fmt: skip
    value, text = report(fresh), page(fresh)
    notes = "\n".join(value["notes"])
    for said in ("merged is not in the store any more", "adapter: training.json was altered", "onnx cannot be read",
                 "is not what it was: something else lies there now"):  # fmt: skip
        assert said in notes and said in text
    assert by_name(value)["onnx"]["metrics"]["mean_kl"] == 0.0123  # the history knows what was measured
    assert value["training"] == [] and value["quantization"] == []
    fresh.file.write_text("stages: {a: {uses: ./nowhere}}\n")  # what a run did does not depend on its file now
    assert len(report(fresh)["stages"]) == 7


def test_plain_commands_and_nothing_else(project: Any) -> None:
    project.stage("work", 'echo x > "$out/x"')
    project.stage("next", 'cat "$x/x" > "$out/x"', inputs={"x": ["dataset"]})
    project.pipeline("""\
        name: demo
        stages:
          a: {uses: ./work}
          b: {uses: ./next, inputs: {x: "${{ stages.a.out }}"}}
        """)
    project.up()
    text = page(project)
    for left in ("Training", "Evaluation", "What quantization cost", "Token lengths"):
        assert f">{left}<" not in text
    assert ">Lineage<" in text and report(project)["edges"] == [["a", "b"]]
    assert report(project)["compare"] is None and len(text) < 600_000
    done = project.run("report", "--card", "card")
    assert done.code == 2 and "no run made a model yet" in done.err and not (project.folder / "card").exists()


def test_a_matrix_and_what_a_select_took(project: Any) -> None:
    project.stage("answer", """
        echo '{"prompt": "a", "prediction": "b"}' > "$out/predictions.jsonl"
        echo "{\\"event\\": \\"metric\\", \\"accuracy\\": 0.$word}"
        """, outputs={"out": "predictions"}, params={"word": {"type": "integer"}})  # fmt: skip
    project.pipeline("""\
        stages:
          one: {uses: ./answer, matrix: {word: [1, 2, 3]}}
          best: {select: {from: one, maximize: accuracy}}
        """)
    project.up()
    value = report(project)
    assert [s["name"] for s in value["stages"]] == ["one-1", "one-2", "one-3", "best"]
    assert {tuple(e) for e in value["edges"]} == {("one-1", "best"), ("one-2", "best"), ("one-3", "best")}
    assert len(value["compare"]["forms"]) == 3  # what was taken is the third, and not told twice


def test_a_store_elsewhere(project: Any, azurite: Any, monkeypatch: pytest.MonkeyPatch, whole_project: Any) -> None:
    azurite.start()
    azurite.use(monkeypatch)
    there = ("--set", f"store={azurite.uri('store')}")
    environment = azurite.environment
    whole = whole_project(project.folder)
    whole.file.write_text(whole.file.read_text().partition("  merged:")[0])
    assert whole.run("up", "-q", *there, environment=environment).code == 0
    value = report(whole, *there, **environment)
    assert value["notes"] == [] and value["training"][0]["curve"]["step"][-1] == 8
    assert value["data"][0]["lengths"]["train"] == [2, 1, 0, 0, 0, 0, 1]
    assert value["stages"][0]["outputs"][0]["place"].startswith("artifacts/prepare/")
    assert whole.run("pull", "adapter", "out", *there, environment=environment).code == 0
    assert "held-out loss, nats a token | 6.0000 → 0.7500" in (whole.folder / "out/README.md").read_text()
    key = environment["AZURE_STORAGE_CONNECTION_STRING"].split("AccountKey=")[1].split(";")[0]
    assert key not in json.dumps(value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("99",), "there is no run 99"),
        (("20200101T000000000-01234567",), "there is no run '20200101T000000000-01234567'"),
        (("-o", "page.pdf"), "a name that ends in .html"),
        (("-o", "-", "--json"), "stdout takes one"),
        (("--card",), "expected one argument"),
        (("-p", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_mistakes(words: tuple[str, ...], said: str, made: Any) -> None:
    done = made.run("report", *words)
    assert done.code == 2 and said in done.err and len(done.err.strip().splitlines()) <= 2


def test_where_the_page_goes(made: Any) -> None:
    assert made.run("report", "1").out == "report.html\n" and (made.folder / "report.html").stat().st_size > 200_000
    assert made.run("report", "1", "-o", "a/b/c.html").out == "a/b/c.html\n" and (made.folder / "a/b/c.html").exists()


def test_for_other_programs(made: Any) -> None:
    """What `runner ui` serves."""
    from runner.report.page import page as page_of

    store, history = open_store(made.file, []), open_history(made.file, [])
    text = page_of(read(made.file, commands=False), store, history, 1)
    assert "run 1" in text and text.startswith("<!DOCTYPE html>")
    assert "run 1" in page_of(None, store, history, 1)
    history.close()


def test_a_run_of_another_pipeline_on_the_store_is_not_the_last_one(fresh: Any) -> None:
    assert fresh.run("up", "-q").code == 0
    file = fresh.folder / "other.yaml"
    file.write_text("name: other\nstages:\n  alone: {uses: ./alone}\n")
    fresh.stage("alone", 'echo x > "$out/x"')
    assert fresh.run("up", "-q", file).code == 0
    assert report(fresh)["run"]["name"] == "1" and report(fresh, "-p", "other.yaml")["run"]["name"] == "2"
    assert report(fresh, "2")["run"]["name"] == "2"
