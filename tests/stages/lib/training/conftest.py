"""What the tests of training share: data sets of tones, training in this process."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from microstages.artifact import Artifact, open_artifact
from microstages.reporting import Reporter

spec = importlib.util.spec_from_file_location("training_data", Path(__file__).with_name("data.py"))
assert spec and spec.loader
data = sys.modules["training_data"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(data)


@pytest.fixture(scope="session")
def tones(examples: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """48 packed examples to train on, 16 held out, loss on the completion."""
    rows = data.tones(examples / "tones.jsonl", tiny_model, 64)
    return data.write(tmp_path_factory.mktemp("data") / "tones", tiny_model, rows[:48], rows[48:])


@pytest.fixture(scope="session")
def train_here(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, dict[str, Any], str]]:
    """`train_here(dataset, model, rank=4, …)`: the adapter's folder, what was found, what was said.

    `place`: where its checkpoints go and come from; `stopping`: what tells it to stop; `events`: where they go.
    """
    import torch
    from microstages_training.distributed import Team
    from microstages_training.settings import Settings
    from microstages_training.train import Job, check, find, run_job

    def run(
        dataset: Artifact, model: Path, *, place: Any = None, stopping: Any = None, events: Any = None, **settings: Any
    ) -> tuple[Path, dict[str, Any], str]:
        out, words = tmp_path_factory.mktemp("adapter"), io.StringIO()
        report = Reporter("train", events, words)
        small = {"rank": 4, "alpha": 4.0, "learning_rate": 1e-2, "batch_tokens": 512, "epochs": 1.0, "threads": 1,
                 "precision": "fp32"}  # fmt: skip
        chosen = Settings(**{**small, **settings})
        chosen.check()
        job = Job(str(dataset.path), dataset.uri, dict(dataset.metadata), str(model),
                  open_artifact(str(model), ["model"]).digest, str(out), chosen,
                  keep=find(place, report) if place is not None else None)  # fmt: skip
        check(job, str(model))
        found = run_job(job, Team(), torch.device("cpu"), report, stopping)
        return out, found, words.getvalue()

    return run
