"""`runner cancel` stops a run, or one stage of it, from another terminal."""

from __future__ import annotations

import json
import sqlite3

import pytest

SAVES = (
    'trap "echo saved > \\"$TRACE.saved\\"; exit 143" TERM; echo $$ > "$TRACE.pid"; '
    'while [ ! -e "$TRACE.go" ]; do sleep 0.05; done; true'
)
STUBBORN = 'trap "" TERM; echo $$ > "$TRACE.pid"; while :; do sleep 0.05; done'


@pytest.fixture
def two(work):
    """`bad` waits, and saves when told to stop; `slow` waits beside it; `after` depends on `bad`."""
    work.environment["ACT"] = SAVES
    work.stage("slow", 'while [ ! -e "$TRACE.go" ]; do sleep 0.05; done; echo x > "$out/x"')
    work.file.write_text(work.file.read_text() + "  slow: {uses: ./slow}\n")
    return work


def states(text):
    return {s["stage"]: s["status"] for s in json.loads(text)["stages"]}


def status(project, stage):
    """How a stage of the newest run stands."""
    return next(s["status"] for s in project.run("ps", "--json").json[0]["stages"] if s["stage"] == stage)


def test_a_whole_run_is_told_to_stop_and_waited_for(two, eventually):
    up = two.start("up", "--json", "--jobs", "3")
    pid = two.begun(eventually)
    eventually(lambda: status(two, "slow") == "running")
    done = two.run("cancel")
    assert done.code == 0
    assert "run 1 is told to stop" in done.out and done.out.splitlines()[-1] == "run 1 is stopped"
    assert not two.alive(pid), "it has ended when cancel has"
    out, _ = up.communicate(timeout=60)
    assert up.returncode == 143
    assert states(out)["bad"] == states(out)["slow"] == "stopped"
    assert (two.folder / "trace.saved").exists()
    assert two.nothing_half_made()


def test_one_stage_is_stopped_and_the_others_go_on(two, eventually):
    up = two.start("up", "--json", "--jobs", "3")
    pid = two.begun(eventually)
    done = two.run("cancel", "bad")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "bad of run 1 is stopped"
    assert not two.alive(pid)
    assert (two.folder / "trace.saved").exists()
    assert up.poll() is None, "the run goes on"
    (two.folder / "trace.go").touch()
    out, err = up.communicate(timeout=60)
    assert up.returncode == 143, err
    assert states(out) == {"bad": "stopped", "after": "not run", "beside": "done", "slow": "done"}
    assert two.up() == {"bad": "done", "after": "done", "beside": "reused", "slow": "reused"}


def test_a_stage_that_has_not_begun_is_not_begun(two, eventually):
    up = two.start("up", "--json", "--jobs", "3")
    two.begun(eventually)
    assert two.run("cancel", "1", "after").out.splitlines()[-1] == "after of run 1 is stopped"
    (two.folder / "trace.go").touch()
    out, err = up.communicate(timeout=60)
    assert up.returncode == 143, err
    assert states(out) == {"bad": "done", "after": "stopped", "beside": "done", "slow": "done"}


def test_cancelled_again_it_is_ended_at_once(work, eventually):
    work.environment["ACT"] = STUBBORN
    up = work.start("up", "--json")
    pid = work.begun(eventually)
    first = work.start("cancel", "bad")
    assert "told to stop" in first.stdout.readline()
    assert work.alive(pid), "it has its grace"
    assert work.run("cancel", "bad").code == 0
    assert first.communicate(timeout=60)[0].strip() == "bad of run 1 is stopped"
    assert not work.alive(pid)
    up.communicate(timeout=60)
    assert up.returncode == 143


@pytest.mark.parametrize("words", [(), ("1",), ("1", "bad")], ids=str)
def test_what_a_dead_runner_left_running_is_stopped(work, eventually, words):
    work.environment["ACT"] = SAVES
    up = work.start("up")
    pid = work.begun(eventually)
    up.kill()
    up.communicate()
    assert work.alive(pid)
    done = work.run("cancel", *words)
    assert done.code == 0, done.err
    assert "bad of run 1 still runs, though its runner died" in done.out
    assert "bad of run 1 is stopped" in done.out.splitlines()
    assert not work.alive(pid)
    assert (work.folder / "trace.saved").exists()
    work.environment["ACT"] = ""
    assert work.up()["after"] == "done"
    assert work.nothing_half_made()


def test_what_does_not_stop_is_ended_after_its_grace(work, eventually):
    work.environment["ACT"] = STUBBORN
    up = work.start("up")
    pid = work.begun(eventually)
    up.kill()
    up.communicate()
    assert work.run("cancel", "--set", "stages.bad.grace=0.3").code == 0
    assert not work.alive(pid)


def test_nothing_to_cancel_is_said_and_no_error(work):
    assert work.run("cancel").out == "nothing is running\n"
    work.up()
    assert work.run("cancel").out == "nothing is running\n"
    done = work.run("cancel", "1")
    assert (done.code, done.out) == (0, "run 1 is done already\n")


def test_what_is_done_already_is_said(two, eventually):
    up = two.start("up", "--jobs", "3")
    two.begun(eventually)
    eventually(lambda: status(two, "beside") == "done")
    assert two.run("cancel", "1", "beside").out == "beside of run 1 is done already\n"
    (two.folder / "trace.go").touch()
    up.communicate(timeout=60)
    assert up.returncode == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("7",), "there is no run 7"),
        (("1", "baad"), "run 1 has no stage 'baad' (did you mean 'bad'?)"),
        (("1", "2"), "too many words"),
    ],
)
def test_what_is_not_there_is_told(work, words, text):
    work.up()
    done = work.run("cancel", *words)
    assert done.code == 2
    assert text in done.err


def test_a_run_of_another_machine_is_not_ours_to_cancel(work):
    work.up()
    db = sqlite3.connect(work.folder / ".runner/history.db")
    db.execute("UPDATE runs SET runner='1:1:boot:far', status='running', finished=NULL")
    db.commit()
    db.close()
    done = work.run("cancel")
    assert done.code == 2
    assert "run 1 runs on far" in done.err and "cancel it there" in done.err
