"""Which generation of Olive a config was written for: A, v0.5 and v0.6, or B, since v0.7."""

from __future__ import annotations

from collections.abc import Iterator

from runner.document import Node

# What only one generation writes. The type of the input model decides alone: neither reads the other's.
MODELS = {"pytorchmodel": "A", "hfpytorchmodel": "A", "hfmodel": "B"}
KEYS = {
    **dict.fromkeys(("hf_config", "params_config", "component_kwargs", "source_max_len", "corpus_strategy",
                     "dataset_type", "eval_dataset_size", "pass_flows", "model_file_format", "use_ort_trainer", "bias",
                     "target_max_len", "ignore_source_in_labels", "disable_search", "clean_run_cache",
                     "search_algorithm"), "A"),
    **dict.fromkeys(("load_kwargs", "max_seq_len", "strategy", "r", "alpha", "device_map", "eval_strategy",
                     "save_quant_config", "ephemeral_gpu_offload", "message_col", "chat_template", "padding_side",
                     "workflow_id", "sampler"), "B"),
}  # fmt: skip


def detect(root: Node) -> tuple[str, str]:
    """The generation, and what tells it."""
    model = root.value.get("input_model") if isinstance(root.value, dict) else None
    kind = model.value.get("type") if model is not None and isinstance(model.value, dict) else None
    found: dict[str, list[str]] = {"A": [], "B": []}
    for path, key in _keys(root, ""):
        if key in KEYS and not path.startswith(("input_model.config.hf_config.", "input_model.load_kwargs.")):
            found[KEYS[key]].append(path)
    if kind is not None and isinstance(kind.value, str) and kind.value.lower() in MODELS:
        generation = MODELS[kind.value.lower()]
        why = f"input_model is of type {kind.value}"
    else:
        generation = "A" if len(found["A"]) > len(found["B"]) else "B"
        why = f"{', '.join(found[generation][:3])}" if found[generation] else "nothing says otherwise"
    other = found["B" if generation == "A" else "A"]
    return generation, why + (f"; of the other generation: {', '.join(other[:3])}" if other else "")


def _keys(node: Node, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node.value, dict):
        for key, value in node.value.items():
            here = f"{path}.{key}" if path else key
            yield here, key
            yield from _keys(value, here)
    elif isinstance(node.value, list):
        for n, value in enumerate(node.value):
            yield from _keys(value, f"{path}[{n}]")
