"""The program `merge`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated, Literal

from microstages.artifact import Artifact, Draft
from microstages.errors import UserError
from microstages.reporting import size
from microstages.stage import Input, Output, Param, Run, stage

if TYPE_CHECKING:
    from microstages_merge.recipe import Plan

# What infer and build-onnx want to know about the data that an adapter was trained on.
CARRIED = ("end_token", "end_token_id", "stop_token_ids", "template", "max_length")


@stage("merge", package="microstages_merge")
def main(
    run: Run,
    base_model: Annotated[Artifact, Input("model", help="the model that the adapter was trained on")],
    adapter: Annotated[Artifact, Input("adapter", help="from train-lora, train-qlora or PEFT")],
    output: Annotated[Draft, Output("model", name="model")],
    base: Annotated[
        Literal["auto", "original", "dequantized"],
        Param("weights to merge into; auto: those that the adapter was trained on"),
    ] = "auto",
    dtype: Annotated[
        Literal["base", "bf16", "fp16", "fp32"], Param("type of the merged weights; base: each stays as it is")
    ] = "base",
    quant_type: Annotated[
        Literal["nf4", "fp4"] | None,
        Param("how the base was quantized, for an adapter without a record of it (then nf4)"),
    ] = None,
    double_quant: Annotated[bool | None, Param("whether the scales were quantized too (then yes)")] = None,
    compute_dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None, Param("what it was dequantized to in training (then bf16)")
    ] = None,
    allow_other_base: Annotated[
        bool, Param("merge although the adapter names another base model; names and shapes must fit")
    ] = False,
    threads: Annotated[int, Param("threads; 0: as many as there are cores", min=0, max=256, affects_result=False)] = 0,
) -> None:
    """Merge a LoRA adapter into its base model.

    Sums in fp32, rounds once, and never holds more than a few blocks of a tensor in memory. Reads and writes
    safetensors; the tokenizer, the chat template and the settings go with the weights.
    """
    set_blas()
    from microstages.tensors import Weights, model_files

    from microstages_merge import files, origin
    from microstages_merge.adapter import CONFIG, FILE, check_finite, read_adapter
    from microstages_merge.plan import Base, make_plan

    began = time.monotonic()
    config = files.read_config(base_model)
    if not allow_other_base:
        origin.check_base(base_model, adapter, CONFIG)
    file = adapter.file(FILE, fix="save it as PEFT does: model.save_pretrained(folder), as safetensors")
    with Weights(model_files(base_model.path)) as mine, Weights([file]) as theirs:
        model, learned = Base(base_model.path, config, mine), read_adapter(adapter.path, theirs)
        asked = origin.Asked(base, quant_type, double_quant, compute_dtype)
        quantized = origin.quantizations(adapter, model, asked)
        plan = make_plan(model, learned, dtype, quantized)
        files.check_vocabulary(adapter, plan.vocabulary)
        check_finite(learned)
        check_space(plan, output)
        for note in notes(plan, adapter, base):
            run.warn(note)
        said = ", ".join(f"{n} {what}" for what, n in plan.counts().items() if n)
        run.log(f"merging into the {'dequantized' if quantized else 'original'} base: tensors {said}")
        files.write(output.path, base_model, adapter, config, plan.config)
        from microstages.machine import cores

        from microstages_merge.write import write_weights

        write_weights(plan, (mine, theirs), output, run.report, threads or cores())
    output.metadata.update(
        base_model={"digest": base_model.digest},
        adapter={"digest": adapter.digest},
        base="dequantized" if quantized else "original",
        parameters=sum(r.source.count for r in plan.recipes),
        tensors=plan.counts(),
        tokenizer_sha256=files.tokenizer_sha256(output.path),
        **{k: v for k in CARRIED if (v := adapter.metadata.get(k)) is not None},
    )
    output.metrics["seconds"] = round(time.monotonic() - began, 3)


def set_blas() -> None:
    """Settle how numpy multiplies, before it is imported: see `compute`."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the merge spreads blocks over threads itself
    try:
        with open("/proc/cpuinfo") as f:
            flags = next((line.split() for line in f if line.startswith("flags")), [])
    except OSError:
        flags = []
    if {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= set(flags):
        # What OpenBLAS takes by itself, unless the environment says otherwise: the bits must not depend on that.
        os.environ["OPENBLAS_CORETYPE"] = "SkylakeX"


def check_space(plan: Plan, output: Draft) -> None:
    """Raises UserError where the disk has no room for the weights."""
    needed, disk = sum(r.nbytes for r in plan.recipes), os.statvfs(output.path)
    if (free := disk.f_bavail * disk.f_frsize) < needed:
        raise UserError(
            f"the merged weights need {size(needed)}, and {size(free)} are free",
            where=output.uri,
            fix="free some space, or choose another place, and run again",
        )


def notes(plan: Plan, adapter: Artifact, base: str) -> list[str]:
    """What the user may want to know or change."""
    found = []
    if plan.config.get("tie_word_embeddings") is False:
        found.append("input and output embeddings were trained apart: the merged model has both, untied")
    if adapter.manifest is None and base == "auto":
        found.append(
            "the adapter has no record of how it was trained: it is merged into the weights as they are; "
            "if they were 4-bit in training (QLoRA), use --base dequantized"
        )
    return found


if __name__ == "__main__":
    main()
