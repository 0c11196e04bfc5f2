"""The stage build-onnx: check, build, look at what was built, run it, commit."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from microstages.artifact import Artifact, Draft
from microstages.errors import UserError
from microstages.machine import cores
from microstages.reporting import size
from microstages.stage import Input, Output, Param, Run, stage

from microstages_build_onnx.child import Child

# The mean KL divergence (nats) above which a floating point build is not the model that it came from.
KL_LIMITS = {"fp32": 0.01, "fp16": 0.05, "bf16": 0.1}
KL_WARNING = 0.5


@stage("build-onnx", package="microstages_build_onnx")
def main(
    run: Run,
    model: Annotated[Artifact, Input("model", help="a merged model, or any model folder")],
    output: Annotated[Draft, Output("onnx-model", name="model")],
    prompts: Annotated[
        Artifact | None, Input("files", help="prompts to compare on: text or JSON Lines (prompt or messages)")
    ] = None,
    dataset: Annotated[Artifact | None, Input("dataset", help="compare on its held-out rows")] = None,
    precision: Annotated[Literal["int4", "int8", "fp16", "bf16", "fp32"], Param("type of the weights")] = "int4",
    execution_provider: Annotated[
        Literal["cpu", "cuda", "dml", "webgpu"], Param("what the model will run on")
    ] = "cpu",
    algorithm: Annotated[
        Literal["default", "rtn", "k_quant", "rtn_last", "k_quant_last", "k_quant_mixed", "k_quant_linear"],
        Param("how int4 and int8 weights are rounded; _last, _mixed, _linear keep some of them in int8"),
    ] = "default",
    block_size: Annotated[int, Param("weights that share a scale, a power of two", min=16, max=256)] = 32,
    accuracy_level: Annotated[
        int | None,
        Param("least precision of activations: 0 as they come, 1 fp32, 2 fp16, 3 bf16, 4 int8; "
              "if not given 4 on cpu and webgpu, else 0", min=0, max=4),
    ] = None,
    symmetric: Annotated[
        bool | None, Param("no zero points; if not given, as the algorithm does (k_quant: zero points)")
    ] = None,
    op_types_to_quantize: Annotated[
        list[Literal["MatMul", "Gather"]] | None,
        Param("what is quantized: MatMul, Gather (embeddings); if not given MatMul, and embeddings that are shared"),
    ] = None,
    nodes_to_exclude: Annotated[
        list[str] | None, Param("nodes that stay floating point, such as /lm_head/MatMul")
    ] = None,
    mixed_precision: Annotated[
        list[str] | None, Param("SELECTOR:TYPE, with last_matmul, mixed_layers or linear_attn, and int4 or int8")
    ] = None,
    shared_embeddings: Annotated[
        bool | None, Param("one matrix for embeddings and output layer; if not given, as the model has it")
    ] = None,
    exclude_embeds: Annotated[bool, Param("leave the embeddings out: the input is inputs_embeds")] = False,
    exclude_lm_head: Annotated[bool, Param("leave the output layer out: the output is hidden_states")] = False,
    include_hidden_states: Annotated[bool, Param("give hidden_states beside the logits")] = False,
    enable_cuda_graph: Annotated[bool, Param("capture CUDA graphs when run")] = False,
    use_qdq: Annotated[bool, Param("write quantize and dequantize nodes instead of MatMulNBits")] = False,
    extra_options: Annotated[list[str] | None, Param("KEY=VALUE of the model builder that has no flag here")] = None,
    layout: Annotated[
        Literal["flat", "foundry-local", "ai-toolkit"],
        Param("flat: as ONNX Runtime GenAI reads it; foundry-local: with inference_model.json beside it; ai-toolkit: "
              "flat, and runner pull puts it into the four folders below ~/.aitk/models by which AI Toolkit lists it"),
    ] = "flat",
    model_name: Annotated[
        str | None,
        Param("what Foundry Local lists it as, or PUBLISHER/MODEL in AI Toolkit; if not given its architecture, "
              "precision and provider"),
    ] = None,
    verify: Annotated[
        Literal["auto", "required", "skip"],
        Param("run the result and compare it with the model; auto: where its execution provider is present"),
    ] = "auto",
    prompt_count: Annotated[int, Param("prompts to compare on at most", min=1, max=10000)] = 16,
    compare_tokens: Annotated[int, Param("tokens to continue each prompt by", min=1, max=4096)] = 32,
    max_kl: Annotated[
        float | None,
        Param("fail where the mean KL divergence from the model is larger; if not given 0.01 for fp32, 0.05 for "
              "fp16, 0.1 for bf16, and a warning above 0.5 for int4 and int8", above=0, unit="nats"),
    ] = None,
) -> None:  # fmt: skip
    """Build an ONNX model for ONNX Runtime GenAI, quantized as asked, and compare it with the model it came from."""
    from microstages_build_onnx import finish, graph, options, source
    from microstages_build_onnx.prompts import chats, gather

    began = time.monotonic()
    origin = source.read_source(model)
    kind = str(origin.config.get("model_type", "model"))
    place = finish.ai_toolkit(model_name or kind, precision, execution_provider) if layout == "ai-toolkit" else None
    flags = {
        "exclude_embeds": exclude_embeds,
        "exclude_lm_head": exclude_lm_head,
        "include_hidden_states": include_hidden_states,
        "enable_cuda_graph": enable_cuda_graph,
        "use_qdq": use_qdq,
    }
    asked = options.resolve(
        origin.shape, precision=precision, execution_provider=execution_provider, algorithm=algorithm,
        block_size=block_size, accuracy_level=accuracy_level, symmetric=symmetric,
        op_types_to_quantize=["MatMul"] if op_types_to_quantize is None else list(op_types_to_quantize),
        nodes_to_exclude=nodes_to_exclude or [], mixed_precision=mixed_precision or [],
        shared_embeddings=shared_embeddings, flags=flags, extra_options=extra_options or [],
    )  # fmt: skip
    skipped = _why_not_run(verify, asked)
    on = gather(origin.text, origin.context_length, prompt_count, compare_tokens, prompts, dataset)
    _warn(run, origin, asked)

    stop = finish.stop_ids(origin)
    with tempfile.TemporaryDirectory(prefix="build-onnx-") as scratch:
        view = Path(scratch) / "view"
        view.mkdir()
        source.make_view(origin, view)
        job: dict[str, Any] = {
            "view": str(view), "output": str(output.path), "scratch": scratch, "where": model.uri,
            "precision": precision, "execution_provider": execution_provider,
            "options": _pairs(origin.builder_options, asked.to_builder()), "layers": origin.config["num_hidden_layers"],
            "prompts": on.ids, "texts": on.texts, "chats": chats(origin.text), "tokens": compare_tokens,
            "threads": cores(),
        }  # fmt: skip
        with _child(run, "builder", "the model builder") as builder:
            built = builder.ask(job | {"do": "build"})
            found = graph.read_graph(output.path / "model.onnx")
            graph.check(found, asked)
            finish.finish(origin, output.path)
            if layout == "foundry-local":
                finish.foundry(origin, output.path, model_name or f"{kind}-{precision}-{execution_provider}")
            with _child(run, "check", "the ONNX model") as runtime:
                tokenizer = runtime.ask(job | {"do": "settle"})
                answered = None if skipped else runtime.ask(job | {"do": "answer"})
            compared = builder.ask(job | {"do": "compare", "answers": answered["answers"]}) if answered else None

    _tokenizer_words(run, tokenizer)
    size_bytes = sum(p.stat().st_size for p in output.path.iterdir() if p.name.startswith("model.onnx"))
    output.metadata.update(
        precision=precision,
        execution_provider=execution_provider,
        architecture=origin.architecture,
        algorithm=algorithm if asked.bits else None,
        weights=found.summary(),
        shared_embeddings=found.shared_embeddings,
        options={k: v for k, v in flags.items() if v} | asked.extra,
        context_length=origin.context_length,
        vocab_size=origin.vocab_size,
        stop_token_ids=stop,
        tokenizer_sha256=origin.text.sha256,
        tokenizer_class=tokenizer["class"],
        source_digest=model.digest,
        adaptions=origin.adaptions,
        verified=not skipped,
        not_verified_because=skipped or None,
    )
    output.metrics.update(
        size_bytes=size_bytes,
        source_size_bytes=origin.weight_bytes,
        build_seconds=built["build_seconds"],
        build_peak_memory_bytes=built["peak_memory_bytes"],
    )
    if template := model.metadata.get("template"):
        output.metadata["template"] = template  # how its prompts were written: infer and the model card tell it
    if place:
        output.metadata["folder"] = place
        run.log(f"AI Toolkit wants it in ~/.aitk/models/{place}; runner pull puts it there")
    if answered and compared:
        output.metrics.update(_figures(answered, compared), prompts=len(on.ids), prompts_from=on.origin)
        run.report.metric(**output.metrics)
        _comparison_words(run, answered, compared, len(on.ids))
        _judge(run, compared["mean_kl"], precision, max_kl, model.uri)
    else:
        run.warn(f"NOT VERIFIED: {skipped}")
    output.metrics["threads"] = job["threads"]
    output.metrics["software"] = {**built["software"], **tokenizer["software"]}
    output.metrics["seconds"] = round(time.monotonic() - began, 2)
    run.log(f"{precision} for {execution_provider}: {size(size_bytes)}, from {size(origin.weight_bytes)}")


def _why_not_run(verify: str, asked: Any) -> str:
    """Why the result cannot be run here; the empty string where it can. Raises UserError where it must but cannot."""
    if verify == "skip":
        return "verify is skip"
    ep, why = asked.execution_provider, ""
    if not asked.text_to_logits:
        why = "a model without embeddings or output layer cannot generate by itself"
    elif ep != "cpu":
        import onnxruntime
        import onnxruntime_genai as og

        name = {"cuda": "CUDA", "dml": "Dml", "webgpu": "WebGpu"}[ep] + "ExecutionProvider"
        if name not in onnxruntime.get_available_providers() or not getattr(og, f"is_{ep}_available")():
            why = f"there is no {ep} here (onnxruntime has {', '.join(onnxruntime.get_available_providers())})"
    if why and verify == "required":
        raise UserError(why, where="--verify", fix="run where it is, or use --verify auto to build without running")
    return why


def _pairs(first: dict[str, str], then: list[str]) -> list[str]:
    """The source's own builder options, where the user's say nothing else."""
    given = {pair.partition("=")[0] for pair in then}
    return [*then, *(f"{k}={v}" for k, v in first.items() if k not in given)]


def _warn(run: Run, origin: Any, asked: Any) -> None:
    from microstages_build_onnx.source import memory_available, memory_needed

    needed, there = memory_needed(origin), memory_available()
    if there is not None and needed > there:
        run.warn(f"building takes about {size(needed)} of memory; {size(there)} are free: it may be stopped")
    if asked.bits and asked.block_size > min(origin.shape.row_lengths):
        run.warn(
            f"blocks of {asked.block_size} are longer than rows of {min(origin.shape.row_lengths)}: padding is stored"
        )
    if asked.precision == "fp16" and asked.execution_provider == "cpu":
        run.warn("fp16 on cpu is computed by way of fp32, slower than fp32, int8 or int4")
    for what, how in origin.adaptions.items():
        run.log(f"{what} {how}")


@contextmanager
def _child(run: Run, module: str, name: str) -> Iterator[Child]:
    """One of this package's children, with its progress shown."""
    with run.report.progress(name, unit="steps") as bar:

        def say(label: str, done: float, total: float) -> None:
            bar.label, bar.total = label, total
            bar.update(done)

        with Child(f"microstages_build_onnx.{module}", name, say) as child:
            yield child


def _tokenizer_words(run: Run, tokenizer: dict[str, Any]) -> None:
    if tokenizer["own_class"] not in (None, tokenizer["class"]):
        run.log(
            f"tokenizer class {tokenizer['class']} written for {tokenizer['own_class']}: "
            "with it the runtime reads text as the model's tokenizer does"
        )
    if tokenizer["probes_differ"]:
        run.warn(
            f"ONNX Runtime GenAI reads {tokenizer['probes_differ']} of {tokenizer['probes']} unusual texts as other "
            f"tokens than the model's tokenizer, such as {tokenizer['example'][:40]!r}"
        )
    if tokenizer["template"]:
        run.warn(
            "ONNX Runtime GenAI's own template engine does not render this chat template rightly "
            f"({tokenizer['template']}): render it before, as the stage infer does"
        )


def _figures(answered: dict[str, Any], compared: dict[str, Any]) -> dict[str, Any]:
    """The measured numbers of the record, flat: speeds with `source_` are those of the model it came from."""
    names = ("positions", "max_logit_difference", "mean_kl", "max_kl", "top1_agreement", "equal_answers")
    values = {k: compared[k] for k in names} | {"load_seconds": answered["load_seconds"]}
    for prefix, of in (("", answered), ("source_", compared)):
        values |= {f"{prefix}{phase}_tokens_per_second": v for phase, v in of["speed"].items()}
    rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
    return rounded | {"source_device": compared["device"], "peak_memory_bytes": answered["peak_memory_bytes"]}


def _comparison_words(run: Run, answered: dict[str, Any], compared: dict[str, Any], count: int) -> None:
    run.log(
        f"compared with the model in fp32 on {count} prompts: same next token {compared['top1_agreement']:.1%} of "
        f"{compared['positions']}, whole answers equal {compared['equal_answers']} of {count}, "
        f"mean KL {compared['mean_kl']:.2g}, largest logit difference {compared['max_logit_difference']:.2g}"
    )
    phases = " and ".join(
        f"{phase} {speed:,.0f} tokens/s (transformers {compared['speed'][phase]:,.0f})"
        for phase, speed in answered["speed"].items()
        if speed and compared["speed"][phase]
    )
    run.log(f"speed: {phases or 'the answers are too short to tell'}")


def _judge(run: Run, kl: float, precision: str, max_kl: float | None, where: str) -> None:
    limit = KL_LIMITS.get(precision) if max_kl is None else max_kl
    if limit is not None and kl > limit:
        raise UserError(
            f"the result is not the model that it came from: mean KL divergence {kl:.3g}, above {limit:g}", where=where,
            fix="try another algorithm, a smaller block size or a higher precision; or raise --max-kl",
        )  # fmt: skip
    if kl > KL_WARNING:
        run.warn(f"the answers differ much from the model's (mean KL divergence {kl:.2g}): try a higher precision")


if __name__ == "__main__":
    main()
