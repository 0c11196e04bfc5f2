"""The world in which bad input is given: good data, a model, an adapter, a data set, a store with a result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import EXAMPLES

RANK = 4


def adapter(folder: Path, model: Path) -> None:
    """A LoRA adapter of one layer, as PEFT writes it."""
    import numpy as np
    from safetensors.numpy import save_file

    config = json.loads((model / "config.json").read_text())
    width = config["hidden_size"]
    name = "base_model.model.model.layers.0.self_attn.o_proj"
    folder.mkdir()
    factors = {
        f"{name}.lora_A.weight": np.ones((RANK, width), np.float32),
        f"{name}.lora_B.weight": np.ones((width, RANK), np.float32),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["o_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(about))


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good thing of each sort, and a pipeline that has run."""
    w = tmp_path_factory.mktemp("bad") / "world"
    return make(w)


def make(w: Path) -> Path:
    """Fill a folder."""
    from bad_input.harness import run
    from bad_input.tables import GOOD, PLAIN

    w.mkdir(parents=True)
    rows = [json.dumps({"phrase": f"phrase number {i}", "tone": "joy"}) for i in range(40)]
    (w / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (w / "text.txt").write_text("one\n")
    shutil.copytree(EXAMPLES / "tiny-phi3", w / "model")
    adapter(w / "adapter", w / "model")
    (w / "own").mkdir()
    (w / "own/interface.json").write_text(PLAIN)
    (w / "own/run.sh").write_text('for w; do case $w in --out=*) echo ok > "${w#--out=}/x";; esac; done\n')
    (w / "empty").mkdir()
    (w / "taken").mkdir()
    (w / "taken/mine.txt").write_text("mine")
    (w / "pipeline.yaml").write_text(GOOD)
    (w / "other.yaml").write_text("name: plain\nstages:\n  a: {uses: ./own, inputs: {text: text.txt}}\n")
    template = ("--template", "{phrase} {tone}", "--max-length", "64")
    model = str(w / "model")
    done = run(
        ("prepare-data", "--source", str(w / "rows.jsonl"), "--model", model, "--output", str(w / "dataset"), *template)
    )
    assert done.code == 0, done.text
    done = run(("runner", "up", str(w / "other.yaml"), "--target", "process"))
    assert done.code == 0, done.text
    done = run(("runner", "tag", "v1", "-p", str(w / "other.yaml")))
    assert done.code == 0, done.text
    return w
