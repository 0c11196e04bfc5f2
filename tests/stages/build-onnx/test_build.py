"""Given a model, when it is built, then the result is what was asked, and computes what the model computes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from microstages.artifact import Draft

FILES = {
    "artifact.json", "model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
}  # fmt: skip


def nodes(folder: Path, op: str) -> dict[str, dict[str, Any]]:
    """Attributes of all nodes of an operator, by name; `inputs` counts those that are given."""
    import onnx

    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    return {
        n.name: {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}
        | {"inputs": len([i for i in n.input if i]), "first_inputs": list(n.input)[:2]}
        for n in graph.node
        if n.op_type == op
    }


def visible(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith(".")}


def logits_of(folder: Path, ids: list[int], given: int) -> np.ndarray:
    """Logits of ONNX Runtime GenAI after `given` tokens and after each further one, through the cache."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + 1, do_sample=False)
    generator = og.Generator(model, params)
    rows = []
    for feed in (ids[:given], *([t] for t in ids[given:])):
        generator.append_tokens(np.array(feed, np.int32))
        rows.append(np.array(generator.get_logits()).reshape(-1))
    return np.stack(rows)


def truth_of(folder: Path, ids: list[int], given: int) -> np.ndarray:
    """The same from transformers, in one pass."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, given - 1 :].numpy()


def test_int4_of_a_tied_model_shares_one_quantized_matrix(build: Callable[..., Any], tied: Path) -> None:
    built = build(tied)
    assert visible(built.path) == FILES
    matmuls = nodes(built.path, "MatMulNBits")
    assert len(matmuls) == 11
    assert {(n["bits"], n["block_size"], n["accuracy_level"], n["inputs"]) for n in matmuls.values()} == {(4, 32, 4, 3)}
    assert len(nodes(built.path, "GatherBlockQuantized")) == 1
    assert built.metadata["shared_embeddings"] is True
    assert built.metadata["weights"] == [
        {"op": "GatherBlockQuantized", "bits": 4, "block_size": 32, "accuracy_level": 0, "zero_points": False,
         "nodes": 1},
        {"op": "MatMulNBits", "bits": 4, "block_size": 32, "accuracy_level": 4, "zero_points": False, "nodes": 11},
    ]  # fmt: skip
    assert built.metadata["verified"] is True
    assert built.metrics["prompts"] == 3
    assert 0 < built.metrics["mean_kl"] < 0.1
    assert 0 <= built.metrics["top1_agreement"] <= 1
    for speed in ("prefill", "decode"):
        assert built.metrics[f"{speed}_tokens_per_second"] > 0
        assert built.metrics[f"source_{speed}_tokens_per_second"] > 0
    # the model ends with 5 only; its tokenizer's end token is added behind it
    assert built.json("genai_config.json")["model"]["eos_token_id"] == [5, 0] == built.metadata["stop_token_ids"]
    assert built.json("genai_config.json")["search"]["max_length"] == 256
    assert (built.path / "tokenizer.json").read_bytes() == (tied / "tokenizer.json").read_bytes()


def test_the_same_again_is_the_same_bytes_wherever_it_runs(
    build: Callable[..., Any], tied: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    template = {"kind": "template", "template": "{a}: {b}", "completion": "b"}
    with Draft(str(elsewhere), "model") as draft:  # as merge writes it: with a record of how it was tuned
        shutil.copytree(tied, draft.path, dirs_exist_ok=True)
        draft.metadata["template"] = template
        draft.commit({})
    (tmp_path / "builders.py").write_text("raise SystemExit('a file of the current folder was imported')")
    first = build(tied, "--precision", "fp32")
    second = build(elsewhere, "--precision", "fp32", "--verify", "skip", cwd=tmp_path)
    assert first.manifest["digest"] == second.manifest["digest"]
    for file in first.path.iterdir():
        if file.name != "artifact.json":
            content = file.read_bytes()
            assert str(tied).encode() not in content and b"build-onnx-" not in content, file.name
    assert second.metadata["template"] == template and "template" not in first.metadata
    assert second.metadata["verified"] is False
    assert "warning: NOT VERIFIED: verify is skip" in second.stderr
    # and in fp32 it is the model
    assert first.metrics["equal_answers"] == 3
    assert first.metrics["top1_agreement"] == 1
    assert first.metrics["max_logit_difference"] < 1e-3
    ids = list(range(10, 50))
    np.testing.assert_allclose(logits_of(first.path, ids, 7), truth_of(tied, ids, 7), atol=1e-3)


def test_options_of_the_quantization_reach_the_graph(build: Callable[..., Any], tiny_model: Path) -> None:
    built = build(
        tiny_model, "--block-size", 16, "--accuracy-level", 1, "--no-symmetric", "--mixed-precision",
        "mixed_layers:int8", "--nodes-to-exclude", "/lm_head/MatMul", "--op-types-to-quantize", "MatMul",
    )  # fmt: skip
    matmuls = nodes(built.path, "MatMulNBits")
    assert {(n["block_size"], n["accuracy_level"], n["inputs"]) for n in matmuls.values()} == {(16, 1, 4)}
    eight = {name for name, n in matmuls.items() if n["bits"] == 8}
    assert eight == {"/model/layers.0/attn/qkv_proj/MatMul_Q8", "/model/layers.0/mlp/down_proj/MatMul_Q8"}
    assert all(n["bits"] == 4 for name, n in matmuls.items() if name not in eight)
    assert "/lm_head/MatMul" in nodes(built.path, "MatMul")
    assert {w["op"] for w in built.metadata["weights"]} == {"Gather", "MatMul", "MatMulNBits"}


def test_int8_compared_on_held_out_rows(build: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "### Text: what a day", "completion": "joy", "text": "### Text: what a day joy"},
        {"prompt": "### Text: what a day", "completion": "fear", "text": "the same prompt again"},
        {"prompt": None, "completion": None, "text": "a row of plain text, of which the first half is a prompt"},
    ]
    with Draft(str(tmp_path / "dataset"), "dataset") as draft:
        (draft.path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        draft.commit({})
    options = ("--precision", "int8", "--algorithm", "rtn", "--block-size", 64)
    built = build(tiny_model, *options, "--dataset", tmp_path / "dataset")
    assert built.metrics["prompts"] == 2 and built.metrics["prompts_from"] == "dataset"
    matmuls = nodes(built.path, "MatMulNBits")
    assert {(n["bits"], n["block_size"]) for n in matmuls.values()} == {(8, 64)}
    assert built.metrics["mean_kl"] < 1e-3


def test_k_quant_mixed_of_the_example_is_nearer_than_its_size_says(build: Callable[..., Any], examples: Path) -> None:
    built = build(examples / "tiny-phi3", "--algorithm", "k_quant_mixed")
    bits = [(n["bits"], n["inputs"]) for n in nodes(built.path, "MatMulNBits").values()]
    assert set(bits) == {(4, 4), (8, 4)}
    assert built.metrics["size_bytes"] < built.metrics["source_size_bytes"] / 2
    assert built.metrics["mean_kl"] < 0.02
    assert built.metrics["top1_agreement"] > 0.75


def test_beyond_the_sliding_window_it_still_computes_the_model(build: Callable[..., Any], windowed: Path) -> None:
    before = (windowed / "config.json").read_bytes()
    built = build(windowed, "--precision", "fp32")
    ids = np.random.default_rng(0).integers(6, 4000, 60).tolist()
    for given in (5, 40):
        truth = truth_of(windowed, ids, given)
        np.testing.assert_allclose(logits_of(built.path, ids, given), truth, atol=1e-3)
    assert built.metadata["adaptions"] == {"sliding_window": "16: every layer marked as sliding"}
    assert (windowed / "config.json").read_bytes() == before


def test_longrope_saved_by_transformers_5_and_a_wrong_tokenizer_class(
    build: Callable[..., Any], longrope: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        '{"prompt": "1,000 and 3.14159 and 12,345 "}\n{"messages": [{"role": "user", "content": "7"}]}\n'
    )
    built = build(longrope, "--precision", "fp32", "--prompts", prompts)
    ids = np.random.default_rng(0).integers(6, 4000, 120).tolist()
    for stretch in (ids[:40], ids):  # with the short factors and with the long ones
        given = len(stretch) - 5
        truth = truth_of(longrope, stretch, given)
        np.testing.assert_allclose(logits_of(built.path, stretch, given), truth, atol=1e-3)
    assert built.metadata["adaptions"] == {"rope": "rope_parameters.type set to longrope"}
    assert built.json("tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"
    assert "tokenizer class TokenizersBackend written for LlamaTokenizer" in built.stderr
    assert "chat_template" not in built.json("tokenizer_config.json")
    tokenizer_config = json.loads((longrope / "tokenizer_config.json").read_text())
    assert (built.path / "chat_template.jinja").read_text() == tokenizer_config["chat_template"]
    assert built.metrics["prompts"] == 2 and built.metrics["prompts_from"] == "prompts"


def test_for_another_provider_it_is_built_but_loudly_not_verified(build: Callable[..., Any], tiny_model: Path) -> None:
    built = build(tiny_model, "--precision", "fp16", "--execution-provider", "cuda", "--enable-cuda-graph")
    options = built.json("genai_config.json")["model"]["decoder"]["session_options"]["provider_options"]
    assert options == [{"cuda": {"enable_cuda_graph": "1"}}]
    assert [w["dtype"] for w in built.metadata["weights"]] == ["FLOAT16", "FLOAT16"]
    if not built.metadata["verified"]:
        assert built.metadata["not_verified_because"].startswith("there is no cuda here")
        assert "warning: NOT VERIFIED: there is no cuda here" in built.stderr
        assert "mean_kl" not in built.metrics


def left(parent: Path) -> list[str]:
    return [p.name for p in parent.iterdir()]


CUT = ("--prompt-count", "1", "--compare-tokens", "1")


def test_a_result_that_cannot_run_is_an_error_and_leaves_nothing(
    run_stage: Callable[..., Any], windowed: Path, tmp_path: Path
) -> None:
    # the runtime's window-sized cache needs room for the window, which one token of prompt and answer do not give
    (tmp_path / "in").mkdir()
    prompts = tmp_path / "in" / "prompts.txt"
    prompts.write_text("a\n")
    result = run_stage(
        "build-onnx", "--model", windowed, "--output", tmp_path / "out" / "m", "--precision", "fp32", *CUT,
        "--prompts", prompts, "--extra-options", "windowed_kv_cache=true",
    )  # fmt: skip
    assert result.code == 2, result.stderr
    assert "the result cannot be run by ONNX Runtime GenAI: " in result.stderr
    assert "Traceback" not in result.stderr
    assert left(tmp_path / "out") == []


def test_a_result_too_far_from_the_model_is_an_error(
    run_stage: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    result = run_stage(
        "build-onnx", "--model", tiny_model, "--output", tmp_path / "m", *CUT, "--precision", "int8", "--max-kl", 1e-12
    )
    assert result.code == 2
    assert "the result is not the model that it came from: mean KL divergence" in result.stderr
    assert left(tmp_path) == []


def test_a_node_that_does_not_exist_is_an_error(
    run_stage: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    result = run_stage(
        "build-onnx", "--model", tiny_model, "--output", tmp_path / "m", "--nodes-to-exclude", "/lm_heat/MatMul", *CUT
    )
    assert result.code == 2
    assert "the model has no node '/lm_heat/MatMul' (did you mean '/lm_head/MatMul'?)" in result.stderr
    assert left(tmp_path) == []


def test_a_tokenizer_that_the_runtime_misreads_is_an_error(
    run_stage: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, normalizers

    model = tmp_path / "in" / "model"
    shutil.copytree(tiny_model, model)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("o", "0"), normalizers.Replace("e", "3")])
    tokenizer.save(str(model / "tokenizer.json"))
    result = run_stage("build-onnx", "--model", model, "--output", tmp_path / "out" / "m", *CUT, "--precision", "fp32")
    assert result.code == 2
    assert "ONNX Runtime GenAI reads 1 of 1 prompts as other tokens than the model's tokenizer" in result.stderr
    assert left(tmp_path / "out") == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the child in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_when_told_to_stop_the_builder_stops_too(tiny_model: Path, tmp_path: Path, number: signal.Signals) -> None:
    output = tmp_path / "out" / "m"
    command = [sys.executable, "-m", "microstages_build_onnx.cli", "--model", str(tiny_model), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not (found := children.read_text().split()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    while any(running(int(pid)) for pid in found):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert b"stopped; nothing unfinished is left behind" in stderr
        assert left(output.parent) == []
    else:
        assert visible(output.parent) == set()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_interface_file_is_current() -> None:
    folder = Path(__file__).parents[3] / "stages" / "build-onnx"
    command = [sys.executable, "-m", "microstages_build_onnx.cli", "describe"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == (folder / "interface.json").read_text()
