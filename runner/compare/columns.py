"""The figures that are shown of each form: their names, their words, how they are written, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microstages.reporting import number_of, size

from runner.summary import count, milliseconds, share, table

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A metric. `of`: the table of the page that it is in. `long`: only the page has room for it. `better`: -1 less, 1
    more, 0 neither."""

    of: str
    key: str
    words: str
    write: Callable[[float], str]
    help: str
    better: int = 0
    long: bool = False


def percent(x: float) -> str:
    return f"{x:.1%}"


def loss(x: float) -> str:
    return f"{x:.4f}"


def perplexity(x: float) -> str:
    return f"{x:,.2f}" if x < 1e4 else f"{x:.2g}"


def small(x: float) -> str:
    return "0" if x == 0 else f"{x:.2g}" if x >= 1e-4 else f"{x:.0e}"


QUALITY, AGREEMENT, COST = "Quality", "Agreement with the reference", "Size and speed"
COLUMNS: Sequence[Column] = (
    Column(COST, "disk_bytes", "size", size, "all files of the model, and of its adapter", -1),
    Column(QUALITY, "accuracy", "accuracy", share, "share of right answers, with its 95 % interval (Wilson)", 1),
    Column(QUALITY, "majority_share", "majority class", share,
           "accuracy of always giving the most frequent answer", long=True),
    Column(QUALITY, "macro_f1", "macro F1", share, "mean of the classes' F1", 1, long=True),
    Column(QUALITY, "loss", "loss", loss, "cross entropy of the right answers, in nats a token", -1),
    Column(QUALITY, "perplexity", "perplexity", perplexity, "of the right answers", -1, long=True),
    Column(QUALITY, "ended_share", "ended", percent, "answers that a stop token or text ended", 1),
    Column(QUALITY, "empty_share", "empty", percent, "answers without text", -1, long=True),
    Column(QUALITY, "no_class_share", "no class", percent, "answers that are none of the classes", -1, long=True),
    Column(AGREEMENT, "kl_mean", "KL", small, "divergence from the reference, in nats a token (a lower bound)", -1),
    Column(AGREEMENT, "top1_agreement", "top-1", percent,
           "places where the reference finds the same token likeliest", 1, long=True),
    Column(AGREEMENT, "identical_answers_share", "same answers", percent,
           "answers that are the reference's, token for token", 1, long=True),
    Column(AGREEMENT, "common_prefix_tokens", "prefix", count,
           "tokens that an answer and the reference's begin with alike", 1, long=True),
    Column(QUALITY, "neutral_perplexity", "neutral text", perplexity,
           "perplexity on a text that is not of the task", -1, long=True),
    Column(COST, "prefill_tokens_per_s", "prefill tok/s", count, "prompt tokens read in a second", 1, long=True),
    Column(COST, "decode_tokens_per_s", "decode tok/s", count, "tokens made in a second", 1),
    Column(COST, "time_to_first_token_p50_s", "first token", milliseconds,
           "median, from the start of a row's batch", -1),
    Column(COST, "time_to_first_token_p95_s", "first token p95", milliseconds, "95th percentile", -1, long=True),
    Column(COST, "peak_memory_bytes", "memory", size, "largest resident size of the process that answered", -1),
    Column(COST, "peak_gpu_memory_bytes", "GPU memory", size, "the most that torch held on the GPU", -1, long=True),
)  # fmt: skip


def number(form: Mapping[str, Any], key: str) -> float | None:
    """A metric of a form, None where it is not there. Weights stand for all files where only they were counted."""
    metrics = form["metrics"]
    value = metrics.get(key, metrics.get("model_bytes") if key == "disk_bytes" else None)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def written(form: Mapping[str, Any], column: Column) -> str:
    """A metric of a form in words; the accuracy with its interval."""
    value = number(form, column.key)
    if value is None:
        return NOTHING
    low, high = number(form, "accuracy_low"), number(form, "accuracy_high")
    if column.key == "accuracy" and low is not None and high is not None:
        return f"{share(value)} ({share(low)}–{share(high)})"
    return column.write(value)


def present(forms: Sequence[Mapping[str, Any]], long: bool) -> list[Column]:
    """The columns that some form has a value for."""
    return [c for c in COLUMNS if (long or not c.long) and any(number(f, c.key) is not None for f in forms)]


def as_text(data: Mapping[str, Any]) -> str:
    """The table for a terminal, and the notes under it."""
    forms = data["forms"]
    columns = present(forms, long=False)
    rows = [["form", *(c.words for c in columns)]]
    rows += [[f["name"], *(written(f, c) for c in columns)] for f in forms]
    lines = [table(rows), ""]
    if data["rows"] is not None:
        lines.append(f"{number_of(data['rows'], 'row')}; the forms disagree on {data['disagreement']['count']:,}")
    references = sorted({str(f["reference"]) for f in forms if f["reference"]})
    if references:
        lines.append(f"KL: from {', '.join(references)}, a lower bound")
    return "\n".join([*lines, *(f"note: {n}" for n in data["notes"])])
