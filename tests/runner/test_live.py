"""What is seen of a run on a terminal: the live picture, in any width, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from terminal import OTHERS, Terminal

from runner.live import REFLOWS, Region, Row, cells, cut
from runner.view import last_line, plain

EVENT = {"event": "progress", "label": "training", "done": 2, "total": 4, "unit": "steps", "loss": "0.500",
         "speed": "203 tokens/s"}  # fmt: skip
SAYS = "a line of words that is so long that no narrow terminal can show it as a whole, not even one of many columns"
WAITS = 'while [ ! -e "$TRACE.go" ]; do sleep 0.05; done'


@pytest.fixture
def training(project: Any) -> Any:
    """A stage that tells how far it is, says something, and goes on when `trace.go` is there; another waits for it."""
    for name in REFLOWS:
        project.environment.pop(name, None)
    project.stage("train", f"echo '{json.dumps(EVENT)}'; printf 'old\\rnew\\033]0;title\\007\\n{SAYS}\\n'; {WAITS}; "
                           "echo x > \"$out/x\"")  # fmt: skip
    project.stage("next", 'cat "$x/x" > "$out/x"', inputs={"x": ["dataset"]})
    project.pipeline("""\
        name: demo
        stages:
          adapter: {uses: ./train}
          merged: {uses: ./next, inputs: {x: "${{ stages.adapter.out }}"}}
        """)
    return project


def started(project: Any, *args: str, columns: int = 80, lines: int = 24, **environment: str) -> Terminal:
    command = project.command("up", "--target", "process", *args)
    return Terminal(command, project.folder, {**project.environment, **environment}, columns, lines)


def test_the_picture_fits_every_width_and_goes_away(training):
    with started(training) as terminal:
        wide = terminal.until("so long")
        adapter, said, footer = wide[-3:]
        assert re.match(r"adapter  ━━━━━╌╌╌╌╌   50%  +[\d.]+ s  loss 0\.500  203 tokens/s  2/4 steps", adapter)
        assert said.startswith("         a line of words") and said.endswith("…") and len(said) <= 79
        assert re.fullmatch(r"run 1: 0 of 2 stages, [\d.]+ s; next: merged", footer)
        terminal.resize(40, 24)
        narrow = terminal.until(lambda lines: len(lines) >= 3 and len(lines[-2]) == 39)
        assert re.match(r"adapter   50%  +[\d.]+ s  loss 0\.500$", narrow[-3]), "no bar, and the loss first"
        assert narrow[-1].startswith("run 1: 0 of 2 stages")
        terminal.resize(120, 24)
        large = terminal.until(lambda lines: "━" * 10 in "".join(lines))
        assert "2/4 steps  training" in large[-3]
        assert len(large[-2]) == 100, "lines are not longer than this: they break where a window becomes narrower"
        (training.folder / "trace.go").touch()
        assert terminal.end() == 0
        assert re.fullmatch(
            r"adapter  done in [\d.]+ s\nmerged   done in [\d.]+ s\n\ndemo: 2 done in [\d.]+ s\nrun 1.*", terminal.text
        ), "nothing of the picture is left, here or above"
    assert b"title" not in terminal.drawn and b"old" not in terminal.drawn, (
        "a program's control codes are not passed on"
    )
    assert b"\x1b[?25l" not in terminal.drawn, "no cursor is hidden that a killed runner could not show again"


def test_no_colour_where_none_is_wanted(training, monkeypatch):
    monkeypatch.setattr("terminal.OTHERS", tuple(set(OTHERS) - {"NO_COLOR"}))
    with started(training, NO_COLOR="1") as terminal:
        terminal.until("50%")
        (training.folder / "trace.go").touch()
        assert terminal.end() == 0
    assert b"\x1b[" in terminal.drawn and not re.search(rb"\x1b\[[\d;]*m", terminal.drawn)


@pytest.mark.parametrize(
    "place", [{"TERM": "dumb"}, {"CI": "true"}, {"JPY_PARENT_PID": "1"}, {"MPLBACKEND": "module://matplotlib_inline"}],
    ids=lambda p: next(iter(p)),
)  # fmt: skip
def test_where_nothing_can_be_drawn_over_there_are_plain_lines(training, monkeypatch, place):
    """A dumb terminal, the log of a CI system, and the cells of notebooks, which are terminals too."""
    monkeypatch.setattr("terminal.OTHERS", ("TMUX",))
    for name in ("CI", "NO_COLOR", "JPY_PARENT_PID", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    (training.folder / "trace.go").touch()
    with started(training, **place) as terminal:
        assert terminal.end() == 0
    assert b"\x1b" not in terminal.drawn
    assert terminal.lines[0] == "adapter  running  (new)"
    assert terminal.lines[1].startswith("adapter  done in ")


def test_nothing_is_drawn_where_nothing_runs(training):
    (training.folder / "trace.go").touch()
    training.up("--target", "process")
    with started(training) as terminal:
        assert terminal.end() == 0
    assert b"adapter  \x1b[2mreused\x1b[0m" in terminal.drawn
    assert b"\x1b[J" not in terminal.drawn


def test_a_failure_is_told_above_the_picture_and_ctrl_c_ends_it(training):
    training.stage("fail", "printf 'bro\\033[2Jken\\n' >&2; exit 2")
    text = training.file.read_text() + "          bad: {uses: ./fail}\n".replace("          ", "  ")
    training.file.write_text(text)
    with started(training, "--jobs", "2") as terminal:
        terminal.until("bad      failed")
        terminal.until(lambda lines: any("50%" in n for n in lines) and any("| broken" in n for n in lines))
        terminal.process.send_signal(2)
        terminal.until("stopping: each stage may save")
        assert terminal.end() == 143
    assert "adapter  stopped after" in terminal.text
    assert "50%" not in terminal.text
    assert "runner logs 1 bad" in terminal.text


def test_more_stages_than_lines(project):
    project.stage("wait", f'{WAITS}; echo x > "$out/x"', params={"n": {"type": "integer"}})
    stages = "".join(f"  s{n:02}: {{uses: ./wait, params: {{n: {n}}}}}\n" for n in range(12))
    project.pipeline(f"name: demo\nstages:\n{stages}")
    with started(project, "--jobs", "12", lines=8) as terminal:
        lines = terminal.until(lambda lines: "… and 8 more" in lines)
        assert len(lines) <= 7
        assert lines[-1].startswith("run 1: 0 of 12 stages")
        (project.folder / "trace.go").touch()
        assert terminal.end() == 0
    assert len(re.findall(r"^s\d\d  done in", terminal.text, re.M)) == 12
    assert "more" not in terminal.text


def test_in_tmux_which_breaks_lines_anew(training, eventually, tmp_path):
    if not shutil.which("tmux"):
        pytest.skip("TMUX NOT TESTED: it is not installed")
    socket = str(tmp_path / "tmux")
    environment = {k: v for k, v in os.environ.items() if k not in ("TMUX", "CI", "NO_COLOR")}

    def tmux(*args: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", socket, "-f", "/dev/null", *args], env={**environment, **training.environment},
            capture_output=True, text=True, check=False, cwd=training.folder, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lines() -> list[str]:
        return tmux("capture-pane", "-p").rstrip().split("\n")

    command = " ".join(training.command("up", "--target", "process"))
    tmux("new-session", "-d", "-x", "90", "-y", "20", f"unset CI; {command}; echo the end; cat")
    try:
        eventually(lambda: "so long" in "\n".join(lines()))
        tmux("resize-window", "-x", "50", "-y", "20")
        eventually(lambda: len([n for n in lines() if n.startswith("adapter  ")]) == 1 and len(lines()[-2]) == 49)
        assert len(lines()) == 3, "the broken lines were taken back"
        tmux("resize-window", "-x", "90", "-y", "20")
        eventually(lambda: len(lines()[-2]) == 89)
        (training.folder / "trace.go").touch()
        eventually(lambda: "the end" in lines())
        assert [line[:12] for line in lines()[:2]] == ["adapter  don", "merged   don"]
        assert "━" not in "\n".join(lines())
    finally:
        tmux("kill-server")


class Paper:
    """A stream that is no terminal, and says it is one of 40 columns."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


def test_lines_that_a_terminal_broke_are_taken_back(monkeypatch):
    paper, size = Paper(), [100, 24]
    monkeypatch.setattr(Region, "size", lambda _: tuple(size))
    monkeypatch.setenv("TMUX", "1")
    region = Region(paper, color=False)  # type: ignore[arg-type]
    region.draw([[("x" * 90, "")], [("y", "")]])
    paper.text = ""
    size[0] = 40
    region.draw([[("x" * 90, "")], [("y", "")]])
    assert paper.text.startswith("\r\x1b[4A"), "three rows of x and one of y"
    paper.text = ""
    region.draw([[("x" * 90, "")], [("y", "")]])
    assert paper.text == "", "an equal picture is not drawn again"


@pytest.mark.parametrize(
    ("event", "first"),
    [
        ({"done": 1, "total": 4, "unit": "steps", "loss": 1.5}, ["loss 1.5", "1/4 steps"]),
        (
            {"done": 5, "unit": "rows", "accuracy": "0.500", "tokens/s": 482},
            ["5 rows", "482 tokens/s", "accuracy 0.500"],
        ),
        ({"done": "x", "total": [], "loss": float("nan")}, ["loss nan"]),
        ({"done": 3, "total": 0}, ["3"]),
        ({}, ["(new)"]),
    ],
    ids=["training", "no total", "nonsense", "nothing to do", "silent"],
)
def test_what_matters_comes_first(event, first):
    row = Row("new")
    row.heard({"event": "progress", **event}, 0.0)
    assert row.words() == first


def test_speed_and_the_time_left_are_of_late():
    row = Row("new")
    for second in range(41):
        done = second if second < 20 else 20 + (second - 20) * 10
        row.heard({"event": "progress", "label": "copy", "done": done, "total": 420, "unit": "MB"}, float(second))
    assert row.speed == pytest.approx((220 - 10) / 30)
    assert row.words()[:2] == ["7.0 MB/s", "29 s left"]
    row.heard({"event": "progress", "label": "again", "done": 0, "total": 420, "unit": "MB"}, 50.0)
    assert row.speed is None


def test_measured_values_stand_in_where_there_is_no_progress():
    row = Row("new")
    row.heard({"event": "metric", "step": 3, "eval_loss": 0.25, "name": "words"}, time.monotonic())
    assert row.words() == ["eval_loss 0.25"]


def test_texts_are_as_wide_as_they_look():
    assert cells("日本") == 4 and cells("e\u0301") == 1
    assert cut("日本語", 4) == "日…" and cut("abc", 3) == "abc" and cut("abcd", 3) == "ab…" and cut("ab", 0) == ""


def test_words_of_programs_are_made_harmless():
    assert plain("a\x1b[31mb\x1b]0;title\x07c\x9b\x08\td\u202e") == "abc    d" or plain("a\x1b[2Jb") == "ab"
    assert last_line("one\n 50%\r100%\n\n") == "100%"
    assert last_line("\x1b[2K\n") == ""


# --- what programs are told ---


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_events_tell_everything_as_it_happens(training):
    (training.folder / "trace.go").touch()
    done = training.run("up", "--target", "process", "--events")
    assert done.code == 0
    told = events(done.out)
    assert told[0] | {"time": 0} == {"event": "run", "time": 0, "run": 1, "stages": ["adapter", "merged"]}
    of = [e["event"] for e in told if e.get("stage") == "adapter"]
    assert of == ["started", "progress", "log", "ended"]
    progress = next(e for e in told if e["event"] == "progress")
    assert (progress["stage"], progress["done"], progress["loss"]) == ("adapter", 2, "0.500")
    assert next(e for e in told if e["event"] == "log")["text"] == SAYS
    assert told[-1]["event"] == "summary"
    assert {s["stage"]: s["status"] for s in told[-1]["stages"]} == {"adapter": "done", "merged": "done"}
    assert "adapter  done in" in done.err and "\x1b" not in done.err
    again = training.run("up", "--target", "process", "--events", "-q")
    assert [e["event"] for e in events(again.out)] == ["run", "ended", "ended", "summary"]
    assert again.err == ""


def test_events_of_a_run_that_fails(training):
    training.stage("train", 'echo \'{"event": "error", "message": "no such row"}\'; exit 2')
    done = training.run("up", "--target", "process", "--events")
    assert done.code == 2
    told = events(done.out)
    assert [e["state"] for e in told if e["event"] == "ended"] == ["failed", "not run"]
    assert told[-1]["event"] == "summary" and told[-1]["status"] == "failed"


def test_a_stage_that_says_hostile_things_tells_only_words(training):
    """Events are anybody's: values of odd types, a separator that some take for the end of a line, half an event."""
    odd = {"event": "progress", "label": ["x"], "done": "1", "total": None, "stage": "merged", "loss": {"a": 1}}
    lines = [json.dumps(odd), '{"event": 5}', '{"event": "log", "text": "a\u2028b"}', '{"event": "progress", "done": 1']
    script = training.folder / "train/words"
    training.stage("train", 'cat words; echo x > "$out/x"')
    script.write_text("\n".join(lines) + "\n")
    (training.folder / "train/run.sh").write_text(
        (training.folder / "train/run.sh").read_text().replace("cat words", f"cat {script}")
    )
    done = training.run("up", "--target", "process", "--events")
    assert done.code == 0, done.err
    told = [json.loads(line) for line in done.out.split("\n") if line]
    assert [e["stage"] for e in told if e["event"] == "progress"] == ["adapter"]
    assert "a\u2028b" in [e["text"] for e in told if e["event"] == "log"]


def test_the_end_says_what_to_do_next(training, tmp_path: Path):
    training.stage("train", 'echo "$n" > "$out/genai_config.json"', outputs={"out": "onnx-model"},
                   params={"n": {"type": "integer", "default": 1}})  # fmt: skip
    training.stage("next", 'cat "$x/genai_config.json" > "$out/x"', inputs={"x": ["onnx-model"]})
    first = training.run("up", "--target", "process").out
    assert re.search(r"^adapter \(onnx-model\): \.runner\S+\n  sha256:[0-9a-f]{12}, 2 B$", first, re.M)
    assert "runner diff" not in first
    second = training.run("up", training.file.name, "--target", "process", "--set", "stages.adapter.params.n=2").out
    commands = re.findall(r"^  (runner .*?)   ", second, re.M)
    assert commands[0] == "runner diff 1 2"
    for command in commands:  # each can be given as it stands
        done = training.run(*[w.replace("./model", str(tmp_path / "m")) for w in command.split()[1:]])
        assert done.code == 0, done.err
    assert (tmp_path / "m/genai_config.json").read_text() == "2\n"
