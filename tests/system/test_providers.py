"""Models for several execution providers from one pipeline, each as its runtime wants it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PLACES = {"cpu": "cpu", "cuda": "cuda", "dml": "directml", "webgpu": "webgpu"}


def runner(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "runner.cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_models_of_all_providers_are_built_side_by_side_and_lie_where_they_are_listed(tmp_path: Path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    runner(tmp_path, "up", "examples/providers.yaml", "--target", "process")
    runner(tmp_path, "pull", "onnx", "models", "-p", "examples/providers.yaml")
    for provider, place in PLACES.items():
        folder = next((tmp_path / "models").rglob(f"team/tones/{place}/tones-int4-{place}"))
        options = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
        named = [name.lower() for entry in options.get("provider_options", []) for name in entry]
        assert named == ([] if provider == "cpu" else [provider])
        manifest = json.loads((folder / "artifact.json").read_text())
        assert manifest["metadata"]["execution_provider"] == provider
        assert manifest["metadata"]["verified"] is (provider == "cpu")
        assert provider == "cpu" or f"there is no {provider} here" in manifest["metadata"]["not_verified_because"]
