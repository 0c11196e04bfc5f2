"""A run that is told to stop: its stages are told and waited for, and the next `up` continues."""

import json
import signal
import time

import pytest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_cleanly(work, eventually, number):
    """The stage is told, may save, and its runner waits for it."""
    work.environment["ACT"] = (
        'trap "echo saved > \\"$TRACE.saved\\"; exit 143" TERM; echo $$ > "$TRACE.pid"; while :; do sleep 0.05; done'
    )
    runner = work.start("up", "--json")
    pid = work.begun(eventually)
    runner.send_signal(number)
    out, err = runner.communicate(timeout=60)
    assert runner.returncode == 143
    assert "stopping" in err
    assert (work.folder / "trace.saved").exists()
    assert not work.alive(pid)
    statuses = {s["stage"]: s["status"] for s in json.loads(out)["stages"]}
    assert statuses["bad"] == "stopped"
    assert statuses["after"] == "not run"
    assert work.nothing_half_made()
    assert "stopped" in work.run("ps").out
    work.environment["ACT"] = ""
    assert work.up()["after"] == "done"


def test_a_second_signal_ends_at_once(work, eventually):
    work.environment["ACT"] = 'trap "" TERM; echo $$ > "$TRACE.pid"; while :; do sleep 0.05; done'
    runner = work.start("up")
    pid = work.begun(eventually)
    runner.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert work.alive(pid), "it ignores SIGTERM, and has its grace"
    runner.send_signal(signal.SIGINT)
    runner.communicate(timeout=60)
    assert runner.returncode == 143
    assert not work.alive(pid)
    assert work.nothing_half_made()


def test_a_stage_that_was_told_to_stop_by_somebody_else_stops_the_run(work):
    done = work.run("up", "--json", environment={"ACT": "exit 143"})
    assert done.code == 143
    assert done.states == {"bad": "stopped", "after": "not run", "beside": "done"}


SAVES = 'trap "echo saved > \\"$TRACE.saved\\"; exit 143" TERM; echo $$ > "$TRACE.pid"; while :; do sleep 0.05; done'


@pytest.fixture
def patient(work, spoiled):
    """A runner that asks a silent store again for ten minutes. `beside` waits for `bad`, and is looked up meanwhile."""
    work.environment |= {**spoiled.environment, "MICROSTAGES_PATIENCE": "600", "MICROSTAGES_LEASE_SECONDS": "4"}
    work.file.write_text(f"store: {spoiled.uri()}\n" + work.file.read_text())
    return lambda: work.start("up", "--quiet", "--jobs", "1")  # quiet: it looks around once a minute


@pytest.mark.parametrize("spoiled", ["azurite"], indirect=True)
def test_the_stages_are_told_although_the_store_is_silent(work, spoiled, patient, eventually):
    work.environment["ACT"] = SAVES
    runner = patient()
    work.begun(eventually)
    time.sleep(0.5)
    spoiled.proxy.off()
    runner.send_signal(signal.SIGINT)
    eventually((work.folder / "trace.saved").exists)
    spoiled.proxy.on()
    runner.communicate(timeout=60)
    assert runner.returncode == 143


@pytest.mark.parametrize("spoiled", ["azurite"], indirect=True)
def test_after_a_second_signal_nobody_waits_for_a_silent_store(work, spoiled, patient, eventually):
    work.environment["ACT"] = 'echo $$ > "$TRACE.pid"; while [ ! -e "$TRACE.go" ]; do sleep 0.05; done'
    runner = patient()
    work.begun(eventually)
    spoiled.proxy.off()
    (work.folder / "trace.go").touch()
    time.sleep(1)
    runner.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert runner.poll() is None, "what was made is still to be stored"
    runner.send_signal(signal.SIGINT)
    runner.communicate(timeout=60)
    assert runner.returncode == 143
    spoiled.proxy.on()
    assert work.up()["after"] == "done"
