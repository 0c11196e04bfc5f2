"""The example config, of generation A with local rows, runs to the end: LoRA, merge, int4."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run(folder: Path, *arguments: str) -> Any:
    done = subprocess.run([sys.executable, "-m", "runner.cli", *arguments], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_an_imported_config_runs_to_the_end(tmp_path: Path, examples: Path):
    for name in ("tiny-phi3", "tones.jsonl"):
        (tmp_path / name).symlink_to(examples / name)
    config = json.loads((examples / "olive-config.json").read_text())
    config["passes"]["lora"]["config"] |= {"lora_r": 8}
    config["passes"]["lora"]["config"]["training_args"] |= {"max_steps": 3, "eval_steps": 2}
    (tmp_path / "olive-config.json").write_text(json.dumps(config))
    run(tmp_path, "import", "olive", "olive-config.json", "--json")
    outcome = run(tmp_path, "up", "--target", "process", "--json")
    stages = {s["stage"]: s for s in outcome["stages"]}
    assert {name: s["status"] for name, s in stages.items()} == dict.fromkeys(
        ("data", "lora", "merge", "builder"), "done"
    )
    # phi3 without names: Olive's own table
    adapter = Path(stages["lora"]["outputs"]["adapter"]["uri"]) / "adapter_config.json"
    assert sorted(json.loads(adapter.read_text())["target_modules"]) == ["o_proj", "qkv_proj"]
    # of all blocks of 128 tokens a tenth is held out, rounded up
    found = json.loads((Path(stages["data"]["outputs"]["dataset"]["uri"]) / "artifact.json").read_text())["metadata"]
    train, test = found["train"]["examples"], found["test"]["examples"]
    assert (found["max_length"], test) == (128, math.ceil(0.1 * (train + test)))
    assert (Path(stages["builder"]["outputs"]["model"]["uri"]) / "genai_config.json").is_file()
