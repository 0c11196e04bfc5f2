"""What every executor promises, asked of each of them with the same tests."""

from __future__ import annotations

import json
import time

import pytest

from runner.executors import LOST

SAY = """printf '{"event": "log", "text": "%s"}\\n' """
LINES = 120_000  # of 87 bytes: more than 10 MB


def test_what_ends_well_ends_with_0_and_its_words_lie_where_they_belong(place, finished):
    executor = place.executor()
    attempt = place.attempt(f"{SAY} one; echo 'for people' >&2; {SAY} two")
    executor.submit(attempt)
    ended = finished(executor, attempt)
    assert (ended.status.code, ended.status.why, ended.status.left) == (0, None, False)
    assert [json.loads(line)["text"] for line in ended.events.splitlines()] == ["one", "two"]
    assert "for people\n" in ended.log and "one" not in ended.log


@pytest.mark.parametrize("code", [1, 2, 70, 75, 143])
def test_an_exit_code_is_that_of_the_program(place, finished, code):
    executor = place.executor()
    event = json.dumps({"event": "error", "what": "it went wrong", "exit_code": code})
    attempt = place.attempt(f"echo '{event}'; exit {code}")
    executor.submit(attempt)
    ended = finished(executor, attempt)
    assert "it went wrong" in ended.events
    if not place.knows_codes:  # then the event tells it
        assert ended.status.code in (code, LOST)
    else:
        assert (ended.status.code, ended.status.why) == (code, None)


def test_a_program_that_is_killed_did_not_end_well(place, finished):
    executor = place.executor()
    attempt = place.attempt("kill -9 $$")
    executor.submit(attempt)
    assert finished(executor, attempt).status.code in (-9, LOST)


def test_words_are_those_that_were_said(place, finished):
    executor = place.executor()
    attempt = place.attempt("printf 'Grüße, 世界 🙂\\n' >&2; printf 'a\\ttab, a \\\\ and no end' >&2")
    executor.submit(attempt)
    assert "Grüße, 世界 🙂\n" in (log := finished(executor, attempt).log)
    assert "a\ttab, a \\ and no end" in log


def test_ten_megabytes_of_words_come_whole_and_in_order(place, finished):
    executor = place.executor()
    script = f'awk \'BEGIN {{ for (i = 0; i < {LINES}; i++) printf "line %08d %072d\\n", i, i > "/dev/stderr" }}\''
    attempt = place.attempt(script)
    executor.submit(attempt)
    lines = [line for line in finished(executor, attempt).log.splitlines() if line.startswith("line ")]
    assert len(lines) == LINES
    assert [int(line.split()[1]) for line in lines] == list(range(LINES))


def test_words_can_be_read_while_it_runs(place, finished, eventually):
    executor = place.executor()
    attempt = place.attempt(f"{SAY} first; i=0; while [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done")
    executor.submit(attempt)
    eventually(lambda: "first" in executor.read(attempt))
    assert executor.poll(attempt).running
    executor.cancel(attempt, now=True)
    assert finished(executor, attempt).status.code != 0


def test_told_to_stop_it_may_save_what_it_has(place, finished, eventually):
    executor = place.executor()
    attempt = place.attempt(
        f"trap '{SAY.replace(chr(39), chr(39) + chr(92) + chr(39) + chr(39))} saved; exit 143' TERM;"
        f" {SAY} begun; while :; do sleep 0.1; done"
    )
    executor.submit(attempt)
    eventually(lambda: "begun" in executor.read(attempt))
    executor.cancel(attempt)
    ended = finished(executor, attempt)
    assert ended.status.code in (place.stopped if place.knows_codes else (143, LOST))
    assert "saved" in ended.events or not place.last_words


def test_a_new_runner_takes_it_up_with_all_its_words_and_it_was_submitted_once(place, finished, eventually):
    first = place.executor()
    script = f"for i in 1 2 3 4 5 6 7 8; do {SAY} $i; sleep 0.5; done"
    attempt = place.attempt(script)
    token = first.submit(attempt)
    eventually(lambda: '"1"' in first.read(attempt))
    first.forget(attempt, leave=True)
    second = place.executor()
    assert second.find(attempt, token)
    said = finished(second, attempt)
    if place.name != "process":  # how another's child ends only its parent knows
        assert said.status.code == 0
    assert [json.loads(line)["text"] for line in said.events.splitlines()] == list("12345678")


def test_it_is_found_by_its_name_where_its_runner_died_before_it_had_a_token(place, finished, eventually):
    attempt = place.attempt(f"{SAY} once; sleep 2")
    one, two = place.executor(), place.executor()
    one.submit(attempt)
    eventually(lambda: "once" in one.read(attempt))
    assert two.find(attempt, one.address)
    assert place.count is None or place.count(attempt) == 1
    two.forget(attempt, leave=True)
    assert finished(one, attempt).events.count("once") == 1


def test_what_is_not_there_is_not_found(place):
    assert not place.executor().find(place.attempt("true"), "")


def test_attempts_run_side_by_side(place, finished):
    executor = place.executor()
    attempts = [place.attempt(f"{SAY} {n}; sleep 1; exit {n}") for n in (0, 3, 0, 4)]
    for attempt in attempts:
        executor.submit(attempt)
    for attempt, n in zip(attempts, (0, 3, 0, 4), strict=True):
        ended = finished(executor, attempt)
        assert ended.status.code == n or (not place.knows_codes and n and ended.status.code == LOST)
        assert f'"{n}"' in ended.events


def test_it_says_when_it_ends(place, finished):
    """Where there is a descriptor to wait on it becomes readable at the end, not before it."""
    import select

    executor = place.executor()
    attempt = place.attempt("sleep 1")
    executor.submit(attempt)
    fd = executor.wake(attempt)
    if fd is not None:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        began = time.monotonic()
        assert poller.poll(120_000)
        while executor.poll(attempt).running and time.monotonic() - began < 10:
            time.sleep(0.01)
        assert not executor.poll(attempt).running
    assert finished(executor, attempt).status.code == 0


def test_its_environment_is_what_it_was_given(place, finished):
    executor = place.executor()
    attempt = place.attempt('echo "got $GIVEN" >&2', environment={"GIVEN": "a value = with 'signs' $HOME"})
    executor.submit(attempt)
    assert "got a value = with 'signs' $HOME\n" in finished(executor, attempt).log


def test_a_program_that_is_not_there_is_told(place, finished):
    from dataclasses import replace

    from microstages.errors import UserError

    executor = place.executor()
    attempt = replace(place.attempt("true"), command=("/no/such/program",))
    try:
        executor.submit(attempt)
    except UserError as error:
        assert "/no/such/program" in str(error)
        return
    status = finished(executor, attempt).status
    assert status.code not in (0, None)
    assert status.why is not None and "/no/such/program" in str(status.why)
