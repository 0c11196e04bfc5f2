"""Where an adapter comes from: the base model that it was trained on, and what had been done to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from microstages.artifact import Artifact
from microstages.errors import UserError
from microstages.tokens import read_json

from microstages_merge.plan import INPUT, OUTPUT, Base
from microstages_merge.recipe import Quantization

_TYPES = {"bf16": "BF16", "bfloat16": "BF16", "fp16": "F16", "float16": "F16", "fp32": "F32", "float32": "F32"}


@dataclass(frozen=True)
class Asked:
    """What the caller says about the base; None where the adapter is to say it."""

    base: str
    quant_type: str | None
    double_quant: bool | None
    compute_dtype: str | None


def check_base(base: Artifact, adapter: Artifact, settings_file: str) -> None:
    """Raises UserError where the adapter says that it was trained on another base model."""
    said = adapter.metadata.get("base_model")
    digest = said.get("digest") if isinstance(said, Mapping) else said
    if not digest:  # the adapter's own files may have left their manifest behind
        name = read_json(adapter.path / settings_file).get("base_model_name_or_path")
        digest = name if str(name).startswith("sha256:") else None
    if digest and digest != base.digest:
        raise UserError(
            f"this adapter was trained on another base model: {digest[:19]}…, and {base.uri} is {base.digest[:19]}…",
            where=f"--adapter {adapter.uri}",
            fix="give the base model that it was trained on; if only other files of it changed, add --allow-other-base",
        )


def quantizations(adapter: Artifact, base: Base, asked: Asked) -> dict[str, Quantization]:
    """By module, the quantization that the adapter was trained with and the merge is to repeat; none for the original.

    Raises UserError where the adapter's record cannot be read or contradicts what is asked for.
    """
    record = adapter.metadata.get("quantization")
    flags = {"type": asked.quant_type, "double_quant": asked.double_quant, "compute_dtype": asked.compute_dtype}
    given = {k: v for k, v in flags.items() if v is not None}
    if asked.base == "original" or (asked.base == "auto" and not record):
        if given:
            flag = {"type": "--quant-type", "double_quant": "--double-quant", "compute_dtype": "--compute-dtype"}
            first = flag[next(iter(given))]
            how = "write --base dequantized for --base original" if asked.base != "auto" else "add --base dequantized"
            raise UserError(
                "it tells how the base was quantized, and the merge goes into the original weights",
                where=first,
                fix=f"{how}, or leave {first} out",
            )
        if isinstance(record, Mapping) and record.get("loftq"):
            what = "the adapter began as what the quantization lost (LoftQ): it belongs to the dequantized base only"
            raise UserError(what, where="--base", fix="leave --base out")
        return {}
    if record is None:
        settings = {"type": "nf4", "double_quant": True, "compute_dtype": "bf16"} | given
        return dict.fromkeys(linear_modules(base), _quantization(settings, adapter))
    if not isinstance(record, Mapping) or not isinstance(record.get("modules"), (list, tuple)):
        raise UserError("its record of the quantization cannot be read", where=adapter.uri, fix="train it again")
    recorded = _quantization(record, adapter)
    if recorded != _quantization({**record, **given}, adapter):
        raise UserError(
            f"it was trained with {recorded.kind}, double quantization {'on' if recorded.double else 'off'}, "
            f"{recorded.compute}; you ask for something else",
            where=f"--adapter {adapter.uri}",
            fix="leave --quant-type, --double-quant and --compute-dtype out",
        )
    return dict.fromkeys(map(str, record["modules"]), recorded)


def _quantization(record: Mapping[str, Any], adapter: Artifact) -> Quantization:
    kind, compute = record.get("type"), _TYPES.get(str(record.get("compute_dtype")))
    block = record.get("blocksize", record.get("block_size", 64))
    if kind not in ("nf4", "fp4") or compute is None or not isinstance(block, int) or block < 1:
        raise UserError(
            f"its quantization is not known here: {kind}, {record.get('compute_dtype')}, blocks of {block}",
            where=adapter.uri,
            fix="merge into the original weights: --base original",
        )
    return Quantization(kind, bool(record.get("double_quant")), compute, block, str(record.get("device", "cuda")))


def linear_modules(base: Base) -> list[str]:
    """The linear layers that transformers quantizes where nobody said which: all but the output layer."""
    found = []
    for name, t in base.weights.tensors.items():
        module = name.removesuffix(".weight")
        leaf = module.rpartition(".")[2]
        embedding = leaf in (*INPUT, *OUTPUT) or "embed" in leaf or leaf == "wpe"
        if name.endswith(".weight") and len(t.shape) == 2 and not embedding and "norm" not in leaf:
            found.append(module)
    return found
