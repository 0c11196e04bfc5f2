"""Given what is asked, then the builder gets options that do it; what it would break on is resolved or refused."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from microstages.errors import UserError
from microstages_build_onnx import extra, options, source

TIED = options.ModelShape("config.json", True, (64, 128))
UNTIED = options.ModelShape("config.json", False, (64, 128))


def resolve(shape: options.ModelShape = TIED, **given: Any) -> options.Asked:
    default: dict[str, Any] = {
        "precision": "int4", "execution_provider": "cpu", "algorithm": "default", "block_size": 32,
        "accuracy_level": None, "symmetric": None, "op_types_to_quantize": ["MatMul"], "nodes_to_exclude": [],
        "mixed_precision": [], "shared_embeddings": None, "flags": {}, "extra_options": [],
    }  # fmt: skip
    return options.resolve(shape, **default | given)


def to_builder(shape: options.ModelShape = TIED, **given: Any) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in resolve(shape, **given).to_builder())


def test_the_default_for_a_tied_model() -> None:
    assert to_builder() == {
        "shared_embeddings": "true", "hf_remote": "false", "hf_token": "false", "algo_config": "default",
        "block_size": "32", "is_symmetric": "true", "op_types_to_quantize": "MatMul/Gather", "accuracy_level": "4",
    }  # fmt: skip


def test_floating_point_takes_no_quantization() -> None:
    assert to_builder(UNTIED, precision="fp32", block_size=128, accuracy_level=1) == {
        "shared_embeddings": "false", "hf_remote": "false", "hf_token": "false",
    }  # fmt: skip


@pytest.mark.parametrize(("ep", "level"), [("cpu", 4), ("webgpu", 4), ("cuda", 0), ("dml", 0)])
def test_the_accuracy_level_is_the_providers_own_where_none_is_given(ep: str, level: int) -> None:
    assert resolve(execution_provider=ep).accuracy_level == level
    assert resolve(execution_provider=ep, accuracy_level=1).accuracy_level == 1


def test_an_algorithm_with_more_bits_for_some_is_its_method_and_a_placement() -> None:
    asked = to_builder(algorithm="k_quant_mixed", mixed_precision=["last_matmul:int4"])
    assert asked["algo_config"] == "k_quant"
    assert asked["matmul_mixed_precision"] == "last_matmul:int4,mixed_layers:int8"


# A tied model whose embeddings the builder would write in a form that ONNX Runtime cannot load.
@pytest.mark.parametrize(
    "given",
    [
        {"symmetric": False},
        {"mixed_precision": ["last_matmul:int8"]},
        {"precision": "int8"},
        {"flags": {"use_qdq": True}},
        {"nodes_to_exclude": ["/lm_head/MatMul"]},
        {"op_types_to_quantize": ["Gather"]},
    ],
)
def test_embeddings_that_cannot_be_shared_are_not(given: dict[str, Any]) -> None:
    assert resolve(**given).shared_embeddings is False
    with pytest.raises(UserError, match="shared"):
        resolve(**given, shared_embeddings=True)


def test_both_rtn_and_k_quant_share_embeddings_with_zero_points() -> None:
    assert resolve(algorithm="k_quant").shared_embeddings
    assert resolve(algorithm="rtn", symmetric=False).shared_embeddings


def builder_source() -> str:
    spec = importlib.util.find_spec("onnxruntime_genai")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "models"
    return "\n".join(p.read_text() for p in sorted(folder.rglob("*.py")))


def test_every_known_key_is_one_that_the_builder_reads() -> None:
    text = builder_source()
    read = set(re.findall(r"""extra_options(?:\.get\(|\[)["'](\w+)["']""", text))
    read |= set(re.findall(r"""["'](\w+)["'] in (?:self\.)?extra_options""", text))
    read |= set(re.findall(r"""extra_options\.get\(\s*["'](\w+)["']""", text))
    read |= set(re.findall(r'^        "(\w+)",$', text, re.MULTILINE))  # the list of boolean keys
    assert set(extra.EXTRA) | set(extra.OWN) | set(extra.REFUSED) <= read


def test_the_architectures_are_the_builders() -> None:
    known = set(re.findall(r'architectures\[0\] == "(\w+)"', builder_source()))
    # not text alone, or not causal
    other = re.compile(r"ForConditionalGeneration|Phi3V|Phi4MM|VideoChat|Whisper")
    assert {a for a in known if not other.search(a) or a.startswith("ChatGLM")} == set(source.ARCHITECTURES)
