"""Tells MLflow of a run: a run for the pipeline, and below it one for each stage that is made.

Where $MLFLOW_TRACKING_URI names a server the runner tells it what the stages say, wherever they run; so containers need
no way to it. A job of Azure Machine Learning tells it by itself.
"""

from __future__ import annotations

import os
from typing import Any

from microstages.errors import EXIT_OK, EXIT_STOPPED
from microstages.mlflow import TOLD, Run, Server

from runner.pipeline import Pipeline
from runner.view import View

ENDS = {"done": "FINISHED", "failed": "FAILED"}
VALUES = ("event", "stage", "time", "step")


class TrackedView:
    """A view that tells MLflow too. Everything else is the view's that it wraps."""

    def __init__(self, view: View, server: Server, pipeline: Pipeline) -> None:
        self.number = 0  # the run's, in the history
        self._view, self._server, self._pipeline = view, server, pipeline
        self._run: Run | None = None  # made when the first stage starts: a run that reuses everything leaves nothing
        self._stages: dict[str, Run] = {}
        self._closing: list[Run] = []
        self._experiment = ""

    def _begin(self) -> str:
        self._experiment = self._server.experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or self._pipeline.name)
        name, tags = f"{self._pipeline.name} {self.number}", {"microstages.run": str(self.number)}
        return self._server.run(self._experiment, name, tags)

    def started(self, stage: str, reason: str) -> None:
        self._view.started(stage, reason)
        found = self._pipeline.stages[stage]
        if found.where.kind == "azureml" or stage in self._stages:
            return
        whole = self._run = self._run or Run(self._server, self._begin, lambda t: self._view.note(f"warning: {t}"))
        tags = {"microstages.stage": stage, "microstages.uses": found.interface.name, "microstages.reason": reason}

        def begin() -> str:
            parent = whole.wait_begun()
            if not parent:
                raise OSError("the pipeline's run could not be made")
            return self._server.run(self._experiment, stage, {"mlflow.parentRunId": parent, **tags})

        run = self._stages[stage] = Run(self._server, begin, lambda _: None)
        run.params(found.params)

    def event(self, stage: str, event: dict[str, Any]) -> None:
        self._view.event(stage, event)
        if event["event"] == "metric" and (run := self._stages.get(stage)):
            step = event.get("step")
            values = {k: v for k, v in event.items() if k not in VALUES}
            run.metrics(values, int(step) if isinstance(step, (int, float)) else None)

    def ended(self, stage: str, state: str, text: str, seconds: float | None = None) -> None:
        self._view.ended(stage, state, text, seconds)
        if run := self._stages.pop(stage, None):
            if seconds is not None:
                run.metrics({"seconds": seconds})
            run.close(ENDS.get(state, "KILLED"), seconds=0.0)
            self._closing.append(run)

    def finish(self, code: int) -> None:
        """The run is over; what is still to be sent is waited for."""
        for run in [*self._stages.values(), *self._closing]:
            run.close("KILLED")
        if self._run:
            self._run.close({EXIT_OK: "FINISHED", EXIT_STOPPED: "KILLED"}.get(code, "FAILED"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


def tracked(view: View, pipeline: Pipeline, uri: str) -> TrackedView:
    """The view that tells the server at `uri` too. Raises UserError for an address that is none."""
    server = Server(uri)
    os.environ[TOLD] = "runner"  # for the stages that inherit this environment
    return TrackedView(view, server, pipeline)
