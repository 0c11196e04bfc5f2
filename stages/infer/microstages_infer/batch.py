"""Many prompts: answered in batches of like length, in the order of the input again when they are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from microstages.reporting import Reporter, duration, size

from microstages_infer.decoding import Answer, Clock, Engine, Limits, answer, encode
from microstages_infer.prompts import Row
from microstages_infer.sampling import Sampling
from microstages_infer.scoring import is_correct, percentile

MARGIN = 16  # tokens beyond the longest reference
NEW_TOKENS = 512  # where nothing tells how long an answer may be
SHOWN = 5  # wrong predictions shown at the end


def new_tokens(engine: Engine, rows: Sequence[Row], wanted: int | None) -> int:
    """How many tokens an answer may have: as asked for; else, where all references are known, a little more than the
    longest of them, for a longer answer is wrong anyway.
    """
    if wanted is not None:
        return wanted
    references = [r.reference for r in rows if r.reference is not None]
    if len(references) < len(rows):
        return NEW_TOKENS
    return max(len(encode(engine, r)) for r in references) + MARGIN


def plan(engine: Engine, prompts: Sequence[Sequence[int]], wanted: int, batch_size: int) -> list[list[int]]:
    """Numbers of the prompts, batch by batch: the longest first, so that a batch that needs too much memory fails at
    once and little is padding. A prompt is alone where a batch has no room for its answer, since padding takes room.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    alone = [i for i in order if engine.together is not None and len(prompts[i]) + wanted > engine.together]
    rest = order[len(alone) :]
    return [[i] for i in alone] + [rest[at : at + batch_size] for at in range(0, len(rest), batch_size)]


def answer_all(
    report: Reporter,
    engine: Engine,
    rows: Sequence[Row],
    limits: Limits,
    sampling: Sampling,
    *,
    batch_size: int,
    metric: str,
    normalize: str,
) -> tuple[list[Answer], Clock]:
    """An answer for every row, in the rows' order, and the time that the engine took."""
    prompts = [encode(engine, r.prompt) for r in rows]
    answers: dict[int, Answer] = {}
    if prompts:  # the first steps of a process are slow by nature: not a part of what is measured
        engine.generate([next((p for p in prompts if p), [0])[:8]], 2, None, lambda _: True)
    clock = Clock()
    known = right = 0
    with report.progress("answering", len(rows), "rows") as bar:
        for batch in plan(engine, prompts, limits.new_tokens, batch_size):
            made = answer(engine, [prompts[i] for i in batch], limits, sampling, numbers=batch, clock=clock)
            for i, a in zip(batch, made, strict=True):
                answers[i] = a
                reference = rows[i].reference
                if reference is not None and metric != "none":
                    known += 1
                    right += a.problem is None and is_correct(a.text, reference, metric, normalize)
            values: dict[str, Any] = {"accuracy": f"{right / known:.3f}"} if known else {}
            if clock.decode_seconds:
                values["tokens/s"] = f"{clock.decode_tokens / clock.decode_seconds:,.0f}"
            bar.advance(len(batch), **values)
    return [answers[i] for i in range(len(rows))], clock


def write(
    file: Path,
    rows: Sequence[Row],
    answers: Sequence[Answer],
    marks: Sequence[bool | None],
    losses: Sequence[float | None] = (),
) -> None:
    """`predictions.jsonl`: a line for each row. `correct` is null where no reference is known, `loss` where it was not
    read; without `losses` there is none."""
    with file.open("w", encoding="utf-8", newline="\n") as f:
        for i, (row, a, mark) in enumerate(zip(rows, answers, marks, strict=True)):
            value: dict[str, Any] = {
                "prompt": row.prompt,
                "completion": row.reference,
                "prediction": a.text,
                "ended": a.ended,
                "tokens": a.generated,
                "correct": mark,
            }
            if losses:
                loss = losses[i]
                value["loss"] = None if loss is None else round(loss, 4)
            if a.problem:
                value["problem"] = a.problem
            f.write(json.dumps(value, ensure_ascii=False) + "\n")


def speed(answers: Sequence[Answer], clock: Clock) -> dict[str, float]:
    """Times and rates: of the answers that were made, in seconds and tokens a second."""
    made = [a for a in answers if a.problem is None]
    first, whole = [a.first for a in made], [a.seconds for a in made]
    values = {
        "time_to_first_token_mean_s": sum(first) / len(first) if first else 0.0,
        "time_to_first_token_p50_s": percentile(first, 50),
        "time_to_first_token_p95_s": percentile(first, 95),
        "latency_p50_s": percentile(whole, 50),
        "latency_p95_s": percentile(whole, 95),
        "prefill_tokens_per_s": clock.prefill_tokens / clock.prefill_seconds if clock.prefill_seconds else 0.0,
        "decode_tokens_per_s": clock.decode_tokens / clock.decode_seconds if clock.decode_seconds else 0.0,
        "answering_seconds": clock.prefill_seconds + clock.decode_seconds,
    }
    return {k: round(v, 6 if v < 1 else 3) for k, v in values.items()}


def summary(facts: dict[str, Any], measured: dict[str, Any], batch_size: int) -> str:
    """The closing table."""
    m = measured
    lines = [("rows", f"{facts['rows']:,}")]
    if "accuracy" in facts:
        classes = f", {facts['distinct_references']:,} different references"
        lines.append(
            (
                "accuracy",
                f"{facts['accuracy']:.3f}   ({facts['metric']}; 95 % interval {facts['accuracy_low']:.3f} to "
                f"{facts['accuracy_high']:.3f}; majority class {facts['majority_share']:.3f}{classes})",
            )
        )
        for label, v in facts.get("labels", {}).items():
            lines.append((f"  {_short(label, 14)}", f"{v['recall']:.3f}   of {v['rows']:,}, F1 {v['f1']:.3f}"))
    lines += _measured(m)
    lines.append(("ended", f"{facts['ended_share']:.1%} of the answers"))
    if facts["unanswered"]:
        lines.append(("unanswered", f"{facts['unanswered']:,} prompts that are empty or too long"))
    lines += [
        ("first token", f"{_ms(m['time_to_first_token_p50_s'])} p50, {_ms(m['time_to_first_token_p95_s'])} p95"),
        ("answer", f"{_ms(m['latency_p50_s'])} p50, {_ms(m['latency_p95_s'])} p95   (batches of up to {batch_size})"),
        ("prefill", f"{m['prefill_tokens_per_s']:,.0f} tokens/s"),
        ("decode", f"{m['decode_tokens_per_s']:,.0f} tokens/s"),
        ("memory", f"{size(m['peak_memory_bytes'])} at most; the model's files {size(m['model_bytes'])}"),
    ]
    if "peak_gpu_memory_bytes" in m:
        lines.append(("GPU memory", f"{size(m['peak_gpu_memory_bytes'])} at most"))
    return "\n".join(f"  {name:<16} {value}" for name, value in lines)


def _measured(m: dict[str, Any]) -> list[tuple[str, str]]:
    """Loss, forgetting and agreement, as far as they were measured."""
    lines = []
    if "loss" in m:
        lines.append(("loss", f"{m['loss']:.4f} a token, perplexity {m['perplexity']:.4g}"))
    if "neutral_loss" in m:
        lines.append(
            ("neutral text", f"perplexity {m['neutral_perplexity']:.4g}   ({m['neutral_tokens']:,} tokens)"),
        )
    if "kl_mean" in m:
        lines.append(("agreement", f"{m['top1_agreement']:.3f} of the tokens, KL {m['kl_mean']:.2g}"))
    if "identical_answers_share" in m:
        same = f"{m['common_prefix_tokens']:.1f} tokens alike"
        lines.append(("same answers", f"{m['identical_answers_share']:.1%}, {same}"))
    return lines


def mistakes(rows: Sequence[Row], answers: Sequence[Answer], marks: Sequence[bool | None]) -> str:
    """The first wrong predictions, for a look at what goes wrong; empty where there is none."""
    wrong = [(r, a) for r, a, mark in zip(rows, answers, marks, strict=True) if mark is False][:SHOWN]
    lines = []
    for r, a in wrong:
        said = a.problem or repr(_short(a.text, 60)) + ("" if a.ended else " (not ended)")
        lines.append(f"  {_short(r.prompt, 60)!r}\n    wanted {_short(r.reference or '', 60)!r}, got {said}")
    return "\n".join(lines)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms" if seconds < 1 else duration(seconds)
