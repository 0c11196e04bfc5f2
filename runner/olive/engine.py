"""`engine`: where passes run, in a mapping of its own or, since v0.7, at the top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runner.olive.section import LOST, NEEDLESS, USED, Layers, Section
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
    "evaluate_input_model": (_FLAG, "the stage infer measures a model: see the README"),
    "evaluation_only": (_FLAG, "the stage infer measures a model: see the README"),
    "plot_pareto_frontier": (_FLAG, "there is no search"),
    "packaging_config": (("mapping", "list"), "`runner pull STAGE FOLDER` gives a folder that is complete"),
}  # fmt: skip


@dataclass(frozen=True)
class Engine:
    """Where stages run that name no host, and what models are built for."""

    host: System
    providers: tuple[str, ...]


def read_engine(top: Section, systems: Mapping[str, System], client: Mapping[str, str]) -> Engine:
    """The engine, and which of the systems it uses."""
    nested = top.child("engine")
    layers = Layers(nested, top)
    host = _system(layers, "host", systems, client, "target, and GPUs of training")
    target = _system(layers, "target", systems, client, "execution_provider of build-onnx")
    for key, (kinds, why) in _NEEDLESS.items():
        layers.read(key, *kinds, how=NEEDLESS, text=why)
    search = layers.take("search_strategy", "flag", "mapping")
    layers.fate(
        "search_strategy", *((LOST, "`matrix` and `select` do it") if search else (NEEDLESS, "nothing is searched"))
    )
    layers.read("evaluator", "text", "mapping", how=LOST, text="the stage infer measures a model: see the README")
    own: list[str] = []
    if holder := layers.holder("execution_providers"):
        own = execution_providers(holder)
    layers.take("execution_providers", "list")
    if nested:
        nested.close()
    host = host or target or System()
    providers = tuple(dict.fromkeys(own)) or (target or host).providers or host.providers or ("cpu",)
    return Engine(host, providers)


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
