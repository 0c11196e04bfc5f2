"""Merging into what QLoRA really trained against: the base after 4 bits, bit by bit that of bitsandbytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
bnb = pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")

MODULES = [
    f"model.layers.0.{m}" for m in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
]


def quantized(weight: Any, kind: str, double: bool) -> tuple[Any, Any]:
    """bitsandbytes' dequantized weight, and the mean that double quantization took off (None without it)."""
    packed, state = bnb.functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type=kind)
    return bnb.functional.dequantize_4bit(packed, state), float(state.offset) if double else None


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", [(192, 64), (300, 320), (7, 128)])
def test_dequantized_weights_are_those_of_bitsandbytes(
    shape: tuple[int, int], dtype: str, kind: str, double: bool
) -> None:
    from microstages_merge import quantize

    torch.manual_seed(0)
    weight = (torch.randn(shape) * 0.03).to(getattr(torch, dtype))
    weight[0, :64] = 0  # a block of zeros
    expected, mean = quantized(weight, kind, double)
    flat = weight.float().numpy().reshape(-1)
    own = quantize.scales(flat, 64)
    used = quantize.quantized_scales(own, "cpu", mean) if double else own
    found = torch.from_numpy(quantize.round_trip(flat, own, used, kind, 64).reshape(shape)).to(weight.dtype)
    assert torch.equal(found, expected)


def test_code_of_the_scales_is_that_of_bitsandbytes() -> None:
    from microstages_merge import quantize

    assert np.array_equal(quantize.dynamic_code(), bnb.functional.create_dynamic_map().numpy())


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_merge_adds_to_the_dequantized_weights_of_exactly_the_recorded_modules(
    kind: str, double: bool, train: Callable[..., Any], merge: Callable[..., Path], tensors: Callable[..., Any],
    as_artifact: Callable[..., None],
) -> None:  # fmt: skip
    trained = train(target_modules=["qkv_proj"])
    before, factors = tensors(trained.base), tensors(trained.adapter)
    record = {"type": kind, "double_quant": double, "compute_dtype": "bf16", "block_size": 64, "device": "cpu"}
    as_artifact(trained.adapter, quantization={**record, "modules": MODULES[:3]})
    folder = merge(trained)
    for name, merged in tensors(folder).items():
        weight = before[name]
        if name.removesuffix(".weight") in MODULES[:3]:
            weight, _ = quantized(weight, kind, double)
            assert not torch.equal(weight, before[name])
        if name == f"{MODULES[0]}.weight":
            at = f"base_model.model.{MODULES[0]}"
            delta = factors[f"{at}.lora_B.weight"] @ factors[f"{at}.lora_A.weight"] * (6 / 4)
            weight = (weight.float() + delta).bfloat16()
        assert torch.equal(merged, weight), name
    metadata = json.loads((folder / "artifact.json").read_text())["metadata"]
    assert metadata["base"] == "dequantized"
    assert metadata["tensors"]["dequantized"] == 3


def test_original_weights_where_they_are_asked_for(
    train: Callable[..., Any], merge: Callable[..., Path], tensors: Callable[..., Any], as_artifact: Callable[..., None]
) -> None:
    trained = train()
    plain = tensors(merge(trained, name="plain"))
    record = {"type": "nf4", "double_quant": True, "compute_dtype": "bfloat16", "modules": MODULES}
    as_artifact(trained.adapter, quantization=record)
    asked = tensors(merge(trained, "--base", "original", name="asked"))
    assert all(torch.equal(plain[k], asked[k]) for k in plain)


def test_an_adapter_without_a_record_is_merged_as_its_user_says(
    train: Callable[..., Any], merge: Callable[..., Path], tensors: Callable[..., Any]
) -> None:
    trained = train(target_modules=["qkv_proj"])
    before = tensors(trained.base)
    after = tensors(merge(trained, "--base", "dequantized", "--quant-type", "fp4", "--no-double-quant"))
    for module in MODULES[1:]:  # all linear layers, the output layer not
        assert torch.equal(after[f"{module}.weight"], quantized(before[f"{module}.weight"], "fp4", False)[0]), module
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(after[name], before[name])


def test_merged_model_answers_as_the_trained_one(train: Callable[..., Any], merge: Callable[..., Path]) -> None:
    """The logits of the adapter on the 4-bit model are nearer to those of this merge than to a merge into bf16."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    trained = train()
    ids = torch.tensor([[1, *range(3, 60)]])
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["lm_head"],
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(trained.base, dtype=torch.bfloat16, quantization_config=config)
    model = PeftModel.from_pretrained(base, trained.adapter).eval()
    distance = {}
    with torch.no_grad():
        expected = model(ids).logits.float()
        for choice in ("dequantized", "original"):
            folder = merge(trained, "--base", choice, name=choice)
            merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
            assert getattr(merged.config, "quantization_config", None) is None
            distance[choice] = float((merged(ids).logits.float() - expected).square().mean().sqrt())
    assert distance["dequantized"] < distance["original"] / 3, distance
