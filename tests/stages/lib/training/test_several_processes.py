"""Checkpoints of a run in several processes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from microstages.artifact import open_artifact
from microstages.errors import Stopped
from microstages.reporting import Reporter
from microstages.state import Place
from microstages_training.distributed import launch
from microstages_training.settings import Settings
from microstages_training.train import Job, find
from training_data import RUN, files, saved_steps


class Hearing(Reporter):
    """Calls a function at the first event of training that is of a step or more."""

    def __init__(self, step, call):
        super().__init__("train", None, io.StringIO())
        self.step, self.call, self.events = step, call, []

    def event(self, kind, **values):
        self.events.append((kind, values))
        if kind == "progress" and values["done"] >= self.step and self.call is not None:
            call, self.call = self.call, None
            call()


@pytest.fixture
def two(tones, tiny_model, tmp_path):
    """`two(report, place)`: train in two processes; the files and metrics."""

    def run(report, place=None, **settings):
        out = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        keep = find(place, report) if place is not None else None
        small = {"rank": 4, "alpha": 4.0, "learning_rate": 1e-3, "batch_tokens": 300, "accumulation": 2, "steps": 24,
                 "precision": "fp32", "threads": 1, "dropout": 0.1, "eval_every": 0.5}  # fmt: skip
        job = Job(str(tones.path), tones.uri, dict(tones.metadata), str(tiny_model),
                  open_artifact(str(tiny_model), ["model"]).digest, str(out), Settings(**{**small, **settings}),
                  keep=keep)  # fmt: skip
        found = launch(job, 2, report)
        return files(out), found["metrics"]

    return run


@pytest.fixture
def nobody_left(monkeypatch):
    """Waits until no process that was started in this test runs any more."""
    mark = f"TEST_OF_CHECKPOINTS={time.time_ns()}"
    monkeypatch.setenv(*mark.split("="))

    def running(pid: str) -> bool:
        try:
            return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def wait() -> bool:
        until = time.monotonic() + 60
        while any(map(running, filter(str.isdigit, os.listdir("/proc")))):
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    return wait


def test_several_processes_agree_where_to_stop_and_go_on_with_the_same_bytes(two, tmp_path):
    undisturbed, _ = two(Hearing(0, None))
    place = Place(str(tmp_path / "checkpoints"), RUN)
    # told to stop, the parent passes it on, one process saves, all end
    with pytest.raises(Stopped, match=r"stopped at step (\d+) of 24; a checkpoint is saved") as stopped:
        two(Hearing(1, lambda: os.kill(os.getpid(), signal.SIGTERM)), place)
    assert f"stopped at step {saved_steps(place)[0]} of 24" in str(stopped.value)
    # started again they go on from there
    report = Hearing(0, None)
    adapter, metrics = two(report, place)
    assert adapter == undisturbed and metrics["resumed_from_step"] == saved_steps(place)[0] >= 1
    assert [v["resumed"] for k, v in report.events if k == "checkpoint"] == [True]


def test_told_twice_several_processes_end_at_once(two, nobody_left, tmp_path):
    place = Place(str(tmp_path / "checkpoints"), RUN)

    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        two(Hearing(1, twice), place, steps=100_000)
    assert nobody_left()


def test_processes_whose_parent_is_killed_save_and_end(tones, tiny_model, nobody_left, tmp_path):
    place = Place(str(tmp_path / "checkpoints"), RUN)
    keep = f"Keep({place.uri!r}, {RUN!r})"
    code = (
        "import io; from microstages.reporting import Reporter; from microstages_training.distributed import launch\n"
        "from microstages_training.settings import Settings; from microstages_training.train import Job, Keep\n"
        f"settings = Settings(batch_tokens=512, steps=100000, threads=1); data = {dict(tones.metadata)!r}\n"
        f"job = Job({str(tones.path)!r}, '', data, {str(tiny_model)!r}, '', {str(tmp_path)!r}, settings, keep={keep})\n"
        "import sys; launch(job, 2, Reporter('train', sys.stdout, sys.stderr))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if json.loads(line).get("label") == "training":
                break
        parent.kill()
    assert nobody_left()
    assert saved_steps(place)[0] > 0
