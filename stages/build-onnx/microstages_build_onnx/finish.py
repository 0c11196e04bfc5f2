"""The small files beside the graph, as the runtime needs them: settings, tokenizer, chat template.

They are written here rather than left to the builder, so that tokenizer.json is byte for byte the model's own, no
path or setting of the machine gets in, and every token that ends an answer ends it here too.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from microstages.errors import UserError
from microstages.tokens import read_json

from microstages_build_onnx.source import Source

# AI Toolkit's names of what a model runs on, the third of its four folders.
RUNTIMES = {"cpu": "cpu", "cuda": "cuda", "dml": "directml", "webgpu": "webgpu"}
HOLE = "{Content}"  # where Foundry Local puts a message
KEPT = ("model.onnx", "model.onnx.data", "genai_config.json")
# What transformers notes about how it loaded a tokenizer; nothing of the tokenizer itself.
NOTES = ("auto_map", "name_or_path", "is_local", "local_files_only", "chat_template", "tokenizer_file", "vocab_file",
         "merges_file", "_commit_hash", "transformers_version", "processor_class")  # fmt: skip


def stop_ids(source: Source) -> list[int]:
    """The ids that end an answer: the model's own, then the tokenizer's end token, which chat models often omit."""
    eos = source.text.special("eos_token")
    own = source.text.token_id(eos) if eos else None
    return list(dict.fromkeys([*source.text.stop_ids, *([own] if own is not None else [])]))


def finish(source: Source, folder: Path) -> None:
    """Write genai_config.json anew and put the tokenizer's files beside the model; nothing else stays there."""
    for path in folder.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    file = folder / "genai_config.json"
    config = read_json(file)
    stop = stop_ids(source)
    model = config["model"]
    model["eos_token_id"] = stop if len(stop) > 1 else stop[0]
    pad = model.get("pad_token_id")
    if not isinstance(pad, int) or not 0 <= pad < source.vocab_size:
        model["pad_token_id"] = stop[0]
    _write(file, config)
    shutil.copyfile(source.folder / "tokenizer.json", folder / "tokenizer.json")
    if source.text.chat_template:
        (folder / "chat_template.jinja").write_text(source.text.chat_template, encoding="utf-8")
    _write(folder / "tokenizer_config.json", _tokenizer_config(source))


def foundry(source: Source, folder: Path, name: str) -> None:
    """Write inference_model.json, by which Foundry Local lists a model and puts a message into its chat template.

    Raises UserError where the template does not leave a message as it is.
    """
    prompt = HOLE
    if source.text.chat_template:
        prompt = source.text.render([{"role": "user", "content": HOLE}], add_generation_prompt=True)
    if prompt.count(HOLE) != 1:
        what = "its chat template changes a message, which Foundry Local's templates cannot do"
        raise UserError(what, where="--layout", fix="leave --layout out")
    _write(folder / "inference_model.json", {"Name": name, "PromptTemplate": {"assistant": HOLE, "prompt": prompt}})


def ai_toolkit(name: str, precision: str, provider: str) -> str:
    """Where AI Toolkit looks for a model below ~/.aitk/models: publisher/model/runtime/display name.

    `name`: MODEL or PUBLISHER/MODEL. Raises UserError where it is neither.
    """
    words = name.split("/")
    if len(words) > 2 or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", w) for w in words):
        what = f"{name!r} is no name of a folder"
        raise UserError(what, where="--model-name", fix="write PUBLISHER/MODEL in letters, digits, dots, dashes")
    publisher, model = words if len(words) == 2 else ("microstages", words[0])
    return f"{publisher}/{model}/{RUNTIMES[provider]}/{model}-{precision}-{RUNTIMES[provider]}"


def _tokenizer_config(source: Source) -> dict[str, Any]:
    file = source.folder / "tokenizer_config.json"
    own = {k: v for k, v in (read_json(file) if file.is_file() else {}).items() if k not in NOTES}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if own.get(name) is None and (text := source.text.special(name)) is not None:
            own[name] = text
    # Without a limit transformers writes 1e30, which the runtime cannot read.
    own["model_max_length"] = source.context_length
    return own


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
