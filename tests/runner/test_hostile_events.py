"""Events are anybody's: none of them ends a run, steers a terminal, or passes for what the runner itself says."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from runner.attempts import measured
from runner.events import event_of, number
from runner.executors.watched import Watched
from runner.live import Row
from runner.ui.logs import Told
from runner.view import EventsView, PlainView, progress_text

HUGE = 10**400
DEEP = '{"a":' * 100_000
NESTED = '{"event": "metric", "m": ' + "[" * 900 + "]" * 900 + "}"
STEERS = "\x1b[2Ja\nb\u2028c\x9b2J\r"


@pytest.mark.parametrize("value", [HUGE, -HUGE, float("nan"), float("inf"), 1.2e308, True, "1", None, [1]])
def test_what_cannot_be_reckoned_with_is_no_number(value: Any) -> None:
    assert number(value) is None
    assert measured({"event": "metric", "x": value, "group": {"y": value, "z": 2}, "n": 1}) == {
        "group": {"z": 2}, "n": 1
    }  # fmt: skip


def test_numbers_stay_what_they_are() -> None:
    assert number(3) == 3.0 and number(-1e308) == -1e308
    assert measured({"n": 3, "loss": 0.5}) == {"n": 3, "loss": 0.5}


@pytest.mark.parametrize("line", [DEEP, NESTED, "{", "[1]", '{"event": 5}', '{"event": "metric", "x": 1' + "0" * 5000])
def test_what_is_no_event_is_words(line: str) -> None:
    assert event_of(line) is None
    told = Told()
    told.hear(line.encode())
    assert told == Told()


def test_a_run_goes_on_whatever_a_stage_says(project: Any) -> None:
    lines = [f'{{"event": "metric", "x": {HUGE}, "y": 1}}', DEEP, NESTED,
             f'{{"event": "progress", "done": {HUGE}, "total": 1, "loss": {HUGE}}}',
             '{"event": "metric", "self": 1, "event": "metric", "time": "now", "text": 2}']  # fmt: skip
    (project.folder / "words").write_text("\n".join(lines) + "\n")
    project.stage("work", f'cat {project.folder}/words; echo x > "$out/x"')
    project.pipeline("name: demo\nstages:\n  a: {uses: ./work}\n")
    done = project.run("up", "--target", "process", "--events")
    assert done.code == 0, done.err
    told = [json.loads(line) for line in done.out.split("\n") if line]
    odd = next(e for e in told if e["event"] == "metric" and "self" in e)
    assert (odd["self"], odd["text"], odd["stage"]) == (1, 2, "a") and isinstance(odd["time"], float)
    manifest = json.loads((project.output("a") / "artifact.json").read_text())
    assert manifest["metrics"] == {"y": 1, "self": 1, "text": 2}


def test_the_live_picture_of_odd_numbers() -> None:
    row = Row("new")
    row.heard({"event": "metric", "x": HUGE, "flag": True, "loss": float("nan"), "n": 3}, 0.0)
    assert row.words() == ["loss nan", "n 3"]
    for now, done in ((0.0, -1e308), (2.0, 1e308)):
        row.heard({"event": "progress", "done": done, "total": 1e308}, now)
    assert row.words() and row.share == 1.0
    row = Row("new")
    for now, done in ((0.0, 0), (2.0, 1e-308)):
        row.heard({"event": "progress", "done": done, "total": 1e308}, now)
    assert not any("left" in word for word in row.words())
    row.heard({"event": "progress", "done": HUGE, "total": HUGE, "loss": HUGE}, 3.0)
    assert row.share is None and row.words()


def test_the_curves_and_the_time_left_of_odd_numbers() -> None:
    told = Told()
    for event in ({"event": "metric", "step": HUGE, "x": HUGE, "y": 2}, {"event": "checkpoint", "resumed": True,
                  "step": HUGE}, {"event": "progress", "done": 0, "total": 1e308, "seconds": 0},
                  {"event": "progress", "done": 1e-308, "total": 1e308, "seconds": 1e308}):  # fmt: skip
        told.hear(json.dumps(event).encode())
    assert told.curves == {"y": [(0.0, 2.0)]} and told.metric == {"y": 2}
    assert told.resumed is None and told.left is None


def test_what_a_stage_says_neither_steers_a_terminal_nor_breaks_a_line() -> None:
    event = {"event": "progress", "label": STEERS, "unit": STEERS, "done": 1, "total": 2, STEERS: STEERS,
             f"{STEERS}/s": 1.5}  # fmt: skip
    row = Row("new")
    row.heard(event, 0.0)
    row.heard({**event, "done": 2}, 9.0)
    row.heard({"event": "metric", f"m{STEERS}": 1}, 9.0)
    for words in (" ".join(row.words()), progress_text(event)):
        assert "a b c" in words and words.isprintable(), words
    out = io.StringIO()
    view = PlainView(["s"], out)
    view.event("s", event)
    view.ended("s", "failed", f"{STEERS}no such row")
    assert len(out.getvalue().splitlines()) <= 5 and "\x1b" not in out.getvalue() and "\x9b" not in out.getvalue()


def test_a_value_cannot_pass_for_what_the_runner_says() -> None:
    out = io.StringIO()
    view = EventsView(PlainView(["s"], io.StringIO()), out)
    view.event("s", {"event": "metric", "self": 1, "stage": "other", "time": "never", "view": 2})
    view.event("s", {"event": "metric", "time": 5.5})
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["event"], first["stage"], first["self"]) == ("metric", "s", 1) and first["time"] > 1e9
    assert second["time"] == 5.5, "when the stage said it"


def test_an_attempt_that_has_ended_has_its_reason_at_once(tmp_path: Path) -> None:
    class Slow(Watched):
        """Looks at itself whenever something is stored in it."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name in ("code", "why") and hasattr(self, "_wake"):
                seen.append((self.code, self.why))

    seen: list[Any] = []
    attempt: Any = type("A", (), {"events": tmp_path / "events"})()
    slow = Slow(attempt=attempt)
    why: Any = ValueError("evicted")
    thread = threading.Thread(target=slow.ended, args=(1, why))
    thread.start()
    thread.join()
    slow.close()
    assert seen and all(reason is why for code, reason in seen if code is not None)
