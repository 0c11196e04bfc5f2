"""Many runners on one store: each stage runs once, and whoever dies or stops holds nobody up for long."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runner.executors.processes import own_token
from runner.lease import Holder, Leases
from runner.patience import Patience

RUNNERS = 8


@pytest.fixture
def diamond(project):
    """Four stages; each takes long enough to be met by the others."""
    project.stage("make", 'sleep 0.3; echo "$n" > "$out/x"', params={"n": {"type": "integer", "default": 0}})
    project.stage("join", 'sleep 0.3; cat "$p/x" "$q/x" > "$out/x"', inputs={"p": ["dataset"], "q": ["dataset"]})
    project.stage("more", 'sleep 0.3; cat "$x/x" > "$out/x"', inputs={"x": ["dataset"]})
    return project


def pipeline(project, store):
    project.pipeline(f"""\
        name: demo
        store: {store}
        stages:
          one: {{uses: ./make, params: {{n: 1}}}}
          left: {{uses: ./more, inputs: {{x: "${{{{ stages.one.out }}}}"}}}}
          two: {{uses: ./make, params: {{n: 2}}}}
          join: {{uses: ./join, inputs: {{p: "${{{{ stages.left.out }}}}", q: "${{{{ stages.two.out }}}}"}}}}
        """)


@pytest.mark.parametrize("clones", [False, True], ids=["one project", "a clone for each"])
def test_runners_that_start_at_once_make_each_stage_once(diamond, common_store, tmp_path, clones):
    pipeline(diamond, common_store.uri)
    folders = [diamond.folder] * RUNNERS
    if clones:
        folders = [tmp_path / f"clone-{n}" for n in range(RUNNERS)]
        for folder in folders:
            shutil.copytree(diamond.folder, folder, ignore=shutil.ignore_patterns("clone-*", "store"))
    environment = {**diamond.environment, **common_store.environment}
    started = [
        subprocess.Popen(
            diamond.command("up", "--json"), cwd=folder, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        )
        for folder in folders
    ]  # fmt: skip
    outcomes = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * RUNNERS, outcomes
    assert sorted(diamond.ran()) == ["join", "make", "make", "more"]
    results = [{s["stage"]: s["outputs"] for s in json.loads(out)["stages"]} for out, _ in outcomes]
    assert results == [results[0]] * RUNNERS, "all have the same result"
    assert common_store.leases() == []


# --- runners that die, or stop ---


def idle(project, eventually):
    """Wait until `beside` is done: what stops its runner then does not stop it while it holds the history's lock."""
    eventually(lambda: any(s["status"] == "done" for s in project.run("ps", "--json").json[0]["stages"]))


def test_a_stopped_runner_is_taken_over_and_takes_its_result_from_the_other(saver, eventually):
    saver.environment["MICROSTAGES_LEASE_SECONDS"] = "1"
    first = saver.start("up", "--json")
    saver.begun(eventually)
    idle(saver, eventually)
    first.send_signal(signal.SIGSTOP)
    second = saver.start("up", "--json")
    time.sleep(0.3)
    (saver.folder / "trace.wait").unlink()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert "waiting for it" in err
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    assert {s["stage"]: s["status"] for s in json.loads(out)["stages"]}["bad"] in ("done", "reused")
    assert saver.ran().count("work") == 1, "its process was taken over, not started again"
    assert saver.nothing_half_made()


def test_a_stopped_runner_whose_command_was_ended_waits_for_the_one_that_took_over(work, eventually):
    """How a plain command ends only its own runner can tell: the other ends it and starts one of its own."""
    work.environment |= {
        "MICROSTAGES_LEASE_SECONDS": "1",
        "ACT": 'echo $$ > "$TRACE.pid"; while [ ! -e "$TRACE.go" ]; do sleep 0.05; done',
    }
    first = work.start("up", "--json")
    pid = work.begun(eventually)
    idle(work, eventually)
    first.send_signal(signal.SIGSTOP)
    (work.folder / "trace.pid").unlink()
    second = work.start("up", "--json")
    assert work.begun(eventually) != pid
    first.send_signal(signal.SIGCONT)
    time.sleep(1)
    (work.folder / "trace.go").touch()
    for runner, state in ((second, "done"), (first, "reused")):
        out, err = runner.communicate(timeout=60)
        assert runner.returncode == 0, err
        assert {s["stage"]: s["status"] for s in json.loads(out)["stages"]}["bad"] == state
    assert "another run has taken it over" in err
    assert work.ran().count("work") == 2
    assert work.nothing_half_made()


def test_a_runner_that_died_on_another_machine_holds_nobody_up(work):
    """Its lease does not change any more, so it is dead; that its clock is a day ahead does not matter."""
    work.environment["MICROSTAGES_LEASE_SECONDS"] = "1"
    fingerprint = work.run("plan", "--json").json["stages"][0]["fingerprint"]
    folder = work.folder / ".runner/store/artifacts/work" / fingerprint
    folder.mkdir(parents=True)
    tomorrow = time.time() + 86400
    lease = {
        "runner": "7:1:boot:far",
        "who": "ada@far",
        "pid": 7,
        "pipeline": "demo",
        "attempt": "a",
        "since": tomorrow,
    }
    (folder / "lease-3.json").write_text(json.dumps({**lease, "beat": 5}))
    began = time.monotonic()
    done = work.run("up", "--json")
    assert done.code == 0, done.err
    assert done.states["bad"] == "done"
    assert "another run (ada@far, pid 7) is making it since" in done.err
    assert time.monotonic() - began > 1, "not before its time is up"
    assert work.nothing_half_made()


def test_a_runner_that_was_killed_on_this_machine_is_replaced_at_once(work, eventually):
    work.environment["ACT"] = 'echo $$ > "$TRACE.pid"; sleep 60'
    runner = work.start("up")
    pid = work.begun(eventually)
    runner.kill()
    runner.communicate()
    os.kill(pid, signal.SIGKILL)
    work.environment["ACT"] = ""
    assert work.up()["bad"] == "done"
    assert work.nothing_half_made()


# --- the protocol ---


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    return str(tmp_path) if request.param == "folder" else f"memory://leases/{secrets.token_hex(4)}"


@pytest.fixture
def runners(store, monkeypatch):
    """As many runners as wanted, each of a machine of its own, with a second without a beat for the end of a lease."""
    monkeypatch.setenv("MICROSTAGES_LEASE_SECONDS", "1")
    made = []

    def make(machine):
        leases = Leases(store, "demo")
        made.append(leases)

        def take(owner="a"):
            monkeypatch.setattr("runner.lease.own_token", lambda: f"1:1:boot:{machine}")
            try:
                return leases.take("work", "f", owner, "attempt")
            finally:
                monkeypatch.setattr("runner.lease.own_token", own_token)

        return leases, take

    yield make
    for leases in made:
        leases.close()


def stop(leases):
    """As if its process had been stopped or killed: no more beats."""
    leases._stop.set()
    leases._thread.join()


def test_one_holds_it_the_others_see_who(runners):
    (one, take_one), (_, take_two) = runners("one"), runners("two")
    assert take_one() is None
    assert take_one() is None, "for the same stage it is still his"
    assert take_one("b").who.endswith("@one"), "another stage of the same run waits as well"
    seen = take_two()
    assert (seen.who.partition("@")[2], seen.pid, seen.pipeline) == ("one", os.getpid(), "demo")
    one.release("work", "f")
    assert take_two() is None


def test_beats_keep_it(runners):
    (_, take_one), (_, take_two) = runners("one"), runners("two")
    take_one()
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert isinstance(take_two(), Holder)
        time.sleep(0.05)


def test_without_beats_one_of_many_takes_it_over(runners):
    (one, take_one), (two, take_two), (three, take_three) = runners("one"), runners("two"), runners("three")
    take_one()
    stop(one)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        holders = take_two(), take_three()
        if None in holders:
            break
        time.sleep(0.02)
    assert holders.count(None) == 1, "exactly one"
    assert one.lost("work", "f")
    one.release("work", "f")  # he wakes: what he gives back is not the other's
    assert [holder is None for holder in (take_two(), take_three())].count(True) == 1
    assert not two.lost("work", "f") and not three.lost("work", "f")


def test_an_observer_that_was_stopped_itself_does_not_take_a_living_one_for_dead(runners):
    (_, take_one), (two, take_two) = runners("one"), runners("two")
    take_one()
    take_two()
    seen = two._seen["work", "f"]
    seen.at -= 1000
    assert take_two() is not None


def test_a_lease_that_was_dead_and_is_another_one_now_is_not_taken_over(runners):
    """Between the judgement and the takeover the dead one went, and somebody began anew with the same name."""
    (one, take_one), (two, take_two), (three, take_three) = runners("one"), runners("two"), runners("three")
    take_one()
    stop(one)
    take_two()
    seen = two._seen["work", "f"]
    one.release("work", "f")
    assert take_three() is None
    assert two._create(("work", "f"), seen.generation + 1, "a", "attempt", seen) is False
    assert not three.lost("work", "f")
    assert take_two().who.endswith("@three")


def test_a_lease_that_was_taken_over_given_back_and_taken_again_is_lost(runners):
    """Its name is the same again, and it is another's."""
    (one, take_one), (two, take_two) = runners("one"), runners("two")
    take_one()
    stop(one)
    while take_two() is not None:
        time.sleep(0.02)
    two.release("work", "f")
    assert take_two() is None
    assert one.lost("work", "f") and not two.lost("work", "f")


def test_nothing_is_left_behind(runners, store):
    one, take_one = runners("one")
    take_one()
    one.close()
    if Path(store).is_dir():
        assert list(Path(store).rglob("*")) == [Path(store, "artifacts"), Path(store, "artifacts/work")]


def test_what_does_not_answer_is_asked_again_for_a_while(monkeypatch):
    monkeypatch.setenv("MICROSTAGES_LEASE_SECONDS", "0.1")
    patience = Patience()
    patience.ask("store")
    assert patience.pause("store") > 0 and patience.first("store")
    assert patience.pause("store") > 0 and not patience.first("store")
    time.sleep(0.4)
    patience.ask("store")
    assert patience.pause("store") is None, "its time is counted from the first question"
    patience.ask("store")
    assert patience.pause("store") > 0, "who gave up begins anew"
    patience.answered("store")
    assert not patience.first("store")
