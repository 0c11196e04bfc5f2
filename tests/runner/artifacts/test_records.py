"""Records of runs in the store: everybody who shares it sees who ran what, and gc what is in use."""

import json
import re
import shutil

import pytest


def test_a_run_is_recorded_with_who_when_and_what(shelf):
    shelf.project.up()
    (record,) = shelf.runs()
    assert (record["pipeline"], record["status"]) == ("demo", "done")
    assert re.fullmatch(r"[^@]+@[^@]+", record["who"])
    assert record["started"] <= record["finished"]
    first = record["stages"]["first"]
    assert first["uses"] == "append"
    assert first["outputs"]["out"]["digest"].startswith("sha256:")
    assert f"{first['fingerprint']}/{first['attempt']}/out" in shelf.output("first")
    assert sorted(record["needs"]) == sorted([s["uses"], s["fingerprint"]] for s in record["stages"].values())


def test_a_run_under_way_says_what_it_may_use_from_the_beginning(saver, eventually):
    saver.up("--only", "beside")
    up = saver.start("up")
    saver.begun(eventually)
    records = sorted((saver.folder / ".runner/store/runs").glob("*.json"))
    record = json.loads(records[-1].read_text())
    assert (record["status"], record["finished"]) == ("running", None)
    assert {uses for uses, _ in record["needs"]} == {"work", "good"}, "what follows is not known yet"
    (saver.folder / "trace.wait").unlink()
    assert up.wait(60) == 0
    record = json.loads(records[-1].read_text())
    assert record["status"] == "done"
    assert {uses for uses, _ in record["needs"]} == {"work", "good", "next"}


def test_a_stage_run_that_is_known_only_later_is_named_before_it_is_looked_up(saver, eventually):
    """Its result is there already: nothing but the record tells others that it is used."""
    saver.stage("last", 'touch "$TRACE.last"; while [ -e "$TRACE.hold" ]; do sleep 0.05; done; cp "$x/x" "$out/x"',
                inputs={"x": ["dataset"]})  # fmt: skip
    (saver.folder / "trace.wait").unlink()
    saver.up()
    text = saver.file.read_text()
    saver.pipeline(text + '  last: {uses: ./last, inputs: {x: "${{ stages.after.out }}"}}\n')
    (saver.folder / "trace.hold").touch()
    up = saver.start("up", "--set", "stages.bad.params.n=7")  # the same bytes again: `after` is reused
    eventually((saver.folder / "trace.last").exists)
    records = sorted((saver.folder / ".runner/store/runs").glob("*.json"))
    record = json.loads(records[-1].read_text())
    assert "next" in {uses for uses, _ in record["needs"]}
    (saver.folder / "trace.hold").unlink()
    assert up.wait(60) == 0


def test_to_run_again_and_again_piles_up_nothing(shelf):
    shelf.project.up()
    for _ in range(3):
        shelf.project.up()
        shelf.project.up("--set", "params.word=hello")
    assert len(shelf.runs()) == 2, "the run that made it, and one for all those that reused it"
    before = {k for k in shelf.files() if k.startswith("runs/")}
    shelf.project.up()
    assert {k for k in shelf.files() if k.startswith("runs/")} == before, "nothing new is to be said"
    shelf.project.up("--set", "params.word=x")
    shelf.project.up()
    shelf.project.up()
    assert [r["stages"]["first"]["status"] for r in shelf.runs()] == ["done", "done", "reused"]


def test_where_all_is_reused_a_store_that_cannot_be_written_fails_nothing(shelf):
    shelf.project.up()
    folder = shelf.project.folder / ".runner/store/runs"
    shutil.rmtree(folder)
    folder.write_text("no folder")
    done = shelf.run("up", "--json")
    assert (done.code, set(done.states.values())) == (0, {"reused"})


def test_where_something_is_to_do_a_store_that_cannot_be_written_is_told_before_it(shelf):
    folder = shelf.project.folder / ".runner/store/runs"
    folder.parent.mkdir(parents=True)
    folder.write_text("no folder")
    done = shelf.run("up")
    assert done.code == 2
    assert str(folder) in done.err
    assert shelf.project.ran() == []


def test_a_failed_run_is_recorded(shelf):
    shelf.project.stage("count", "exit 2", inputs={"text": ["dataset"]})
    assert shelf.run("up").code == 2
    (record,) = shelf.runs()
    assert record["status"] == "failed"
    assert {k: s["status"] for k, s in record["stages"].items()} == {
        "first": "done",
        "second": "done",
        "side": "failed",
    }


def test_everybodys_runs(shelf, tmp_path):
    """Two checkouts share a store: each sees the other's runs."""
    shelf.project.up("--set", f"store={tmp_path}/shared")
    clone = tmp_path / "clone"
    shutil.copytree(shelf.project.folder, clone, ignore=shutil.ignore_patterns(".runner", "clone", "shared"))
    mine = shelf.run("up", "-q", clone / "pipeline.yaml", "--set", f"store={tmp_path}/shared", "--set", "name=other")
    assert mine.code == 0, mine.err
    out = shelf.run("ps", "--all", "--set", f"store={tmp_path}/shared").out.splitlines()
    assert re.fullmatch(r"when +who +pipeline +status +stages +took", out[0])
    assert ["other" in out[1], "demo" in out[2]] == [True, True]
    runs = shelf.run("ps", "--all", "--json", "-n", 1, "--set", f"store={tmp_path}/shared").json
    assert [r["pipeline"] for r in runs] == ["other"]


def test_a_run_whose_runner_was_killed_is_told(saver, eventually):
    up = saver.start("up")
    saver.begun(eventually)
    assert [r["status"] for r in saver.run("ps", "--all", "--json").json] == ["running"]
    up.kill()
    up.wait()
    assert [r["status"] for r in saver.run("ps", "--all", "--json").json] == ["died"]


@pytest.mark.parametrize("text", ["", "{}", '{"stages": 3}', "[]"])
def test_what_is_no_record_is_passed_over(shelf, text):
    shelf.project.up()
    (shelf.project.folder / ".runner/store/runs/20200101T000000000-00000000.json").write_text(text)
    assert len(shelf.ok("ps", "--all")) == 1


def test_records_of_a_store_elsewhere(far):
    far.project.up()
    far.project.up()
    assert [r["status"] for r in far.runs()] == ["done", "done"]
    assert [r["pipeline"] for r in far.ok("ps", "--all")] == ["demo", "demo"]
