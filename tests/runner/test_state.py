"""The place where a stage keeps what it continues from: it outlives attempts that fail, stop or die."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

STATE = {"flag": "--state", "help": "where checkpoints go"}
# Each attempt notes its step, in a file of a folder as checkpoints lie, and does what ACT says after it.
STEP = (
    'mkdir -p "$state/steps"; n=$(ls "$state/steps" | wc -l); echo "$n" > "$state/steps/$n"; '
    'echo "step $n" >&2; eval "$ACT"; ls "$state/steps" | tr "\\n" " " > "$out/x"'
)


@pytest.fixture
def steps(work):
    """`bad` keeps a state."""
    work.stage("work", STEP, params={"n": {"type": "integer", "default": 0}}, state=STATE)
    return work


def states(project) -> list[Path]:
    return list((project.folder / ".runner/store/artifacts").glob("*/*/state"))


def result(project) -> str:
    assert project.up()["bad"] == "done"
    return (project.output("bad") / "x").read_text()


def test_an_attempt_that_is_tried_again_continues_and_a_result_needs_no_state(steps):
    steps.environment["ACT"] = "[ $n -ge 2 ] || exit 75"
    assert result(steps) == "0 1 2 "
    assert states(steps) == []
    assert steps.nothing_half_made()
    steps.environment["ACT"] = ""
    steps.up("--force")
    assert (steps.output("bad") / "x").read_text() == "0 ", "made anew, it begins anew"


@pytest.mark.parametrize("act", ["exit 2", "exit 70", "kill -9 $$"])
def test_a_failure_leaves_it_for_the_next_run(steps, act):
    assert steps.run("up", environment={"ACT": act}).code != 0
    assert len(states(steps)) == 1
    steps.environment["ACT"] = ""
    assert result(steps) == "0 1 "
    assert states(steps) == []


def test_another_stage_run_has_another_state(steps):
    assert steps.run("up", environment={"ACT": "exit 2"}).code == 2
    steps.environment["ACT"] = ""
    steps.up("--set", "stages.bad.params.n=1")
    assert len(states(steps)) == 1, "that of the other one stays"
    assert result(steps) == "0 1 "


def test_a_stage_that_was_stopped_continues_on_the_next_up(steps, eventually):
    steps.environment["ACT"] = 'trap "exit 143" TERM; echo $$ > "$TRACE.pid"; while :; do sleep 0.05; done'
    up = steps.start("up", "--json")
    steps.begun(eventually)
    assert steps.run("cancel").code == 0
    out, _ = up.communicate(timeout=60)
    assert up.returncode == 143 and '"stopped"' in out
    steps.environment["ACT"] = ""
    assert result(steps) == "0 1 "


def test_a_stage_that_was_killed_with_its_runner_continues(steps, eventually):
    steps.environment["ACT"] = 'echo $$ > "$TRACE.pid"; sleep 60'
    up = steps.start("up")
    pid = steps.begun(eventually)
    up.kill()
    os.kill(pid, signal.SIGKILL)
    up.communicate()
    steps.environment["ACT"] = ""
    assert result(steps) == "0 1 "
    assert states(steps) == [] and steps.nothing_half_made()


def test_a_stage_that_kept_nothing_leaves_nothing(work):
    work.stage("work", 'eval "$ACT"; echo x > "$out/x"', params={"n": {"type": "integer", "default": 0}}, state=STATE)
    assert work.run("up", environment={"ACT": "exit 2"}).code == 2
    assert states(work) == []


def test_in_a_container_it_can_be_written_and_belongs_to_the_caller(boxed):
    act = 'echo more >> "$state/steps/0"; [ -e "$(dirname "$0")/go" ] || exit 70; '
    boxed.one(STEP.replace('eval "$ACT"; ', act), state=STATE)
    done = boxed.run("up")
    assert done.code == 70, done.out
    (state,) = states(boxed)
    for path in (state, *state.rglob("*")):
        assert path.stat().st_uid == os.geteuid(), path
    (boxed.folder / "work" / "go").touch()
    boxed.run("up")  # other code: another stage run
    (boxed.folder / "work" / "go").unlink()
    done = boxed.run("up")
    assert "Permission denied" not in boxed.run("logs", "a").out
    assert sorted(p.name for p in (state / "steps").iterdir()) == ["0", "1"]
    assert (state / "steps/0").read_text() == "0\nmore\nmore\n", "what an earlier attempt wrote can be written again"
