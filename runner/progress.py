"""How far a run has come: what runs, what waits, how each stage ended. It tells the view and the history.

A stage ends once: done, reused, failed, stopped or not run. What people are shown and what the history
keeps is the same. How a stage ended does not depend on either: a history that cannot be written is a warning.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from microstages.errors import EXIT_BUG, EXIT_OK, EXIT_TEMPORARY, EXIT_USER, UserError

from runner.attempts import Active, measured
from runner.events import event_of
from runner.history import History, Record
from runner.pipeline import Pipeline, Stage
from runner.plan import Facts, Step
from runner.store import Result
from runner.view import View, failure_lines


class Progress:
    """The stages of one run. `facts` is what the run holds for true; an edit of code while it runs changes it."""

    def __init__(self, pipeline: Pipeline, history: History, view: View, facts: Facts) -> None:
        self.pipeline, self.history, self.view, self.facts = pipeline, history, view, facts
        self.steps: dict[str, Step] = {}
        self.states: dict[str, str] = {}  # final ones only
        self.active: dict[str, Active] = {}
        self.later: dict[str, float] = {}  # stages that are looked at again, and when
        self.tries: dict[str, int] = {}
        self.code = EXIT_OK
        self.warned = False
        self.run_id = history.start_run(pipeline.name, str(pipeline.file.resolve()))
        view.begun(self.run_id)

    def keep(self, write: Callable[..., None], *values: Any) -> None:
        """Call a method of the history that writes. Where it cannot, that is said once and the run goes on."""
        try:
            write(*values)
        except (UserError, OSError) as error:
            if not self.warned:
                self.view.note(f"warning: {error}".split("\n", maxsplit=1)[0])
            self.warned = True

    def heard(self, active: Active, event: dict[str, Any]) -> None:
        """An attempt said something."""
        if event["event"] == "error":
            active.error = event
        elif event["event"] == "metric":
            active.metrics |= measured(event)
        self.view.event(active.stage.name, event)

    def listen(self, active: Active, text: str) -> None:
        """Take in what an attempt has said since the last time: events, one a line, and words, of which the last line
        that says something is passed on."""
        words = ""
        for line in text.split("\n"):
            event = event_of(line) if line.startswith("{") else None
            if event is not None:
                self.heard(active, event)
            elif line.strip():
                words = line
        if words:
            self.view.event(active.stage.name, {"event": "log", "text": words})

    def reused(self, stage: Stage, step: Step, how: str = "reused") -> Record:
        """A stage ends with a result that is there already; its record is the caller's to write."""
        self.later.pop(stage.name, None)
        self.steps[stage.name] = step
        self.states[stage.name] = "reused"
        self.view.ended(stage.name, f"takes {step.reason}" if stage.select else how, "")
        return self.record(stage, "reused", step, finished=time.time())

    def done(self, active: Active, result: Result) -> None:
        """An attempt ended well, and its result is committed."""
        stage, step = active.stage, active.step
        done = Step(stage.name, "reuse", step.reason, step.fingerprint, step.inputs, result)
        self.steps[stage.name] = done
        self.states[stage.name] = "done"
        self.view.ended(stage.name, "done", "", time.time() - active.started)
        record = self.record(stage, "done", done, active=active, finished=time.time(), exit_code=EXIT_OK)
        self.keep(self.history.release, active.key, record)

    def again(self, active: Active, why: str, seconds: float, code: int) -> None:
        """An attempt is over, and its stage is tried again after some seconds."""
        stage, step = active.stage, active.step
        self.later[stage.name] = time.monotonic() + seconds
        record = self.record(stage, "waiting", step, active.attempt.name, active, exit_code=code, error=why)
        self.keep(self.history.release, active.key, record)
        self.view.again(stage.name, f"{why}, in {seconds:.1f} s")

    def fail(self, stage: Stage, error: UserError, active: Active | None = None, code: int = 0) -> None:
        """A stage failed. The first failure decides how the run ends."""
        code = code or error.exit_code
        self.code = self.code or (code if code in (EXIT_USER, EXIT_TEMPORARY) else EXIT_BUG)
        self.end(stage, "failed", str(error), active, code)

    def end(self, stage: Stage, state: str, text: str, active: Active | None = None, code: int | None = None) -> None:
        """A stage ends without a result."""
        self.later.pop(stage.name, None)
        self.states[stage.name] = state
        self.steps[stage.name] = Step(stage.name, "skip", text)
        seconds = time.time() - active.started if active else None
        shown = text
        if state == "failed":
            told = bool(active and active.error) and code != EXIT_BUG  # a bug needs more than its last line
            shown = failure_lines(text, active.attempt.log if active else None, told)
        self.view.ended(stage.name, state, shown, seconds)
        step, attempt = (active.step, active.attempt.name) if active else (None, "")
        more = {"finished": time.time(), "exit_code": code, "error": text}
        self.keep(self.history.write, self.record(stage, state, step, attempt, active, **more))

    def record(
        self, stage: Stage, status: str, step: Step | None = None, attempt: str = "", active: Active | None = None,
        **more: Any,
    ) -> Record:  # fmt: skip
        """What is known of a stage, as the history keeps it."""
        outputs = metrics = None
        if step and step.result:
            attempt = step.result.attempt
            metrics = step.result.metrics
            outputs = {k: {"uri": o.uri, "digest": o.digest} for k, o in step.result.outputs.items()}
        return Record(
            self.run_id, stage.name, stage.interface.name, status, step.reason if step else "",
            step.fingerprint if step else "", attempt, self.facts.code[stage.name],
            stage.interface.identity_params(stage.params), dict(step.inputs) if step else None, outputs, metrics,
            active.started if active else None, log=str(active.attempt.log) if active else "", **more,
        )  # fmt: skip
