"""Passes, one after another, become stages that take from each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from microstages.errors import nearest

from runner.document import Place, Problems
from runner.olive.data import Rows
from runner.olive.models import InputModel
from runner.olive.params import Params, check
from runner.olive.passes import CONVERT, MERGE, OPTIMIZE, TRAIN, Pass
from runner.olive.section import Report, Section
from runner.olive.systems import System

BASE = "${{ params.base_model }}"


@dataclass
class Draft:
    """A stage to be. `about` stands above it; `host` is where it runs, `target` what a pipeline calls that."""

    name: str
    uses: str
    inputs: dict[str, str]
    params: Params
    place: Place
    host: System
    about: str = ""
    target: str = ""
    resources: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _State:
    """What a chain has come to: a model, beside it an adapter, or a model on its way to ONNX (`precision`).

    `quantized`: the adapter is one that Olive merged into the weights from before quantization.
    """

    model: str
    adapter: str = ""
    quantized: bool = False
    precision: str = ""
    built: bool = False
    converted: Pass | None = None


class Chain:
    """Makes the stages of all flows; what two flows begin with alike is one stage."""

    def __init__(
        self,
        model: InputModel,
        passes: Mapping[str, Pass],
        rows: Mapping[str, Rows],
        host: Callable[[Pass], System],
        providers: Callable[[Pass], Sequence[str]],
        inline: Callable[[Section], Rows],
        report: Report,
        problems: Problems,
    ) -> None:
        self.model, self.passes, self.rows = model, passes, dict(rows)
        self.host, self.providers, self.inline = host, providers, inline
        self.report, self.problems = report, problems
        self.stages: dict[str, Draft] = {}
        self.sources: dict[str, str] = {}  # parameters of the pipeline: addresses of data
        self.used: set[str] = set()
        self.datasets: dict[str, str] = {}
        self.made: dict[tuple[str, ...], _State] = {}

    def flow(self, names: Sequence[str]) -> None:
        """Append the stages of one flow."""
        state = _State(BASE, self.model.adapter)
        done: tuple[str, ...] = ()
        last: Pass | None = None
        for name in names:
            last = one = self.passes[name]
            done = (*done, name)
            if done not in self.made:
                self.made[done] = self.step(state, one)
            state = self.made[done]
        if state.precision and not state.built and last is not None:
            params = Params({"precision": state.precision})
            self.build(replace(last, params=params), state)

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
        uses = "train-qlora" if one.type in ("QLoRA", "LoftQ") else "train-lora"
        host = self.host(one)
        resources = {k: v for k, v in (("gpus", int(host.gpu)), ("nodes", host.nodes if host.nodes > 1 else 0)) if v}
        inputs = {"dataset": self.dataset(one), "base_model": state.model}
        name = self.add(Draft(one.name, uses, inputs, one.params, one.place, host, resources=resources))
        return _State(state.model, f"${{{{ stages.{name}.adapter }}}}", one.type == "QLoRA")

    def merge(self, state: _State, one: Pass, name: str, about: str = "") -> _State:
        params = Params()
        if state.quantized:
            params.put("base", "original", note="as Olive did; auto is nearer to what was trained")
        inputs = {"base_model": state.model, "adapter": state.adapter}
        made = self.add(Draft(name, "merge", inputs, params, one.place, self.host(one), about))
        return _State(f"${{{{ stages.{made}.model }}}}")

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
        providers = list(self.providers(one))
        for provider in providers:
            params = one.params.merged(Params({"execution_provider": provider}))
            name = one.name if len(providers) == 1 else f"{one.name}-{provider}"
            self.add(Draft(name, "build-onnx", {"model": state.model}, params, one.place, self.host(one)))
        return replace(state, built=True)

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
            return self.inline(name)
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
