"""A config of Olive, read completely, as a pipeline and a report of what became of each of its keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.document import Node, PipelineError, Place, Problem, Problems, parse
from runner.olive.chain import Chain, Draft
from runner.olive.data import read_data, read_inline
from runner.olive.engine import Engine, read_engine
from runner.olive.evaluators import read_evaluators
from runner.olive.generation import detect
from runner.olive.models import read_model
from runner.olive.passes import Pass, read_passes
from runner.olive.resources import Paths, read_client
from runner.olive.search import read_search
from runner.olive.section import LOST, NEEDLESS, USED, Report, Section
from runner.olive.systems import System, read_systems

_PAIR = re.compile(r"(\\\\)|\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


@dataclass(frozen=True)
class Made:
    """The pipeline to be, and the report. `default_target`: where stages run that name none."""

    source: str
    name: str
    generation: str
    evidence: str
    params: Mapping[str, str]
    store: str
    target: str
    targets: Mapping[str, Mapping[str, Any]]
    stages: Sequence[Draft]
    report: Report

    @property
    def default_target(self) -> str:
        return self.target or "auto"


def convert(file: Path, output: Path, generation: str | None = None) -> Made:
    """Read a config; `output` is the pipeline file to be. Raises PipelineError with all mistakes in the config."""
    return made_of(read(file), file, output, generation)


def made_of(root: Node, file: Path, output: Path, generation: str | None = None) -> Made:
    """The pipeline of a config that was read from `file`. Raises PipelineError with all mistakes in it."""
    problems, report = Problems(), Report()
    top = Section(root, "", report, problems)
    found, evidence = detect(root)
    if generation and generation != found:
        evidence = f"asked for; detected {found}: {evidence}"
    generation = generation or found
    paths = Paths(file.parent, output.parent)
    paths.data_root = str(top.read("data_root", "text", how=USED, text="where the paths of data start", default=""))
    client = read_client(top.child("azureml_client"))
    systems = read_systems(top, client)
    model = read_model(top, client, paths)
    rows = read_data(top, generation, client, paths)
    search = read_search(top, generation)
    evaluators = read_evaluators(top, search.on)
    passes = read_passes(top, generation, model.type, search, evaluators)
    engine = read_engine(top, systems, client, evaluators, search)
    hosts = {name: _host(one, systems, engine, client, problems) for name, one in passes.items()}
    flows = _flows(top, passes)
    _rest(top)
    top.close()

    def providers(one: Pass) -> Sequence[str]:
        return engine.providers if one.host is None else hosts[one.name].providers or engine.providers

    chain = Chain(
        model, passes, rows, lambda one: hosts[one.name], engine.target, providers,
        lambda section: read_inline(section, generation, client, paths), report, problems,
    )  # fmt: skip
    for flow in flows:
        chain.flow(flow, engine.evaluator, search.on)
    if engine.evaluator is not None and engine.evaluate_input:
        chain.input(engine.evaluator)
    asked = [engine.evaluator, *(p.evaluator for p in passes.values())]
    chain.known([*evaluators.values(), *asked])
    problems.check()
    if search.on and not any(d.variants for d in chain.stages.values()):
        report.note("search_strategy is on, and there are no values to try: nothing is searched")
    for name in rows:
        if name not in chain.used:
            report.note(f"the data config {name} is used by no pass")
    for name, evaluator in evaluators.items():
        if evaluator not in asked:
            report.note(f"the evaluator {name} is used by nothing")
    _placeholders(root, report)
    used = [engine.host, *hosts.values(), *(d.host for d in chain.stages.values())]
    shown = {s.name: s for s in [*systems.values(), *used] if s.kind == "azureml" or (s.kind == "docker" and s.options)}
    store = next((s.store for s in used if s.store), "")
    for draft in chain.stages.values():
        draft.target = _target(draft.host, shown)
    default = _target(engine.host, shown)
    return Made(
        file.name, file.stem, generation, evidence, {"base_model": model.uri, **chain.sources}, store,
        "" if default == "auto" else default,
        {name: {"type": s.kind, **s.options} for name, s in shown.items()}, list(chain.stages.values()), report,
    )  # fmt: skip


def read(file: Path) -> Node:
    """The config as values that know their places. Raises PipelineError."""
    place = Place(str(file))
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        from microstages.errors import nearest

        there = [p.name for p in file.parent.glob("*.json")] if file.parent.is_dir() else []
        what = f"there is no such config{nearest(file.name, there)}"
        raise PipelineError([Problem(place, what, "give the path of one")]) from None
    except UnicodeDecodeError:
        raise PipelineError([Problem(place, "this is not UTF-8 text", "save the file as UTF-8")]) from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise PipelineError([Problem(place, f"the file cannot be read: {why}", "check its path and mode")]) from None
    root = parse(_PAIR.sub(_character, text.replace("\t", " ")), str(file))
    if not isinstance(root.value, dict):
        what = "the file is empty" if root.value is None else f"a config is a mapping, not {root.kind()}"
        raise PipelineError([Problem(Place(str(file), 1, 1), what, "it has input_model and passes")])
    return root


def _character(found: re.Match[str]) -> str:
    """JSON writes characters beyond the first 65,536 as two escapes, which YAML does not know."""
    if found[1]:
        return found[1]
    return chr(0x10000 + ((int(found[2], 16) - 0xD800) << 10) + int(found[3], 16) - 0xDC00)


def _host(
    one: Pass, systems: Mapping[str, System], engine: Engine, client: Mapping[str, str], problems: Problems
) -> System:
    if one.host is None:
        return engine.host
    if isinstance(one.host, Section):
        from runner.olive.systems import read_system

        return read_system(one.host, f"{one.name}-host", client)
    if one.host not in systems:
        from microstages.errors import nearest

        what = f"the host of pass {one.name} is {one.host!r}, and there is no such system{nearest(one.host, systems)}"
        problems.add(one.place, what, f"systems: {', '.join(systems) or 'none'}")
    return systems.get(one.host, engine.host)


def _flows(top: Section, passes: Mapping[str, Pass]) -> list[list[str]]:
    """The orders in which passes follow each other: one, unless `pass_flows` says more."""
    given = top.take("pass_flows", "list", of="list")
    top.fate("pass_flows", USED, "the order of the stages")
    if not given:
        return [list(passes)]
    out = []
    for flow in given:
        for name in flow:
            if not isinstance(name, str):
                top.wrong(
                    top.place("pass_flows"), "pass_flows holds what is no name of a pass", 'write [["lora", "merge"]]'
                )
            elif name not in passes:
                from microstages.errors import nearest

                what = f"pass_flows names {name!r}, and there is no such pass{nearest(str(name), passes)}"
                top.wrong(top.place("pass_flows"), what, f"passes: {', '.join(passes)}")
        out.append([name for name in flow if isinstance(name, str) and name in passes])
    return out


def _rest(top: Section) -> None:
    top.ignore({"$schema": ("text",)}, NEEDLESS, "runner/pipeline.schema.json describes a pipeline")
    top.read("workflow_id", "text", how=NEEDLESS, text="each run has a number")
    top.ignore({"auto_optimizer_config": ("mapping",)}, LOST, "each pass is written out")
    top.ignore({"workflow_host": ("text", "mapping")}, LOST, "the runner itself runs where it is started")


def _target(system: System, shown: Mapping[str, System]) -> str:
    return system.name if system.name in shown and shown[system.name] == system else system.kind


def _placeholders(root: Node, report: Report) -> None:
    """Values that nobody has filled in yet."""
    found: list[str] = []

    def look(node: Node, path: str) -> None:
        if isinstance(node.value, dict):
            for key, value in node.value.items():
                look(value, f"{path}.{key}" if path else key)
        elif isinstance(node.value, list):
            for n, value in enumerate(node.value):
                look(value, f"{path}[{n}]")
        elif isinstance(node.value, str) and node.value.startswith("Your "):
            found.append(path)

    look(root, "")
    if found:
        report.note(f"these hold placeholders still, to be replaced: {', '.join(found)}")
