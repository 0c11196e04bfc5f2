"""Given something that cannot be built, then the stage says so before it builds, in a line or two, and ends with 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Place = Callable[[str], Path]


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, altered: Callable[..., Path]) -> Place:
    """Makes the named model, good or broken, or the named file of prompts."""

    def copied() -> Path:
        shutil.copytree(tiny_model, tmp_path / "altered")
        return tmp_path / "altered"

    def without(name: str) -> Path:
        (copied() / name).unlink()
        return tmp_path / "altered"

    def cut() -> Path:
        file = copied() / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        return tmp_path / "altered"

    def pickled() -> Path:
        (copied() / "model.safetensors").rename(tmp_path / "altered" / "pytorch_model.bin")
        return tmp_path / "altered"

    def wrote(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    def dataset(*rows: dict[str, Any]) -> Path:
        from microstages.artifact import Draft

        with Draft(str(tmp_path / "dataset"), "dataset") as draft:
            (draft.path / "report.json").write_text("{}")
            if rows:
                (draft.path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            draft.commit({})
        return tmp_path / "dataset"

    def config(**values: Any) -> Callable[[], Path]:
        return lambda: altered(tiny_model, "config.json", **values)

    rope = {"rope_type": "longrope", "rope_theta": 1e4}
    factors = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    makers: dict[str, Callable[[], Path]] = {
        "good": lambda: tiny_model,
        "missing": lambda: tmp_path / "nothing",
        "empty": lambda: wrote("empty.txt", b"\n \n"),
        "no weights": lambda: without("model.safetensors"),
        "cut short": cut,
        "pickled": pickled,
        "no tokenizer": lambda: without("tokenizer.json"),
        "broken tokenizer": lambda: altered(tiny_model, "tokenizer.json", model={"type": "none"}),
        "no architecture": config(architectures=None),
        "unknown architecture": config(architectures=["Lama4CausalLM"]),
        "quantized": config(quantization_config={"quant_method": "bitsandbytes"}),
        "small vocabulary": config(vocab_size=100),
        "no hidden size": config(hidden_size="wide"),
        "shard missing": lambda: altered(tiny_model, "model.safetensors.index.json", **shards),
        "eos out of range": lambda: altered(tiny_model, "generation_config.json", eos_token_id=[0, 5000]),
        "longrope without factors": config(rope_parameters=rope),
        "longrope without length": config(rope_parameters=rope | factors, original_max_position_embeddings=...),
        "not UTF-8": lambda: wrote("p.txt", b"\xff\xfe\n"),
        "not JSON": lambda: wrote("p.jsonl", b'{"prompt": "a"}\n{"prompt"\n'),
        "no prompt": lambda: wrote("p.jsonl", b'{"text": "a"}\n'),
        "dataset": dataset,
        "bad held-out row": lambda: dataset({"question": "?"}),
    }
    return lambda name: makers[name]()


# the model, more flags, what is said. {name} stands for another place
CASES: list[tuple[str, str, str]] = [
    ("missing", "", "no such file or folder"),
    ("no weights", "", "there are no weights (*.safetensors) in it"),
    ("pickled", "", "its weights are pickled (pytorch_model.bin)"),
    ("cut short", "", "this is not a whole safetensors file"),
    ("shard missing", "", "the shard model-00001-of-00002.safetensors is missing"),
    ("no tokenizer", "", "the model has no tokenizer.json"),
    ("broken tokenizer", "", "this tokenizer cannot be read"),
    ("no architecture", "", "it names no architecture"),
    ("unknown architecture", "", "the architecture Lama4CausalLM cannot be built (did you mean 'LlamaForCausalLM'?)"),
    ("quantized", "", "its weights are quantized already (bitsandbytes)"),
    ("small vocabulary", "", "the tokenizer has 4096 entries, the model only 100 rows"),
    ("no hidden size", "", "hidden_size must be a whole number, not 'wide'"),
    ("eos out of range", "", "eos_token_id 5000 is no row of the model (0 to 4095)"),
    ("longrope without factors", "", "rope_parameters lacks short_factor"),
    ("longrope without length", "", "LongRoPE factors but no original_max_position_embeddings"),
    ("good", "--precision int3", "--precision: must be one of int4, int8, fp16, bf16, fp32, not 'int3'"),
    ("good", "--execution-provider gpu", "--execution-provider: must be one of cpu, cuda, dml, webgpu, not 'gpu'"),
    ("good", "--precision bf16", "--precision: bf16 does not run on cpu"),
    ("good", "--precision int8 --execution-provider dml", "--precision: int8 does not run on dml"),
    ("good", "--block-size 48", "--block-size: 48 is not a power of two"),
    ("good", "--block-size 512", "--block-size: must be a whole number at least 16 and at most 256, not 512"),
    ("good", "--accuracy-level 5", "--accuracy-level: must be a whole number at least 0 and at most 4, not 5"),
    ("good", "--algorithm kquant", "(did you mean 'k_quant'?)"),
    ("good", "--algorithm k_quant", "160 values in blocks of 32 are 5"),
    ("good", "--algorithm rtn --no-symmetric --block-size 32", "needs an even number of blocks in a row"),
    ("good", "--algorithm k_quant_last --symmetric", "k_quant_last always writes zero points"),
    ("good", "--mixed-precision last_matmull:int8", "(did you mean 'last_matmul'?)"),
    ("good", "--mixed-precision last_matmul:int2", "'last_matmul:int2' is not understood"),
    ("good", "--op-types-to-quantize Conv", "--op-types-to-quantize: must be one of MatMul, Gather, not 'Conv'"),
    ("good", "--precision int8 --op-types-to-quantize Gather", "embeddings (Gather) can be int4 only"),
    ("good", "--nodes-to-exclude a,b", "'a,b' is no node name"),
    ("good", "--shared-embeddings", "tie_word_embeddings is false"),
    ("good", "--use-qdq --precision int8", "the quantize-dequantize form does not go with 8-bit weights"),
    ("good", "--use-qdq --algorithm rtn", "the quantize-dequantize form does not go with the algorithm rtn"),
    ("good", "--use-qdq --accuracy-level 4", "the quantize-dequantize form does not go with accuracy_level"),
    ("good", "--enable-cuda-graph", "cpu has no CUDA graphs"),
    ("good", "--exclude-lm-head --include-hidden-states", "use one of --exclude-lm-head and --include-hidden-states"),
    ("good", "--extra-options fuse_qkvs=true", "unknown option 'fuse_qkvs' (did you mean 'fuse_qkv'?)"),
    ("good", "--extra-options fuse_qkv", "'fuse_qkv' is not KEY=VALUE"),
    ("good", "--extra-options fuse_qkv=maybe", "fuse_qkv cannot be 'maybe'"),
    ("good", "--extra-options int4_block_size=64", "int4_block_size has a parameter of its own here"),
    ("good", "--extra-options int4_algo_config=rtn", "use --algorithm"),
    ("good", "--extra-options hf_remote=true", "code from a model folder is never run"),
    ("good", "--extra-options use_cuda_bf16=true", "use_cuda_bf16 has no effect on cpu"),
    ("good", "--execution-provider dml --precision fp16 --verify required", "--verify: there is no dml here"),
    ("good", "--exclude-lm-head --verify required", "cannot generate by itself"),
    ("good", "--prompt-count 0", "--prompt-count: must be a whole number at least 1"),
    ("good", "--max-kl 0", "--max-kl: must be a number above 0, not 0"),
    ("good", "--compare-tokens 256", "256 tokens do not fit into the model's 256"),
    ("good", "--prompts {missing}", "no such file or folder"),
    ("good", "--prompts {empty}", "there is no prompt in it"),
    ("good", "--prompts {not UTF-8}", "this is not UTF-8"),
    ("good", "--prompts {not JSON}", "p.jsonl:2:10: this is not JSON"),
    ("good", "--prompts {no prompt}", "p.jsonl:1: there is neither prompt nor messages in this row"),
    ("good", "--dataset {good}", "it is of kind model; dataset is wanted"),
    ("good", "--dataset {dataset}", "there is no test.jsonl in it"),
    ("good", "--dataset {bad held-out row}", "test.jsonl:1: not a held-out row"),
    ("good", "--dataset {dataset} --prompts {empty}", "prompts come from one place"),
]


@pytest.mark.parametrize(("model", "flags", "said"), CASES, ids=[f"{m}: {f}" if f else m for m, f, _ in CASES])
def test_bad_input(
    place: Place, run_stage: Callable[..., Any], tmp_path: Path, model: str, flags: str, said: str
) -> None:
    folder = place(model)
    words: list[str] = []
    for word in flags.replace("{", "\0{").replace("}", "}\0").split("\0"):
        words += [str(place(word[1:-1]))] if word.startswith("{") else word.split()
    (tmp_path / "out").mkdir()
    result = run_stage("build-onnx", "--model", folder, "--output", tmp_path / "out" / "m", *words)
    assert result.code == 2, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2, result.stderr
    assert list((tmp_path / "out").iterdir()) == []
