"""Options of the model builder that have no parameter of their own here.

The builder drops keys that it does not know without a word, so only known ones pass, with values that they take.
"""

from __future__ import annotations

from collections.abc import Sequence

from microstages.errors import UserError, nearest

BOOL = ("true", "false")
# Keys of the builder that may be given as extra options: the values they take, and the providers they are for.
EXTRA: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "fuse_qkv": (BOOL, ()),
    "fuse_mlp_gate_up": (BOOL, ()),
    "fuse_qk_norm_gqa": (BOOL, ("cuda", "webgpu")),
    "prune_lm_head": (BOOL, ()),
    "windowed_kv_cache": (BOOL, ("cpu", "cuda")),
    "use_device_allocator_for_initializers": (BOOL, ()),
    "use_cuda_bf16": (BOOL, ("cuda",)),
    "enable_cuda_fpa_intb_gemm": (BOOL, ("cuda",)),
    "matmulnbits_weights_prepacked": (("0", "1", "2"), ("cuda",)),
    "enable_dml_graph": (BOOL, ("dml",)),
    "enable_webgpu_graph": (BOOL, ("webgpu",)),
    "use_webgpu_fp32": (BOOL, ("webgpu",)),
    "linear_attn_op": (("linear_attention", "gated_delta_net"), ()),
    "moe_quant_type": (("int4", "int8", "mxfp4", "nvfp4"), ()),
    "qmoe_block_size": (("-1", "0", "16", "32", "64", "128", "256"), ()),
    "qmoe_weights_prepacked": (("-1", "0", "1"), ("cuda",)),
}
# Keys of the builder that have a parameter of their own here.
OWN = {
    "algo_config": "algorithm",
    "block_size": "block_size",
    "accuracy_level": "accuracy_level",
    "is_symmetric": "symmetric",
    "op_types_to_quantize": "op_types_to_quantize",
    "nodes_to_exclude": "nodes_to_exclude",
    "matmul_mixed_precision": "mixed_precision",
    "shared_embeddings": "shared_embeddings",
    "exclude_embeds": "exclude_embeds",
    "exclude_lm_head": "exclude_lm_head",
    "include_hidden_states": "include_hidden_states",
    "enable_cuda_graph": "enable_cuda_graph",
    "use_qdq": "use_qdq",
}
# Keys of the builder that are refused, and why.
REFUSED = {
    "hf_remote": "leave it out: code from a model folder is never run",
    "hf_token": "leave it out: nothing is fetched from a hub here",
    "adapter_path": "leave it out, and merge the adapter first, with the stage merge",
    "filename": "leave it out: the file is always model.onnx",
    "config_only": "leave it out: the stage always builds the whole model",
    "num_hidden_layers": "leave it out: the stage always builds the whole model",
    "disable_qkv_fusion": "use fuse_qkv=false",
    "use_8bits_moe": "use moe_quant_type=int8",
}


def parse(ep: str, pairs: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE strings as checked values. Raises UserError for what the builder would drop or trip on."""
    out: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        where = "--extra-options"
        if not equals:
            raise UserError(f"{pair!r} is not KEY=VALUE", where=where, fix="write for example fuse_qkv=false")
        own = OWN.get(key) or OWN.get(key.removeprefix("int4_").replace("tied", "shared"))
        if own:
            flag = "--" + own.replace("_", "-")
            raise UserError(f"{key} has a parameter of its own here", where=where, fix=f"use {flag}")
        if key in REFUSED:
            raise UserError(f"{key} is not for this stage", where=where, fix=REFUSED[key])
        if key not in EXTRA:
            raise UserError(
                f"unknown option {key!r}{nearest(key, [*EXTRA, *OWN])}", where=where,
                fix=f"known: {', '.join(EXTRA)}",
            )  # fmt: skip
        values, providers = EXTRA[key]
        if value.lower() not in values:
            raise UserError(f"{key} cannot be {value!r}", where=where, fix=f"use one of {', '.join(values)}")
        if providers and ep not in providers:
            raise UserError(f"{key} has no effect on {ep}", where=where, fix=f"it is for {', '.join(providers)}")
        if key in out:
            raise UserError(f"{key} is given twice", where=where, fix="give it once")
        out[key] = value.lower()
    return out
