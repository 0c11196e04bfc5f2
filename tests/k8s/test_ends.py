"""How an attempt ends as a Job, for real: exit codes, signals, memory, time, what is removed, what is left."""

from __future__ import annotations

import signal

import pytest

from runner.executors import LOST
from runner.retry import Retry
from runner.spec import Resources

TWICE = Retry(attempts=2)


@pytest.mark.parametrize("code", [0, 2, 70, 75, 1])
def test_an_exit_code_is_told_and_nothing_is_left(bench, eventually, code):
    running = bench.begin(f"echo said; exit {code}")
    ended = running.ended()
    assert (ended.code, ended.status.why, ended.words) == (code, None, ["said"])
    eventually(lambda: not bench.left(running.attempt))


def test_an_end_by_a_signal_is_that_signal(bench):
    assert bench.run("kill -SEGV $$").code == -signal.SIGSEGV


def test_events_and_the_log_are_apart(bench):
    ended = bench.run('echo \'{"event": "log", "text": "é"}\'; echo \'{"no": 1}\'; echo plain >&2; printf last')
    assert ended.events == '{"event": "log", "text": "é"}\n'
    assert sorted(ended.words) == ["last", "plain", '{"no": 1}']


def test_a_temporary_end_is_tried_again_by_the_cluster(bench):
    running = bench.begin("echo try; exit 75", retry=TWICE)
    ended = running.ended()
    assert (ended.code, ended.words) == (75, ["try", "try"])
    assert sum("try 1 of 2 ended with exit code 75" in line for line in ended.told) == 1


@pytest.mark.parametrize("code", [2, 70])
def test_a_final_end_is_not_tried_again(bench, code):
    ended = bench.run(f"echo try; exit {code}", retry=Retry(attempts=5))
    assert (ended.code, ended.words) == (code, ["try"])


def test_a_try_that_succeeds_is_the_end(bench, asked):
    asked.answers += ["75", "75", "0"]
    ended = bench.run(f"echo try; exit $({asked.get})", retry=Retry(attempts=3))
    assert (ended.code, ended.words) == (0, ["try"] * 3)
    assert any("try 2 of 3 ended with exit code 75" in line for line in ended.told)


def test_too_much_memory_is_told_with_its_limit(bench):
    script = "python3 -c 'x = bytearray(400 << 20); print(len(x))'"
    ended = bench.run(f"exec {script}", resources=Resources(memory=64 << 20))
    assert ended.code == 2
    assert "its limit of 64 MiB" in ended.status.why.what
    assert "memory" in ended.status.why.fix


def test_what_takes_too_long_is_ended_by_the_cluster(bench, eventually):
    running = bench.begin("echo begun; sleep 300", timeout=3.0, grace=1.0)
    ended = running.ended()
    assert ended.code == 2
    assert "longer than its timeout of 3 s" in ended.status.why.what
    assert ended.words == ["begun"]
    eventually(lambda: not bench.left(running.attempt))


def test_a_cancelled_stage_has_its_grace(bench, eventually):
    running = bench.begin("trap 'echo saved; exit 143' TERM; echo begun; while :; do sleep 0.1; done")
    eventually(lambda: "begun" in running.log())
    running.executor.cancel(running.attempt)
    ended = running.ended()
    assert (ended.code, ended.words) == (143, ["begun", "saved"])
    eventually(lambda: not bench.left(running.attempt))


def test_a_program_that_knows_no_signals_is_stopped_too(bench, eventually):
    running = bench.begin("echo begun; exec sleep 300", grace=60.0)
    eventually(lambda: "begun" in running.log())
    running.executor.cancel(running.attempt)
    assert running.ended().code == 143


def test_what_does_not_stop_is_ended(bench, eventually):
    running = bench.begin("trap '' TERM; echo begun; while :; do sleep 0.1; done", grace=300.0)
    eventually(lambda: "begun" in running.log())
    running.executor.cancel(running.attempt)
    eventually(lambda: running.pod()["metadata"].get("deletionTimestamp"))
    assert running.executor.poll(running.attempt).running
    running.executor.cancel(running.attempt, now=True)
    assert running.ended().code == -signal.SIGKILL
    eventually(lambda: not bench.left(running.attempt))


def test_what_is_forgotten_while_it_runs_is_gone(bench, eventually):
    running = bench.begin("sleep 300", grace=1.0)
    eventually(running.pod)
    running.executor.forget(running.attempt)
    eventually(lambda: not bench.left(running.attempt))


def test_a_deleted_pod_is_followed_by_another(bench, eventually):
    running = bench.begin("echo begun; while [ ! -e /tmp/x ]; do sleep 0.1; done", grace=1.0)
    first = eventually(lambda: "begun" in running.log() and running.pod())["metadata"]["name"]
    bench.place.delete("pods", first)
    second = eventually(lambda: running.log().count("begun") == 2 and running.pod())["metadata"]["name"]
    assert second != first
    eventually(lambda: f"{first} was taken away: somebody deleted it" in running.log())
    assert running.executor.poll(running.attempt).running


def test_a_deleted_job_is_lost(bench, eventually):
    running = bench.begin("echo begun; sleep 300", grace=1.0)
    eventually(lambda: "begun" in running.log())
    bench.place.delete("jobs", running.job)
    assert running.ended().code == LOST


def test_ends_wake_who_waits(bench):
    import select

    running = bench.begin("exit 0")
    poller = select.poll()
    poller.register(running.executor.wake(running.attempt), select.POLLIN | select.POLLHUP)
    assert poller.poll(60000)
    assert not running.executor.poll(running.attempt).running
