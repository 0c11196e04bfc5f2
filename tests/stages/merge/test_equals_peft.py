"""A merged model is what PEFT's own merge makes of the same adapter, and computes what the adapted model computed.

Given a tiny random model and an adapter that PEFT saved; when the stage merges them; then every tensor has the bits of
`merge_and_unload()`, the result loads in transformers without a missing or unexpected weight, and its logits are those
of the adapted model within the rounding of its type. Where PEFT's merge is known to differ from the model that was
trained, the test says so and only the logits count.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

IDS = [[1, *range(3, 60)]]
LINEAR = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
EMBEDDINGS = ["embed_tokens", "lm_head"]
WITH_INPUT = [*LINEAR, "embed_tokens"]

# name, family, tied, rows after resizing, LoRA settings
SAME_BITS = {
    "plain": ("phi3", False, None, {}),
    "tied": ("phi3", True, None, {}),
    "llama, some layers": ("llama", False, None, {"target_modules": ["q_proj", "v_proj"]}),
    "llama, regular expression": ("llama", True, None, {"target_modules": r".*\.(q|o|up|down)_proj"}),
    "scale of one": ("phi3", False, None, {"lora_alpha": 4}),
    "rank of one": ("phi3", False, None, {"r": 1}),
    "rsLoRA": ("phi3", False, None, {"use_rslora": True}),
    "patterns": (
        "phi3", False, None,
        {"rank_pattern": {"qkv_proj": 3, r"layers\.0\.mlp\.down_proj": 7}, "alpha_pattern": {r"^model.*o_proj": 31}},
    ),
    "rsLoRA and patterns": ("phi3", True, None, {"use_rslora": True, "rank_pattern": {"proj": 5}}),
    "Conv1D": ("gpt2", True, None, {}),
    "Conv1D and a bias of LoRA": ("gpt2", True, None, {"target_modules": ["c_attn"], "lora_bias": True}),
    "all biases": ("gpt2", True, None, {"bias": "all"}),
    "biases of adapted layers": ("gpt2", True, None, {"bias": "lora_only"}),
    "a norm saved whole": ("phi3", False, None, {"modules_to_save": ["norm"]}),
    "output layer saved whole": ("phi3", False, None, {"modules_to_save": ["lm_head"]}),
    "both embeddings saved whole": ("phi3", False, None, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, input saved whole": ("phi3", True, None, {"modules_to_save": ["embed_tokens"]}),
    "tied, output saved whole": ("phi3", True, None, {"modules_to_save": ["lm_head"]}),
    "tied, both saved whole": ("phi3", True, None, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "kept tied, saved whole": ("phi3", True, None, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "output layer": ("phi3", False, None, {"target_modules": [*LINEAR, "lm_head"]}),
    "resized": ("phi3", False, 104, {}),
    "resized, tied": ("phi3", True, 104, {}),
    "resized, tied, saved whole": ("phi3", True, 104, {"modules_to_save": ["embed_tokens"]}),
    "shrunk": ("phi3", True, 80, {}),
    "trained tokens": ("phi3", False, None, {"trainable_token_indices": [3, 90]}),
    "trained tokens, tied": ("phi3", True, None, {"trainable_token_indices": [3, 90]}),
    "trained tokens, resized": ("phi3", True, 104, {"trainable_token_indices": [3, 101]}),
    "trained tokens of each side": (
        "phi3", False, None, {"trainable_token_indices": {"embed_tokens": [3, 4], "lm_head": [1]}},
    ),
}  # fmt: skip
# PEFT rounds these twice, or sums the norm of DoRA in fp32; here there is one rounding, and the norm is exact.
SAME_WITHIN_A_ROUNDING = {
    "DoRA": ("phi3", False, None, {"use_dora": True}),
    "DoRA and rsLoRA": ("llama", False, None, {"use_dora": True, "use_rslora": True}),
    "DoRA, Conv1D": ("gpt2", True, None, {"use_dora": True}),
    "DoRA, embeddings": (
        "phi3",
        False,
        None,
        {"use_dora": True, "target_modules": [*LINEAR, "embed_tokens", "lm_head"]},
    ),
    "embeddings": ("phi3", False, None, {"target_modules": WITH_INPUT}),
}
# PEFT adds to the one tensor that both sides share, although it trained only one side (peft#2777).
SAME_LOGITS = {
    "tied, input adapted": ("phi3", True, None, {"target_modules": WITH_INPUT}),
    "tied, output adapted": ("phi3", True, None, {"target_modules": [*LINEAR, "lm_head"]}),
    "tied, both adapted": ("phi3", True, None, {"target_modules": [*LINEAR, "embed_tokens", "lm_head"]}),
    "kept tied, adapted": ("phi3", True, None, {"target_modules": WITH_INPUT, "ensure_weight_tying": True}),
    "GPT-2, both adapted": ("gpt2", True, None, {"target_modules": ["c_attn", "c_proj", "wte", "lm_head"]}),
}  # fmt: skip
ALL = SAME_BITS | SAME_WITHIN_A_ROUNDING | SAME_LOGITS


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.float()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ALL)
def test_merged_model_is_the_trained_one(
    name: str, dtype: str, train: Callable[..., Any], merge: Callable[..., Path]
) -> None:
    from transformers import AutoModelForCausalLM

    family, tied, rows, settings = ALL[name]
    trained = train(family, tied=tied, rows=rows, dtype=dtype, **settings)
    folder = merge(trained)

    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=trained.dtype, output_loading_info=True)
    assert not any(info.values()), info
    adapted = trained.peft()
    expected = logits(adapted)
    steps = 4 if dtype == "bfloat16" else 16  # roundings that a forward pass adds up
    allowed = steps * torch.finfo(trained.dtype).eps * expected.abs().max()
    assert (logits(model.eval()) - expected).abs().max() <= allowed
    with adapted.disable_adapter():
        assert (logits(adapted) - expected).abs().max() > 3 * allowed, "the adapter changes too little for this test"
    assert model.config.vocab_size == (rows or 96) == json.loads((folder / "config.json").read_text())["vocab_size"]

    merged, mine = adapted.merge_and_unload().state_dict(), model.state_dict()
    if name not in SAME_LOGITS:
        assert merged.keys() == mine.keys()
    for key in mine if name not in SAME_LOGITS else ():
        if name in SAME_BITS:
            assert torch.equal(merged[key], mine[key]), key
        else:
            allowed = 4 * torch.finfo(trained.dtype).eps * merged[key].float().abs().max()
            assert ((merged[key].float() - mine[key].float()).abs() <= allowed).all(), key


@pytest.mark.parametrize("name", ["tied", "kept tied, saved whole", "resized, tied", "trained tokens, tied"])
def test_tied_embeddings_stay_tied_where_both_sides_are_equal(
    name: str, train: Callable[..., Any], merge: Callable[..., Path], tensors: Callable[..., Any]
) -> None:
    family, tied, rows, settings = ALL[name]
    folder = merge(train(family, tied=tied, rows=rows, **settings))
    assert "lm_head.weight" not in tensors(folder)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
