"""Projects whose stages write, in milliseconds, what the real ones write: the same files, metadata, metrics, events."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("projects_of_tests", HERE.parent / "conftest.py")
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _module  # its dataclasses look themselves up
_spec.loader.exec_module(_module)
Project: Any = _module.Project  # of a folder that lives as long as a module's tests
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u2028`|[x](y)'\"⟦"

# name -> inputs with their kinds, outputs with their kinds
STAGES: dict[str, tuple[dict[str, list[str]], dict[str, str]]] = {
    "prepare": ({"source": ["files"]}, {"dataset": "dataset"}),
    "train": ({"dataset": ["dataset"], "base_model": ["model"]}, {"adapter": "adapter"}),
    "merge": ({"base_model": ["model"], "adapter": ["adapter"]}, {"model": "model"}),
    "build": ({"model": ["model"], "dataset": ["dataset"]}, {"model": "onnx-model"}),
    "answer": ({"model": ["model", "onnx-model"], "dataset": ["dataset"]}, {"predictions": "predictions"}),
}
PIPELINE = """\
name: {name}
stages:
  data: {{uses: ./prepare, inputs: {{source: rows.jsonl}}, params: {{words: {words}}}}}
  adapter:
    uses: ./train
    inputs: {{dataset: "${{{{ stages.data.dataset }}}}", base_model: base}}
    params: {{rank: 8, words: {words}}}
  merged: {{uses: ./merge, inputs: {{base_model: base, adapter: "${{{{ stages.adapter.adapter }}}}"}}}}
  onnx:
    uses: ./build
    inputs: {{model: "${{{{ stages.merged.model }}}}", dataset: "${{{{ stages.data.dataset }}}}"}}
  tuned:
    uses: ./answer
    inputs: {{model: "${{{{ stages.merged.model }}}}", dataset: "${{{{ stages.data.dataset }}}}"}}
    params: {{words: {words}}}
  quantized:
    uses: ./answer
    inputs: {{model: "${{{{ stages.onnx.model }}}}", dataset: "${{{{ stages.data.dataset }}}}"}}
    params: {{words: {words}}}
  untuned:
    uses: ./answer
    inputs: {{model: base, dataset: "${{{{ stages.data.dataset }}}}"}}
    params: {{words: {words}}}
"""


def whole(folder: Path, name: str = "tones", words: str = "plain") -> Any:
    """A project with all kinds of stages; `words` stand wherever a stage can put words."""
    project = Project(folder)
    params = {"rank": {"type": "integer", "default": 4}, "words": {"type": "string", "default": "plain"},
              "unused": {"type": "number", "default": 0.5}}  # fmt: skip
    for stage, (inputs, outputs) in STAGES.items():
        home = project.stage(stage, "", inputs=inputs, outputs=outputs, params=params)
        (home / "tool.py").write_text((HERE / "fake.py").read_text())
        file = home / "interface.json"
        interface = {**json.loads(file.read_text()), "command": [sys.executable, "./tool.py"], "manifest": "stage"}
        for output in interface["outputs"].values():
            output["flag"] = "--out"
        file.write_text(json.dumps(interface))
    base = folder / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}')
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (base / "README.md").write_text("---\nlicense: mit\nlanguage: [en, de]\n---\nA base.\n")
    (folder / "rows.jsonl").write_text('{"text": "a"}\n')
    project.pipeline(PIPELINE.format(name=json.dumps(name), words=json.dumps(words)))
    return project


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A project that ran; tests read it and change nothing."""
    project = whole(tmp_path_factory.mktemp("made"))
    project.up()
    return project


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same, with markup, quotes and line separators wherever words can stand."""
    project = whole(tmp_path_factory.mktemp("hostile"), EVIL, EVIL)
    project.up()
    return project


@pytest.fixture
def fresh(tmp_path: Path) -> Any:
    """The same, not yet run."""
    return whole(tmp_path)


@pytest.fixture
def whole_project() -> Any:
    """Makes such a project in a folder."""
    return whole
