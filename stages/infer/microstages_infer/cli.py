"""The command `infer`: one form of a model in, answers out."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from microstages.artifact import Artifact, Draft
from microstages.errors import UserError
from microstages.stage import Input, Output, Param, Run, stage

from microstages_infer.decoding import Engine, Limits
from microstages_infer.measure import Measure, Wish
from microstages_infer.prompts import Row, Wrap, follows, form_of, from_dataset, from_files
from microstages_infer.sampling import Sampling


@stage("infer", package="microstages_infer")
def main(
    run: Run,
    *,
    model: Annotated[Artifact, Input("model", "onnx-model", help="a model in any form: base, merged, ONNX")],
    adapter: Annotated[Artifact | None, Input("adapter", help="put on the base model, unmerged")] = None,
    dataset: Annotated[Artifact | None, Input("dataset", help="answer its held-out rows, and compare")] = None,
    prompts: Annotated[
        Artifact | None, Input("files", help=".txt: a prompt a line; else JSON Lines: prompt or messages, completion")
    ] = None,
    neutral: Annotated[
        Artifact | None, Input("files", help="a plain text not of the task: perplexity on it tells what was forgotten")
    ] = None,
    reference: Annotated[
        Artifact | None, Input("predictions", help="of another form, made with --keep-scores: how far this one agrees")
    ] = None,
    output: Annotated[
        Draft | None,
        Output("predictions", name="predictions", help="predictions.jsonl; needed with dataset or prompts"),
    ] = None,
    prompt: Annotated[str | None, Param("answer this one prompt, as it is, and show the answer as it comes")] = None,
    chat: Annotated[bool, Param("talk: on a terminal, or with the lines of stdin")] = False,
    serve: Annotated[
        bool, Param("answer over HTTP, with OpenAI's API, until told to stop", affects_result=False)
    ] = False,
    host: Annotated[
        str, Param("of --serve: the address to listen on; one that others reach wants a key", affects_result=False)
    ] = "127.0.0.1",
    port: Annotated[
        int, Param("of --serve; 0 takes a free one, and says it", min=0, max=65535, affects_result=False)
    ] = 8080,
    api_key_file: Annotated[
        str | None,
        Param("of --serve: the key that requests must bring; or put it in MICROSTAGES_API_KEY", affects_result=False),
    ] = None,
    served_name: Annotated[
        str | None,
        Param("of --serve: the model's name in the API; else the last part of its place", affects_result=False),
    ] = None,
    max_concurrent: Annotated[
        int, Param("of --serve: answered side by side", min=1, unit="requests", affects_result=False)
    ] = 8,
    max_waiting: Annotated[
        int, Param("of --serve: more than these are turned away", min=0, unit="requests", affects_result=False)
    ] = 32,
    grace: Annotated[
        float, Param("of --serve: what runs may go on after SIGTERM", min=0, unit="seconds", affects_result=False)
    ] = 8.0,
    as_chat: Annotated[bool, Param("put each bare prompt in the chat template, as a user's message")] = False,
    add_bos: Annotated[
        bool, Param("begin each bare prompt with the tokenizer's bos token, unless it does already")
    ] = False,
    system: Annotated[str | None, Param("system message before a chat, messages or --as-chat")] = None,
    max_new_tokens: Annotated[
        int | None,
        Param(
            "an answer's most tokens; else 512, or 16 more than the longest of known references", min=1, unit="tokens"
        ),
    ] = None,
    temperature: Annotated[float, Param("0 takes the likeliest token; higher is more varied", min=0)] = 0.0,
    top_k: Annotated[int | None, Param("draw from the k likeliest tokens only", min=1)] = None,
    top_p: Annotated[float | None, Param("draw from the likeliest tokens of this share only", above=0, max=1)] = None,
    repetition_penalty: Annotated[
        float, Param("above 1 makes tokens that were there already less likely", above=0)
    ] = 1.0,
    seed: Annotated[int, Param("of the draws; each row has draws of its own", min=0)] = 0,
    stop: Annotated[
        list[str], Param("a text that ends an answer, beside the model's stop tokens; may be repeated")
    ] = [],  # noqa: B006
    batch_size: Annotated[int, Param("rows answered together", min=1, unit="rows")] = 16,
    limit: Annotated[int | None, Param("answer the first rows only", min=1, unit="rows")] = None,
    metric: Annotated[
        Literal["auto", "exact_match", "starts_with", "none"],
        Param("what a right answer is; auto: exact_match if known"),
    ] = "auto",
    normalize: Annotated[
        Literal["none", "strip", "case"], Param("before comparing: strip white space, also make case and spaces alike")
    ] = "strip",
    loss: Annotated[
        Literal["auto", "yes", "no"],
        Param("of the right answers, read in a pass of their own; auto: where scores, reference or neutral are given"),
    ] = "auto",
    keep_scores: Annotated[
        bool, Param("keep the likeliest 64 tokens at each place of the right answers, for others to compare with")
    ] = False,
    neutral_window: Annotated[int, Param("neutral text that is read at once", min=2, unit="tokens")] = 256,
    neutral_tokens: Annotated[int, Param("neutral text that is read at most", min=2, unit="tokens")] = 16384,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], Param("of torch; auto: fp32 on a CPU, the model's own on a GPU")
    ] = "auto",
    device: Annotated[Literal["auto", "cpu", "cuda"], Param("auto: a GPU where there is one; ONNX: as built")] = "auto",
    threads: Annotated[
        int | None, Param("default: the cores that this process may use", min=1, affects_result=False)
    ] = None,
) -> None:
    """Answer prompts with a model in any form, and measure how well and how fast."""
    where = {"--host": (host, "127.0.0.1"), "--port": (port, 8080), "--api-key-file": (api_key_file, None),
             "--served-name": (served_name, None), "--max-concurrent": (max_concurrent, 8),
             "--max-waiting": (max_waiting, 32), "--grace": (grace, 8.0)}  # fmt: skip
    if not serve and (strange := [flag for flag, (value, default) in where.items() if value != default]):
        raise UserError("nothing is served", where=strange[0], fix="add --serve, or leave this out")
    _check(
        model=model, adapter=adapter, dataset=dataset, prompts=prompts, output=output, prompt=prompt, chat=chat,
        serve=serve, as_chat=as_chat, add_bos=add_bos, system=system, limit=limit, metric=metric, precision=precision,
    )  # fmt: skip
    wish = Wish(loss, keep_scores, neutral, neutral_window, neutral_tokens, reference)
    wish.check(dataset is not None or prompts is not None)
    if temperature == 0 and not serve and (top_k is not None or top_p is not None):
        raise UserError(
            "nothing is drawn at temperature 0",
            where="--top-k" if top_k is not None else "--top-p",
            fix="set --temperature above 0, or leave this out",
        )
    if "" in stop:
        raise UserError("a stop text must not be empty", where="--stop", fix="leave it out")
    from microstages.machine import peak_memory
    from microstages.tokens import ModelText

    from microstages_infer import batch, scoring, talk

    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    # what is asked is read before the model, which takes long
    wrap = Wrap(ModelText(model.path), as_chat, system, add_bos)
    wrap.text.tokenizer  # noqa: B018  (says what is wrong with it before the model is loaded)
    rows: list[Row] = []
    if dataset is not None:
        rows, without = from_dataset(dataset)
        if without:
            run.warn(f"{without:,} held-out rows are left out: no prompt is known for them")
    elif prompts is not None:
        rows = from_files(prompts, wrap)
    elif prompt is not None:
        rows = [Row(wrap.prompt(prompt))]
    rows = rows[:limit]
    if dataset is None and rows and wrap.lacks_bos(rows[0].prompt):
        run.log("this tokenizer would begin a text with its bos token; here it begins as it is written (see --add-bos)")
    form = next((f for a in (adapter, model) if a is not None and (f := form_of(a.metadata)) is not None), None)
    if form is not None and dataset is None and not serve:
        _check_form(run, form, wrap, rows)
    known = sum(r.reference is not None for r in rows)
    if metric not in ("auto", "none") and not known:
        raise UserError(
            f"no row has a reference, so {metric} cannot be told",
            where="--metric",
            fix="give rows with a completion, or leave --metric out",
        )
    metric_ = "exact_match" if metric == "auto" else metric
    measure = Measure(wish, wrap, rows, dataset)

    place = None
    if serve:
        from microstages_infer.serve import Place, Settings

        place = Place(Settings(host, port, served_name, api_key_file, max_concurrent, max_waiting, grace), run.report)
    began = time.perf_counter()
    engine = _engine(run, model, adapter, device=device, precision=precision, threads=threads, later=serve)
    loading = time.perf_counter() - began
    if not engine.stop_ids and not stop:
        run.warn("the model names no end token: every answer runs until its most tokens")
    _check_vocabulary(dataset, engine, run)
    if place is not None:
        place.serve(model, engine, wrap, sampling, tuple(stop), max_new_tokens, form)
    limits = Limits(
        batch.new_tokens(engine, rows, max_new_tokens) if rows else max_new_tokens or batch.NEW_TOKENS, tuple(stop)
    )
    if chat:
        talk.chat(engine, system, limits, sampling, run.report)
        return
    if prompt is not None:
        made, clock = talk.one(engine, rows[0].prompt, limits, sampling, run.report)
        answers = [made]
    else:
        answers, clock = batch.answer_all(
            run.report, engine, rows, limits, sampling, batch_size=batch_size, metric=metric_, normalize=normalize
        )
    if output is None:
        return
    peak = peak_memory()  # of answering alone
    marks, facts = scoring.score(rows, answers, metric_, normalize)
    measured = measure.run(run.report, engine, answers, batch_size, output.path)
    batch.write(output.path / "predictions.jsonl", rows, answers, marks, measured.losses)
    kind = "onnx" if model.kind == "onnx-model" else "adapter" if adapter else "model"
    output.metadata.update(form=kind, max_new_tokens=limits.new_tokens, rows_digest=measure.digest, **facts)
    if reference is not None:
        output.metadata["reference"] = reference.digest
    output.metrics.update(
        **{k: v for k, v in facts.items() if k not in ("labels", "confusion")},
        **measured.figures,
        **batch.speed(answers, clock),
        **peak,
        model_bytes=_weight(model) + (_weight(adapter) if adapter else 0),
        disk_bytes=_all(model) + (_all(adapter) if adapter else 0),
        load_seconds=round(loading, 3),
        batch_size=batch_size,
        engine=engine.name,
        device=engine.device,
        precision=engine.precision,
    )
    if prompt is None:
        run.report.metric(**{k: v for k, v in output.metrics.items() if isinstance(v, (int, float))})
        run.log(batch.summary(facts, output.metrics, batch_size))
        if wrong := batch.mistakes(rows, answers, marks):
            run.log(f"some wrong predictions:\n{wrong}")


def _check(
    *,
    model: Artifact,
    adapter: Artifact | None,
    dataset: Artifact | None,
    prompts: Artifact | None,
    output: Draft | None,
    prompt: str | None,
    chat: bool,
    serve: bool,
    as_chat: bool,
    add_bos: bool,
    system: str | None,
    limit: int | None,
    metric: str,
    precision: str,
) -> None:
    """Raises UserError where flags do not go together."""
    asked = {"--dataset": dataset, "--prompts": prompts, "--prompt": prompt, "--chat": chat or None,
             "--serve": serve or None}  # fmt: skip
    given = [flag for flag, value in asked.items() if value is not None]
    if len(given) != 1:
        raise UserError(
            f"{' and '.join(given)} are given" if given else "there is nothing to answer",
            fix=f"give one of {', '.join(asked)}",
        )
    many = given[0] in ("--dataset", "--prompts")
    if many and output is None:
        raise UserError("there is no place for the predictions", where=given[0], fix="give --output, a new folder")
    if (chat or serve) and output is not None:
        what = "a chat" if chat else "a server"
        raise UserError(f"{what} writes no predictions", where="--output", fix="leave it out")
    if not many and limit is not None:
        raise UserError("there are no rows to limit", where="--limit", fix="leave it out")
    if not many and metric not in ("auto", "none"):
        raise UserError("there are no rows to compare", where="--metric", fix="leave it out")
    if as_chat and given[0] in ("--dataset", "--chat", "--serve"):
        already = (
            "the held-out rows are text as the model was trained on" if dataset else "a chat is in its form already"
        )
        raise UserError(already, where="--as-chat", fix="leave it out")
    if add_bos and (as_chat or chat or dataset is not None):
        raise UserError(
            "the text of this is not bare: its template or data set says how it begins",
            where="--add-bos",
            fix="leave it out",
        )
    if system is not None and not (chat or serve or as_chat or prompts is not None):
        what = "a system message needs a chat, and this prompt is bare text"
        raise UserError(what, where="--system", fix="add --as-chat, or leave --system out")
    if prompt is not None and not prompt.strip():
        raise UserError("the prompt is empty", where="--prompt", fix="say something")
    if model.kind == "onnx-model":
        if adapter is not None:
            raise UserError(
                "an adapter cannot be put on an ONNX model",
                where="--adapter",
                fix="merge it into its base model with `merge`, then build that with `build-onnx`",
            )
        if precision != "auto":
            raise UserError(
                "an ONNX model has the precision that it was built with",
                where="--precision",
                fix="leave it out, or build the model with another one",
            )


def _engine(
    run: Run, model: Artifact, adapter: Artifact | None, *, device: str, precision: str, threads: int | None,
    later: bool = False,
) -> Engine:  # fmt: skip
    from microstages.machine import cores

    if model.kind == "onnx-model":
        from microstages_infer.onnx_engine import OnnxEngine

        return OnnxEngine(model, device, threads or cores(), later=later)
    from microstages_infer.torch_engine import TorchEngine

    return TorchEngine(model, adapter, device=device, precision=precision, threads=threads or cores(), warn=run.warn)


def _check_vocabulary(dataset: Artifact | None, engine: Engine, run: Run) -> None:
    """Warn where the data set was made for a model of another vocabulary."""
    if dataset is None:
        return
    theirs, ours = dataset.metadata.get("vocab_size"), engine.text.tokenizer.get_vocab_size()
    if theirs is not None and theirs != ours:
        run.warn(
            f"the data set was prepared for a tokenizer of {theirs:,} entries, the model's has {ours:,}: its prompts "
            "may not be in this model's form"
        )


def _check_form(run: Run, form: str, wrap: Wrap, rows: list[Row]) -> None:
    """Say how the prompts were written that the model was tuned on, where none here is; no rows: a chat."""
    bos = wrap.text.special("bos_token") or ""
    chat = wrap.chat_is_of(form)
    if wrap.chat or not rows:
        good = chat
    else:
        good = any(follows(form, r.prompt) or follows(form, r.prompt.removeprefix(bos)) for r in rows)
    if not good:
        what = "these prompts are" if len(rows) > 1 else "this prompt is" if rows else "a chat is"
        what += " not: --as-chat makes that of it" if chat else " not: its answers may be worse"
        run.log(f"it was tuned on prompts of the form {form!r}, and {what}")


def _weight(artifact: Artifact) -> int:
    """Bytes of the files that hold weights."""
    names = (n for n in artifact.files if n.endswith((".safetensors", ".onnx", ".onnx.data", ".onnx_data")))
    return sum((artifact.path / n).stat().st_size for n in names)


def _all(artifact: Artifact) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in artifact.paths())


if __name__ == "__main__":
    main()
