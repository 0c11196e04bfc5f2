"""`passes`: what is done to the model, one after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from runner.document import Place
from runner.olive.evaluators import Evaluator, used_by
from runner.olive.params import Params
from runner.olive.search import Search, Variants, varied
from runner.olive.section import CHANGED, LOST, NEEDLESS, USED, Layers, Section
from runner.olive.training import read_training

TRAIN, MERGE, BUILD, CONVERT, OPTIMIZE = "train", "merge", "build", "convert", "optimize"
TYPES = {"LoRA": "LoRA", "QLoRA": "QLoRA", "LoftQ": "LoftQ", "DoRA": "DoRA", "MergeAdapterWeights": MERGE,
         "ModelBuilder": BUILD, "OnnxConversion": CONVERT, "OrtTransformersOptimization": OPTIMIZE}  # fmt: skip
TRAINERS = ("LoRA", "QLoRA", "LoftQ", "DoRA")
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16",
          "fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}  # fmt: skip
# Which layers get an adapter where a LoRA pass names none: PEFT's table, and Olive's own addition.
TARGETS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "stablelm",
                     "opt", "gptj", "gpt_neo"), ("q_proj", "v_proj")),
    **dict.fromkeys(("gpt_neox", "bloom", "falcon", "chatglm"), ("query_key_value",)),
    "gpt2": ("c_attn",), "gpt_bigcode": ("c_attn",), "codegen": ("qkv_proj",), "mpt": ("Wqkv",),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"), "phi3": ("o_proj", "qkv_proj"),
}  # fmt: skip
ONE_BUILD = "build-onnx writes the whole, optimized ONNX model from the weights"


@dataclass(frozen=True)
class Pass:
    """One pass. `kind`: train, merge, build, convert or optimize; `host`: the system that it names, None the engine's.

    Of training: the names of its data, the share or number of sequences held out, and the seed that chooses them.
    `evaluator`: that of this pass alone. `variants`: what a search tries of it.
    """

    name: str
    kind: str
    type: str
    place: Place
    params: Params = field(default_factory=Params)
    host: str | Section | None = None
    train: str | Section | None = None
    evaluate: str | Section | None = None
    held_out: float | None = None
    held_out_place: Place | None = None
    data_seed: int = 42
    metadata_only: bool = False
    evaluator: Evaluator | None = None
    variants: Variants | None = None


def stage_of(one: Pass) -> str:
    """The stage that does it."""
    if one.kind == TRAIN:
        return "train-qlora" if one.type in ("QLoRA", "LoftQ") else "train-lora"
    return "merge" if one.kind == MERGE else "build-onnx"


def read_passes(
    top: Section, generation: str, model_type: str, search: Search, evaluators: Mapping[str, Evaluator]
) -> dict[str, Pass]:
    """All passes by name, in their order. What is wrong is told."""
    section = top.child("passes")
    if section is None or not section.values:
        top.wrong(top.node.place, "there are no passes", f"write passes, of the types {', '.join(TYPES)}")
        return {}
    out = {}
    for name, node in section.values.items():
        if isinstance(node.value, list):
            several = list(section.children(name))
            if len(several) > 1 and not search.on:
                fix = "keep one of them; to try them all write search_strategy: true (they become a `matrix`)"
                section.wrong(node.place, f"{section.at(name)} has {len(several)} alternatives", fix)
                several = several[:1]
        else:
            several = [one for one in [section.child(name)] if one is not None]
        if several:
            read = partial(_read, name=name, generation=generation, model_type=model_type, evaluators=evaluators,
                           searching=search.on)  # fmt: skip
            out[name] = varied(search, several, read)
    return {k: v for k, v in out.items() if v is not None}


def _read(
    section: Section, name: str, generation: str, model_type: str, evaluators: Mapping[str, Evaluator], searching: bool
) -> Pass | None:
    type_ = section.kind(TYPES)
    if not type_:
        return None
    host = _host(section)
    why = "what is searched is a `matrix`" if searching else "nothing is searched"
    section.ignore({"disable_search": ("flag",)}, USED if searching else NEEDLESS, why)
    section.ignore({"clean_run_cache": ("flag",), "run_on_target": ("flag",)}, NEEDLESS, "of Olive's own runs")
    section.ignore({"output_name": ("text",)}, NEEDLESS, "each stage's result is kept under its name")
    evaluator = used_by(Layers(section), "evaluator", evaluators, searching)
    nested = section.child("config")
    config = nested or section
    if type_ in TRAINERS:
        section.fate("type", USED, "uses: train-lora" if type_ in ("LoRA", "DoRA") else "uses: train-qlora")
        found = _train(config, Pass(name, TRAIN, type_, section.node.place, host=host), generation, model_type)
    elif type_ == BUILD:
        section.fate("type", USED, "uses: build-onnx")
        found = _build(config, Pass(name, BUILD, type_, section.node.place, host=host))
    elif type_ == MERGE:
        section.fate("type", USED, "uses: merge")
        found = Pass(name, MERGE, type_, section.node.place, host=host)
    else:
        section.fate("type", CHANGED, "one build-onnx for all of them", ONE_BUILD)
        found = _convert(config, Pass(name, type_, type_, section.node.place, host=host))
    config.close()
    if nested:
        section.close()
    return replace(found, evaluator=evaluator)


def _host(section: Section) -> str | Section | None:
    node = section.values.get("host")
    if node is not None and isinstance(node.value, dict):
        return section.child("host")
    given = section.read("host", "text", "mapping", how=USED, text="target of the stage")
    return str(given) if given else None


def _data(section: Section, key: str) -> str | Section | None:
    node = section.values.get(key)
    if node is not None and isinstance(node.value, dict):
        return section.child(key)
    given = section.read(key, "text", "mapping", how=USED, text="the stage that prepares the data")
    return str(given) if given else None


def _train(section: Section, found: Pass, generation: str, model_type: str) -> Pass:
    params, quantized = Params(), found.type in ("QLoRA", "LoftQ")
    for old, new, name, usual in (("lora_r", "r", "rank", 64), ("lora_alpha", "alpha", "alpha", 16.0)):
        kind = "whole" if name == "rank" else "number"
        older, newer = section.take(old, kind), section.take(new, kind)
        value = newer if newer is not None else older if older is not None else usual
        params.put(name, value, section.place(new if newer is not None else old))
        section.fate(new, USED, name)
        section.fate(old, *((NEEDLESS, f"{new} says it") if newer is not None else (USED, name)))
    dropout = section.read(
        "lora_dropout", "number", how=USED, text="dropout", default=0.0 if generation == "A" else 0.05
    )
    params.put("dropout", dropout, section.place("lora_dropout"))
    params.put("modules_to_save", section.read("modules_to_save", "list", how=USED, text="modules_to_save", of="text"),
               section.place("modules_to_save"))  # fmt: skip
    _targets(section, params, quantized, model_type)
    _dtype(section, params, quantized)
    _quantization(section, params, found.type)
    if found.type == "DoRA":
        params.put("dora", True)
    bias = section.take("bias", "text", among=("none", "all", "lora_only"))
    section.fate("bias", *((NEEDLESS, "none, as here") if bias in (None, "none") else (LOST, "biases are not trained")))
    machine = "the stages use the machine as it is: all GPUs, else the CPU"
    section.ignore(
        {"device_map": ("text",), "allow_tf32": ("flag",), "ephemeral_gpu_offload": ("flag",)}, NEEDLESS, machine
    )
    section.ignore(
        {"save_quant_config": ("flag",)}, NEEDLESS, "how the base was quantized is recorded with the adapter"
    )
    section.ignore({"use_ort_trainer": ("flag",), "ortmodule_onnx_opset_version": ("whole",)}, LOST,
                   "training is done by torch")  # fmt: skip
    train, evaluate = _data(section, "train_data_config"), _data(section, "eval_data_config")
    if train is None and not isinstance(section.take("train_data_config", "text", "mapping"), str):
        section.wrong(section.node.place, f"{section.path} has no train_data_config", "name one of data_configs")
    held_out = section.take("eval_dataset_size", "number")
    if evaluate is not None:
        section.fate("eval_dataset_size", NEEDLESS, "eval_data_config says what is held out")
        held_out = None
    section.fate("eval_dataset_size", USED, "test_sequences of the data")
    evaluated = bool(held_out) or evaluate is not None
    training = read_training(section.child("training_args"), generation, quantized, evaluated)
    return Pass(found.name, TRAIN, found.type, found.place, params.merged(training.params), found.host, train, evaluate,
                held_out, section.place("eval_dataset_size"), training.data_seed)  # fmt: skip


def _targets(section: Section, params: Params, quantized: bool, model_type: str) -> None:
    named = section.take("target_modules", "list", of="text")
    if quantized:
        why = "Olive overwrote it: with a quantized base all linear layers but the output layer get an adapter"
        section.fate("target_modules", CHANGED, "all linear layers", why)
        return
    section.fate("target_modules", USED, "target_modules")
    if named:
        params.put("target_modules", named, section.place("target_modules"))
    elif model_type in TARGETS:
        params.put("target_modules", list(TARGETS[model_type]), note=f"what PEFT or Olive took for {model_type}")
    else:
        what = (
            f"of {model_type} PEFT had no table"
            if model_type
            else "the model's config.json is not here to tell its type"
        )
        section.report.note(
            f"{section.path} names no target_modules, and {what}: all linear layers get an adapter. Olive took PEFT's "
            "choice, of most models [q_proj, v_proj], of Phi-3 [o_proj, qkv_proj]: write target_modules for the same"
        )


def _dtype(section: Section, params: Params, quantized: bool) -> None:
    """The type that the base is loaded as, and of its arithmetic."""
    given = section.word("torch_dtype", DTYPES, "bf16")
    compute = section.word("compute_dtype", DTYPES, "") if quantized else _unused(section, "compute_dtype")
    name = "compute_dtype" if quantized else "precision"
    key = "compute_dtype" if compute else "torch_dtype"
    for one, value in (("torch_dtype", given), ("compute_dtype", compute)):
        if one != key:
            section.fate(one, NEEDLESS, f"{key} says it")
        elif value == "fp16":
            why = "Olive loaded fp32 and let CUDA's autocast use fp16; here all of it is fp32"
            section.fate(one, CHANGED, f"{name}: fp32", why)
        else:
            section.fate(one, USED, f"{name}: {value}")
    value = compute or given
    params.put(name, "fp32" if value == "fp16" else value, section.place(key))


def _unused(section: Section, key: str) -> str:
    section.ignore({key: ("text",)}, NEEDLESS, "without effect in Olive too: LoRA does not quantize")
    return ""


def _quantization(section: Section, params: Params, type_: str) -> None:
    if type_ == "QLoRA":
        double = section.read("double_quant", "flag", how=USED, text="double_quant", default=False)
        params.put("double_quant", double, section.place("double_quant"))
        kind = section.take("quant_type", "text", among=("nf4", "fp4"), default="nf4")
        section.fate("quant_type", USED, "quant_type")
        params.put("quant_type", kind, section.place("quant_type"))
        return
    if type_ == "LoftQ":
        iterations = section.take("loftq_iter", "whole")
        section.fate("loftq_iter", *((USED, "init: loftq") if iterations in (None, 1)
                                     else (CHANGED, "init: loftq", "one iteration")))  # fmt: skip
        params.put("init", "loftq")
        params.put("double_quant", False)
        why = "LoftQ is always nf4 without double quantization, in Olive too"
        section.ignore({"double_quant": ("flag",), "quant_type": ("text",)}, NEEDLESS, why)
        return
    why = f"without effect in Olive too: {type_} does not quantize"
    section.ignore({"double_quant": ("flag",), "quant_type": ("text",)}, NEEDLESS, why)


def _build(section: Section, found: Pass) -> Pass:
    params = Params()
    words = ("int4", "int8", "fp16", "bf16", "fp32")
    precision = section.take("precision", "text", among=words)
    section.fate("precision", USED, "precision")
    if precision is None and not section.given("precision"):
        section.wrong(section.node.place, f"{section.path} has no precision", f"one of: {', '.join(words)}")
    params.put("precision", precision, section.place("precision"))
    only = bool(section.take("metadata_only", "flag"))
    if only:
        section.fate("metadata_only", CHANGED, "the whole model", ONE_BUILD)
    section.fate("metadata_only", NEEDLESS, "false: the whole model is built")
    for old, new, kind in (
        ("int4_block_size", "block_size", "whole"), ("int4_accuracy_level", "accuracy_level", "whole"),
        ("int4_is_symmetric", "symmetric", "flag"), ("int4_op_types_to_quantize", "op_types_to_quantize", "list"),
        ("int4_nodes_to_exclude", "nodes_to_exclude", "list"), ("int4_algo_config", "algorithm", "text"),
        ("use_qdq", "use_qdq", "flag"), ("include_hidden_states", "include_hidden_states", "flag"),
        ("exclude_embeds", "exclude_embeds", "flag"), ("exclude_lm_head", "exclude_lm_head", "flag"),
        ("enable_cuda_graph", "enable_cuda_graph", "flag"),
    ):  # fmt: skip
        value = section.read(old, kind, how=USED, text=new, of="text" if kind == "list" else "")
        params.put(new, value, section.place(old))
    extra = []
    if section.read("use_8bits_moe", "flag", how=USED, text="extra_options: [moe_quant_type=int8]"):
        extra.append("moe_quant_type=int8")
    for key in ("use_webgpu_fp32", "use_cuda_bf16"):
        if section.read(key, "flag", how=USED, text=f"extra_options: [{key}=true]"):
            extra.append(f"{key}=true")
    more = section.take("extra_options", "mapping") or {}
    section.fate("extra_options", USED, "extra_options")
    extra += [f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in more.items()]
    params.put("extra_options", extra or None, section.place("extra_options"))
    section.ignore(
        {"search": ("mapping",)}, LOST, "options of generation: give them to infer, or to the program that answers"
    )
    return Pass(found.name, BUILD, found.type, found.place, params, found.host, metadata_only=only)


_CONVERT: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("use_dynamo_exporter", "save_metadata_for_token_generation", "merge_components", "dynamic",
                     "merge_adapter_weights", "optimize", "save_as_external_data", "all_tensors_to_one_file",
                     "convert_attribute"), ("flag",)),
    **dict.fromkeys(("target_opset", "parallel_jobs", "size_threshold"), ("whole",)),
    **dict.fromkeys(("past_key_value_name", "device", "external_data_name"), ("text",)),
}  # fmt: skip
_OPTIMIZE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("use_gpu", "only_onnxruntime", "keep_io_types", "use_gqa", "input_int32",
                     "replace_attn_mask_with_alibi", "save_as_external_data", "all_tensors_to_one_file",
                     "convert_attribute"), ("flag",)),
    **dict.fromkeys(("num_heads", "num_key_value_heads", "hidden_size", "opt_level", "size_threshold"), ("whole",)),
    **dict.fromkeys(("model_type", "external_data_name"), ("text",)),
    **dict.fromkeys(("force_fp32_ops", "force_fp32_nodes"), ("list",)),
    **dict.fromkeys(("optimization_options", "force_fp16_inputs"), ("mapping",)),
}  # fmt: skip


def _convert(section: Section, found: Pass) -> Pass:
    """A pass on the way to ONNX that is a part of build-onnx. `precision` is what the model has after it."""
    params: dict[str, Any] = {}
    if found.kind == CONVERT:
        params["precision"] = section.word("torch_dtype", DTYPES, "fp32")
        section.fate("torch_dtype", CHANGED, "precision of build-onnx", "that of the last pass counts")
        section.ignore(_CONVERT, NEEDLESS, ONE_BUILD)
    else:
        if section.take("float16", "flag"):
            params["precision"] = "fp16"
        section.fate("float16", CHANGED, "precision of build-onnx", "that of the last pass counts")
        section.ignore(_OPTIMIZE, NEEDLESS, ONE_BUILD)
    return Pass(found.name, found.kind, found.type, found.place, Params(params), found.host)
