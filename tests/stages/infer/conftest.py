"""The example model in every form: as it is, with an adapter, merged, and as fp32 ONNX."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from microstages.artifact import Draft, outside_digest

PROMPTS = (
    "The old man opened the door and",
    "She said",
    "It was a dark night, and the wind came over the hills so that nobody in the village would leave his house. He",
    "I do not know why, but",
    "When the king heard of it he",
    # ends with the token that stands for padding in this model's files
    "They lived there for many years.<|endoftext|>",
)

BUILD = """
import sys
from onnxruntime_genai.models.builder import create_model, parse_extra_options
source, target, cache = sys.argv[1:]
options = parse_extra_options("", source, target, "fp32", "cpu", cache, [])
create_model("", source, target, "fp32", "cpu", cache, **options)
"""


@pytest.fixture(scope="session")
def base(examples: Path) -> Path:
    return examples / "tiny-phi3"


@pytest.fixture(scope="session")
def onnx(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model as fp32 ONNX, made by the model builder in a process of its own."""
    folder = tmp_path_factory.mktemp("onnx")
    command = [sys.executable, "-c", BUILD, str(base), str(folder / "model"), str(folder / "cache")]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder / "model"


def write_adapter(base: Path, folder: Path, metadata: Mapping[str, Any] | None = None, std: float = 0.05) -> Path:
    """A LoRA adapter of random weights that changes what the model says, with a manifest."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["qkv_proj", "down_proj"], task_type="CAUSAL_LM")
    peft: Any = get_peft_model(model, config)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=std)
    with Draft(str(folder), "adapter") as draft:
        peft.save_pretrained(draft.path)
        draft.metadata.update({"base_model": outside_digest(base), **(metadata or {})})
        draft.commit({})
    peft.merge_and_unload().save_pretrained(folder.parent / f"{folder.name}-merged")
    return folder


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("adapters") / "lora")


@pytest.fixture(scope="session")
def merged(base: Path, adapter: Path) -> Path:
    """The adapter merged into the base by PEFT, in fp32."""
    folder = adapter.parent / "lora-merged"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    return file


@pytest.fixture(scope="session")
def infer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`infer("--model", …)` runs the stage in this process, which has torch loaded already, as its program would."""
    from microstages_infer.cli import main

    tmp_path = tmp_path_factory.mktemp("infer")

    def run(*arguments: object) -> Any:
        files = [(tmp_path / f"run.{name}").open("w+b") for name in ("stdout", "stderr")]
        saved = [os.dup(1), os.dup(2)]
        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        stderr = sys.stderr
        sys.stdout.flush()
        for number, file in enumerate(files, 1):
            os.dup2(file.fileno(), number)
        try:
            sys.stderr = open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115  (closed with its descriptor)
            code = main.main([str(a) for a in arguments])
            sys.stderr.flush()
        finally:
            sys.stderr = stderr
            for number, descriptor in enumerate(saved, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            for s, handler in handlers.items():
                signal.signal(s, handler)
        texts = []
        for file in files:
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        return Ran(code, [json.loads(line) for line in texts[0].splitlines()], texts[1])

    return run


class Ran:
    """How a run ended: exit code, events, stderr."""

    def __init__(self, code: int, events: list[dict[str, Any]], stderr: str) -> None:
        self.code, self.events, self.stderr = code, events, stderr

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == kind]


def predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def manifest(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "artifact.json").read_text())
    return value


@pytest.fixture(scope="session")
def read() -> Any:
    """`read.predictions(folder)`, `read.manifest(folder)`, `read.prompts`, `read.write_adapter(…)`."""

    class Read:
        predictions = staticmethod(predictions)
        manifest = staticmethod(manifest)
        write_adapter = staticmethod(write_adapter)
        prompts = PROMPTS

    return Read
