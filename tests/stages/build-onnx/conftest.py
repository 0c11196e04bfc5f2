"""Small random models in the forms that matter here, and the stage run on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

QUICK = ("--prompt-count", "3", "--compare-tokens", "8")


@dataclass(frozen=True)
class Built:
    """An artifact that the stage made: where it lies, its manifest, and what the stage said."""

    path: Path
    manifest: dict[str, Any]
    stderr: str

    @property
    def metadata(self) -> dict[str, Any]:
        return self.manifest["metadata"]

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest["metrics"]

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.path / name).read_text())


@pytest.fixture(scope="session")
def build(run_stage: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Built]:
    """`build(model, "--precision", "int8")` runs the stage and expects it to succeed."""

    def run(model: Path, *arguments: object, **options: Any) -> Built:
        path = tmp_path_factory.mktemp("built") / "model"
        result = run_stage("build-onnx", "--model", model, "--output", path, *QUICK, *arguments, **options)
        assert result.code == 0, result.stderr
        return Built(path, json.loads((path / "artifact.json").read_text()), result.stderr)

    return run


def _save(model: Any, folder: Path, examples: Path) -> Path:
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[0, 5], pad_token_id=0)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(examples / "tiny-phi3" / name, folder / name)
    return folder


def _phi3(folder: Path, examples: Path, **options: Any) -> Path:
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    base: dict[str, Any] = {
        "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "original_max_position_embeddings": 256, "sliding_window": None, "bos_token_id": 1, "eos_token_id": 0,
        "pad_token_id": 0, "initializer_range": 0.2,
    }  # fmt: skip
    return _save(Phi3ForCausalLM(Phi3Config(**base | options)), folder, examples)


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """A Llama with grouped heads and tied embeddings; it names one end token, its tokenizer another."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=5, tie_word_embeddings=True,
        initializer_range=0.05,
    )  # fmt: skip
    folder = _save(LlamaForCausalLM(config), tmp_path_factory.mktemp("models") / "tied", examples)
    (folder / "generation_config.json").unlink()
    return folder


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """A Phi-3 that looks back at most 16 tokens."""
    return _phi3(tmp_path_factory.mktemp("models") / "windowed", examples, sliding_window=16)


@pytest.fixture(scope="session")
def longrope(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """A Phi-3 with LongRoPE as transformers 5 saves it: `rope_parameters` without `type`.

    Its tokenizer_config.json names a class that reads numbers wrongly, and holds the chat template.
    """
    factors = {"short_factor": [1 + i / 100 for i in range(16)], "long_factor": [1 + i / 3 for i in range(16)]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, **factors}
    folder = _phi3(
        tmp_path_factory.mktemp("models") / "longrope", examples,
        max_position_embeddings=512, original_max_position_embeddings=64, rope_parameters=rope,
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"].pop("type", None)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["chat_template"] = (folder / "chat_template.jinja").read_text()
    tokenizer["tokenizer_class"] = "LlamaTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., Path]:
    """`altered(model, "config.json", vocab_size=3)` copies a model folder and changes keys of a JSON file in it."""

    def change(model: Path, name: str, /, **values: Any) -> Path:
        folder = tmp_path / "altered"
        if not folder.exists():
            shutil.copytree(model, folder)
        file = folder / name
        value = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({k: v for k, v in (value | values).items() if v is not ...}))
        return folder

    return change
