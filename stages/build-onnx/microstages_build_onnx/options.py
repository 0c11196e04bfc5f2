"""What was asked of the model builder, checked before it runs.

The builder takes KEY=VALUE strings, drops keys that it does not know without a word, and lets combinations through
that do nothing or cannot be loaded. So everything is parsed here into one frozen value, combinations that cannot work
are refused, and what the graph must then look like is written down for `graph.check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from microstages.errors import UserError, nearest

from microstages_build_onnx.extra import parse

# Which precisions each execution provider can run.
PRECISIONS = {
    "cpu": ("int4", "int8", "fp16", "fp32"),
    "cuda": ("int4", "int8", "fp16", "bf16", "fp32"),
    "dml": ("int4", "fp16", "fp32"),
    "webgpu": ("int4", "int8", "fp16", "fp32"),
}
# `algorithm`: how weights are rounded, and which MatMuls get more bits.
ALGORITHMS: dict[str, tuple[str, dict[str, str]]] = {
    "default": ("default", {}),
    "rtn": ("rtn", {}),
    "k_quant": ("k_quant", {}),
    "rtn_last": ("rtn", {"last_matmul": "int8"}),
    "k_quant_last": ("k_quant", {"last_matmul": "int8"}),
    "k_quant_mixed": ("k_quant", {"last_matmul": "int8", "mixed_layers": "int8"}),
    "k_quant_linear": ("k_quant", {"last_matmul": "int8", "linear_attn": "int8"}),
}
SELECTORS = ("last_matmul", "mixed_layers", "linear_attn")
BITS = {"int4": 4, "int8": 8}


@dataclass(frozen=True)
class ModelShape:
    """What the checks need to know of the model. `row_lengths`: input widths of its weight matrices."""

    where: str
    tied: bool
    row_lengths: tuple[int, ...]
    sliding_window: int | None = None


@dataclass(frozen=True)
class Asked:
    """Everything asked of the builder, resolved and checked.

    `bits` is 0 where weights stay floating point; then the quantization fields have no meaning. `mixed` maps a
    selector (`last_matmul`, `mixed_layers`, `linear_attn`) to bits. `shared_embeddings` None: as the model ties them.
    """

    precision: str
    execution_provider: str
    bits: int = 0
    method: str = "default"
    block_size: int = 32
    accuracy_level: int = 0
    zero_points: bool = False
    op_types: tuple[str, ...] = ("MatMul",)
    mixed: dict[str, int] = field(default_factory=dict)
    nodes_to_exclude: tuple[str, ...] = ()
    shared_embeddings: bool = False
    flags: dict[str, bool] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def text_to_logits(self) -> bool:
        """Whether the result takes token ids and gives logits, and so can generate."""
        return not (self.flags.get("exclude_embeds") or self.flags.get("exclude_lm_head"))

    @property
    def qdq(self) -> bool:
        return bool(self.flags.get("use_qdq"))

    def to_builder(self) -> list[str]:
        """The builder's KEY=VALUE strings."""
        values = {"shared_embeddings": str(self.shared_embeddings).lower(), "hf_remote": "false", "hf_token": "false"}
        if self.bits:
            values["algo_config"] = self.method
            values["block_size"] = str(self.block_size)
            values["is_symmetric"] = str(not self.zero_points or self.method == "k_quant").lower()
            values["op_types_to_quantize"] = "/".join(self.op_types)
            if not self.qdq:
                values["accuracy_level"] = str(self.accuracy_level)
            if self.mixed:
                names = {bits: name for name, bits in BITS.items()}
                values["matmul_mixed_precision"] = ",".join(f"{k}:{names[v]}" for k, v in self.mixed.items())
            if self.nodes_to_exclude:
                values["nodes_to_exclude"] = ",".join(self.nodes_to_exclude)
        values |= {k: "true" for k, v in self.flags.items() if v}
        return [f"{k}={v}" for k, v in (values | self.extra).items()]


def resolve(
    shape: ModelShape,
    *,
    precision: str,
    execution_provider: str,
    algorithm: str,
    block_size: int,
    accuracy_level: int | None,
    symmetric: bool | None,
    op_types_to_quantize: Sequence[str],
    nodes_to_exclude: Sequence[str],
    mixed_precision: Sequence[str],
    shared_embeddings: bool | None,
    flags: dict[str, bool],
    extra_options: Sequence[str],
) -> Asked:
    """Check what was asked against itself and the model. Raises UserError naming the flag and the remedy."""
    ep = execution_provider
    if precision not in PRECISIONS[ep]:
        can = ", ".join(PRECISIONS[ep])
        where_it_runs = ", ".join(k for k, v in PRECISIONS.items() if precision in v)
        raise UserError(
            f"{precision} does not run on {ep}", where="--precision",
            fix=f"{ep} runs {can}; {precision} runs on {where_it_runs}",
        )  # fmt: skip
    _check_flags(ep, flags)
    extra = parse(ep, extra_options)
    shared = _shared(shape, shared_embeddings, flags)
    if precision not in BITS:
        return Asked(precision, ep, shared_embeddings=shared, flags=flags, extra=extra)

    if block_size & (block_size - 1):
        raise UserError(f"{block_size} is not a power of two", where="--block-size", fix="use 16, 32, 64, 128 or 256")
    method, mixed = ALGORITHMS[algorithm]
    mixed = mixed | _mixed(mixed_precision)
    upgraded = {k: BITS[v] for k, v in mixed.items()}
    zero_points = method == "k_quant" if symmetric is None else not symmetric
    if method == "k_quant" and symmetric:
        raise UserError(
            f"{algorithm} always writes zero points; it cannot be symmetric", where="--symmetric",
            fix="leave --symmetric out, or use --algorithm default or rtn",
        )  # fmt: skip
    op_types = tuple(dict.fromkeys(op_types_to_quantize))
    if not op_types:
        raise UserError("nothing is named", where="--op-types-to-quantize", fix="name MatMul, Gather or both")
    if "Gather" in op_types and precision == "int8":
        raise UserError(
            "embeddings (Gather) can be int4 only; with int8 they stay floating point",
            where="--op-types-to-quantize", fix="leave Gather out, or use --precision int4",
        )  # fmt: skip
    _check_qdq(flags, precision, method, upgraded, accuracy_level, op_types, shared_embeddings)
    _check_blocks(shape, method, algorithm, block_size, zero_points, upgraded, BITS[precision])
    bad = [n for n in nodes_to_exclude if not n.strip() or "," in n]
    if bad:
        raise UserError(f"{bad[0]!r} is no node name", where="--nodes-to-exclude", fix="give the flag once per node")

    # Sharing one quantized matrix needs both ends quantized the same way, by a form of it that the runtime can read.
    why_not = ""
    if "MatMul" not in op_types:
        why_not = "the output layer is not quantized"
    elif "/lm_head/MatMul" in nodes_to_exclude or "/model/embed_tokens/Gather" in nodes_to_exclude:
        why_not = "one of the two is excluded"
    elif flags.get("use_qdq"):
        why_not = "there is no quantize-dequantize form of embeddings"
    elif method == "default" and zero_points:
        why_not = "the default algorithm with zero points writes a form that cannot be loaded"
    elif method == "default" and upgraded.get("last_matmul", BITS[precision]) != BITS[precision]:
        why_not = "the default algorithm with another last_matmul writes a form that cannot be loaded"
    elif precision == "int8":
        why_not = "embeddings can be int4 only"
    if why_not and shared_embeddings:
        raise UserError(f"the embeddings cannot be shared: {why_not}", where="--shared-embeddings", fix="leave it out")
    shared = shared and not why_not
    return Asked(
        precision, ep, BITS[precision], method, block_size,
        _accuracy(ep, accuracy_level), zero_points,
        (*op_types, "Gather") if shared and "Gather" not in op_types else op_types,
        upgraded, tuple(nodes_to_exclude), shared, flags, extra,
    )  # fmt: skip


def _accuracy(ep: str, given: int | None) -> int:
    """The builder's own default where none is given: int8 activations on cpu and webgpu, as they come elsewhere."""
    return given if given is not None else 4 if ep in ("cpu", "webgpu") else 0


def _check_flags(ep: str, flags: dict[str, bool]) -> None:
    if flags.get("enable_cuda_graph") and ep != "cuda":
        raise UserError(f"{ep} has no CUDA graphs", where="--enable-cuda-graph", fix="use --execution-provider cuda")
    if flags.get("exclude_lm_head") and flags.get("include_hidden_states"):
        raise UserError(
            "without the output layer the hidden states are the output anyway", where="--include-hidden-states",
            fix="use one of --exclude-lm-head and --include-hidden-states",
        )  # fmt: skip


def _shared(shape: ModelShape, given: bool | None, flags: dict[str, bool]) -> bool:
    whole = not flags.get("exclude_embeds") and not flags.get("exclude_lm_head")
    if given and not shape.tied:
        raise UserError(
            "this model's embeddings and output layer are two matrices (tie_word_embeddings is false): "
            "sharing one would break it",
            where="--shared-embeddings", fix="leave it out",
        )  # fmt: skip
    if given and not whole:
        raise UserError("one of the two is excluded from the model", where="--shared-embeddings", fix="leave it out")
    return (shape.tied if given is None else given) and whole


def _mixed(pairs: Sequence[str]) -> dict[str, str]:
    out = {}
    for pair in pairs:
        selector, colon, type_ = pair.partition(":")
        if not colon or selector not in SELECTORS or type_ not in BITS:
            hint = nearest(selector, SELECTORS) if selector not in SELECTORS else nearest(type_, BITS)
            raise UserError(
                f"{pair!r} is not understood{hint}", where="--mixed-precision",
                fix=f"write SELECTOR:TYPE, with a selector of {', '.join(SELECTORS)} and int4 or int8",
            )  # fmt: skip
        out[selector] = type_
    return out


def _check_qdq(
    flags: dict[str, bool], precision: str, method: str, upgraded: dict[str, int],
    accuracy_level: int | None, op_types: Sequence[str], shared: bool | None,
) -> None:  # fmt: skip
    if not flags.get("use_qdq"):
        return
    for wrong, what, fix in (
        (
            precision != "int4" or 8 in upgraded.values(),
            "8-bit weights",
            "use --precision int4 without mixed_precision",
        ),
        (method != "default", f"the algorithm {method}", "use --algorithm default"),
        (accuracy_level is not None, "accuracy_level", "leave --accuracy-level out"),
        ("Gather" in op_types, "quantized embeddings", "leave Gather out of --op-types-to-quantize"),
        (shared, "shared quantized embeddings", "leave --shared-embeddings out"),
    ):
        if wrong:
            raise UserError(f"the quantize-dequantize form does not go with {what}", where="--use-qdq", fix=fix)


def _check_blocks(
    shape: ModelShape, method: str, algorithm: str, block_size: int, zero_points: bool,
    upgraded: dict[str, int], bits: int,
) -> None:  # fmt: skip
    """rtn and k_quant pack two 4-bit zero points into a byte row by row, so a row needs an even number of blocks."""
    if method == "default" or not zero_points or 4 not in (bits, *upgraded.values()):
        return
    for length in shape.row_lengths:
        blocks = -(-length // block_size)
        if blocks % 2:
            fits = [b for b in (256, 128, 64, 32, 16) if all(-(-n // b) % 2 == 0 for n in shape.row_lengths)]
            fix = f"use --block-size {' or '.join(map(str, fits))}, or " if fits else "use "
            raise UserError(
                f"{algorithm} with zero points needs an even number of blocks in a row; "
                f"{length} values in blocks of {block_size} are {blocks}",
                where="--block-size", fix=f"{fix}--algorithm default",
            )  # fmt: skip
