"""What the pages are told."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from microstages.errors import UserError

from runner.history import History, Record
from runner.store import Store
from runner.ui import logs
from runner.ui.answers import Answers
from runner.ui.graph import edges_of, said_by
from runner.ui.logs import PIECE, Listener, Told, piece, plain
from runner.ui.reading import Reading

# Ends with an error after step 5, then in its first step after going on from step 3, then before that; then goes on to
# its end, when it is let.
RESUMED = r"""
n=$(ls "$TRACE".try* 2>/dev/null | wc -l)
: > "$TRACE.try$n"
tell() { echo "{\"event\": \"metric\", \"step\": $1, \"loss\": $2}"; }
if [ "$n" = 2 ]; then exit 70; fi
if [ "$n" = 0 ]; then for i in 1 2 3 4 5; do tell $i $i; done; exit 70; fi
echo '{"event": "checkpoint", "step": 3, "total": 6, "resumed": true}'
if [ "$n" = 1 ]; then exit 70; fi
tell 4 14
while [ ! -e "$TRACE.go" ]; do sleep 0.05; done
tell 5 15; tell 6 16
echo x > "$out/x"
"""


def test_runs_are_listed_newest_first(shown: Any):
    data = shown.get("/api/runs")
    assert [(r["id"], r["status"], r["code"]) for r in data["runs"]] == [
        (4, "done", 0), (3, "failed", 70), (2, "done", 0), (1, "done", 0),
    ]  # fmt: skip
    assert data["runs"][0]["stages"] == [["trained", "reused"], ["checked", "reused"]]
    assert "exit code 3" in data["runs"][1]["why"] and not data["more"]
    older = shown.get("/api/runs?last=1&before=4")
    assert [r["id"] for r in older["runs"]] == [3] and older["more"]
    assert shown.get("/api/runs?last=nonsense&before=-1")["runs"] == data["runs"]


def test_a_run_says_why_each_stage_ran(shown: Any):
    run = shown.get("/api/runs/2")
    trained, checked = run["stages"]
    assert "rank: 4 → 8" in trained["reason"] and trained["status"] == "done" and run["before"] == 1
    assert (
        trained["metrics"] == {"loss": 1.8, "eval_loss": 1.8}
        and trained["made_in"] is None
        and checked["uses"] == "check"
    )
    again = shown.get("/api/runs/4")["stages"][0]
    assert again["status"] == "reused" and again["made_in"] == 1


def test_the_graph_is_that_of_the_run(shown: Any):
    graph = shown.get("/api/runs/1")["graph"]
    assert [line[:2] + line[3:] for line in graph["lines"]] == [["trained", "checked", "model"]]
    a, b = graph["boxes"]["trained"], graph["boxes"]["checked"]
    assert a[0] + a[2] < b[0] and graph["width"] == b[0] + b[2]


def test_the_graph_outlives_the_pipeline_file(shown: Any):
    history = Reading(shown.project.folder / ".runner")
    stages = history.stages(2)
    history.close()
    assert edges_of(stages, {}) == {("trained", "checked"): "model"}
    assert edges_of(stages, {"checked": {"model": "other"}}) == {("trained", "checked"): "model"}
    assert said_by("/nonexistent/pipeline.yaml") == {}


def test_a_stage_with_what_it_read_made_and_said(shown: Any):
    stage = shown.get("/api/runs/2/stages/checked")
    assert stage["inputs"]["model"]["stage"] == "trained" and stage["params"] == {"fail": "no"}
    assert stage["results"]["out"]["digest"].startswith("sha256:")
    failed = shown.get("/api/runs/3/stages/checked")
    assert failed["exit_code"] == 3 and failed["results"] == {}


def test_what_a_terminal_would_obey_is_taken_out_of_logs(shown: Any):
    log = shown.get("/api/runs/1/stages/trained/log")
    assert "trained red with rank 4\nhalf\rwhole\n" in log["text"] and "\x1b" not in log["text"]
    hostile = shown.get("/api/runs/3/stages/checked/log")
    assert shown.hostile in hostile["text"]  # as it stands: pages take it as text
    assert plain("\x1b]0;evil\x07a\x1b[2Jb\x1bcc\x9b31md\x00\u202e") == "abc31md\u202e"


def test_a_reused_stage_shows_what_it_said_when_it_was_made(shown: Any):
    assert shown.get("/api/runs/4/stages/trained/log") == shown.get("/api/runs/1/stages/trained/log")
    curves = shown.get("/api/runs/4/stages/trained/curves")["lines"]
    assert curves["loss"] == [[i, float(f"{9 - i}.4")] for i in range(1, 9)] and "eval_loss" in curves


def test_an_artifact_with_its_files(shown: Any):
    place = "/api/runs/1/stages/trained/outputs/out"
    data = shown.get(place)
    assert data["kind"] == "model" and data["provenance"]["params"] == {"rank": 4}
    files = {f["path"]: f for f in data["files"]}
    assert (
        set(files) == {"config.json", "words.txt", "weights.bin", "curve.svg"}
        and len(files["words.txt"]["sha256"]) == 64
    )
    assert shown.get(f"{place}/preview?file=config.json")["text"] == '{\n "rank": 4\n}'
    assert shown.get(f"{place}/preview?file=weights.bin") == {"text": "", "binary": True, "whole": True}
    assert shown.hostile in shown.get(f"{place}/preview?file=words.txt")["text"]


def test_an_artifact_says_which_of_its_run_it_was_made_of(shown: Any):
    checked = shown.get("/api/runs/1/stages/checked/outputs/out")
    assert (
        checked["from"] == {"model": ["trained", "out"]}
        and shown.get("/api/runs/1/stages/trained/outputs/out")["from"] == {}
    )


def test_every_attempt_of_a_stage_has_its_log(own: Any):
    own.project.stage(
        "twice", 'echo "try of $TRACE"; [ -e "$TRACE.once" ] || { touch "$TRACE.once"; exit 75; }; echo x > "$out/x"'
    )
    own.project.pipeline(
        "name: shown\nstages:\n  a: {uses: ./twice, retry: {attempts: 2, backoff: 0s, max_backoff: 0s}}\n"
    )
    own.project.up()
    stage = own.get("/api/runs/1/stages/a")
    assert stage["logs"] == ["a.log", "a.2.log"] and stage["tries"] == 2 and stage["status"] == "done"
    texts = [own.get(f"/api/runs/1/stages/a/log?attempt={name}") for name in stage["logs"]]
    assert [t["name"] for t in texts] == stage["logs"] and all("try of" in t["text"] for t in texts)
    told = [value["name"] for name, value in own.stream("/api/runs/1/live?stage=a&attempt=a.log") if name == "log"]
    assert told == ["a.log"]


def test_the_log_of_another_attempt_begins_near_its_end(own: Any):
    """Given a page that shows one attempt and asks for another, then it gets the end of that, not 100 MB from 0 on."""
    own.project.stage("long", f'yes words | head -c {2 * PIECE} >&2; [ -e "$TRACE.once" ] || '
                              '{ touch "$TRACE.once"; exit 75; }; echo x > "$out/x"')  # fmt: skip
    own.project.pipeline("name: shown\nstages:\n  a: {uses: ./long, retry: {attempts: 2, backoff: 0s}}\n")
    own.project.up()
    place = "/api/runs/1/live?stage=a&attempt=a.log"
    for query, whole in (("&at=-1&log=a.2.log", False), (f"&at={PIECE}&log=a.log", False), ("&at=9&log=a.2.log", True)):
        pieces = [value for name, value in own.stream(place + query) if name == "log"]
        assert pieces[-1]["stop"] == pieces[-1]["size"] == 2 * PIECE, query
        assert (pieces[0]["start"] == 0, len(pieces) > 1) == (whole, whole), query


def test_a_run_that_died_took_as_long_as_it_gave_signs_of_life(tmp_path: Path):
    history = History(tmp_path)
    run = history.start_run("shown", "pipeline.yaml")
    gone = f"{2**22 + 5}:{history.me.partition(':')[2]}"
    history.db.execute("UPDATE runs SET runner=?, started=100 WHERE id=?", (gone, run))
    history.write(Record(run, "a", "work", "done", started=110.0, finished=160.0))
    history.close()
    [row] = Answers("shown", Store(str(tmp_path / "store")), tmp_path).runs()["runs"]
    assert (row["status"], row["finished"], row["heard"]) == ("died", None, 160.0)


def test_the_curves_of_a_training_that_went_on_are_whole(own: Any, eventually: Any):
    """Given one that was ended after step 5, and again right after it went on from step 3, then all steps are shown."""
    own.project.stage("train", RESUMED)
    own.project.pipeline("name: shown\nstages:\n  trained: {uses: ./train}\n")
    assert [own.project.run("up").code for _ in range(3)] == [70, 70, 70]
    first = {"lines": {"loss": [[i, i] for i in range(1, 6)]}, "resumed": []}
    assert own.get("/api/runs/1/stages/trained/curves") == first
    whole = [[1, 1], [2, 2], [3, 3], [4, 14], [5, 15], [6, 16]]
    with own.running():
        eventually(lambda: own.ask("/api/runs/4/stages/trained").status == 200)
        seen = next(v for name, v in own.stream("/api/runs/4/live?stage=trained") if name == "curves" and v["resumed"])
        assert seen["resumed"] == [3] and seen["lines"]["loss"][:3] == whole[:3]
        own.go()
    assert own.get("/api/runs/4/stages/trained/curves") == {"lines": {"loss": whole}, "resumed": [3]}
    compared = own.get("/api/compare/1/4")["stages"][0]["curves"]
    assert compared == {"before": first, "after": {"lines": {"loss": whole}, "resumed": [3]}}


def test_tries_of_one_run_are_one_curve_and_what_began_anew_is_not_joined(own: Any):
    own.project.stage("train", RESUMED)
    retry = "retry: {attempts: 9, on: [70], backoff: 0s, max_backoff: 0s}"
    own.project.pipeline(f"name: shown\nstages:\n  trained: {{uses: ./train, {retry}}}\n")
    own.go()
    own.project.up()
    found = own.get("/api/runs/1/stages/trained/curves")
    assert found["resumed"] == [3] and [x for x, _ in found["lines"]["loss"]] == [1, 2, 3, 4, 5, 6]
    told = [Told(curves={"loss": [(1.0, 9.0), (2.0, 8.0)]}), Told(curves={"loss": [(1.0, 5.0)]}), Told()]
    assert logs.joined(told) == ({"loss": [(1.0, 5.0)]}, [])


def test_an_artifact_that_keeps_its_curves_tells_them(own: Any):
    """Given a training whose first attempts were on another machine, then its artifact knows what came before."""
    steps = [{"step": i, "epoch": 0.1, "loss": 9 - i, "learning_rate": 0.5} for i in range(1, 6)]
    kept = json.dumps({"steps": steps, "evaluations": [{"step": 0, "loss": 6}, {"step": 5, "loss": 2}]})
    own.project.stage("train", f"""
        echo '{{"event": "checkpoint", "step": 3, "resumed": true}}'
        for i in 4 5; do echo "{{\\"event\\": \\"metric\\", \\"step\\": $i, \\"loss\\": 1, \\"more\\": 2}}"; done
        echo '{kept}' > "$out/training.json"
    """)  # fmt: skip
    own.project.pipeline("name: shown\nstages:\n  trained: {uses: ./train}\n")
    own.project.up()
    assert own.get("/api/runs/1/stages/trained/curves") == {
        "lines": {"loss": [[i, 9 - i] for i in range(1, 6)], "learning_rate": [[i, 0.5] for i in range(1, 6)],
                  "more": [[4, 2], [5, 2]], "eval_loss": [[0, 6], [5, 2]]},
        "resumed": [3],
    }  # fmt: skip


def test_two_runs_compared(shown: Any):
    data = shown.get("/api/compare/1/2")
    trained, checked = data["stages"]
    assert trained["params"] == [{"name": "rank", "before": 4, "after": 8, "difference": 4}]
    before, after = (trained["curves"][k] for k in ("before", "after"))
    assert before["lines"]["loss"][0] == [1, 8.4] and after["lines"]["loss"][0] == [1, 8.8]
    assert before["resumed"] == after["resumed"] == []
    assert checked["follows"] == ["model"] and checked["curves"] == {}
    assert [s["state"] for s in shown.get("/api/compare/1/4")["stages"]] == ["same", "same"]


def test_a_store_that_is_gone_and_comes_back(own: Any):
    assert own.get("/api/runs")["runs"] == []
    own.project.up()
    assert len(own.get("/api/runs")["runs"]) == 1
    here, away = own.project.folder / ".runner", own.project.folder / "away"
    here.rename(away)
    for path in ("/api/runs", "/api/runs/1", "/api/compare/1/1", "/runs/1/report", "/api/runs/1/live"):
        reply = own.ask(path)
        assert reply.status == 503 and reply.json["error"]["what"] == "the history is gone", path
    assert not here.exists()  # looking makes nothing
    away.rename(here)
    assert own.get("/api/runs/1")["status"] == "done"
    shutil.rmtree(here / "store")
    gone = own.ask("/api/runs/1/stages/trained/outputs/out")
    assert gone.status == 404 and "gone" in gone.json["error"]["what"]
    shutil.rmtree(here / "logs")
    assert own.ask("/api/runs/1/stages/trained/log").status == 404


def test_the_history_cannot_be_changed_from_here(with_runs: Any):
    history = Reading(with_runs.folder / ".runner")
    for statement in ("DELETE FROM runs", "DROP TABLE stages", "INSERT INTO cancels VALUES (1, 'a')"):
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            history.db.execute(statement)
    history.close()


def test_a_history_that_is_just_being_made_has_no_runs(tmp_path: Path):
    """Its file is there before its tables: that is not the history of another version."""
    (tmp_path / "history.db").touch()
    assert Reading(tmp_path).runs() == []
    History(tmp_path).close()
    assert Reading(tmp_path).runs() == []
    db = sqlite3.connect(tmp_path / "history.db")
    db.execute("PRAGMA user_version=1")
    db.close()
    with pytest.raises(UserError, match="the history has schema 1"):
        Reading(tmp_path)


def test_a_log_that_a_record_names_elsewhere_is_not_read(own: Any, tmp_path: Path):
    own.project.up("--only", "trained")
    (tmp_path / "secret.log").write_text("a secret\n")
    db = sqlite3.connect(own.project.folder / ".runner/history.db")
    for said in (tmp_path / "secret.log", "../../history.db", "/etc/passwd", ".runner/logs/1/../../../secret.log", ""):
        db.execute("UPDATE stages SET log=?", (str(said),))
        db.commit()
        reply = own.ask("/api/runs/1/stages/trained/log")
        assert reply.status == 404 and "secret\n" not in reply.text
    db.close()


# --- a run that goes on ---


def test_a_run_of_another_process_is_told_as_it_goes_and_the_stream_ends_with_it(waits: Any, eventually: Any):
    with waits.running():
        eventually(lambda: waits.get("/api/runs")["runs"])
        stream = waits.stream("/api/runs/1/live?stage=slow")
        done, words, ended = [], "", None
        for name, value in stream:
            if name == "run":
                slow = next(s for s in value["stages"] if s["stage"] == "slow")
                if slow["status"] == "running" and slow["progress"]:
                    done.append(slow["progress"]["done"])
                    if len(set(done)) >= 2 and "line 2 of words" in words:
                        waits.go()
            elif name == "log":
                assert value["start"] <= value["stop"] <= value["size"]
                words += value["text"]
            elif name == "end":
                ended = value
        assert ended == {"status": "done"} and sorted(done) == done
        assert "line 1 of words\n" in words and words.endswith("the last words\n")
        assert words.count("line 1 of words") == 1
        stream.close()


def test_the_list_of_runs_is_told_when_it_changes(own: Any):
    stream = own.stream("/api/live")
    told = ([r["status"] for r in value["runs"]] for name, value in stream if name == "runs")
    assert next(told) == []
    own.project.up("--only", "trained")
    assert next(s for s in told if s and s != ["running"]) == ["done"]
    stream.close()


def test_a_stream_of_a_run_that_has_ended_ends_at_once(shown: Any):
    names = [name for name, _ in shown.stream("/api/runs/3/live?stage=checked")]
    assert names == ["time", "run", "stage", "curves", "log", "end"]


# --- pieces of logs ---


def test_a_huge_log_is_read_in_pieces_that_are_all_of_it(tmp_path: Path):
    file = tmp_path / "a.log"
    lines = "".join(f"line {i} — ünïcode\n" for i in range(60_000))
    file.write_text(lines, encoding="utf-8")
    text, at = "", 0
    while at < file.stat().st_size:
        part = piece(file, at)
        assert part.start == at and part.stop - part.start <= PIECE and part.text.endswith("\n")
        text, at = text + part.text, part.stop
    assert text == lines
    text, stop = "", None
    while stop != 0:
        part = piece(file, stop=stop)
        text, stop = part.text + text, part.start
    assert text == lines


def test_a_line_that_is_not_complete_waits_for_its_end(tmp_path: Path):
    file = tmp_path / "a.log"
    file.write_bytes(b"one\ntw")
    assert piece(file, 0, ended=False).text == "one\n"
    assert piece(file, 4, ended=False).text == ""
    assert piece(file, 4).text == "tw"
    file.write_bytes(b"10 %\r20 %\r3")
    assert piece(file, 0, ended=False).text == "10 %\r20 %\r"
    assert piece(file, 99).text == ""


def test_one_endless_line_is_cut_between_characters(tmp_path: Path):
    file = tmp_path / "a.log"
    file.write_text("a" + "é" * PIECE, encoding="utf-8")
    first = piece(file, 0)
    second = piece(file, first.stop)
    assert "\ufffd" not in first.text + second.text and first.stop == PIECE - 1


def test_events_are_read_once_and_curves_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "POINTS", 50)
    log, listener = tmp_path / "a.log", Listener()
    log.write_text("")
    with (tmp_path / "a.events").open("w") as f:
        for i in range(1000):
            f.write(f'{{"event": "metric", "step": {i}, "loss": {i * 0.5}, "note": "x", "bad": NaN}}\n')
        f.write('nonsense\n{"event": "progress", "done": 3}\n[1]\n{"event": "progress", "do')
        f.flush()
        told = listener.told(log)
        assert told.progress == {"event": "progress", "done": 3} and set(told.curves) == {"loss"}
        assert len(told.curves["loss"]) <= 50 and all(y == x / 2 for x, y in told.curves["loss"])
        at = told.offset
        f.write('ne": 4}\n')
        f.flush()
        again = listener.told(log)
        assert again.progress and again.progress["done"] == 4 and again.offset > at
    (tmp_path / "a.events").write_text('{"event": "metric", "step": 1, "loss": 9}\n')
    assert listener.told(log).curves == {"loss": [(1.0, 9.0)]}


def test_the_time_that_is_left_is_that_of_the_pace_since_it_was_taken_up_again(tmp_path: Path):
    log = tmp_path / "a.log"
    lines = ['{"event": "progress", "label": "a", "done": 9, "total": 9, "seconds": 3}'] + [
        f'{{"event": "progress", "label": "b", "done": {done}, "total": 200, "seconds": {seconds}}}'
        for done, seconds in ((101, 1), (105, 5), (111, 11))
    ]
    log.write_text("\n".join(lines) + "\n")
    assert Listener().told(log).left == 89.0
    log.write_text(lines[0] + "\n")
    assert Listener().told(log).left is None
