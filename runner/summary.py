"""The end of a run: predictions side by side, where the model lies, how long it took, what one may do next. Plain
aligned text, without colours, so that it can be pasted into a message as it stands."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from microstages.reporting import duration, size
from microstages.storage import local_path

from runner.pipeline import Pipeline
from runner.store import Output, Result
from runner.view import short

LONG = 1.0  # seconds: what took less is not worth a word
NOT_WELL = ("failed", "stopped", "not run")

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


@dataclass(frozen=True)
class Ended:
    """How a run ended, for its summary. `run`: its number, `before`: that of the run before it (0: none), `took`:
    seconds of each stage that it made, `words`: what the commands to come need to mean the same pipeline."""

    status: str
    states: Mapping[str, str]
    seconds: float
    run: int
    before: int = 0
    took: Mapping[str, float] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    def counts(self) -> str:
        """`3 done, 4 reused`."""
        states = list(self.states.values())
        return ", ".join(f"{states.count(s)} {s}" for s in ("done", "reused", *NOT_WELL) if s in states)


def summary(pipeline: Pipeline, results: Mapping[str, Result], ended: Ended) -> str:
    """What is said at the end of a run."""
    where = f" {shlex.join(ended.words)}" if ended.words else ""
    if ended.status != "done":
        bad = [s for s, state in ended.states.items() if state == "failed"]
        lines = [
            f"{pipeline.name}: {ended.status}; `runner up` again continues from here",
            f"run {ended.run}: {ended.counts() or 'nothing begun'}, in {duration(ended.seconds)}",
        ]
        return "\n".join([*lines, *(f"  runner logs {ended.run} {s}{where}" for s in bad[:3])])
    parts = [part for part in (predictions_table(pipeline, results), _made(pipeline, results)) if part]
    lines = [f"{pipeline.name}: {ended.counts()} in {duration(ended.seconds)}"]
    longest = sorted(((t, s) for s, t in ended.took.items() if t >= LONG), reverse=True)[:3]
    took = "; longest: " + ", ".join(f"{s} {duration(t)}" for t, s in longest) if longest else ""
    lines[0] += f"\nrun {ended.run}{took}"
    parts.append("\n".join(lines))
    if commands := _next(pipeline, results, ended):
        width = max(len(c) for c, _ in commands) + len(where)
        parts.append("\n".join(f"  {c + where:<{width}}   {why}" for c, why in commands))
    return "\n\n".join(parts)


def _made(pipeline: Pipeline, results: Mapping[str, Result]) -> str:
    """The models: where each lies, which it is, how large."""
    lines = []
    for name, output in _models(pipeline, results):
        kind, place = output.manifest.kind, _place(output)
        digest, big = output.digest.removeprefix("sha256:")[:12], size(output.manifest.size)
        lines.append(f"{name} ({kind}): {place}\n  sha256:{digest}, {big}")
    return "\n".join(lines)


def _next(pipeline: Pipeline, results: Mapping[str, Result], ended: Ended) -> list[tuple[str, str]]:
    """Commands that are of use now, each with what it does."""
    made = "done" in ended.states.values()
    found = []
    if made and ended.before:
        found.append((f"runner diff {ended.before} {ended.run}", "what is different from the last run"))
    for name, _ in _models(pipeline, results)[:1]:
        found.append((f"runner lineage {name}", "what it was made of"))
        found.append((f"runner pull {name} ./model", "a copy of it"))
    return found


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


def _models(pipeline: Pipeline, results: Mapping[str, Result]) -> list[tuple[str, Output]]:
    """The models that this pipeline is for: the ONNX models, or else the others that it made. What a `select` took
    stands for all that it chose from."""
    for kind in ("onnx-model", "model", "adapter"):
        found = [
            (name, output)
            for name in pipeline.stages if name in results
            for output in results[name].outputs.values() if output.manifest.kind == kind
        ]  # fmt: skip
        chosen = [(name, output) for name, output in found if pipeline.stages[name].select]
        if found:
            return chosen or found
    return []


def _place(output: Output) -> str:
    path = local_path(output.uri)
    return output.uri if path is None else short(path)


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns; the first `left` ones to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
