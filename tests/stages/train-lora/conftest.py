"""A data set of tones for the tests of this stage."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from microstages.artifact import Artifact

if "training_data" not in sys.modules:
    file = Path(__file__).parent.parent / "lib" / "training" / "data.py"
    spec = importlib.util.spec_from_file_location("training_data", file)
    assert spec and spec.loader
    sys.modules["training_data"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["training_data"])


@pytest.fixture(scope="session")
def tones(examples: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """24 packed examples to train on, 8 held out, loss on the completion."""
    import training_data as data

    rows = data.tones(examples / "tones.jsonl", tiny_model, 32)
    return data.write(tmp_path_factory.mktemp("data") / "tones", tiny_model, rows[:24], rows[24:])
