"""The end of a run: predictions side by side, where the model lies, how long it took. Plain aligned text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from microstages.reporting import duration, size
from microstages.storage import local_path

from runner.pipeline import Pipeline
from runner.store import Result
from runner.view import short

Row = tuple[str, str, Callable[[float], str]]


def share(x: float) -> str:
    return f"{x:.3f}"


def count(x: float) -> str:
    return f"{x:,.0f}" if x >= 10 else f"{x:.1f}"


def milliseconds(x: float) -> str:
    return f"{x * 1000:.0f} ms" if x < 10 else duration(x)


# The metrics of predictions that are worth a line, in this order: name, words, form.
ROWS: Sequence[Row] = (
    ("accuracy", "accuracy", share),
    ("majority_share", "majority class", share),
    ("ended_share", "answers that ended", share),
    ("prefill_tokens_per_s", "prefill tokens/s", count),
    ("decode_tokens_per_s", "decode tokens/s", count),
    ("time_to_first_token_p50_s", "first token", milliseconds),
    ("latency_p50_s", "answer, p50", milliseconds),
    ("latency_p95_s", "answer, p95", milliseconds),
    ("peak_memory_bytes", "peak memory", size),
    ("model_bytes", "model size", size),
)


def summary(pipeline: Pipeline, results: Mapping[str, Result], seconds: float, counts: Mapping[str, int]) -> str:
    """What is said at the end of a run that went well."""
    parts = []
    if table := predictions_table(pipeline, results):
        parts.append(table)
    lines = [f"{kind}: {place}" for kind, place in models(pipeline, results)]
    said = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
    lines.append(f"{pipeline.name}: {said} in {duration(seconds)}")
    parts.append("\n".join(lines))
    return "\n\n".join(parts)


def predictions_table(pipeline: Pipeline, results: Mapping[str, Result]) -> str:
    """A column for each stage that made predictions, a line for each metric; empty where there are none."""
    columns: dict[str, Mapping[str, Any]] = {}
    for name, result in results.items():
        if any(o.manifest.kind == "predictions" for o in result.outputs.values()):
            columns[name] = result.metrics
    columns = {name: columns[name] for name in pipeline.stages if name in columns}
    lines = []
    for key, words, form in ROWS:
        values = [m.get(key) for m in columns.values()]
        if any(isinstance(v, (int, float)) for v in values):
            lines.append([words, *(form(v) if isinstance(v, (int, float)) else "–" for v in values)])
    return table([["", *columns], *lines]) if lines else ""


def models(pipeline: Pipeline, results: Mapping[str, Result]) -> list[tuple[str, str]]:
    """Kind and place of the models that this pipeline is for: the ONNX models, or else the others that it made."""
    for kind in ("onnx-model", "model", "adapter"):
        found = []
        for name in pipeline.stages:
            for output in results[name].outputs.values() if name in results else ():
                if output.manifest.kind == kind:
                    path = local_path(output.uri)
                    found.append((f"{name} ({kind})", output.uri if path is None else short(Path(path))))
        if found:
            return found
    return []


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns; the first `left` ones to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
