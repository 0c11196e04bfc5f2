"""Passes, one after another, become stages that take from each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from microstages.errors import nearest

from runner.document import Place, Problems
from runner.olive.data import Rows
from runner.olive.evaluation import Form, Measuring
from runner.olive.evaluators import Evaluator
from runner.olive.models import InputModel
from runner.olive.params import Params, check
from runner.olive.passes import CONVERT, MERGE, OPTIMIZE, TRAIN, Pass, stage_of
from runner.olive.search import Variants
from runner.olive.section import Report, Section
from runner.olive.systems import System

BASE = "${{ params.base_model }}"


@dataclass
class Draft:
    """A stage to be. `about` stands above it; `host` is where it runs, `target` what a pipeline calls that. `select`:
    it takes the best of some variants, and nothing else counts."""

    name: str
    uses: str
    inputs: dict[str, str]
    params: Params
    place: Place
    host: System
    about: str = ""
    target: str = ""
    resources: dict[str, int] = field(default_factory=dict)
    variants: Variants | None = None
    select: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _State:
    """What a chain has come to: a model, beside it an adapter, or a model on its way to ONNX (`precision`).

    `quantized`: the adapter is one that Olive merged into the weights from before quantization. `forms`: what there is
    of it, one for each execution provider that it is built for.
    """

    model: str
    adapter: str = ""
    quantized: bool = False
    precision: str = ""
    built: bool = False
    forms: tuple[Form, ...] = ()
    varied: bool = False


class Chain:
    """Makes the stages of all flows; what two flows begin with alike is one stage."""

    def __init__(
        self,
        model: InputModel,
        passes: Mapping[str, Pass],
        rows: Mapping[str, Rows],
        host: Callable[[Pass], System],
        target: System,
        providers: Callable[[Pass], Sequence[str]],
        inline: Callable[[Section], Rows],
        report: Report,
        problems: Problems,
    ) -> None:
        self.model, self.passes, self.rows = model, passes, dict(rows)
        self.host, self.target, self.providers, self.inline = host, target, providers, inline
        self.report, self.problems = report, problems
        self.stages: dict[str, Draft] = {}
        self.sources: dict[str, str] = {}  # parameters of the pipeline: addresses of data
        self.used: set[str] = set()
        self.datasets: dict[str, str] = {}
        self.made: dict[tuple[str, ...], _State] = {}
        self.measured: set[tuple[str, str]] = set()
        self.measuring = Measuring(self)

    def flow(self, names: Sequence[str], evaluator: Evaluator | None = None, searching: bool = False) -> None:
        """Append the stages of one flow, and those that measure its result, or where a pass asks for it that of one."""
        state = self.start()
        done: tuple[str, ...] = ()
        trained: Pass | None = None
        for n, name in enumerate(names):
            one = self.passes[name]
            trained = one if one.kind == TRAIN else trained
            done = (*done, name)
            if done not in self.made:
                self.made[done] = self.step(state, one)
            state = self.made[done]
            last = n == len(names) - 1
            if last and state.precision and not state.built:
                state = self.build(replace(one, params=Params({"precision": state.precision}), variants=None), state)
            wanted = one.evaluator or (evaluator if last else None)
            if wanted is not None:
                rows = self.rows_of(wanted, trained)
                for form in state.forms:
                    self.measure(form, wanted, rows, searching)

    def start(self) -> _State:
        return _State(BASE, self.model.adapter, forms=(Form(BASE, self.model.adapter),))

    def measure(self, form: Form, evaluator: Evaluator, rows: Rows | None, searching: bool) -> None:
        """Measure one form of the model, once."""
        if (form.stage, evaluator.name) not in self.measured and evaluator.objectives:
            self.measured.add((form.stage, evaluator.name))
            name = f"evaluated-{form.stage}" if form.stage else "evaluated-input"
            self.measuring.form(form, evaluator, rows, name, searching)

    def rows_of(self, evaluator: Evaluator, trained: Pass | None) -> Rows | None:
        """The rows that an evaluator asks: its own, else those that training holds out, else those of training."""
        own = evaluator.data or (trained.evaluate or trained.train if trained else None)
        return self.find(own, evaluator.place)

    def known(self, evaluators: Iterable[Evaluator | None]) -> None:
        """Look for all data that evaluators name, also where nothing asks for it."""
        for evaluator in filter(None, evaluators):
            for data, place in evaluator.named:
                self.find(data, place)

    def input(self, evaluator: Evaluator) -> None:
        """Measure the model that it begins with."""
        trained = next((p for p in self.passes.values() if p.kind == TRAIN), None)
        for form in self.start().forms:
            self.measure(form, evaluator, self.rows_of(evaluator, trained), False)

    def step(self, state: _State, one: Pass) -> _State:
        if one.kind == TRAIN:
            return self.train(state, one)
        if one.kind == MERGE:
            if not state.adapter:
                self.problems.add(one.place, f"pass {one.name} has no adapter to merge", "put it after LoRA or QLoRA")
                return state
            return self.merge(state, one, one.name)
        state = self.merged_before(state, one)
        if one.kind in (CONVERT, OPTIMIZE):
            precision = one.params.values.get("precision") or state.precision
            if one.kind == OPTIMIZE and not state.precision:
                self.problems.add(
                    one.place, f"pass {one.name} has no ONNX model to optimize", "put OnnxConversion first"
                )
            return replace(state, precision=str(precision or "fp32"))
        return self.build(one, state)

    def train(self, state: _State, one: Pass) -> _State:
        if state.adapter or state.built or state.precision:
            what = "an adapter that is not merged" if state.adapter else "an ONNX model"
            fix = "put MergeAdapterWeights before it" if state.adapter else "put it before the passes that make ONNX"
            self.problems.add(one.place, f"pass {one.name} cannot train {what}", fix)
            return state
        host = self.host(one)
        resources = {k: v for k, v in (("gpus", int(host.gpu)), ("nodes", host.nodes if host.nodes > 1 else 0)) if v}
        inputs = {"dataset": self.dataset(one), "base_model": state.model}
        name = self.add(
            Draft(
                one.name, stage_of(one), inputs, one.params, one.place, host, resources=resources, variants=one.variants
            )
        )
        adapter, varied = f"${{{{ stages.{name}.adapter }}}}", state.varied or one.variants is not None
        return _State(state.model, adapter, one.type == "QLoRA",
                      forms=(Form(state.model, adapter, name, varied=varied),), varied=varied)  # fmt: skip

    def merge(self, state: _State, one: Pass, name: str, about: str = "") -> _State:
        params = Params()
        if state.quantized:
            params.put("base", "original", note="as Olive did; auto is nearer to what was trained")
        inputs = {"base_model": state.model, "adapter": state.adapter}
        made = self.add(Draft(name, "merge", inputs, params, one.place, self.host(one), about))
        model = f"${{{{ stages.{made}.model }}}}"
        return _State(model, forms=(Form(model, "", made, varied=state.varied),), varied=state.varied)

    def merged_before(self, state: _State, one: Pass) -> _State:
        if not state.adapter:
            return state
        self.report.note(
            f"pass {one.name} follows an adapter: the stage merge is put between them, a model is built whole"
        )
        return self.merge(state, one, "merge")

    def build(self, one: Pass, state: _State) -> _State:
        if state.built:
            self.problems.add(one.place, f"pass {one.name} has an ONNX model already", "remove it")
            return state
        if one.metadata_only and not state.precision:
            fix = "remove metadata_only, or put OnnxConversion before it"
            self.problems.add(one.place, f"pass {one.name} is metadata_only and has no ONNX model", fix)
        providers, forms = list(self.providers(one)), []
        varied = state.varied or one.variants is not None
        for provider in providers:
            params = one.params.merged(Params({"execution_provider": provider}))
            name = one.name if len(providers) == 1 else f"{one.name}-{provider}"
            inputs, host = {"model": state.model}, self.host(one)
            made = self.add(Draft(name, "build-onnx", inputs, params, one.place, host, variants=one.variants))
            forms.append(Form(f"${{{{ stages.{made}.model }}}}", "", made, provider, varied))
        return replace(state, built=True, forms=tuple(forms), varied=varied)

    # --- data ---

    def dataset(self, one: Pass) -> str:
        """The data of a training pass; passes with the same data share a stage."""
        train, evaluate = self.find(one.train, one.place), self.find(one.evaluate, one.place)
        if train is None:
            return ""
        inputs = {"source": train.source, "model": BASE}
        first, last = Params(), Params()
        first.put("files", list(train.files) or None)
        first.put("split", train.split)
        if evaluate is not None:
            if (evaluate.source, evaluate.files) != (train.source, train.files):
                inputs["test_source"] = evaluate.source
                if evaluate.files:
                    self.report.note(f"of {evaluate.name} all files of the folder are held out: {evaluate.source}")
            first.put("test_split", evaluate.split or (None if "test_source" in inputs else "train"))
            if evaluate.params.values != train.params.values:
                self.report.note(f"the rows of {evaluate.name} are held out, and prepared as those of {train.name}")
        elif one.held_out:
            last.put("test_sequences", one.held_out, one.held_out_place)
            last.put("split_seed", one.data_seed)
        else:
            last.put("test_fraction", 0)
        params = first.merged(train.params).merged(last)
        key = repr((inputs, params.values))
        if key not in self.datasets:
            name = "data" if not self.datasets else f"data-{one.name}"
            inputs["source"] = self.source(train, "data")
            if "test_source" in inputs and evaluate is not None:
                inputs["test_source"] = self.source(evaluate, "test_data")
            made = self.add(Draft(name, "prepare-data", inputs, params, train.place, self.host(one)))
            self.datasets[key] = f"${{{{ stages.{made}.dataset }}}}"
        return self.datasets[key]

    def source(self, rows: Rows, name: str) -> str:
        """The parameter of the pipeline that holds the address of some rows."""
        known = next((k for k, v in self.sources.items() if v == rows.source), None)
        if known is None:
            known = name if name not in self.sources else slug(rows.name).replace("-", "_")
            self.sources[known] = rows.source
        return f"${{{{ params.{known} }}}}"

    def find(self, name: str | Section | None, place: Place) -> Rows | None:
        if name is None:
            return None
        if isinstance(name, Section):
            if name.path not in self.rows:  # a path has dots or brackets, and is no name
                self.rows[name.path] = self.inline(name)
            return self.rows[name.path]
        self.used.add(name)
        if name not in self.rows:
            what = f"there is no data config {name!r}{nearest(name, self.rows)}"
            self.problems.add(place, what, f"there are: {', '.join(self.rows) or 'none'}")
        return self.rows.get(name)

    def add(self, draft: Draft) -> str:
        """Put a stage behind the others, under a name of its own."""
        name = first = slug(draft.name)
        number = 2
        while name in self.stages:
            name, number = f"{first}-{number}", number + 1
        if not draft.select:
            check(draft.uses, draft.params, self.problems, draft.place)
        for key, value in draft.params.values.items():
            if "${{" in str(value):
                place = draft.params.places.get(key, draft.place)
                self.problems.add(
                    place, f"{key} holds ${{{{, which begins a reference in a pipeline", "write it otherwise"
                )
        self.stages[name] = replace(draft, name=name)
        return name


def slug(text: str) -> str:
    """A name that a stage can have."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:50]
    return plain if re.match(r"[a-z]", plain) else f"stage-{plain}".rstrip("-")
