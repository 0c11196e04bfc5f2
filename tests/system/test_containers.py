"""The same pipeline, the same bytes, in containers: every stage in its image, on a real Docker engine."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import STAGES, Engine, code_of

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
KILLS = int(os.environ.get("MICROSTAGES_KILLS", "8"))  # each runs the pipeline once
SHORT = """\
name: short
target: docker
params: {method: train-lora, seed: 0}
stages:
  data:
    uses: prepare-data
    inputs: {source: rows.jsonl, model: tiny-phi3}
    params: {template: "{phrase}: {tone}", completion: tone, max_length: 64, test_fraction: 0.2}
  adapter:
    uses: "${{ params.method }}"
    inputs: {dataset: "${{ stages.data.dataset }}", base_model: tiny-phi3}
    params: {steps: 3, rank: 4, alpha: 4, batch_tokens: 256, seed: "${{ params.seed }}"}
  merged:
    uses: merge
    inputs: {base_model: tiny-phi3, adapter: "${{ stages.adapter.adapter }}"}
"""


class Short:
    """Three real stages on forty rows."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder, self.engine = folder, engine
        folder.mkdir()
        rows = (EXAMPLES / "tones.jsonl").read_text().splitlines(keepends=True)[:40]
        (folder / "rows.jsonl").write_text("".join(rows))
        shutil.copytree(EXAMPLES / "tiny-phi3", folder / "tiny-phi3")
        (folder / "pipeline.yaml").write_text(SHORT)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "runner.cli", "up", "--json", *arguments], cwd=self.folder, text=True,
            env={**os.environ, "DOCKER_HOST": self.engine.address}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def up(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """Run to the end; what `--json` says, by stage."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return {s["stage"]: s for s in json.loads(out)["stages"]}

    def containers(self) -> list[str]:
        """Names of the containers, in any state, that hold something of this folder."""
        found = self.engine.client.containers(all=True)
        return [c["Names"][0] for c in found if any(m["Source"].startswith(str(self.folder)) for m in c["Mounts"])]

    def committed(self) -> set[str]:
        return {p.parent.name for p in (self.folder / ".runner/store/artifacts").glob("*/*/commit.json")}


@pytest.fixture
def short(tmp_path: Path, engine: Engine) -> Any:
    made = Short(tmp_path / "short", engine)
    yield made
    for name in made.containers():
        engine.client.remove_container(name, force=True)


def digests(stages: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {f"{name}.{o}": v["digest"] for name, s in stages.items() for o, v in s["outputs"].items()}


def statuses(stages: dict[str, dict[str, Any]]) -> set[str]:
    return {s["status"] for s in stages.values()}


def test_every_image_holds_the_code_of_this_checkout(engine):
    for name in STAGES:
        found = engine.client.images(filters={"label": f"microstages.stage={name}"})
        assert code_of(name) in [i["Labels"]["microstages.code"] for i in found], f"make images: {name}"


def test_the_pipeline_makes_the_same_bytes_in_containers(project, engine, tmp_path):
    """All seven artifacts of the committed pipeline; so after the one run nothing is left for the other."""
    folder = tmp_path / "docker"
    folder.mkdir()
    shutil.copy(project.folder / "pipeline.yaml", folder)
    shutil.copytree(project.folder / "examples", folder / "examples")
    environment = {**os.environ, "DOCKER_HOST": engine.address}
    command = [sys.executable, "-m", "runner.cli", "up", "--json", "--target"]
    made = {}
    for place, target, expected in ((folder, "docker", "done"), (folder, "process", "reused"),
                                    (project.folder, "docker", "reused")):  # fmt: skip
        done = subprocess.run(
            [*command, target], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        stages = {s["stage"]: s for s in json.loads(done.stdout)["stages"]}
        assert statuses(stages) == {expected}, (target, stages)
        made[place] = digests(stages)
    assert len(made[folder]) == 7
    assert made[folder] == made[project.folder]


def test_qlora_makes_the_same_bytes_in_containers(short):
    method = ("--set", "params.method=train-qlora")
    inside = short.up(*method)
    assert statuses(inside) == {"done"}
    shutil.rmtree(short.folder / ".runner")
    assert digests(short.up("--target", "process", *method)) == digests(inside)


def test_auto_takes_the_images(short):
    process = short.start("--set", "target=auto", "--only", "data")
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 0, err
    assert "in containers of the Docker engine" in err
    assert "(--target process: in this environment)" in err
    manifest = next((short.folder / ".runner/store/artifacts").glob("prepare-data/*/*/dataset/artifact.json"))
    assert "image" in json.loads(manifest.read_text())["provenance"]["software"]


def test_whenever_the_runner_is_killed_the_next_up_ends_with_the_same_bytes(short):
    """`kill -9` at random moments: what was done is not done again, what still runs is taken up, nothing is left."""
    expected = digests(short.up())
    began = time.monotonic()
    shutil.rmtree(short.folder / ".runner")
    short.up()
    whole = time.monotonic() - began
    seed = int(time.time())
    print(f"seed {seed}")  # shown where the test fails
    moments = random.Random(seed)
    taken_up = 0
    for n in range(KILLS):
        shutil.rmtree(short.folder / ".runner")
        process = short.start()
        time.sleep(whole * (n + moments.random()) / KILLS)  # over the whole run, one in each part of it
        process.kill()
        process.communicate()
        done = short.committed()
        again = short.start()
        out, err = again.communicate(timeout=300)
        assert again.returncode == 0, (n, err)
        stages = {s["stage"]: s for s in json.loads(out)["stages"]}
        assert digests(stages) == expected, n
        for name, stage in stages.items():
            assert stage["fingerprint"] not in done or stage["status"] == "reused", (n, name, "was done again")
        assert short.containers() == [], n
        taken_up += "still running from before" in err
        left = [p for p in (short.folder / ".runner/store").rglob("*") if p.name.endswith(".partial")]
        assert left == [], n
    assert taken_up > 0, "no kill met a running container"
