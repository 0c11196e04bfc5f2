"""The model folder to build from: checked before anything slow, and shown to the builder through a view.

The view is a temporary folder of links to the weights, with small files of its own: a config.json that the builder
reads rightly, and a tokenizer_config.json without code. The input is never altered. What the view changes, and why:

- LongRoPE: transformers 5 saves `rope_parameters` without `type`, which the builder needs.
- Sliding window of Phi-3 and Mistral: the builder only limits attention of layers named in `layer_types`, which these
  configs lack; it then drops the window but tells the runtime about it, and generation past the window crashes. With
  `layer_types` in the view the graph attends as the model does. A window that is never reached is taken out.
- `auto_map` is taken out: code from a model folder is never run.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microstages.artifact import Artifact
from microstages.errors import UserError, nearest, redo
from microstages.tokens import ModelText, read_json

from microstages_build_onnx.options import ModelShape

# Text decoders that the builder can make; a test compares this with its source.
ARCHITECTURES = (
    "ChatGLMForConditionalGeneration", "ChatGLMModel", "Ernie4_5ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM",
    "GemmaForCausalLM", "GptOssForCausalLM", "GraniteForCausalLM", "GraniteMoeHybridForCausalLM",
    "HunYuanDenseV1ForCausalLM", "InternLM2ForCausalLM", "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "LlamaForCausalLM",
    "MistralForCausalLM", "NemotronForCausalLM", "OlmoForCausalLM", "Phi3ForCausalLM", "Phi3SmallForCausalLM",
    "PhiForCausalLM", "PhiMoEForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
)  # fmt: skip
# Of these, the ones whose every layer looks back at most `sliding_window` tokens, without `layer_types` to say so.
ALL_LAYERS_SLIDE = ("Phi3ForCausalLM", "MistralForCausalLM")
# Peak memory of the builder for each parameter: 3.8 times the bf16 weights (measured, int4 for cpu).
BYTES_PER_PARAMETER = 7.6
TIED_BY_DEFAULT = ("Gemma", "Granite")  # config classes whose tie_word_embeddings is true unless said otherwise
DTYPE_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Source:
    """A model folder that was checked. `adaptions`: what the view says differently, for people and the record."""

    folder: Path
    text: ModelText
    config: dict[str, Any]
    shape: ModelShape
    context_length: int
    vocab_size: int
    parameters: int
    weight_bytes: int
    adaptions: dict[str, str] = field(default_factory=dict)
    builder_options: dict[str, str] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])


def read_source(model: Artifact) -> Source:
    """Check a model folder: architecture, weights, tokenizer. Raises UserError naming file and remedy."""
    folder = model.path
    file = folder / "config.json"
    config = read_json(file)
    architectures = config.get("architectures") or []
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else None
    if architecture not in ARCHITECTURES:
        what = f"the architecture {architecture} cannot be built" if architecture else "it names no architecture"
        hint = nearest(architecture, ARCHITECTURES) if architecture else ""
        fix = "correct its field `architectures`, or give another model"
        raise UserError(f"{what}{hint}", where=file, fix=fix if hint else f"its `architectures` must name one of "
                        f"{', '.join(ARCHITECTURES)}")  # fmt: skip
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise UserError(
            f"its weights are quantized already ({method})", where=file,
            fix="give the unquantized model: build-onnx quantizes it (the stage merge turns a QLoRA adapter into one)",
        )  # fmt: skip
    parameters, weight_bytes = _weights(folder, model.files)
    view, adaptions, options = _adapt(config, file, architecture)
    context = _whole(view, "max_position_embeddings", file, default=view.get("seq_length"))
    vocab = _whole(view, "vocab_size", file)
    text = ModelText(folder)
    entries = text.tokenizer.get_vocab_size()
    if entries > vocab:
        raise UserError(
            f"the tokenizer has {entries} entries, the model only {vocab} rows", where=folder / "tokenizer.json",
            fix="give the tokenizer that belongs to this model, or resize its embeddings",
        )  # fmt: skip
    if not text.stop_ids:
        raise UserError(
            "nothing says which token ends an answer", where=folder,
            fix="set eos_token_id in generation_config.json (the stage merge writes it)",
        )  # fmt: skip
    bad = [i for i in text.stop_ids if not 0 <= i < vocab]
    if bad:
        raise UserError(
            f"eos_token_id {bad[0]} is no row of the model (0 to {vocab - 1})", where=folder,
            fix="correct eos_token_id in generation_config.json or config.json",
        )  # fmt: skip
    _whole(view, "num_hidden_layers", file)
    return Source(
        folder,
        text,
        view,
        _shape(view, file, architecture),
        context,
        vocab,
        parameters,
        weight_bytes,
        adaptions,
        options,
    )


def _whole(config: dict[str, Any], key: str, file: Path, default: Any = None) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key} must be a whole number, not {value!r}", where=file, fix="get the model's own config")
    return value


def _shape(config: dict[str, Any], file: Path, architecture: str) -> ModelShape:
    hidden, heads = _whole(config, "hidden_size", file), _whole(config, "num_attention_heads", file)
    wide = config.get("intermediate_size") or config.get("ffn_hidden_size") or hidden
    head = config.get("head_dim") or hidden // heads
    tied = bool(config.get("tie_word_embeddings", architecture.startswith(TIED_BY_DEFAULT)))
    return ModelShape(str(file), tied, tuple(sorted({hidden, int(wide), heads * int(head)})))


def _adapt(
    config: dict[str, Any], file: Path, architecture: str
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """The view's config.json, what it says differently, and builder options that go with it."""
    view = {k: v for k, v in config.items() if k != "auto_map"}
    adaptions: dict[str, str] = {}
    options: dict[str, str] = {}
    key = "rope_parameters" if isinstance(view.get("rope_parameters"), dict) else "rope_scaling"
    rope = view.get(key)
    if isinstance(rope, dict) and {"longrope", "su"} & {rope.get("rope_type"), rope.get("type")}:
        missing = [k for k in ("short_factor", "long_factor") if not isinstance(rope.get(k), list)]
        if missing:
            raise UserError(f"{key} lacks {missing[0]}", where=file, fix="get the model's own config.json")
        if rope.get("type") != "longrope":
            view[key] = {**rope, "type": "longrope", "rope_type": "longrope"}
            adaptions["rope"] = f"{key}.type set to longrope"
        if "original_max_position_embeddings" not in view:
            original = rope.get("original_max_position_embeddings")
            if not isinstance(original, int):
                raise UserError(
                    "it has LongRoPE factors but no original_max_position_embeddings", where=file,
                    fix="get the model's own config.json",
                )  # fmt: skip
            view["original_max_position_embeddings"] = original
            adaptions["rope"] = "original_max_position_embeddings taken from " + key
    window = view.get("sliding_window")
    if isinstance(window, int) and architecture in ALL_LAYERS_SLIDE and "layer_types" not in view:
        if window >= _whole(view, "max_position_embeddings", file):
            view["sliding_window"] = None
            adaptions["sliding_window"] = f"{window}: never reached, taken out"
        else:
            layers = _whole(view, "num_hidden_layers", file)
            view["layer_types"] = ["sliding_attention"] * layers
            # The runtime's own window-sized cache fails where max_length is below the window.
            options["windowed_kv_cache"] = "false"
            adaptions["sliding_window"] = f"{window}: every layer marked as sliding"
    return view, adaptions, options


def _weights(folder: Path, files: tuple[str, ...]) -> tuple[int, int]:
    """Parameters and bytes of all shards. Raises UserError where one is missing or cut short."""
    shards = [f for f in files if f.endswith(".safetensors") and "/" not in f]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(read_json(index).get("weight_map", {}).values())
        if gone := sorted(named - set(shards)):
            raise UserError(f"the shard {gone[0]} is missing", where=folder, fix="check that the download is complete")
        shards = sorted(named)
    parameters = total = 0
    for name in shards:
        path = folder / name
        size = path.stat().st_size
        try:
            with path.open("rb") as f:
                length = int.from_bytes(f.read(8), "little")
                if length > size:
                    raise ValueError("it is cut off or damaged")
                header = json.loads(f.read(length))
            tensors = {k: v for k, v in header.items() if k != "__metadata__"}
            end = max((v["data_offsets"][1] for v in tensors.values()), default=0)
            if size != 8 + length + end:
                whole = 8 + length + end
                raise ValueError(f"it is cut off: {size:,} of {whole:,} bytes are there" if size < whole else
                                 "more follows its end")  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"this is not a whole safetensors file: {error}", where=path, fix=redo(path)) from None
        total += end
        parameters += sum(
            (v["data_offsets"][1] - v["data_offsets"][0]) // DTYPE_BYTES.get(v["dtype"], 1) for v in tensors.values()
        )
    return parameters, total


def memory_needed(source: Source) -> int:
    """Bytes that the builder will about need at its peak."""
    return int(source.parameters * BYTES_PER_PARAMETER)


def memory_available() -> int | None:
    """Bytes that may still be used: what the machine has free, at most the control group's limit. None: unknown."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return min(found) if found else None


def make_view(source: Source, folder: Path) -> None:
    """Write the view into an empty folder."""
    links = [n for n in os.listdir(source.folder) if n.endswith((".safetensors", ".safetensors.index.json"))]
    links += [n for n in ("tokenizer.json", "generation_config.json") if (source.folder / n).is_file()]
    for name in links:
        (folder / name).symlink_to((source.folder / name).resolve())
    (folder / "config.json").write_text(json.dumps(source.config, indent=1))
    # The class that takes tokenizer.json as it is: others rebuild the tokenizer from its vocabulary.
    special = {k: source.text.special(k) for k in ("bos_token", "eos_token", "pad_token", "unk_token")}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast"} | {k: v for k, v in special.items() if v}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=1))
