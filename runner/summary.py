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
from runner.spec import Ref
from runner.store import Output, Result
from runner.view import short

LONGEST = 72  # characters of a command that its meaning stands behind
LONG = 1.0  # seconds: what took less is not worth a word
FEW_STEPS = 100  # of training: of fewer one tries more first
NOT_WELL = ("failed", "stopped", "not run")

Row = tuple[str, str, Callable[[float], str]]


def share(x: float) -> str:
    return f"{x:.3f}"


def count(x: float) -> str:
    return f"{x:,.0f}" if x >= 10 else f"{x:.1f}"


def whole(x: float) -> str:
    return f"{x:,.0f}"


def milliseconds(x: float) -> str:
    return f"{x * 1000:.0f} ms" if x < 10 else duration(x)


# The metrics of predictions that are worth a line, in this order: name, words, form.
ROWS: Sequence[Row] = (
    ("accuracy", "accuracy", share),
    ("majority_share", "majority class", share),
    ("references", "held-out rows", whole),
    ("ended_share", "answers that ended", share),
    ("prefill_tokens_per_s", "prefill tokens/s", count),
    ("decode_tokens_per_s", "decode tokens/s", count),
    ("time_to_first_token_p50_s", "first token", milliseconds),
    ("latency_p50_s", "answer, p50", milliseconds),
    ("latency_p95_s", "answer, p95", milliseconds),
    ("peak_memory_bytes", "peak memory", size),
    ("model_bytes", "weights", size),
)


@dataclass(frozen=True)
class Ended:
    """How a run ended, for its summary. `run`: its number, `before`: that of the run before it (0: none), `took`:
    seconds of each stage that it made, `file` and `settings`: what the commands to come need to mean the same pipeline,
    `-p FILE` and `--set` as they were given."""

    status: str
    states: Mapping[str, str]
    seconds: float
    run: int
    before: int = 0
    took: Mapping[str, float] = field(default_factory=dict)
    file: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def counts(self) -> str:
        """`3 done, 4 reused`."""
        states = list(self.states.values())
        return ", ".join(f"{states.count(s)} {s}" for s in ("done", "reused", *NOT_WELL) if s in states)


def summary(pipeline: Pipeline, results: Mapping[str, Result], ended: Ended) -> str:
    """What is said at the end of a run."""
    if ended.status != "done":
        bad = [s for s, state in ended.states.items() if state == "failed"]
        lines = [
            f"{pipeline.name}: {ended.status}; `runner up` again continues from here",
            f"run {ended.run}: {ended.counts() or 'nothing begun'}, in {duration(ended.seconds)}",
        ]
        return "\n".join([*lines, *(f"  runner logs {ended.run} {s}{_where(ended)}" for s in bad[:3])])
    told = "\n".join(notes(pipeline, results))
    parts = [part for part in (predictions_table(pipeline, results), told, _made(pipeline, results)) if part]
    lines = [f"{pipeline.name}: {ended.counts()} in {duration(ended.seconds)}"]
    longest = sorted(((t, s) for s, t in ended.took.items() if t >= LONG), reverse=True)[:3]
    took = "; longest: " + ", ".join(f"{s} {duration(t)}" for t, s in longest) if longest else ""
    lines[0] += f"\nrun {ended.run}{took}"
    parts.append("\n".join(lines))
    if commands := _next(pipeline, results, ended):
        width = max(len(c) for c, _ in commands)
        form = "  {0:<{2}}   {1}" if width <= LONGEST else "  # {1}\n  {0}"
        parts.append("\n".join(form.format(c, why, width) for c, why in commands))
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
        command = f"runner diff {ended.before} {ended.run}{_where(ended)}"
        found.append((command, f"what is different from run {ended.before}"))
    for name, _ in _models(pipeline, results)[:1]:
        found.append((f"runner lineage {name}{_where(ended, named=True)}", "what it was made of"))
        found.append((f"runner pull {name} ./model{_where(ended, named=True)}", "a copy of it"))
    return found


def _where(ended: Ended, named: bool = False) -> str:
    """What a command needs beside its words. A run is found by its number in the store alone; a result that is named by
    its stage (`named`) depends on every setting."""
    kept = [s for s in ended.settings if named or s.partition("=")[0].strip() == "store"]
    words = [*ended.file, *(word for setting in kept for word in ("--set", setting))]
    return f" {shlex.join(words)}" if words else ""


def notes(pipeline: Pipeline, results: Mapping[str, Result]) -> list[str]:
    """Where a model that was made here is not shown to be better than a constant: its accuracy's interval (Wilson's, of
    95 %) does not lie above the share of the most frequent answer."""
    doubtful: dict[tuple[float, float], list[str]] = {}
    worse = []
    for name, stage in pipeline.stages.items():
        metrics = results[name].metrics if name in results else {}
        keys = ("accuracy_low", "accuracy_high", "majority_share", "references", "distinct_references")
        values = [v for key in keys if isinstance(v := metrics.get(key), (int, float))]
        made = any(isinstance(stage.inputs.get(key), Ref) for key in ("model", "adapter"))
        if not made or len(values) < len(keys):
            continue
        low, high, majority, rows, different = values
        if 2 * different > rows or low > majority:  # texts that are hardly ever the same are no classes
            continue
        if high < majority:
            worse.append(f"note: {name} is worse than always giving the most frequent answer ({share(majority)})")
        else:
            doubtful.setdefault((majority, rows), []).append(f"{name} {share(low)}–{share(high)}")
    found = worse + [
        f"note: not shown to be better than always giving the most frequent answer ({share(majority)}): "
        f"{', '.join(said)}\n      (95 % intervals of the accuracy on {rows:,.0f} held-out rows)"
        for (majority, rows), said in doubtful.items()
    ]
    steps = {n: r.metrics["steps"] for n, r in results.items() if isinstance(r.metrics.get("steps"), int)}
    short = [f"{name} was trained in only {n} steps" for name, n in steps.items() if 0 < n < FEW_STEPS]
    if found and short:
        found[-1] += f"\n      {', '.join(short)}: more epochs, or fewer batch_tokens, may be what it needs"
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
