"""What the builder really made: read from the graph, and held against what was asked.

The builder ignores an option that it does not know, and some that it knows. So the attributes of every quantized node
are read back: bits, block size, accuracy level, zero points; a difference is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages.errors import UserError, nearest

from microstages_build_onnx.options import Asked

# Names that the quantizer gives to what it replaced.
_SUFFIX = re.compile(r"(_DQ)?_Q(4|8)$|_matmul_Q4$")
_MIXED = re.compile(r"/(qkv_proj|v_proj|down_proj)/MatMul$")
# Left in floating point by the builder's own choice: recurrences and routers that lose too much.
_LEFT = re.compile(r"/(linear_attn|router|gate)/")
FLOATS = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16"}


@dataclass(frozen=True)
class Weight:
    """A node with a weight matrix. `name` as before quantization; `bits` 0 where it is floating point of `dtype`."""

    name: str
    op: str
    bits: int = 0
    block_size: int = 0
    accuracy_level: int = 0
    zero_points: bool = False
    dtype: str = ""


@dataclass(frozen=True)
class Graph:
    """The weights of a model, the names of all its nodes, and whether embeddings and output layer are one matrix."""

    weights: tuple[Weight, ...]
    nodes: frozenset[str]
    shared_embeddings: bool

    def summary(self) -> list[dict[str, Any]]:
        """Counts of equal weights, for the record."""
        counts: Counter[tuple[Any, ...]] = Counter()
        for w in self.weights:
            counts[(w.op, w.bits, w.block_size, w.accuracy_level, w.zero_points, w.dtype)] += 1
        keys = ("op", "bits", "block_size", "accuracy_level", "zero_points", "dtype")
        rows = [dict(zip(keys, k, strict=True)) | {"nodes": n} for k, n in sorted(counts.items())]
        return [
            {k: v for k, v in row.items() if k in ("op", "nodes") or v or (k != "dtype" and row["bits"])}
            for row in rows
        ]


def read_graph(file: Path) -> Graph:
    """Read the nodes of an ONNX model, without its weights. Raises UserError where it cannot be read."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except (DecodeError, OSError) as error:
        raise UserError(f"the builder wrote no readable model: {error}", where=file, fix="run again") from None
    tensors = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in graph.initializer if len(t.dims) > 1}
    weights = []
    for node in graph.node:
        a = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
        name = _SUFFIX.sub("", node.name).replace("/GatherBlockQuantized", "/Gather")
        has = [bool(i) for i in node.input]
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            zero = len(has) > 3 and has[3]
            weights.append(
                Weight(name, node.op_type, a.get("bits", 4), a["block_size"], a.get("accuracy_level", 0), zero)
            )
        elif node.op_type == "DequantizeLinear" and tensors.get(node.input[0]) in ("INT4", "UINT4"):
            weights.append(Weight(name, node.op_type, 4, a.get("block_size", 0), 0, len(has) > 2 and has[2]))
        elif node.op_type == "QMoE":
            weights.append(Weight(name, node.op_type, a.get("expert_weight_bits", 4), a.get("block_size", 0)))
        elif node.op_type in ("MatMul", "Gather", "Gemm"):
            own = [tensors[i] for i in node.input if i in tensors]
            if own:
                weights.append(Weight(name, node.op_type, dtype=own[0]))
    names = frozenset(_SUFFIX.sub("", n.name).replace("/GatherBlockQuantized", "/Gather") for n in graph.node)
    embedding = any("embed_tokens" in t for t in tensors)
    return Graph(tuple(weights), names, not embedding and any("lm_head" in t for t in tensors))


def check(graph: Graph, asked: Asked) -> None:
    """Hold the graph against what was asked. Raises UserError naming the first node that differs."""
    for name in asked.nodes_to_exclude:
        if name not in graph.nodes:
            known = sorted(w.name for w in graph.weights)
            raise UserError(
                f"the model has no node {name!r}{nearest(name, known)}", where="--nodes-to-exclude",
                fix=f"its nodes are {', '.join(known[:8])}{', …' if len(known) > 8 else ''}",
            )  # fmt: skip
    if asked.shared_embeddings and not graph.shared_embeddings:
        raise _differs("/model/embed_tokens/Gather", "is a matrix of its own", "is not shared as asked")
    if not asked.bits:
        _check_floats(graph, asked)
        return
    quantized = [w for w in graph.weights if w.bits and w.op != "QMoE"]
    for w in quantized:
        bits = _wanted_bits(w, asked, graph)
        wanted = [("bits", w.bits, bits), ("block_size", w.block_size, asked.block_size)]
        if w.op != "GatherBlockQuantized":
            wanted.append(("zero points", w.zero_points, asked.zero_points))
        if w.op == "MatMulNBits":
            wanted.append(("accuracy_level", w.accuracy_level, asked.accuracy_level))
        for what, is_, should in wanted:
            if is_ != should:
                raise _differs(w.name, f"has {what} {is_}", f"{should} was asked")
        if w.name in asked.nodes_to_exclude:
            raise _differs(w.name, f"is quantized to {w.bits} bits", "it was to be excluded")
    left = [w for w in graph.weights if not w.bits and w.op != "Gather" and not _LEFT.search(w.name)]
    if "MatMul" in asked.op_types:
        for w in left:
            if w.name not in asked.nodes_to_exclude:
                raise _differs(w.name, f"is {w.dtype}", f"{asked.precision} was asked")
        if not any(w.op != "GatherBlockQuantized" for w in quantized):
            raise _differs("no MatMul", "is quantized", f"{asked.precision} was asked")
    _check_mixed(graph, asked)


def _wanted_bits(w: Weight, asked: Asked, graph: Graph) -> int:
    embedding = w.op == "GatherBlockQuantized"
    if w.name == "/lm_head/MatMul" or (embedding and graph.shared_embeddings):
        return asked.mixed.get("last_matmul", asked.bits)
    if "mixed_layers" in asked.mixed and _MIXED.search(w.name) and w.bits == asked.mixed["mixed_layers"]:
        return w.bits
    if "linear_attn" in asked.mixed and w.bits == asked.mixed["linear_attn"]:
        return w.bits
    return asked.bits


def _check_mixed(graph: Graph, asked: Asked) -> None:
    for selector in ("mixed_layers", "linear_attn"):
        bits = asked.mixed.get(selector)
        layers = [w for w in graph.weights if w.name.startswith("/model/layers.")]
        if bits and bits != asked.bits and not any(w.bits == bits for w in layers):
            raise UserError(
                f"no node of the model has {bits} bits by {selector}", where="--mixed-precision",
                fix=f"this architecture has nothing that {selector} selects: leave it out",
            )  # fmt: skip


def _check_floats(graph: Graph, asked: Asked) -> None:
    dtype = FLOATS[asked.precision]
    for w in graph.weights:
        if w.bits or (w.dtype != dtype and not _LEFT.search(w.name)):
            is_ = f"has {w.bits} bits" if w.bits else f"is {w.dtype}"
            raise _differs(w.name, is_, f"{asked.precision} was asked")


def _differs(name: str, is_: str, should: str) -> UserError:
    return UserError(
        f"the builder did not do what was asked: {name} {is_}, {should}", where="model.onnx",
        fix="nothing was written; try other options, and report it",
    )  # fmt: skip
