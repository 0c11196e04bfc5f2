"""Artifacts, models and adapters that are missing, damaged, or of another kind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_input.flags import BUILD, INFER, MANY, MERGE, PREPARE, TEXT, TRAIN, put
from bad_input.harness import Case, Change

SPOILT = "spoilt"  # a copy of a good folder, with one thing wrong


def spoil(source: str, change: Callable[[Path], object]) -> Change:
    """Copy a folder of the world and spoil the copy; what was there before is replaced."""

    def made(world: Path) -> None:
        shutil.rmtree(world / SPOILT, ignore_errors=True)
        shutil.copytree(world / source, world / SPOILT)
        change(world / SPOILT)

    return made


def values(file: str, **changes: Any) -> Callable[[Path], object]:
    """Change a JSON file; ... removes a key."""

    def change(folder: Path) -> None:
        old = json.loads((folder / file).read_text())
        new = {k: v for k, v in {**old, **changes}.items() if v is not ...}
        (folder / file).write_text(json.dumps(new))

    return change


def first_file(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "artifact.json").read_text())
        manifest["files"][0].update(changes)
        (folder / "artifact.json").write_text(json.dumps(manifest))

    return change


def flip(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)

    return change


def gone(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, size)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")


def shards(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DATASET, BASE = put(TRAIN, "--dataset", SPOILT), put(MERGE, "--base-model", SPOILT)
ADAPTER, MODEL = put(MERGE, "--adapter", SPOILT), put(BUILD, "--model", SPOILT)
TOKENIZER = (*put(PREPARE, "--model", SPOILT), *TEXT)

# name, command, what is spoilt, what the first line says, the remedy
TABLE: list[tuple[str, tuple[str, ...], Change, str, str]] = [
    # artifacts of this project
    ("a file that was altered", DATASET, spoil("dataset", flip("train.safetensors")), "train.safetensors: .*altered",
     "anew"),
    ("a file that is cut off", DATASET, spoil("dataset", cut("train.safetensors", 10)), "train.safetensors: .*10 bytes",
     "anew"),
    ("a file that is missing", DATASET, spoil("dataset", gone("report.json")), "report.json: .*missing", "anew"),
    ("a manifest that is no JSON", DATASET, spoil("dataset", written("artifact.json", "{")),
     "artifact.json:1:2: .*not JSON: it ends too early", "."),
    ("a manifest that is empty", DATASET, spoil("dataset", written("artifact.json", "")), "artifact.json", "."),
    ("a manifest that is a list", DATASET, spoil("dataset", written("artifact.json", "[]")), "artifact.json", "."),
    ("a manifest of the future", DATASET, spoil("dataset", values("artifact.json", schema=9)), "schema 9", "."),
    ("a manifest without files", DATASET, spoil("dataset", values("artifact.json", files=...)), "artifact.json", "."),
    ("a manifest without a digest", DATASET, spoil("dataset", values("artifact.json", digest=...)), "digest", "."),
    ("a manifest with another digest", DATASET, spoil("dataset", values("artifact.json", digest="sha256:" + "0" * 64)),
     "digest", "."),
    ("a manifest of an unknown kind", DATASET, spoil("dataset", values("artifact.json", kind="datset")),
     "'datset' .did you mean 'dataset'", "kinds: .*dataset"),
    ("a path that leaves the folder", DATASET, spoil("dataset", first_file(path="../x")), "outside its folder", "."),
    ("a full path", DATASET, spoil("dataset", first_file(path="/etc/passwd")), "outside its folder", "."),
    ("a hash that is none", DATASET, spoil("dataset", first_file(sha256="zz")), "artifact.json|sha256|digest", "."),
    ("a size that is none", DATASET, spoil("dataset", first_file(size=-1)), "artifact.json|size|bytes", "."),
    # kinds
    ("a model as a data set", put(TRAIN, "--dataset", "model"), spoil("model", str),
     "--dataset model: .*dataset is wanted", "prepare-data"),
    ("a data set as an adapter", put(MERGE, "--adapter", "dataset"), spoil("model", str),
     "--adapter dataset: .*adapter is", "train-lora"),
    ("an adapter as a model", put(BUILD, "--model", "adapter"), spoil("model", str),
     "--model adapter: .*model is wanted", "merge makes"),
    ("a file as a model", put(MERGE, "--base-model", "rows.jsonl"), spoil("model", str),
     "--base-model rows.jsonl: it is a file", "folder"),
    ("predictions of nothing", (*MANY, "--reference", "dataset"), spoil("model", str),
     "--reference dataset: .*predictions", "infer makes"),
    # models
    ("a model without a tokenizer", TOKENIZER, spoil("model", gone("tokenizer.json")), "tokenizer.json",
     "save_pretrained"),
    ("a tokenizer that is no JSON", TOKENIZER, spoil("model", written("tokenizer.json", "{")), "tokenizer.json", "."),
    ("a tokenizer of another format", TOKENIZER, spoil("model", values("tokenizer.json", model=3)), "tokenizer.json",
     "."),
    ("a model without an end token", TOKENIZER, spoil("model", values("tokenizer_config.json", eos_token=None)),
     "eos_token", "--end-token"),
    ("a vocabulary too small", TOKENIZER, spoil("model", values("config.json", vocab_size=100)), "100 rows", "."),
    ("a model without a config", BASE, spoil("model", gone("config.json")), "--base-model spoilt: .*config.json", "."),
    ("a config that is no JSON", BASE, spoil("model", written("config.json", "{")), "config.json:1:2: .*not JSON", "."),
    ("a model without weights", BASE, spoil("model", gone("model.safetensors")), "--base-model spoilt: .*no weights",
     "complete"),
    ("pickled weights", BASE, spoil("model", pickled), "pickled .pytorch_model.bin", "safe_serialization"),
    ("weights that are cut off", (*BASE, "--allow-other-base"), spoil("model", cut("model.safetensors", 5000)),
     "model.safetensors", "."),
    ("a header that is cut off", (*BASE, "--allow-other-base"), spoil("model", cut("model.safetensors", 6)),
     "model.safetensors", "."),
    ("a shard that is missing", BASE, spoil("model", shards), "model-00002-of-00002.safetensors is missing", "."),
    ("a model that is quantized", BASE,
     spoil("model", values("config.json", quantization_config={"quant_method": "gptq"})),
     r"quantized already \(gptq\)", "."),
    ("no architecture", MODEL, spoil("model", values("config.json", architectures=None)), "names no architecture", "."),
    ("an unknown architecture", MODEL, spoil("model", values("config.json", architectures=["Phi3ForCasualLM"])),
     "did you mean 'Phi3ForCausalLM'", "correct its field `architectures`"),
    ("a width that is a word", MODEL, spoil("model", values("config.json", hidden_size="wide")), "hidden_size", "."),
    # adapters
    ("an adapter of another method", ADAPTER, spoil("adapter", values("adapter_config.json", peft_type="LOHA")),
     "type LOHA", "."),
    ("an adapter of rank 0", ADAPTER, spoil("adapter", values("adapter_config.json", r=0)),
     "r is 0; a rank is 1 or more", "."),
    ("an adapter of another rank", ADAPTER, spoil("adapter", values("adapter_config.json", r=8)),
     "rank 4 and 4 in the weights", "."),
    ("an adapter without weights", ADAPTER, spoil("adapter", gone("adapter_model.safetensors")),
     r"--adapter spoilt: .*no weights \(adapter_model.safetensors\)", "train the adapter again"),
    ("an adapter that is cut off", ADAPTER, spoil("adapter", cut("adapter_model.safetensors", 100)),
     "adapter_model.safetensors: this is not a whole safetensors file: it is cut off", "train the adapter again"),
    ("an adapter of another base", ADAPTER,
     spoil("adapter", values("adapter_config.json", base_model_name_or_path="sha256:" + "0" * 64)),
     "another base model", "allow-other"),
    ("a config of an adapter that is no JSON", ADAPTER, spoil("adapter", written("adapter_config.json", "{")),
     "adapter_config.json:1:2: this is not JSON: it ends too early", "train the adapter again"),
    # prompts
    ("prompts that are not there", (*INFER, "--prompts", "questions.txt", "--output", "out"), spoil("model", str),
     "--prompts questions.txt: no such file", "path"),
]  # fmt: skip

PROMPTS: list[tuple[str, str, bytes, str, str]] = [
    ("no prompt", "p.txt", b"\n \n", "p.txt: there is no prompt", "."),
    ("prompts in Latin-1", "p.txt", b"caf\xe9\n", "p.txt:1: this is not UTF-8", "."),
    ("prompts that are no JSON", "p.jsonl", b'{"prompt": "a"}\n{"prompt"\n', r"p.jsonl:2:\d+: this is not JSON", "."),
    ("a row without a prompt", "p.jsonl", b'{"text": "a"}\n', "p.jsonl:1: this row has neither", "."),
    ("a prompt that is a number", "p.jsonl", b'{"prompt": 3}\n', "p.jsonl:1: its prompt is not text", "."),
    ("a role that is not there", "p.jsonl", b'{"messages": [{"role": "me", "content": "a"}]}\n', "p.jsonl:1:.*role",
     "the roles are system, user"),
]  # fmt: skip

CASES = [
    *(Case(f"artifact: {n}", command, p, r, change=change) for n, command, change, p, r in TABLE),
    *(
        Case(f"prompts: {n}", (*INFER, "--prompts", file, "--output", "out"), p, r, {file: data})
        for n, file, data, p, r in PROMPTS
    ),
]
