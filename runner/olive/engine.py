"""`engine`: where passes run, in a mapping of its own or, since v0.7, at the top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runner.olive.evaluators import Evaluator, used_by
from runner.olive.search import Search
from runner.olive.section import NEEDLESS, USED, Layers, Section
from runner.olive.systems import System, execution_providers, read_system

_KEPT = "the runner reuses what was made from the same code, parameters and inputs, and nothing else"
_LOG = "`runner logs` shows what stages said"
_FLAG, _TEXT, _WHOLE = ("flag",), ("text",), ("whole",)
_NEEDLESS: Mapping[str, tuple[Sequence[str], str]] = {
    **dict.fromkeys(("clean_cache", "clean_evaluation_cache", "enable_shared_cache"), (_FLAG, _KEPT)),
    "cache_dir": (("text", "list"), "artifacts lie in the store: `store:`, by default .runner/store"),
    "cache_config": (("mapping",), "artifacts lie in the store: `store:`, by default .runner/store"),
    "output_dir": (_TEXT, "`runner pull STAGE FOLDER` copies a result to where it is wanted"),
    "output_name": (_TEXT, "each stage's result is kept under its name"),
    "no_artifacts": (_FLAG, "each stage's result is kept under its name"),
    **dict.fromkeys(("log_severity_level", "ort_log_severity_level", "ort_py_log_severity_level"), (_WHOLE, _LOG)),
    "log_to_file": (_FLAG, _LOG), "verbose": (_FLAG, _LOG),
    "evaluation_only": (_FLAG, "`runner up --only evaluated-input` measures the input model alone"),
    "plot_pareto_frontier": (_FLAG, "`runner compare -o page.html` plots quality against size and speed"),
    "packaging_config": (("mapping", "list"), "`runner pull STAGE FOLDER` gives a folder that is complete"),
}  # fmt: skip


@dataclass(frozen=True)
class Engine:
    """Where stages run that name no host, where models are measured, and what they are built for. `evaluator`: what is
    measured of the last pass's model, and where `evaluate_input` says so of the model that it begins with."""

    host: System
    target: System
    providers: tuple[str, ...]
    evaluator: Evaluator | None = None
    evaluate_input: bool = False


def read_engine(
    top: Section, systems: Mapping[str, System], client: Mapping[str, str], evaluators: Mapping[str, Evaluator],
    search: Search,
) -> Engine:  # fmt: skip
    """The engine, and which of the systems it uses."""
    nested = top.child("engine")
    layers = Layers(nested, top)
    host = _system(layers, "host", systems, client, "target, and GPUs of training")
    target = _system(layers, "target", systems, client, "execution_provider of build-onnx")
    for key, (kinds, why) in _NEEDLESS.items():
        layers.read(key, *kinds, how=NEEDLESS, text=why)
    evaluator = used_by(layers, "evaluator", evaluators, search.on)
    first = bool(layers.take("evaluate_input_model", "flag", default=True)) and evaluator is not None
    why = "there is no evaluator, or it is not asked for"
    layers.fate("evaluate_input_model", *((USED, "evaluated-input") if first else (NEEDLESS, why)))
    if search.on and evaluator is None and not top.problems.found:
        what = "search_strategy is on, and engine.evaluator names nothing to search by"
        top.wrong(top.node.place, what, "name one of evaluators, or write search_strategy: false")
    own: list[str] = []
    if holder := layers.holder("execution_providers"):
        own = execution_providers(holder)
    layers.take("execution_providers", "list")
    if nested:
        nested.close()
    host = host or target or System()
    target = target or host
    providers = tuple(dict.fromkeys(own)) or target.providers or host.providers or ("cpu",)
    return Engine(host, target, providers, evaluator, first)


def _system(
    layers: Layers, key: str, systems: Mapping[str, System], client: Mapping[str, str], becomes: str
) -> System | None:
    holder = layers.holder(key)
    if holder is None:
        layers.take(key, "text", "mapping")
        layers.fate(key, USED, becomes)
        return None
    found = named_system(holder, key, systems, client)
    layers.fate(key, USED, becomes)
    return found


def named_system(section: Section, key: str, systems: Mapping[str, System], client: Mapping[str, str]) -> System | None:
    """The system that a key names, or that stands there."""
    if isinstance(section.values[key].value, dict):
        inside = section.child(key)
        return read_system(inside, key, client) if inside else None
    name = section.take(key, "text", "mapping")
    if name is None or name in systems:
        return systems.get(str(name))
    from microstages.errors import nearest

    what = f"{section.at(key)} is {name!r}, and there is no such system{nearest(name, systems)}"
    section.wrong(section.place(key), what, f"systems: {', '.join(systems) or 'none'}")
    return None
