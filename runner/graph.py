"""Draws a pipeline: text for people, Mermaid and SVG for documents, DOT for Graphviz."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from runner.pipeline import Pipeline, Stage
from runner.spec import Ref

if TYPE_CHECKING:
    from runner.picture import Card


def draw(pipeline: Pipeline, form: str) -> str:
    """The graph as `text`, `mermaid`, `dot` or `svg`."""
    return {"text": as_text, "mermaid": as_mermaid, "dot": as_dot, "svg": as_svg}[form](pipeline)


def as_text(pipeline: Pipeline) -> str:
    """A tree: each stage stands once, below the last of the stages that it takes from; the others are named."""
    depth: dict[str, int] = {}
    children: dict[str, list[str]] = {"": []}
    for stage in pipeline.stages.values():
        depth[stage.name] = 1 + max((depth[up] for up in stage.upstream), default=0)
        parent = max(stage.upstream, key=lambda up: depth[up], default="")
        children.setdefault(parent, []).append(stage.name)
    lines: list[tuple[str, str]] = []

    def show(name: str, lead: str, branch: str, below: str) -> None:
        lines.append((f"{lead}{branch}{name}", _about(pipeline.stages[name], bool(lead or branch))))
        inside = children.get(name, [])
        for i, child in enumerate(inside):
            last = i == len(inside) - 1
            show(child, lead + below, "└─ " if last else "├─ ", "   " if last else "│  ")

    for root in children[""]:
        show(root, "", "", "")
    width = max((len(left) for left, _ in lines), default=0)
    return "\n".join(f"{left:<{width}}  {right}".rstrip() for left, right in lines)


def _about(stage: Stage, below: bool) -> str:
    takes = [f"{v.stage}.{v.output}" for v in stage.inputs.values() if isinstance(v, Ref)]
    return f"{stage.interface.name}  ← {', '.join(dict.fromkeys(takes))}" if below and takes else stage.interface.name


def as_mermaid(pipeline: Pipeline) -> str:
    lines = ["flowchart LR"]
    for stage in pipeline.stages.values():
        lines.append(f'  {_id(stage.name)}["{stage.name}<br/><small>{stage.interface.name}</small>"]')
    lines += [f"  {_id(a)} -->|{label}| {_id(b)}" for a, label, b in _edges(pipeline)]
    return "\n".join(lines)


def as_dot(pipeline: Pipeline) -> str:
    lines = [f"digraph {json.dumps(pipeline.name)} {{", "  rankdir=LR;", "  node [shape=box];"]
    for stage in pipeline.stages.values():
        label = json.dumps(f"{stage.name}\n{stage.interface.name}")
        lines.append(f"  {json.dumps(stage.name)} [label={label}];")
    lines += [f"  {json.dumps(a)} -> {json.dumps(b)} [label={json.dumps(label)}];" for a, label, b in _edges(pipeline)]
    return "\n".join([*lines, "}"])


def as_svg(pipeline: Pipeline, cards: Mapping[str, Card] | None = None) -> str:
    """A picture. `cards` replace those of stages, such as by ones that say how a stage ended."""
    from runner.picture import Card, svg

    shown = {}
    for stage in pipeline.stages.values():
        about = [stage.interface.name if stage.select is None else f"the best of {len(stage.select.candidates)}"]
        if stage.variant:
            about += [f"{k} {v}" for k, v in stage.variant.values.items()]
        hint = f"{stage.name}: {stage.interface.summary}"
        shown[stage.name] = Card(stage.name, tuple(about), hint=hint)
    shown |= cards or {}
    return svg(shown, edges(pipeline), pipeline.name)


def edges(pipeline: Pipeline) -> dict[tuple[str, str], str]:
    """Which stage leads to which, and by which of its outputs, where it has more than one."""
    found: dict[tuple[str, str], list[str]] = {}
    for a, output, b in _edges(pipeline):
        outputs = found.setdefault((a, b), [])
        if len(pipeline.stages[a].interface.outputs) > 1 and output not in outputs:
            outputs.append(output)
    return {edge: ", ".join(outputs) for edge, outputs in found.items()}


def _edges(pipeline: Pipeline) -> list[tuple[str, str, str]]:
    return [
        (value.stage, value.output, stage.name)
        for stage in pipeline.stages.values()
        for value in stage.inputs.values()
        if isinstance(value, Ref)
    ]


def _id(name: str) -> str:
    return f"s_{name.replace('-', '_')}"  # `end` and other words of Mermaid are no identifiers
