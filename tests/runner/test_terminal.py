"""A terminal that goes away, or a file that can take no more words: nobody is told, and the work goes on."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from runner.view import say

SAVES = 'trap "echo saved > \\"$TRACE.saved\\"; exit 143" TERM; echo $$ > "$TRACE.pid"; '
WAITS = 'while [ ! -e "$TRACE.go" ]; do sleep 0.05; done'

TAKE = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


def start(project, *arguments, own):
    """The runner on a terminal; it is that of its session with `own`. The runner, and the other end."""
    far, near = pty.openpty()

    command = project.command(*arguments)
    if own:
        command = [sys.executable, "-c", TAKE, *command]
    runner = subprocess.Popen(
        command, cwd=project.folder, env=project.environment, stdin=near, stdout=near, stderr=near,
        start_new_session=True,
    )  # fmt: skip
    os.close(near)
    return runner, far


@pytest.mark.parametrize("arguments", [("up",), ("up", "--json"), ("up", "--quiet")], ids=" ".join)
def test_a_terminal_that_was_closed_changes_nothing(work, eventually, arguments):
    """The runner was detached from it (`setsid`, `nohup`), so nobody tells it to stop."""
    work.environment["ACT"] = SAVES + WAITS
    runner, far = start(work, *arguments, own=False)
    work.begun(eventually)
    os.close(far)
    (work.folder / "trace.go").touch()
    runner.wait(60)
    assert runner.returncode == 0 or arguments == ("up", "--json"), "its JSON went nowhere"
    assert not (work.folder / "trace.saved").exists()
    assert set(work.up().values()) == {"reused"}
    assert work.nothing_half_made()


def test_a_terminal_that_hangs_up_stops_the_run_cleanly(work, eventually):
    """The stages are told, not killed."""
    work.environment["ACT"] = SAVES + WAITS
    runner, far = start(work, "up", own=True)
    pid = work.begun(eventually)
    os.close(far)
    runner.wait(60)
    assert runner.returncode == 143
    assert (work.folder / "trace.saved").exists()
    assert not work.alive(pid)
    assert "stopped" in work.run("ps").out
    assert work.nothing_half_made()


def test_a_file_that_is_full_changes_nothing(work):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            work.command("up"), cwd=work.folder, env=work.environment, stdout=full, stderr=full, check=False, timeout=60
        )
    assert done.returncode == 0
    assert set(work.up().values()) == {"reused"}


def test_words_that_a_terminal_cannot_show_are_shown_as_far_as_it_can(tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as out:
        say("4 → 8", out)
    assert (tmp_path / "out").read_text() == "4 ? 8\n"


def test_a_stream_that_was_closed_takes_words_silently():
    code = "import sys; from runner.view import say; out = sys.stdout; out.close(); say('x', out)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
