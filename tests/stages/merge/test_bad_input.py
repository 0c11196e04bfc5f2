"""Everything a caller can get wrong: exit 2, one or two lines that name the place and the remedy, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from microstages.tensors import header, read_shard

HIDDEN, RANK = 64, 4
LAYOUT = {
    "model.embed_tokens.weight": (96, HIDDEN),
    "model.layers.0.mlp.down_proj.weight": (HIDDEN, 128),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (96, HIDDEN),
}
DOWN = "base_model.model.model.layers.0.mlp.down_proj"
FACTORS = {f"{DOWN}.lora_A.weight": (RANK, 128), f"{DOWN}.lora_B.weight": (HIDDEN, RANK)}
LORA = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["down_proj"]}


def save(file: Path, shapes: dict[str, tuple[int, ...]], value: float = 0.5, dtype: str = "F32") -> None:
    with file.open("wb") as f:
        f.write(header([(n, dtype, s) for n, s in shapes.items()], {"format": "pt"}))
        for shape in shapes.values():
            f.write(np.full(shape, value, np.float32 if dtype == "F32" else np.int32))


class Folders:
    """A good base and a good adapter, to be broken."""

    def __init__(self, folder: Path) -> None:
        self.base, self.adapter, self.output = folder / "base", folder / "adapter", folder / "out" / "merged"
        self.base.mkdir()
        self.adapter.mkdir()
        save(self.base / "model.safetensors", LAYOUT)
        save(self.adapter / "adapter_model.safetensors", FACTORS)
        self.config("base", model_type="phi3", vocab_size=96, tie_word_embeddings=False)
        self.config("adapter", **LORA)

    def config(self, which: str, **values: Any) -> None:
        file = self.base / "config.json" if which == "base" else self.adapter / "adapter_config.json"
        old = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**old, **values}))

    def factors(self, changes: dict[str, tuple[int, ...] | None], **options: Any) -> None:
        shapes = {k: v for k, v in (FACTORS | changes).items() if v is not None}
        save(self.adapter / "adapter_model.safetensors", shapes, **options)


def shards(f: Folders, names: dict[str, str]) -> None:
    (f.base / "model.safetensors").unlink()
    (f.base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def bad_offsets(f: Folders) -> None:
    file = f.base / "model.safetensors"
    head = read_shard(file).header
    file.write_bytes(head.replace(b'"data_offsets":[0,', b'"data_offsets":[4,') + file.read_bytes()[len(head) :])


def pickled(f: Folders) -> None:
    (f.adapter / "adapter_model.safetensors").unlink()
    (f.adapter / "adapter_model.bin").write_bytes(b"\x80\x02")


def row_tokens(f: Folders, indices: list[int]) -> None:
    f.factors({"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": (2, HIDDEN)})
    f.config("adapter", trainable_token_indices=indices)


def big_tokenizer(f: Folders) -> None:
    (f.adapter / "tokenizer.json").write_text('{"added_tokens": [{"id": 96, "content": "<new>"}]}')


def nothing(_: Folders) -> None:
    """All is well but the arguments."""


# what is broken, how, more arguments, what the message must hold
CASES: list[tuple[str, Callable[[Folders], Any], list[str], list[str]]] = [
    ("no base", lambda f: shutil.rmtree(f.base), [], ["--base-model", "no such file or folder"]),
    ("no config", lambda f: (f.base / "config.json").unlink(), [], ["--base-model", "config.json"]),
    ("config is no JSON", lambda f: (f.base / "config.json").write_text("{"), [], ["config.json", "not JSON"]),
    ("base without weights", lambda f: (f.base / "model.safetensors").unlink(), [], ["there are no weights"]),
    ("base cut off", lambda f: cut(f.base / "model.safetensors", 2000), [],
     ["model.safetensors", "not a whole safetensors file: it is cut off"]),
    ("base header cut off", lambda f: cut(f.base / "model.safetensors", 20), [], ["not a whole safetensors"]),
    ("base header lies", bad_offsets, [], ["does not lie where the header says"]),
    ("a shard is missing", lambda f: shards(f, {"a": "x-1.safetensors"}) or save(f.base / "y.safetensors", LAYOUT), [],
     ["x-1.safetensors is missing"]),
    ("a shard outside", lambda f: shards(f, {"a": "../x.safetensors"}) or save(f.base / "y.safetensors", LAYOUT), [],
     ["outside its folder"]),
    ("index is no index", lambda f: shards(f, []) or save(f.base / "y.safetensors", LAYOUT), [],  # type: ignore[arg-type]
     ["index cannot be read"]),
    ("weights of another name", lambda f: (f.base / "model.safetensors").rename(f.base / "x.safetensors"), [],
     ["neither model.safetensors nor model.safetensors.index.json"]),
    ("quantized base", lambda f: f.config("base", quantization_config={"quant_method": "gptq"}), [],
     ["quantized already (gptq)", "original model"]),
    ("integer base", lambda f: save(f.base / "model.safetensors", LAYOUT, 1, "I32"), [],
     ["is of type I32", "before any quantization"]),
    ("NaN in the base", lambda f: save(f.base / "model.safetensors", LAYOUT, float("nan")), [],
     ["down_proj.weight would hold NaN"]),
    ("base too large for fp16", lambda f: save(f.base / "model.safetensors", LAYOUT, 1e6), ["--dtype", "fp16"],
     ["which fp16 cannot hold", "--dtype bf16"]),
    ("no adapter", lambda f: shutil.rmtree(f.adapter), [], ["--adapter", "no such file or folder"]),
    ("a model as adapter", lambda f: (f.adapter / "adapter_config.json").rename(f.adapter / "config.json"), [],
     ["--adapter", "it is of kind model; adapter is wanted"]),
    ("pickled adapter", pickled, [], ["pickled", "convert"]),
    ("adapter of another name",
     lambda f: (f.adapter / "adapter_model.safetensors").rename(f.adapter / "x.safetensors"), [],
     ["there is no adapter_model.safetensors", "save_pretrained"]),
    ("another method", lambda f: f.config("adapter", peft_type="LOHA"), [], ["of type LOHA", "only LORA"]),
    ("no method", lambda f: f.config("adapter", peft_type=None), [], ["of type None"]),
    ("target_parameters", lambda f: f.config("adapter", target_parameters=["experts.w"]), [],
     ["target_parameters is set", "not supported"]),
    ("PiSSA", lambda f: f.config("adapter", init_lora_weights="pissa_niter_4"), [],
     ["pissa_niter_4", "path_initial_model_for_weight_conversion"]),
    ("rank 0", lambda f: f.config("adapter", r=0), [], ["r is 0; a rank is 1 or more"]),
    ("rank is a word", lambda f: f.config("adapter", r="four"), [], ["not a LoRA configuration"]),
    ("rank of other weights", lambda f: f.config("adapter", r=8), [], ["has rank 4 and 4 in the weights, 8 in"]),
    ("bad pattern", lambda f: f.config("adapter", rank_pattern={"(": 4}), [], ["not a LoRA configuration"]),
    ("factor without partner", lambda f: f.factors({f"{DOWN}.lora_B.weight": None}), [],
     ["down_proj has lora_A", "not the two factors"]),
    ("unknown tensor", lambda f: f.factors({f"{DOWN}.lora_C.weight": (2, 2)}), [], ["lora_C.weight is not understood"]),
    ("two adapters", lambda f: f.factors({f"{DOWN}.lora_A.other.weight": (4, 128)}), [], ["is not understood"]),
    ("unknown module", lambda f: f.factors({k.replace("down", "dawn"): s for k, s in FACTORS.items()}), [],
     ["no tensor model.layers.0.mlp.dawn_proj.weight", "did you mean 'model.layers.0.mlp.down_proj.weight'"]),
    ("another width", lambda f: f.factors({f"{DOWN}.lora_A.weight": (4, 200)}), [],
     ["down_proj.weight as [64, 200], and in the base model it is [64, 128]"]),
    ("convolution", lambda f: f.factors({f"{DOWN}.lora_A.weight": (4, 128, 3)}), [],
     ["not a linear layer or embedding"]),
    ("DoRA without magnitude", lambda f: f.config("adapter", use_dora=True), [], ["lacks its lora_magnitude_vector"]),
    ("magnitude without DoRA", lambda f: f.factors({f"{DOWN}.lora_magnitude_vector": (HIDDEN,)}), [],
     ["use_dora is off"]),
    ("bias where there is none", lambda f: f.factors({f"{DOWN}.lora_B.bias": (HIDDEN,)}), [],
     ["bias for model.layers.0.mlp.down_proj", "train without lora_bias"]),
    ("whole tensor of another shape", lambda f: f.factors({"base_model.model.model.norm.weight": (65,)}), [],
     ["model.norm.weight has the shape [65], and the base model needs [64]"]),
    ("whole tensor that the base lacks", lambda f: f.factors({"base_model.model.score.weight": (2, HIDDEN)}), [],
     ["no tensor score.weight"]),
    ("only one side resized", lambda f: f.factors({"base_model.model.lm_head.weight": (100, HIDDEN)}), [],
     ["different numbers of rows", "save_embedding_layers"]),
    ("token beyond the rows", lambda f: row_tokens(f, [3, 96]), [], ["trained token 96", "has 96 rows"]),
    ("fewer tokens than rows", lambda f: row_tokens(f, [3]), [], ["has the shape [2, 64]", "[1, 64]"]),
    ("tokenizer beyond the rows", big_tokenizer, [], ["tokenizer has a token 96", "96 rows"]),
    ("NaN in the adapter", lambda f: f.factors({}, value=float("nan")), [], ["lora_A.weight holds NaN", "diverged"]),
    ("another base by its configuration",
     lambda f: f.config("adapter", base_model_name_or_path="sha256:" + "0" * 64), [],
     ["another base model", "sha256:000000000000", "--allow-other-base"]),
    ("quantization of an original", nothing, ["--base", "original", "--quant-type", "nf4"],
     ["--quant-type", "--base dequantized"]),
    ("unknown base", nothing, ["--base", "dequantised"], ["--base", "did you mean 'dequantized'"]),
    ("unknown type", nothing, ["--dtype", "int8"], ["--dtype", "one of base, bf16, fp16, fp32"]),
    ("negative threads", nothing, ["--threads", "-1"], ["--threads", "at least 0"]),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "arguments", "phrases"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_error_names_place_and_remedy(
    broken: Callable[[Folders], Any],
    arguments: list[str],
    phrases: list[str],
    tmp_path: Path,
    run_stage: Callable[..., Any],
) -> None:
    f = Folders(tmp_path)
    broken(f)
    given = ("--base-model", f.base, "--adapter", f.adapter, "--output", f.output)
    result = run_stage("merge", *given, *arguments)
    assert result.code == 2, result.stderr
    for phrase in phrases:
        assert phrase in result.stderr
    error = result.stderr[result.stderr.index("merge: error:") :].strip().split("\n")
    assert len(error) <= 2
    assert "Traceback" not in result.stderr
    assert not f.output.parent.exists() or not list(f.output.parent.iterdir()), "nothing half-written"


def test_the_good_folders_of_this_test_do_merge(tmp_path: Path, run_stage: Callable[..., Any]) -> None:
    f = Folders(tmp_path)
    result = run_stage("merge", "--base-model", f.base, "--adapter", f.adapter, "--output", f.output)
    assert result.code == 0, result.stderr
    raw = (f.output / "model.safetensors").read_bytes()
    tensors = {t.name: t for t in read_shard(f.output / "model.safetensors").tensors}
    down = tensors["model.layers.0.mlp.down_proj.weight"]
    values = np.frombuffer(raw, np.float32, down.count, down.start)
    assert (values == 0.5 + 2 * 4 * 0.25).all()


def test_adapter_of_another_base_is_merged_only_on_request(tmp_path: Path, run_stage: Callable[..., Any]) -> None:
    from microstages.artifact import Draft

    f = Folders(tmp_path)
    with Draft(str(tmp_path / "ours"), "adapter") as draft:
        for file in f.adapter.iterdir():
            shutil.copy(file, draft.path / file.name)
        draft.metadata["base_model"] = {"digest": "sha256:" + "1" * 64}
        draft.commit({})
    given = ("--base-model", f.base, "--adapter", tmp_path / "ours", "--output", f.output)
    refused = run_stage("merge", *given)
    assert refused.code == 2
    assert "trained on another base model: sha256:111111111111" in refused.stderr
    assert run_stage("merge", *given, "--allow-other-base").code == 0


def test_a_disk_without_room_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    from microstages.artifact import Draft
    from microstages.errors import UserError
    from microstages.tensors import Tensor
    from microstages_merge.cli import check_space
    from microstages_merge.recipe import Plan, Recipe

    def plan(rows: int) -> Plan:
        name = "model.embed_tokens.weight"
        tensor = Tensor(name, "BF16", (rows, 1000), tmp_path / "model.safetensors", 8)
        return Plan({"model.safetensors": (Recipe(name, "BF16", tensor),)}, {}, rows)

    with Draft(str(tmp_path / "out"), "model") as draft:
        check_space(plan(1000), draft)
        with pytest.raises(UserError, match=r"need 2000\.0 TB, and .* are free"):
            check_space(plan(10**12), draft)
