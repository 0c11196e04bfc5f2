"""Runs are told to MLflow, a real server: by the runner for its stages, by a stage that is alone."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from microstages.mlflow import Run, Server
from stores.servers import free_port
from tracking.server import Tracker, told

TOOL = """
import json, os, sys, time
def say(**event): print(json.dumps(event), flush=True)
for step in range(5):
    say(event="metric", step=step, loss=2.0 - step / 4, text="no number", deep={"a": 1})
if os.environ.get("FAIL"): sys.exit(say(event="error", what="it broke", exit_code=2) or 2)
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
open(flags["out"] + "/x", "w").write("x")
"""


@pytest.fixture
def project(project: Any, tracker: Tracker, tmp_path: Path) -> Any:
    """One stage that measures something, in a pipeline of a name of its own."""
    project.stage("work", "", command=[sys.executable, "./tool.py"], params={"n": {"type": "integer", "default": 3}})
    (project.folder / "work/tool.py").write_text(TOOL)
    project.pipeline(f"name: {tmp_path.name}\nstages: {{a: {{uses: ./work}}}}\n")
    project.environment["MLFLOW_TRACKING_URI"] = tracker.uri
    project.name = tmp_path.name
    return project


def test_a_run_and_its_stages_are_told(project: Any, tracker: Tracker):
    assert project.up() == {"a": "done"}
    whole, stage = tracker.runs(project.name)
    assert [r["info"]["status"] for r in (whole, stage)] == ["FINISHED", "FINISHED"]
    assert told(stage, "tags")["mlflow.parentRunId"] == whole["info"]["run_id"]
    assert told(stage, "tags")["microstages.uses"] == "work"
    assert told(stage, "params") == {"n": "3"}
    assert tracker.history(stage, "loss") == [(n, 2.0 - n / 4) for n in range(5)]
    assert told(stage, "metrics").keys() == {"loss", "deep.a", "seconds"}
    assert project.up() == {"a": "reused"}
    assert len(tracker.runs(project.name)) == 2, "a run that made nothing leaves nothing"


def test_a_stage_that_fails_is_told_so(project: Any, tracker: Tracker):
    done = project.run("up", environment={"FAIL": "1"})
    assert done.code == 2
    assert [r["info"]["status"] for r in tracker.runs(project.name)] == ["FAILED", "FAILED"]


def test_an_experiment_may_have_another_name(project: Any, tracker: Tracker):
    name = f"{project.name} of mine"
    project.environment["MLFLOW_EXPERIMENT_NAME"] = name
    project.up()
    assert len(tracker.runs(name)) == 2 and not tracker.runs(project.name)


def test_a_server_that_is_away_costs_a_warning_and_no_run(project: Any):
    project.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{free_port()}"
    done = project.run("up")
    assert done.code == 0
    assert done.out.count("warning: MLflow is not told of this run: ") == 1


def test_what_is_no_server_is_refused_before_anything_runs(project: Any):
    project.environment["MLFLOW_TRACKING_URI"] = "./mlruns"
    done = project.run("up")
    assert done.code == 2 and "MLFLOW_TRACKING_URI must be the address of a server" in done.err
    assert not project.ran()


def test_many_values_go_in_few_requests_and_none_is_lost(tracker: Tracker, tmp_path: Path):
    server = Server(tracker.uri)
    name = f"many {tmp_path}"
    run = Run(server, lambda: server.run(server.experiment(name), "many", {}), pytest.fail)
    run.params({f"p{n}": "x" * 10_000 for n in range(250)})
    for step in range(2500):
        run.metrics({"loss": step}, step)
    run.close(seconds=60)
    (found,) = tracker.runs(name)
    assert len(told(found, "params")) == 250 and set(map(len, told(found, "params").values())) == {500}
    assert tracker.history(found, "loss") == [(n, float(n)) for n in range(2500)]


def test_a_stage_alone_tells_it_itself_and_in_a_job_into_the_jobs_run(
    tracker: Tracker, run_stage: Any, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"alone {tmp_path}")
    flags = ("--source", examples / "tones.jsonl", "--model", examples / "tiny-phi3", "--template", "{phrase}: {tone}",
             "--completion", "tone", "--max-length", "64")  # fmt: skip
    done = run_stage("prepare-data", *flags, "--output", tmp_path / "one")
    assert done.code == 0, done.stderr
    (run,) = tracker.runs(f"alone {tmp_path}")
    assert run["info"]["status"] == "FINISHED" and told(run, "params")["max_length"] == "64"
    server = Server(tracker.uri)
    given = server.run(server.experiment(f"job {tmp_path}"), "the job's", {})
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    assert run_stage("prepare-data", *flags, "--output", tmp_path / "two").code == 0
    (run,) = tracker.runs(f"job {tmp_path}")
    assert told(run, "params")["max_length"] == "64"
    assert run["info"]["status"] == "RUNNING", "the job's run is the job's to end"
    assert len(tracker.runs(f"alone {tmp_path}")) == 1
    assert not [e for e in done.events if "mlflow" in json.dumps(e).lower()]


def test_secrets_are_sent_and_not_told(tracker: Tracker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden-word")
    said: list[str] = []
    server = Server(f"http://127.0.0.1:{free_port()}")
    Run(server, lambda: server.experiment("x"), said.append).close(seconds=20)
    assert len(said) == 1 and "hidden-word" not in said[0]
    assert Server(tracker.uri)._headers()["Authorization"].startswith("Basic ")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
    assert Server(tracker.uri)._headers()["Authorization"] == "Bearer a-token"
    assert Server("azureml://r.api.azureml.ms/mlflow/v1.0/s?x=y").base.startswith(
        "https://r.api.azureml.ms/mlflow/v1.0/s/"
    )
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "a-token"
