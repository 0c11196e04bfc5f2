"""`input_model`: from which model it goes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.olive.resources import Paths, read_path
from runner.olive.section import CHANGED, LOST, NEEDLESS, USED, Section

TYPES = {"PyTorchModel": "A", "HfModel": "B", "HFPyTorchModel": "A"}
FLOATS = ("float32", "float16", "bfloat16", "auto")
NO_CODE = "no code of a model's folder is ever run"
ITSELF = "the model's config.json says it"
STAGES = "the stages choose it"


@dataclass(frozen=True)
class InputModel:
    """The base model's address, and that of an adapter which comes with it. `type`: config.json's model_type, where it
    can be read from here; `name` is what the config calls it."""

    uri: str = ""
    adapter: str = ""
    type: str = ""
    name: str = ""


def read_model(top: Section, client: Mapping[str, str], paths: Paths) -> InputModel:
    """The input model. What is wrong is told to the config's problems."""
    section = top.child("input_model")
    if section is None:
        top.wrong(top.node.place, "there is no input_model", "say which model it begins with")
        return InputModel()
    section.word("type", TYPES)
    section.fate("type", USED, "a model in the format of Hugging Face")
    config = section.child("config")
    found = _read(config or section, client, paths)
    if config:
        config.close()
    section.close()
    return found


def _read(section: Section, client: Mapping[str, str], paths: Paths) -> InputModel:
    before = len(section.problems.found)
    path = read_path(section, "model_path", client, "params.base_model")
    adapter = read_path(section, "adapter_path", client, "the adapter that is merged")
    tasks = [(section, section.read("task", "text", how=USED, text="what the stages do"))]
    name, revision = None, ""
    if hf := section.child("hf_config"):
        name = hf.take("model_name", "text")
        if path:
            hf.fate("model_name", NEEDLESS, "model_path says where it is")
        else:
            hf.fate("model_name", USED, "params.base_model")
        tasks.append((hf, hf.read("task", "text", how=USED, text="what the stages do")))
        for key in ("from_pretrained_args", "model_loading_args"):  # one key under its newer and its older name
            revision = _loading(hf.child(key)) or revision
        hf.ignore({"model_class": ("text",), "feature": ("text",), "model_type": ("text",)}, NEEDLESS, ITSELF)
        parts = {
            "components": ("list",),
            "dataset": ("mapping",),
            "config": ("mapping",),
            "generation_config": ("mapping",),
        }
        hf.ignore(parts, LOST, "of a conversion in parts, or of another task")
        hf.close()
    revision = _loading(section.child("load_kwargs")) or revision
    for where, task in tasks:
        if task and not task.startswith("text-generation"):
            what = f"{where.at('task')} is {task!r}: only text-generation is done here"
            where.wrong(where.place("task"), what, "remove it, or write text-generation")
    section.ignore({"model_file_format": ("text",)}, NEEDLESS, "what lies there says what it is, MLflow's folders too")
    section.ignore(dict.fromkeys(("model_script", "script_dir", "model_loader"), ("text",)), NEEDLESS, NO_CODE)
    shapes = dict.fromkeys(("io_config", "dummy_inputs_func", "model_attributes"), ("mapping", "text"))
    section.ignore({**shapes, "generative": ("flag",)}, NEEDLESS, ITSELF)
    section.ignore({"mlflow_transformer_model_cache_dir": ("text",)}, NEEDLESS, "the cache is $MICROSTAGES_CACHE")
    section.ignore({"test_model_config": ("mapping",), "test_model_path": ("text",)}, LOST, "of Olive's own tests")
    if not path and not name:
        if len(section.problems.found) == before:
            what = f"{section.path} does not say where the model is"
            section.wrong(section.node.place, what, "write model_path, or hf_config.model_name")
        return InputModel()
    given = str(path or name)
    uri = paths.model(given, revision)
    return InputModel(uri, paths.data(adapter) if adapter else "", _model_type(uri, paths), given)


def _model_type(uri: str, paths: Paths) -> str:
    """The model_type of a folder of this machine; empty where it cannot be known."""
    folder = paths.here(uri)
    try:
        value: Any = json.loads((folder / "config.json").read_text()) if folder else {}
    except (OSError, ValueError):
        return ""
    return str(value.get("model_type") or "") if isinstance(value, dict) else ""


def _loading(section: Section | None) -> str:
    """Arguments of from_pretrained; the revision."""
    if section is None:
        return ""
    for key in ("torch_dtype", "dtype"):
        section.take(key, "text", among=(*FLOATS, *(f"torch.{t}" for t in FLOATS)))
        section.fate(key, NEEDLESS, "training loads it as the pass's torch_dtype says, merge as it lies there")
    section.ignore({"trust_remote_code": ("flag",)}, NEEDLESS, NO_CODE)
    section.ignore({"device_map": ("text", "mapping"), "max_memory": ("mapping",), "offload_folder": ("text",),
                    "low_cpu_mem_usage": ("flag",), "use_cache": ("flag",)}, NEEDLESS, STAGES)  # fmt: skip
    section.read("attn_implementation", "text", how=CHANGED, text="sdpa", why="the same numbers but for rounding")
    section.ignore({"quantization_method": ("text",), "quantization_config": ("mapping",)}, NEEDLESS,
                   "train-qlora quantizes, as its pass says")  # fmt: skip
    section.ignore({"use_safetensors": ("flag",), "ignore_mismatched_sizes": ("flag",)}, NEEDLESS,
                   "weights are safetensors, and their shapes must fit")  # fmt: skip
    section.ignore({"cache_dir": ("text",)}, NEEDLESS, "the cache is $MICROSTAGES_CACHE")
    section.ignore({"local_files_only": ("flag",)}, NEEDLESS, "HF_HUB_OFFLINE=1 does it")
    section.ignore(
        {"token": ("text", "flag")}, NEEDLESS, "HF_TOKEN of the environment is used; a token never stands in a file"
    )
    section.ignore({"extra_args": ("mapping",), "subfolder": ("text",)}, LOST, "write a folder's address instead")
    revision = section.read("revision", "text", how=USED, text="params.base_model: hf://…@revision", default="")
    section.close()
    return str(revision)
