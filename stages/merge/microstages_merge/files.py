"""What stands beside the weights: configuration, tokenizer, chat template, generation settings.

A file that need not change is copied byte for byte. `config.json` in particular is never saved again by a library that
would write it in its own way (transformers 5 rewrites LongRoPE so that the ONNX model builder refuses it).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from microstages.artifact import Artifact
from microstages.errors import UserError
from microstages.tokens import read_json

from microstages_merge.recipe import Plan

CONFIG, GENERATION, TEMPLATE = "config.json", "generation_config.json", "chat_template.jinja"
# Tokenizer and template; where the adapter's folder has them they win: training may have added tokens.
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
             "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", TEMPLATE, "chat_template.json"}  # fmt: skip
_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
_PREFIXES = ("LICENSE", "NOTICE")  # the licence goes where the weights go
_LEFT_OUT = ("adapter_config.json", "genai_config.json", "quantize_config.json", "trainer_state.json")


def read_config(base: Artifact) -> dict[str, Any]:
    """`config.json` of the base. Raises UserError where the weights are quantized already."""
    config = read_json(base.path / CONFIG)
    quantized = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "some method") if isinstance(quantized, dict) else quantized
        raise UserError(
            f"the base model is quantized already ({method})",
            where=base.path / CONFIG,
            fix="give the original model that it was made from; for a QLoRA adapter add --base dequantized",
        )
    return config


def carried(base: Artifact, adapter: Artifact) -> dict[str, Path]:
    """The files to copy, by their name in the output: all but weights, README and other formats."""
    found = {}
    for name in base.files:
        folder, _, file = name.rpartition("/")
        known = file.endswith(_SUFFIXES) or file.startswith(_PREFIXES)
        if folder not in ("", "additional_chat_templates") or not known or file.endswith(".index.json"):
            continue
        if file not in _LEFT_OUT and name not in (CONFIG, GENERATION):
            found[name] = base.path / name
    own = {name: adapter.path / name for name in adapter.files if name in TOKENIZER}
    settings = own.get("tokenizer_config.json")
    if settings is not None and TEMPLATE not in own and read_json(settings).get("chat_template"):
        found.pop(TEMPLATE, None)  # it would hide the adapter's own template
    return found | own


def generation(base: Artifact, config: Mapping[str, Any], stop_ids: Iterable[int]) -> bytes | None:
    """`generation_config.json` that ends at all `stop_ids`, byte for byte the base's where it does already.

    None where the base has none and `config.json` says enough.
    """
    file = base.path / GENERATION
    value = (
        read_json(file) if file.is_file() else {k: config[k] for k in ("bos_token_id", "pad_token_id") if k in config}
    )
    ends = value.get("eos_token_id", config.get("eos_token_id"))
    known = list(ends) if isinstance(ends, list) else [] if ends is None else [ends]
    new = [i for i in stop_ids if i not in known]
    if not new:
        return file.read_bytes() if file.is_file() else None
    ends = [*known, *new]
    return _json(value | {"eos_token_id": ends if len(ends) > 1 else ends[0]})


def write(
    target: Path, base: Artifact, adapter: Artifact, config: Mapping[str, Any], changes: Mapping[str, Any]
) -> None:
    """Write everything but weights into `target`. `changes` go into `config.json`."""
    for name, source in carried(base, adapter).items():
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target / name)
    own = (base.path / CONFIG).read_bytes() if not changes else _json({**config, **changes})
    (target / CONFIG).write_bytes(own)
    stops = adapter.metadata.get("stop_token_ids") or []
    settings = generation(base, config, [int(i) for i in stops])
    if settings is not None:
        (target / GENERATION).write_bytes(settings)


def index(file: Path, plan: Plan) -> bytes:
    """The index of the output's files: the base's own, byte for byte, where it says the same."""
    old = read_json(file)
    where = {r.name: name for name, recipes in plan.files.items() for r in recipes}
    size = sum(r.nbytes for r in plan.recipes)
    if old.get("weight_map") == where and (old.get("metadata") or {}).get("total_size", size) == size:
        return file.read_bytes()
    new = {"total_size": size}
    if "total_parameters" in (old.get("metadata") or {}):
        new["total_parameters"] = sum(r.source.count for r in plan.recipes)
    return _json({"metadata": {**(old.get("metadata") or {}), **new}, "weight_map": dict(sorted(where.items()))})


def check_vocabulary(adapter: Artifact, rows: int | None) -> None:
    """Raises UserError where the adapter brings a tokenizer with more tokens than the embeddings have rows."""
    if rows is None or "tokenizer.json" not in adapter.files:
        return
    added = read_json(adapter.path / "tokenizer.json").get("added_tokens") or []
    top = max((int(t["id"]) for t in added), default=0)
    if top >= rows:
        raise UserError(
            f"its tokenizer has a token {top}, and the merged embeddings have {rows} rows",
            where=adapter.path / "tokenizer.json",
            fix="save the resized embeddings with the adapter: save_pretrained(…, save_embedding_layers=True)",
        )


def tokenizer_sha256(folder: Path) -> str | None:
    """sha256 of `tokenizer.json`, None where there is none."""
    file = folder / "tokenizer.json"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
