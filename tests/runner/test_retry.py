"""What is tried again, how often, and with which pauses."""

from __future__ import annotations

import re

import pytest

from runner.cli import call
from runner.execute import Execution
from runner.executors import LOST
from runner.retry import Retry


def tried(work) -> int:
    file = work.folder / "trace.n"
    return len(file.read_text().split()) if file.exists() else 0


COUNT = 'echo x >> "$TRACE.n"; '


@pytest.mark.parametrize(
    ("act", "retry", "attempts", "code"),
    [
        ("exit 75", "{attempts: 4, backoff: 0.01s}", 4, 75),
        ("exit 75", "{attempts: 1}", 1, 75),
        ("exit 7", "{backoff: 0.01, on: [75, 7]}", 3, 70),
        ("exit 7", "{backoff: 0.01}", 1, 70),
        ("exit 75", "{backoff: 0.01, on: [7]}", 1, 75),
        ("exit 75", "{on: []}", 1, 75),
        ("exit 2", "{attempts: 5, backoff: 0.01}", 1, 2),
        ("kill -9 $$", "{attempts: 2, backoff: 0.01, on: [137]}", 2, 70),
        ("kill -TERM $$; sleep 9", "{attempts: 2, backoff: 0.01, on: [143]}", 2, 70),
        ("exit 143", "{attempts: 2, backoff: 0.01, on: [143]}", 2, 143),
    ],
)
def test_attempts_and_codes(work, act, retry, attempts, code):
    done = work.run("up", "--json", "--set", f"stages.bad.retry={retry}", environment={"ACT": COUNT + act})
    assert done.code == code, done.err
    assert tried(work) == attempts
    assert re.findall(r"try (\d) of (\d)", done.err) == [(str(n + 1), str(attempts)) for n in range(1, attempts)]
    assert work.nothing_half_made()


def test_the_last_attempt_can_succeed_and_each_has_its_log(work):
    act = COUNT + 'n=$(wc -l < "$TRACE.n"); echo "try $n" >&2; [ $n -ge 3 ] || exit 9'
    set_ = ("--set", "stages.bad.retry={attempts: 3, backoff: 0.01, on: [9]}")
    done = work.run("up", "--json", *set_, environment={"ACT": act})
    assert done.code == 0, done.err
    assert done.states["after"] == "done"
    logs = [(work.folder / ".runner/logs/1" / name).read_text() for name in ("bad.log", "bad.2.log", "bad.3.log")]
    assert logs == ["try 1\n", "try 2\n", "try 3\n"]


def test_a_timeout_is_of_one_attempt_and_tried_again_where_it_is_named(work):
    act = COUNT + '[ "$(wc -l < "$TRACE.n")" -ge 2 ] || sleep 60'
    options = ("--set", "stages.bad.timeout=0.5s", "--set", "stages.bad.retry={backoff: 0.01, on: [timeout]}")
    done = work.run("up", "--json", *options, environment={"ACT": act})
    assert done.code == 0, done.err
    assert "it took longer than its timeout of 0.5 s; try 2 of 3" in done.err


def test_a_timeout_is_not_the_end_that_it_led_to(work):
    """Told to stop, it ends with 143: that counts as a timeout, not as 143."""
    options = ("--set", "stages.bad.timeout=0.3s", "--set", "stages.bad.retry={on: [143]}")
    done = work.run("up", "--json", *options, environment={"ACT": COUNT + 'trap "exit 143" TERM; sleep 60 & wait'})
    assert done.code == 2
    assert "longer than its timeout" in done.err
    assert tried(work) == 1


def test_a_stop_is_never_tried_again(work, eventually):
    work.environment["ACT"] = COUNT + 'echo $$ > "$TRACE.pid"; trap "exit 143" TERM; while :; do sleep 0.05; done'
    up = work.start("up", "--json", "--set", "stages.bad.retry={on: [143], backoff: 0}")
    work.begun(eventually)
    assert work.run("cancel", "bad").code == 0
    up.communicate(timeout=60)
    assert up.returncode == 143
    assert tried(work) == 1


def test_a_stage_can_be_cancelled_between_two_attempts(work, eventually):
    work.environment["ACT"] = COUNT + "exit 75"
    up = work.start("up", "--json", "--set", "stages.bad.retry={backoff: 10min, max_backoff: 10min}")
    eventually(lambda: tried(work) == 1 and '"waiting"' in work.run("ps", "--json").out)
    assert work.run("cancel", "bad").out.splitlines()[-1] == "bad of run 1 is stopped"
    up.communicate(timeout=60)
    assert up.returncode == 143
    assert tried(work) == 1
    assert work.nothing_half_made()


def test_a_stage_whose_pause_is_over_waits_for_its_place_asleep(work, monkeypatch):
    """One place, taken by another stage: nothing is looked at until that ends."""
    looks = []
    wait = Execution._wait
    monkeypatch.setattr(Execution, "_wait", lambda self: (looks.append(dict(self.progress.later)), wait(self))[1])
    for name, value in (*work.environment.items(), ("ACT", COUNT + '[ "$(wc -l < "$TRACE.n")" -ge 2 ] || exit 75')):
        monkeypatch.setenv(name, value)
    work.pipeline("""
        name: places
        stages:
          bad: {uses: ./work, retry: {backoff: 0.01}}
          other: {uses: ./slow}
        """)
    work.stage("slow", 'sleep 2; echo x > "$out/x"')
    assert call(["up", "--quiet", "--jobs", "1", str(work.file)]) == 0
    assert tried(work) == 2
    assert len(looks) < 100  # 2 seconds of looks a millisecond apart are 2,000


def test_pauses_double_up_to_the_longest_and_are_drawn_at_random():
    retry = Retry(attempts=9, backoff=2.0, max_backoff=10.0)
    for tries, most in ((1, 2.0), (2, 4.0), (3, 8.0), (4, 10.0), (5000, 10.0)):
        pauses = [retry.pause(tries) for _ in range(50)]
        assert all(most / 2 <= p <= most for p in pauses)
        assert len(set(pauses)) > 1


def test_signals_and_unknown_ends_are_told_as_a_shell_tells_them():
    retry = Retry(attempts=2, on=frozenset({137, 139}))
    assert retry.wanted(-9, False, 0) and retry.wanted(-11, False, 0) and retry.wanted(LOST, False, 0)
    assert not retry.wanted(-15, False, 0) and not retry.wanted(-9, False, 1)


WRONG = [
    ("retry: {attempts: 0}", "attempts must be a whole number, 1 or more, not 0"),
    ("retry: {atempts: 2}", "unknown key 'atempts' in retry of stage bad (did you mean 'attempts'?)"),
    ("retry: {backoff: soon}", "backoff must be 0 or more, such as 2s, not 'soon'"),
    ("retry: {on: [75, 2]}", "2 is never tried again"),
    ("retry: {on: [300]}", "on cannot hold 300"),
    ("retry: {on: [time-out]}", "on cannot hold 'time-out'"),
    ("retry: {on: 75}", "on must be a list, not a number"),
    ("retry: 3", "retry of stage bad must be a mapping, not a number"),
    ("retries: 1, retry: {attempts: 2}", "stage bad has both `retries` and `retry`"),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[text for text, _ in WRONG])
def test_mistakes_are_told_with_their_place(work, text, words):
    work.pipeline(f"stages:\n  bad: {{uses: ./work, {text}}}\n")
    done = work.run("plan")
    assert done.code == 2
    assert re.search(r"^pipeline\.yaml:2:\d+: " + re.escape(words), done.err, re.MULTILINE), done.err
