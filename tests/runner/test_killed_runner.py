"""A runner that was killed, and two at once: nothing is lost, made twice or left behind."""

import json
import os
import re
import signal
import sqlite3


def test_after_kill_9_the_next_runner_takes_the_running_stage_up(saver, eventually):
    runner = saver.start("up")
    pid = saver.begun(eventually)
    runner.kill()
    runner.communicate()
    assert saver.alive(pid), "the stage goes on"
    assert re.search(r"demo +died +\d died, ", saver.run("ps").out)
    second = saver.start("up", "--json")
    eventually(lambda: saver.running() == 1)
    (saver.folder / "trace.wait").unlink()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert "still running from before" in err
    assert {s["stage"]: s["status"] for s in json.loads(out)["stages"]}["bad"] == "done"
    assert saver.ran().count("work") == 1, "it was not started a second time"
    assert (saver.output("after") / "x").read_text() == "made\n"
    assert saver.nothing_half_made()


def test_after_kill_9_what_finished_meanwhile_is_reused(saver, eventually):
    runner = saver.start("up")
    saver.begun(eventually)
    runner.kill()
    runner.communicate()
    (saver.folder / "trace.wait").unlink()
    eventually((saver.folder / "trace.done").exists)
    assert saver.up()["bad"] == "reused"
    assert saver.ran().count("work") == 1
    assert saver.nothing_half_made()


def test_after_kill_9_of_runner_and_stage_it_is_made_again(saver, eventually):
    runner = saver.start("up")
    pid = saver.begun(eventually)
    runner.kill()
    os.kill(pid, signal.SIGKILL)
    runner.communicate()
    (saver.folder / "trace.wait").unlink()
    assert saver.up()["bad"] == "done"
    assert saver.ran().count("work") == 2


def test_an_adopted_stage_that_dies_is_made_again(saver, eventually):
    runner = saver.start("up")
    pid = saver.begun(eventually)
    runner.kill()
    runner.communicate()
    second = saver.start("up", "--json")
    eventually(lambda: saver.running() == 1)
    (saver.folder / "trace.wait").unlink()
    os.kill(pid, signal.SIGKILL)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert (saver.output("bad") / "x").read_text() == "made\n"


def test_after_kill_9_a_plain_command_is_ended_and_made_again(work, eventually):
    """Nobody can know how a plain command ended whose parent is gone: it is not trusted."""
    work.environment["ACT"] = 'echo $$ > "$TRACE.pid"; while [ ! -e "$TRACE.go" ]; do sleep 0.05; done'
    runner = work.start("up")
    pid = work.begun(eventually)
    runner.kill()
    runner.communicate()
    assert work.alive(pid)
    (work.folder / "trace.pid").unlink()
    second = work.start("up", "--json")
    new = work.begun(eventually)
    assert new != pid
    assert not work.alive(pid)
    (work.folder / "trace.go").touch()
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert work.nothing_half_made()


def test_a_process_whose_runner_died_before_it_noted_it_is_found_by_name(saver, eventually):
    runner = saver.start("up")
    saver.begun(eventually)
    runner.kill()
    runner.communicate()
    db = sqlite3.connect(saver.folder / ".runner" / "history.db")
    db.execute("UPDATE claims SET token=''")
    db.commit()
    db.close()
    second = saver.start("up", "--json")
    eventually(lambda: saver.running() == 1)
    (saver.folder / "trace.wait").unlink()
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert "still running from before" in err
    assert saver.ran().count("work") == 1


def test_two_runners_make_a_thing_once(saver, eventually):
    first = saver.start("up", "--json")
    saver.begun(eventually)
    second = saver.start("up", "--json")
    said = ""
    while "waiting for it" not in said and (line := second.stderr.readline()):
        said += line
    (saver.folder / "trace.wait").unlink()
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    out, err = second.communicate(timeout=60)
    err = said + err
    assert second.returncode == 0, err
    assert re.search(r"bad: another run \(\S+@\S+, pid \d+\) is making it since \d\d:\d\d:\d\d; waiting for it", err)
    assert err.count("waiting for it") == 1
    assert {s["stage"]: s["status"] for s in json.loads(out)["stages"]}["bad"] == "reused"
    assert sorted(saver.ran()) == ["good", "next", "work"]
    assert saver.nothing_half_made()


def test_what_a_killed_run_left_is_removed_even_if_nobody_wants_it_any_more(saver, eventually):
    runner = saver.start("up")
    pid = saver.begun(eventually)
    runner.kill()
    os.kill(pid, signal.SIGKILL)
    runner.communicate()
    assert [name for name in saver.store() if name.endswith(".partial")]
    (saver.folder / "trace.wait").unlink()
    assert saver.up("--set", "stages.bad.params.n=1")["bad"] == "done"
    assert saver.nothing_half_made()


def test_a_stage_that_still_runs_for_nobody_is_told(saver, eventually):
    runner = saver.start("up")
    saver.begun(eventually)
    runner.kill()
    runner.communicate()
    done = saver.run("up", "--only", "beside")
    assert "work: still running for a run whose runner died" in done.out
    (saver.folder / "trace.wait").unlink()
    assert saver.up()["bad"] in ("done", "reused")
    assert saver.ran().count("work") == 1


def test_what_a_killed_run_left_in_a_store_elsewhere_is_removed_too(saver, azurite, eventually, monkeypatch):
    azurite.use(monkeypatch)
    uri = azurite.uri()
    saver.environment |= azurite.environment
    saver.file.write_text(f"store: {uri}\n" + saver.file.read_text())
    state = saver.folder / ".runner"
    runner = saver.start("up", "--only", "bad")
    pid = saver.begun(eventually)
    runner.kill()
    os.kill(pid, signal.SIGKILL)
    runner.communicate()
    assert claims(state) == 1
    assert saver.up("--only", "beside")["beside"] == "done"
    assert claims(state) == 0
    (saver.folder / "trace.wait").unlink()
    assert saver.up()["bad"] == "done"


def claims(state):
    """How many attempts are under way, as the history in a folder says."""
    db = sqlite3.connect(state / "history.db")
    found = db.execute("SELECT count(*) FROM claims").fetchone()[0]
    db.close()
    return found
