"""A changed line of one stage makes one thin layer of one image anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import STAGES, Engine

from runner import stages
from runner.executors.engine import image_of

ROOT = Path(__file__).parent.parent.parent


def build(checkout: Path, engine: Engine) -> str:
    """`images/build.py` of a checkout; what it printed."""
    environment = {**os.environ, "DOCKER_HOST": engine.address}
    command = [sys.executable, checkout / "images/build.py", "--base", engine.base]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def layers(checkout: Path, engine: Engine) -> dict[str, list[str]]:
    """The layers of the images of each stage's code in a checkout: others may build meanwhile, and move names."""
    code = {s: stages.find(f"./{s}", checkout / "stages").code_identity() for s in STAGES}
    images = {s: image_of(engine.client, s, code[s], "cpu") for s in STAGES}
    return {s: engine.client.inspect_image(i.id)["RootFS"]["Layers"] for s, i in images.items()}


def test_a_line_of_merge_changes_one_layer_of_one_image(engine: Engine, tmp_path: Path) -> None:
    build(ROOT, engine)
    before = layers(ROOT, engine)
    command = ["git", "ls-files", "images", "stages", ".dockerignore"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        (tmp_path / name).chmod((ROOT / name).stat().st_mode & 0o777)
    changed = tmp_path / "stages/merge/microstages_merge/recipe.py"
    changed.write_text(changed.read_text() + "\n# one more line\n")
    try:
        build(tmp_path, engine)
        after = layers(tmp_path, engine)
    finally:
        build(ROOT, engine)
    assert {stage for stage in STAGES if before[stage] != after[stage]} == {"merge"}
    assert sum(a != b for a, b in zip(before["merge"], after["merge"], strict=True)) == 1
    assert layers(ROOT, engine) == before
