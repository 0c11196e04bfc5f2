"""What becomes of an attempt where something else fails at its end: what is whole counts, and nobody else suffers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3

import pytest

from runner.store import Store

WAITS = 'echo $$ > "$TRACE.pid"; while [ ! -e "$TRACE.go" ]; do sleep 0.05; done'


def states(text):
    return {s["stage"]: s["status"] for s in json.loads(text)["stages"]}


def execute(project, sql):
    """Do something to the history, behind the back of its runner."""
    db = sqlite3.connect(project.folder / ".runner/history.db")
    db.execute(sql)
    db.commit()
    db.close()


def commit_of(project, uses):
    return next((project.folder / ".runner/store/artifacts" / uses).glob("*/commit.json"))


def test_a_history_that_fails_after_the_commit_is_a_warning(work, eventually):
    work.environment["ACT"] = WAITS
    up = work.start("up", "--json", "--only", "bad")
    work.begun(eventually)
    execute(work, "DROP TABLE claims")
    (work.folder / "trace.go").touch()
    out, err = up.communicate(timeout=60)
    assert up.returncode == 0, err
    assert states(out)["bad"] == "done"
    assert "warning: " in err and "the history cannot be written" in err
    (work.folder / ".runner/history.db").unlink()
    assert work.plan()["bad"] == ("reuse", "unchanged")


def test_what_is_committed_is_not_removed_as_a_dead_attempt(work):
    work.up()
    commit = commit_of(work, "work")
    fingerprint, attempt = commit.parent.name, json.loads(commit.read_text())["attempt"]
    store = Store(str(work.folder / ".runner/store"))
    store.discard("work", fingerprint, attempt)
    assert work.plan()["bad"] == ("reuse", "unchanged")
    (commit.parent / "another").mkdir()
    store.discard("work", fingerprint, "another")
    assert not (commit.parent / "another").exists()


def test_a_look_up_that_fails_for_good_fails_its_stage_alone(work, eventually):
    work.environment["ACT"] = WAITS
    work.stage("late", 'cat "$x/x" > "$out/x"', inputs={"x": ["dataset"]})
    work.file.write_text(work.file.read_text() + '  late: {uses: ./late, inputs: {x: "${{ stages.beside.out }}"}}\n')
    artifacts = work.folder / ".runner/store/artifacts"
    artifacts.mkdir(parents=True)
    (artifacts / "late").symlink_to("late")  # it leads nowhere: whoever reads below it gets an error
    up = work.start("up", "--json", "--jobs", "3")
    pid = work.begun(eventually)
    eventually(lambda: "failed" in work.run("ps", "--json").out)
    assert work.alive(pid), "it goes on"
    (work.folder / "trace.go").touch()
    out, err = up.communicate(timeout=60)
    assert up.returncode == 2, err
    assert states(out) == {"bad": "done", "after": "done", "beside": "done", "late": "failed"}
    assert "symbolic links" in err and "Traceback" not in err


def test_stages_of_a_run_that_breaks_off_may_save(work, eventually):
    work.environment["ACT"] = f'trap "echo saved > \\"$TRACE.saved\\"; exit 143" TERM; {WAITS}'
    up = work.start("up")
    pid = work.begun(eventually)
    execute(work, "DROP TABLE cancels")
    up.send_signal(signal.SIGUSR1)
    _, err = up.communicate(timeout=60)
    assert up.returncode != 0 and "cancels" in err
    assert (work.folder / "trace.saved").exists()
    assert not work.alive(pid)
    work.environment["ACT"] = ""
    assert work.up()["after"] == "done"
    assert work.nothing_half_made()


@pytest.mark.parametrize("why", ["forced", "damaged"])
def test_what_another_run_put_in_place_meanwhile_stays(work, eventually, why):
    work.up()
    commit = commit_of(work, "work")
    old = json.loads(commit.read_text())
    other = {**old, "attempt": "20990101T000000-00000000"}
    shutil.copytree(commit.parent / old["attempt"], commit.parent / other["attempt"])
    if why == "damaged":
        (commit.parent / old["attempt"] / "out/x").write_text("altered")
    work.environment["ACT"] = WAITS
    force = ["--force"] if why == "forced" else []
    up = work.start("up", "--json", "--only", "bad", *force)
    work.begun(eventually)
    commit.write_text(json.dumps(other))
    (work.folder / "trace.go").touch()
    out, err = up.communicate(timeout=60)
    assert up.returncode == 0, err
    assert other["attempt"] in out
    assert json.loads(commit.read_text()) == other
    left = {p.name for p in commit.parent.iterdir() if p.is_dir()}
    assert left == {old["attempt"], other["attempt"]}, "its own attempt is gone"


def test_what_is_damaged_as_well_is_replaced(work, eventually):
    work.up()
    commit = commit_of(work, "work")
    work.environment["ACT"] = WAITS
    up = work.start("up", "--only", "bad", "--force")
    work.begun(eventually)
    commit.write_text(json.dumps({**json.loads(commit.read_text()), "attempt": "20990101T000000-00000000"}))
    (work.folder / "trace.go").touch()
    assert up.wait(60) == 0
    assert work.plan()["bad"] == ("reuse", "unchanged")


@pytest.mark.parametrize("spoiled", ["azurite"], indirect=True)
def test_a_result_whose_stage_was_killed_and_whose_store_blinks_is_committed_later(saver, spoiled, eventually):
    """It was killed after it had written all; the store does not answer when its end is seen."""
    tool = saver.folder / "work/tool.py"
    tool.write_text(tool.read_text() + "time.sleep(600)\n")
    saver.environment |= {**spoiled.environment, "MICROSTAGES_PATIENCE": "0.2"}
    up = saver.start("up", "--json", "--set", f"store={spoiled.uri()}", "--only", "bad")
    pid = saver.begun(eventually)
    (saver.folder / "trace.wait").unlink()
    eventually((saver.folder / "trace.done").exists)
    spoiled.proxy.off()
    os.kill(pid, signal.SIGKILL)
    for line in up.stderr:
        if "it is tried again" in line:
            break
    spoiled.proxy.on()
    out, err = up.communicate(timeout=60)
    assert up.returncode == 0, err
    assert states(out)["bad"] == "done"
    assert saver.ran().count("work") == 1


@pytest.mark.parametrize("spoiled", ["azurite"], indirect=True)
def test_outputs_that_are_in_the_store_already_are_not_sent_again(project, spoiled, eventually):
    """The store takes the output of a plain command, and does not answer when it is to be committed."""
    project.stage("work", f'{WAITS}; echo x > "$out/x"')
    project.pipeline(f"name: demo\nstore: {spoiled.uri()}\nstages:\n  a: {{uses: ./work}}\n")
    project.environment |= {**spoiled.environment, "MICROSTAGES_PATIENCE": "0.2"}
    up = project.start("up", "--json")
    project.begun(eventually)
    spoiled.proxy.off()
    (project.folder / "trace.go").touch()
    for line in up.stderr:
        if "it is tried again" in line:
            break
    spoiled.proxy.on()
    out, err = up.communicate(timeout=60)
    assert up.returncode == 0, err
    assert states(out)["a"] == "done"


def test_a_place_that_keeps_the_timeout_itself_is_tried_again_where_the_stage_says_so(project, monkeypatch):
    """A cluster ends what takes too long and says so; that is a timeout as any other."""
    from runner.executors import LateError, Status
    from runner.executors.process import ProcessExecutor

    monkeypatch.setattr(ProcessExecutor, "poll", lambda *_: Status(False, 2, LateError(60.0)))
    project.stage("work", "sleep 1")
    project.pipeline("""\
        stages:
          a: {uses: ./work, timeout: 1min, retry: {attempts: 2, backoff: 0s, on: [timeout]}, target: process}
        """)
    monkeypatch.chdir(project.folder)
    from runner.cli import call

    assert call(["up", "--json"]) == 2
    logs = sorted(p.name for p in (project.folder / ".runner/logs/1").iterdir())
    assert logs == ["a.2.log", "a.log"]
