"""What a pod says reaches the attempt's files: all of it, in order, once, whatever breaks on the way."""

from __future__ import annotations

import time

from runner.executors.kubernetes.executor import KubernetesExecutor
from runner.executors.kubernetes.words import Position

MANY = 200_000


def count(lines: int, pause: float = 0.0) -> str:
    """A program that says numbered lines."""
    sleep = f"; t.sleep({pause})" if pause else ""
    body = f"import sys, time as t\nfor i in range({lines}):\n    print('line', i, 'é' * 20){sleep}"
    return f'exec python3 -u -c "{body}"' if pause else f'exec python3 -c "{body}"'


def numbers(words: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in words]


def test_ten_megabytes_arrive_whole_and_in_order(bench):
    ended = bench.run(count(MANY))
    assert ended.code == 0
    assert numbers(ended.words) == list(range(MANY))
    assert len(ended.log.encode()) > 10e6
    assert ended.words[-1] == f"line {MANY - 1} {'é' * 20}"


def test_a_long_line_is_one_line(bench):
    ended = bench.run("exec python3 -c \"print('abcdefghij' * 10000); print('next')\"")
    assert ended.words == ["abcdefghij" * 10000, "next"]


def test_a_connection_that_breaks_neither_loses_nor_repeats(bench, gate, eventually):
    running = bench.begin(count(2000, 0.002))
    for part in (200, 600, 1100, 1500):
        eventually(lambda part=part: f"line {part} " in running.log())
        gate.cut()
    assert numbers(running.ended().words) == list(range(2000))


def test_another_runner_goes_on_where_the_first_one_stopped(bench, eventually):
    running = bench.begin(count(2000, 0.003))
    eventually(lambda: "line 500 " in running.log())
    running.executor.forget(running.attempt, leave=True)
    before = running.log()
    time.sleep(1)
    running.executor = KubernetesExecutor()
    assert running.executor.find(running.attempt, running.token)
    ended = running.ended()
    assert ended.code == 0
    assert numbers(ended.words) == list(range(2000))
    assert ended.log.startswith(before[: len(before) // 2])


def test_a_runner_that_is_killed_in_the_middle_of_writing_costs_nothing(bench, eventually):
    running = bench.begin(count(2000, 0.003))
    eventually(lambda: "line 500 " in running.log())
    running.executor.forget(running.attempt, leave=True)
    with running.attempt.log.open("a") as log:  # written after the last note of how far it came
        log.write("line 501 half a li")
    running.executor = KubernetesExecutor()
    assert running.executor.find(running.attempt, running.token)
    assert numbers(running.ended().words) == list(range(2000))


def test_what_ended_while_nobody_watched_is_read_afterwards(bench, eventually):
    running = bench.begin("echo one; sleep 2; echo two; exit 3")
    eventually(lambda: "one" in running.log())
    running.executor.forget(running.attempt, leave=True)
    eventually(lambda: running.pod()["status"]["phase"] == "Failed")
    running.executor = KubernetesExecutor()
    assert running.executor.find(running.attempt, running.token)
    ended = running.ended()
    assert (ended.code, ended.words) == (3, ["one", "two"])
    running.executor.forget(running.attempt)
    assert not KubernetesExecutor().find(running.attempt, running.token)


def test_read_gives_each_event_once(bench):
    running = bench.begin('for i in 1 2 3; do echo "{\\"event\\": \\"log\\", \\"text\\": \\"$i\\"}"; done')
    running.ended()
    assert running.executor.read(running.attempt).count("event") == 3
    assert running.executor.read(running.attempt) == ""


def test_a_position_knows_the_lines_of_its_last_seconds():
    position = Position()
    for second in (10, 10, 11, 11, 11, 12):
        position.saw(second)
    assert position.again == ("1970-01-01T00:00:11Z", 4)
    assert Position().again == ("", 0)
