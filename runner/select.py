"""`select`: of the variants of a stage the best one, by a metric, of those that keep the limits.

    best:
      select:
        from: quantized            # the stage whose variants are compared, by what it measured
        take: onnx                 # the stage whose outputs are the result; without it `from`
        maximize: accuracy         # or minimize
        where: {size_mb: {max: 3000}, ttft_ms_p95: {max: 200}}

Its outputs are those of the variant that was taken: `${{ stages.best.model }}`. Nothing is run and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microstages.errors import UserError, nearest

from runner.document import Node, Place, Problems
from runner.matrix import Variant
from runner.problems import guess
from runner.spec import Ref
from runner.store import Result

KEYS = ("from", "take", "maximize", "minimize", "where")
LIMITS = ("min", "max")
# Other names of what is measured, in the units that people think in: name -> metric, factor.
UNITS: Mapping[str, tuple[str, float]] = {
    "size_mb": ("model_bytes", 1e-6),
    "peak_memory_mb": ("peak_memory_bytes", 1e-6),
    "ttft_ms_p50": ("time_to_first_token_p50_s", 1e3),
    "ttft_ms_p95": ("time_to_first_token_p95_s", 1e3),
    "latency_ms_p50": ("latency_p50_s", 1e3),
    "latency_ms_p95": ("latency_p95_s", 1e3),
    "tokens_per_s": ("decode_tokens_per_s", 1.0),
}


@dataclass(frozen=True)
class Candidate:
    """One variant: the stage that was measured, the stage whose outputs would be taken."""

    measured: str
    taken: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Select:
    """A checked `select`. `limits`: metric -> (least, most)."""

    candidates: tuple[Candidate, ...]
    metric: str
    best: int  # 1: the larger the better, -1: the smaller
    limits: Mapping[str, tuple[float | None, float | None]]
    place: Place


@dataclass(frozen=True)
class Score:
    """What was measured of a candidate, and whether it keeps the limits."""

    candidate: Candidate
    value: float
    metrics: Mapping[str, float]
    breaks: tuple[str, ...]


def read(
    name: str, node: Node, stages: Mapping[str, Any], variants: Mapping[str, Variant], problems: Problems
) -> Select | None:
    """A `select` from its node; what is wrong goes to `problems`. `stages`: the pipeline's, with their variants."""
    if not isinstance(node.value, dict):
        problems.add(
            node.place, f"select of stage {name} must be a mapping, not {node.kind()}", "write `select: {from: …}`"
        )
        return None
    before = len(problems.found)
    for key in list(node.value):
        if key not in KEYS:
            what = f"unknown key {key!r} in select of stage {name}{nearest(key, KEYS)}"
            problems.add(node.keys.get(key, node.place), what, f"known keys: {', '.join(KEYS)}")
            if (meant := guess(key, KEYS)) and meant not in node.value:  # it stands for it: told once
                node = Node({**node.value, meant: node.value[key]}, node.place, node.keys)
    source = _word(name, node, "from", problems)
    taken = _word(name, node, "take", problems) if "take" in node.value else source
    goals = [k for k in ("maximize", "minimize") if k in node.value]
    if len(goals) != 1:
        problems.add(
            node.place, f"select of stage {name} needs either maximize or minimize", "write `maximize: accuracy`"
        )
    metric = _word(name, node, goals[0], problems) if len(goals) == 1 else ""
    limits = _limits(name, node.value.get("where"), problems)
    found = _candidates(node, source, taken, stages, variants, problems) if source and taken else ()
    if len(problems.found) > before:
        return None
    return Select(found, metric, 1 if goals == ["maximize"] else -1, limits, node.place)


def _word(name: str, node: Node, key: str, problems: Problems) -> str:
    value = node.value.get(key)
    if value is None or not isinstance(value.value, str) or not value.value:
        place = value.place if value is not None else node.place
        problems.add(place, f"{key} of select in stage {name} must be a name", f"write `{key}: …`")
        return ""
    return str(value.value)


def _limits(name: str, node: Node | None, problems: Problems) -> dict[str, tuple[float | None, float | None]]:
    out: dict[str, tuple[float | None, float | None]] = {}
    if node is None or node.value is None:
        return out
    fix = "write `where: {size_mb: {max: 3000}}`"
    if not isinstance(node.value, dict):
        problems.add(node.place, f"where of select in stage {name} must be a mapping, not {node.kind()}", fix)
        return out
    for metric, limit in node.value.items():
        good = isinstance(limit.value, dict) and limit.value and set(limit.value) <= set(LIMITS)
        if not good:
            problems.add(
                limit.place, f"the limit of {metric} in stage {name} must be a mapping of min, max or both", fix
            )
            continue
        wrong = {k: v for k, v in limit.value.items() if type(v.value) not in (int, float)}
        for key, v in wrong.items():
            problems.add(v.place, f"{key} of {metric} in stage {name} must be a number, not {v.plain()!r}", fix)
        if wrong:
            continue
        values = limit.plain()
        out[metric] = (values.get("min"), values.get("max"))
    return out


def _candidates(
    node: Node, source: str, taken: str, stages: Mapping[str, Any], variants: Mapping[str, Variant],
    problems: Problems,
) -> tuple[Candidate, ...]:  # fmt: skip
    bases = list(dict.fromkeys([v.base for v in variants.values()]))
    for key, word in (("from", source), ("take", taken)):
        if word not in bases and word not in stages:
            place = node.value[key].place if key in node.value else node.place
            what = f"there is no stage {word!r}{nearest(word, [*bases, *stages])}"
            problems.add(place, what, f"stages with variants: {', '.join(bases) or 'none'}")
            return ()
    measured = [s for s in stages if s == source or (s in variants and variants[s].base == source)]
    found = []
    for stage in measured:
        values = variants[stage].values if stage in variants else {}
        others = [s for s in stages if s == taken or (s in variants and variants[s].base == taken)]
        fit = [s for s in others if s not in variants or variants[s].values.items() <= values.items()]
        if len(fit) != 1:
            problems.add(
                node.place, f"{taken} has no variant that belongs to {stage}", "take a stage that it takes from"
            )
            return ()
        found.append(Candidate(stage, fit[0], values))
    return tuple(found)


def inputs(select: Select, outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Ref]:
    """References to all that it looks at, so that it comes after them."""
    stages = dict.fromkeys(s for c in select.candidates for s in (c.measured, c.taken))
    return {f"{stage}.{output}": Ref(stage, output) for stage in stages for output in outputs[stage]}


def scores(select: Select, results: Mapping[str, Result]) -> list[Score]:
    """What was measured of each candidate. Raises UserError for a metric that nobody measured."""
    out = []
    for c in select.candidates:
        known = {**_measured(results[c.taken]), **_measured(results[c.measured])}
        size = sum(o.manifest.size for o in results[c.taken].outputs.values())
        known.setdefault("model_bytes", float(size))
        wanted = {m: _value(m, known, select.place) for m in (select.metric, *select.limits)}
        breaks = tuple(said for m, limit in select.limits.items() if (said := _breaks(m, wanted[m], *limit)))
        out.append(Score(c, wanted[select.metric], wanted, breaks))
    return out


def _breaks(metric: str, value: float, low: float | None, high: float | None) -> str:
    if low is not None and value < low:
        return f"{metric} {value:.4g} < {low:g}"
    return f"{metric} {value:.4g} > {high:g}" if high is not None and value > high else ""


def pick(select: Select, results: Mapping[str, Result]) -> Score:
    """The best candidate; of equals the first. Raises UserError where none keeps the limits."""
    found = scores(select, results)
    good = [s for s in found if not s.breaks]
    if not good:
        closest = "; ".join(f"{s.candidate.measured}: {', '.join(s.breaks)}" for s in found[:5])
        raise UserError(
            f"no variant keeps the limits: {closest}", fix="widen `where`, or try other values in the matrix"
        )
    return max(good, key=lambda s: select.best * s.value)


def _measured(result: Result) -> dict[str, float]:
    found: dict[str, float] = {}
    for output in result.outputs.values():
        found |= _flat(output.manifest.metrics)
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    out: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            out[f"{prefix}{key}"] = float(value)
    return out


def _value(name: str, known: Mapping[str, float], place: Place) -> float:
    metric, factor = UNITS.get(name, (name, 1.0))
    if name in known:
        return known[name]
    if metric not in known:
        names: Sequence[str] = sorted([*known, *(u for u, (m, _) in UNITS.items() if m in known)])
        what = f"{name!r} was not measured{nearest(name, names)}"
        raise UserError(what, where=place, fix=f"measured: {', '.join(names) or 'nothing'}")
    return known[metric] * factor
