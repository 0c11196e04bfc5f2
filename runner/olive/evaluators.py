"""`evaluators`: what is measured of models becomes a stage `infer`; what a search goes by, a `select`.

Olive feeds rows to a model and compares the likeliest next tokens with labels. `infer` lets it answer prompts and
compares the answers. So each metric has its nearest measure here, or none, and the report says which and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.document import Place
from runner.olive.params import Params
from runner.olive.section import CHANGED, LOST, NEEDLESS, USED, Layers, Section

ACCURACY, LATENCY, THROUGHPUT, SIZE, CUSTOM = "accuracy", "latency", "throughput", "size_on_disk", "custom"
TYPES = (ACCURACY, LATENCY, THROUGHPUT, SIZE, CUSTOM)
_ANSWERS = "whole answers are compared, not classes or next tokens"
_PASS = "Olive times one pass over a row: here from the prompt to the first token"
_PERCENTILE = "p50 and p95 are measured"
_TOKENS = "tokens a second while it answers; Olive counts rows a second"
# sub type: (measure, which of two is better, how, why); no measure: lost
_ACCURACY: Mapping[str, tuple[str, int, str, str]] = {
    "accuracy_score": ("accuracy", 1, CHANGED, _ANSWERS),
    "exact_match": ("accuracy", 1, USED, ""),
    "f1_score": ("macro_f1", 1, CHANGED, "the mean over classes, of which an answer is one; known for at most 20"),
    "perplexity": ("perplexity", -1, CHANGED, "of the right answers behind their prompts, not of whole texts"),
    "precision": ("", 1, LOST, "infer has it for each class, in `labels` of its metadata, not as one number"),
    "recall": ("", 1, LOST, "infer has it for each class, in `labels` of its metadata, not as one number"),
    "auroc": ("", 1, LOST, "an answer is right or wrong and has no score"),
    **dict.fromkeys(("wer", "rtfx", "relaxed_accuracy", "word_sort_ratio"),
                    ("", 1, LOST, "of models of speech or images")),
}  # fmt: skip
_LATENCY: Mapping[str, tuple[str, int, str, str]] = {
    "avg": ("time_to_first_token_mean_s", -1, CHANGED, _PASS),
    "p50": ("ttft_ms_p50", -1, CHANGED, _PASS), "p95": ("ttft_ms_p95", -1, CHANGED, _PASS),
    "min": ("ttft_ms_p50", -1, CHANGED, _PERCENTILE), "p75": ("ttft_ms_p50", -1, CHANGED, _PERCENTILE),
    **dict.fromkeys(("max", "p90", "p99", "p999"), ("ttft_ms_p95", -1, CHANGED, _PERCENTILE)),
}  # fmt: skip
_KNOWN: Mapping[str, Mapping[str, tuple[str, int, str, str]]] = {
    ACCURACY: _ACCURACY, LATENCY: _LATENCY,
    THROUGHPUT: dict.fromkeys(_LATENCY, ("tokens_per_s", 1, CHANGED, _TOKENS)),
    SIZE: {"bytes": ("model_bytes", -1, USED, "")},
}  # fmt: skip
_HARNESS = "tasks of an evaluation harness: give it the folder that `runner pull` makes"
_CODE = "code of a config is never run: infer answers rows, and predictions.jsonl has each answer"
_ROWS = "the data config says which rows are answered"
_SESSION = "infer loads the model as it was built"
GOALS = ("threshold", "min-improvement", "percent-min-improvement", "max-degradation", "percent-max-degradation")


@dataclass(frozen=True)
class Objective:
    """What variants are compared by: `best` 1 for the larger the better. `priority` below 1: only measured.
    `limit`: of a goal, in the measure's own unit."""

    measure: str
    best: int
    priority: int = -1
    limit: float | None = None


@dataclass(frozen=True)
class Evaluator:
    """What is measured, the most important first, and on which rows; none: those of training. `named`: all data configs
    that its metrics name or hold, and where."""

    name: str
    place: Place
    objectives: Sequence[Objective] = ()
    data: str | Section | None = None
    named: Sequence[tuple[str | Section, Place]] = ()
    params: Params = field(default_factory=Params)

    @property
    def answers(self) -> bool:
        """Whether a model has to answer for it."""
        return any(o.measure != "model_bytes" for o in self.objectives)

    @property
    def ranked(self) -> Objective | None:
        """What the best variant is chosen by."""
        return next((o for o in self.objectives if o.priority > 0), None)

    @property
    def limits(self) -> dict[str, dict[str, float]]:
        """The goals, as `where` of a select."""
        out: dict[str, dict[str, float]] = {}
        for o in self.objectives:
            if o.limit is not None:
                side, strict = ("min", max) if o.best > 0 else ("max", min)
                one = out.setdefault(o.measure, {})
                one[side] = strict(one.get(side, o.limit), o.limit)
        return out


def read_evaluators(top: Section, searching: bool) -> dict[str, Evaluator]:
    """All evaluators by name."""
    out: dict[str, Evaluator] = {}
    if (section := top.child("evaluators")) is not None:
        for name in section.values:
            if (one := section.child(name)) is not None:
                out[name] = read_evaluator(one, name, searching)
    return out


def read_evaluator(section: Section, name: str, searching: bool) -> Evaluator:
    """One evaluator; also one that stands where the name of one could."""
    section.ignore({"name": ("text",)}, NEEDLESS, "a label")
    section.ignore({"user_script": ("text",), "script_dir": ("text",)}, LOST, _CODE)
    kind = section.take("type", "text")
    section.fate("type", LOST, _HARNESS if str(kind).lower() in ("lmevaluator", "mtebevaluator") else _CODE)
    more = section.child("type_args")
    harness = Layers(more, section)
    harness.read("tasks", "list", how=LOST, text=_HARNESS, of="text")
    if isinstance(size := harness.take("batch_size", "whole", "text"), str) and not size.startswith("auto"):
        section.wrong(section.place("batch_size"), f"{section.at('batch_size')} is {size!r}", "write a number, or auto")
    harness.fate("batch_size", LOST, _HARNESS)
    harness.ignore({"limit": ("number",), **dict.fromkeys(("max_length", "bootstrap_iters"), ("whole",)),
                    **dict.fromkeys(("model_class", "execution_provider", "device"), ("text",)),
                    "provider_options": ("mapping", "list")}, LOST, _HARNESS)  # fmt: skip
    if more is not None:
        more.close()
    objectives: list[Objective] = []
    data: list[tuple[int, str | Section]] = []
    every: list[tuple[str | Section, Place]] = []
    timed = False
    for metric in section.children("metrics"):
        found, rows, type_ = _metric(metric, searching)
        objectives += found
        timed = timed or (bool(found) and type_ in (LATENCY, THROUGHPUT))
        every += [(rows, metric.place("data_config"))] if rows is not None else []
        if rows is not None and found:
            best = min((o.priority for o in found if o.priority > 0), default=10**9)
            data.append((best, rows))
    section.close()
    if len(objectives) == 1:  # as Olive
        objectives = [Objective(objectives[0].measure, objectives[0].best, 1, objectives[0].limit)]
    objectives.sort(key=lambda o: (o.priority < 1, o.priority))
    first = min(data, key=lambda d: d[0], default=(0, None))[1]
    if len({d.path if isinstance(d, Section) else d for _, d in data}) > 1:
        shown = first.path if isinstance(first, Section) else first
        section.report.note(f"{section.path} names several data configs: all of it is measured on the rows of {shown}")
    params = Params()
    if any(o.measure == "perplexity" for o in objectives):
        params.put("loss", "yes")
    if timed:
        params.put("batch_size", 1, note="so that a time is a request's own")
    return Evaluator(name, section.node.place, objectives, first, every, params)


def _metric(section: Section, searching: bool) -> tuple[list[Objective], str | Section | None, str]:
    section.read("name", "text", how=NEEDLESS, text="measures have names of their own")
    type_ = str(section.take("type", "text", among=TYPES) or "")
    if not type_ and not section.given("type"):
        section.wrong(section.node.place, f"{section.path} has no type", f"one of: {', '.join(TYPES)}")
    section.fate("type", *((LOST, _CODE) if type_ == CUSTOM else (USED, "a measure of infer")))
    backend = section.take("backend", "text", among=("torch_metrics", "huggingface_metrics"))
    section.fate("backend", NEEDLESS, "infer measures")
    _user_config(section)
    found = [o for one in section.children("sub_types") for o in _sub_type(one, type_, str(backend), searching)]
    node = section.values.get("data_config")
    if node is not None and isinstance(node.value, dict):
        rows: str | Section | None = section.child("data_config")
    else:
        rows = section.take("data_config", "text", "mapping")
        needed = any(o.measure != "model_bytes" for o in found)
        section.fate("data_config", *((USED, "the rows that are answered") if needed else (NEEDLESS, "nothing is fed")))
    section.close()
    return found, rows, type_


def _user_config(section: Section) -> None:
    inner = section.child("user_config")
    layers = Layers(inner, section)
    code = ("user_script", "script_dir", "post_processing_func", "evaluate_func", "metric_func", "dataloader_func")
    layers.ignore(dict.fromkeys(code, ("text",)), LOST, _CODE)
    functions = ("func_kwargs", "evaluate_func_kwargs", "metric_func_kwargs")
    layers.ignore(dict.fromkeys(functions, ("mapping",)), LOST, _CODE)
    layers.ignore({"data_dir": ("text", "mapping"), "batch_size": ("whole",), "input_names": ("list",),
                   "input_shapes": ("list",), "input_types": ("list",)}, NEEDLESS, _ROWS)  # fmt: skip
    layers.ignore({"inference_settings": ("mapping",), "run_kwargs": ("mapping",), "shared_kv_buffer": ("flag",),
                   "io_bind": ("flag",)}, NEEDLESS, _SESSION)  # fmt: skip
    if inner is not None:
        inner.close()


def _sub_type(section: Section, type_: str, backend: str, searching: bool) -> Iterator[Objective]:
    """One measure; nothing where there is none."""
    known = _KNOWN.get(type_, {})
    free = type_ in (CUSTOM, "") or backend == "huggingface_metrics"
    name = section.take("name", "text", among=() if free else tuple(known))
    if name is None and not section.given("name"):
        section.wrong(section.node.place, f"{section.path} has no name", f"one of: {', '.join(known) or 'yours'}")
    lost = ("", 1, LOST, _CODE if type_ == CUSTOM else "infer does not measure it")
    measure, best, how, why = known.get(str(name), lost)
    section.fate("name", how, *((why,) if how == LOST else (f"{measure} of infer", why)))
    higher = section.take("higher_is_better", "flag")
    section.fate("higher_is_better", *(
        (NEEDLESS, "nothing is measured") if not measure else (USED, "maximize or minimize") if searching
        else (NEEDLESS, "nothing is searched")))  # fmt: skip
    if higher is not None:
        best = 1 if higher else -1
    priority = int(section.take("priority", "whole", default=-1))
    section.fate("priority", *(
        (NEEDLESS, "nothing is measured") if not measure else (NEEDLESS, "nothing is searched") if not searching
        else (NEEDLESS, "measured only, there as here") if priority < 1
        else (CHANGED, "select", "the most important measure decides; of equals the first variant is taken")
    ))  # fmt: skip
    config = section.child("metric_config")
    if config is not None:
        times = dict.fromkeys(("warmup_num", "repeat_test_num", "sleep_num"), ("whole",))
        config.ignore(times, NEEDLESS, "after one warm-up each row is answered once")
        for key in config.values:
            if type_ not in (LATENCY, THROUGHPUT):
                config.asked[key] = None
                config.fate(key, NEEDLESS, "an argument of torchmetrics, or of another package of measures")
        config.close()
    limit = _goal(section.child("goal"), type_, measure, searching)
    section.close()
    if measure:
        yield Objective(measure, best, priority, limit)


def _goal(section: Section | None, type_: str, measure: str, searching: bool) -> float | None:
    """The threshold of a goal, in the unit of the measure; None where there is none."""
    if section is None:
        return None
    kind = section.take("type", "text", among=GOALS)
    value = section.take("value", "number")
    for key, given in (("type", kind), ("value", value)):
        if given is None and not section.given(key):
            section.wrong(section.node.place, f"{section.path} has no {key}", "write {type: threshold, value: 0.8}")
    limit: float | None = None
    if not measure:
        how, why = LOST, "nothing is measured"
    elif not searching:
        how, why = NEEDLESS, "nothing is searched, so nothing is left out"
    elif kind != "threshold":
        how, why = LOST, "it is relative to the input model: write a threshold (`where` of select)"
    elif type_ == THROUGHPUT:
        how, why = LOST, _TOKENS
    else:
        how, why = USED, "where of select"
        limit = None if value is None else float(value) / (1000 if measure.endswith("_s") else 1)
    section.fate("type", how, why)
    section.fate("value", how, why)
    section.close()
    return limit


def used_by(layers: Layers, key: str, known: Mapping[str, Evaluator], searching: bool) -> Evaluator | None:
    """The evaluator that a key names, or that stands there."""
    holder = layers.holder(key)
    if holder is None:
        layers.take(key, "text", "mapping")
        layers.fate(key, NEEDLESS, "none is named")
        return None
    return named(holder, key, known, searching)


def named(section: Section, key: str, known: Mapping[str, Evaluator], searching: bool) -> Evaluator | None:
    """As `used_by`, of one section."""
    node = section.values[key]
    if isinstance(node.value, dict):
        inside = section.child(key)
        return read_evaluator(inside, key, searching) if inside else None
    name: Any = section.take(key, "text", "mapping")
    found = known.get(str(name))
    if name is not None and found is None:
        from microstages.errors import nearest

        what = f"{section.at(key)} is {name!r}, and there is no such evaluator{nearest(name, known)}"
        section.wrong(node.place, what, f"evaluators: {', '.join(known) or 'none'}")
    measured = found is not None and bool(found.objectives)
    section.fate(key, *((USED, "a stage infer behind it") if measured else (LOST, "nothing of it is measured here")))
    return found
