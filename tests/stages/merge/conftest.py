"""Tiny random models of three families, and adapters that PEFT itself makes and saves."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LAYERS = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def build(family: str, tied: bool) -> Any:
    """A random model with biases and norms that are not at their trivial initial values."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tied}
    if family == "gpt2":
        sizes = {"vocab_size": 96, "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 64}
        model: Any = t.GPT2LMHeadModel(t.GPT2Config(**sizes, **ids))
    elif family == "llama":
        config = t.LlamaConfig(**SIZES, **ids, intermediate_size=160, num_key_value_heads=1)
        model = t.LlamaForCausalLM(config)
    else:
        config = t.Phi3Config(**SIZES, **ids, intermediate_size=128, num_key_value_heads=2, sliding_window=None)
        model = t.Phi3ForCausalLM(config)
    for p in model.parameters():
        if p.ndim == 1:
            p.data += torch.randn_like(p) * 0.1
    return model


@dataclass(frozen=True)
class Trained:
    """An adapter on disk, its base, and how PEFT's own objects are got from them."""

    base: Path
    adapter: Path
    rows: int | None
    dtype: Any

    def peft(self) -> Any:
        """The adapted model as PEFT loads it."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=self.dtype)
        if self.rows:
            model.resize_token_embeddings(self.rows)
        return PeftModel.from_pretrained(model, self.adapter).eval()


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Trained]:
    """`train("phi3", tied=True, use_dora=True, …)`: a base, and an adapter whose weights all left their start."""

    def make(
        family: str = "phi3",
        *,
        tied: bool = False,
        rows: int | None = None,
        dtype: str = "bfloat16",
        shards: str = "50GB",
        **config: Any,
    ) -> Trained:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        warnings.filterwarnings("ignore")
        kind = getattr(torch, dtype)
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        build(family, tied).to(kind).save_pretrained(base, max_shard_size=shards)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=kind)
        if rows:
            model.resize_token_embeddings(rows)
        settings = {"r": 4, "lora_alpha": 6, "target_modules": LAYERS[family], "task_type": "CAUSAL_LM"} | config
        peft = get_peft_model(model, LoraConfig(**settings))
        for p in peft.parameters():
            if p.requires_grad:
                p.data += (torch.randn_like(p, dtype=torch.float32) * 0.05).to(p.dtype)
        peft.save_pretrained(adapter)
        return Trained(base, adapter, rows, kind)

    return make


@pytest.fixture
def merge(run_stage: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """`merge(trained, "--dtype", "fp32")` runs the stage and returns the folder of the merged model."""

    def run(trained: Trained, *arguments: str, name: str = "merged") -> Path:
        output = tmp_path / name
        given = ("--base-model", trained.base, "--adapter", trained.adapter, "--output", output)
        result = run_stage("merge", *given, *arguments)
        assert result.code == 0, result.stderr
        return output

    return run


@pytest.fixture
def tensors() -> Callable[[Path], dict[str, Any]]:
    """All tensors of a folder, by name."""
    from safetensors.torch import load_file

    return lambda folder: {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


@pytest.fixture
def as_artifact() -> Callable[..., None]:
    """`as_artifact(folder, key=…)` makes an adapter folder an artifact with metadata, as a training stage does."""
    from microstages.artifact import Draft

    def make(folder: Path, **metadata: Any) -> None:
        moved = folder.with_name("outside")
        folder.rename(moved)
        with Draft(str(folder), "adapter") as draft:
            for file in moved.iterdir():
                shutil.copy(file, draft.path / file.name)
            draft.metadata.update(metadata)
            draft.commit({})

    return make
