"""The graph of a run: which stage took from which, and where to draw it.

The pipeline file says it while it is as it was; after that, and for stages that it no longer names, the digests do: a
stage took from the one that made what it read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microstages.errors import UserError

from runner.history import Record
from runner.layout import Edge, layout

HIGH = 46.0  # px: a box
NARROWEST, WIDEST = 104.0, 210.0
LETTER = 7.6  # px: how wide a letter is, about


def edges_of(stages: Sequence[Record], file: Mapping[str, Mapping[str, str]]) -> dict[Edge, str]:
    """`(stage, stage) -> what is handed over`. `file`: stage -> input -> stage, as the pipeline file says."""
    names = {r.stage for r in stages}
    makers: dict[str, list[str]] = {}
    for record in stages:
        for output in (record.outputs or {}).values():
            makers.setdefault(str(output.get("digest")), []).append(record.stage)
    edges: dict[Edge, list[str]] = {}
    for record in stages:
        said = file.get(record.stage, {})
        read = said if record.inputs is None else record.inputs
        for name in read:
            giver = said.get(name, "")
            if record.inputs is not None:
                made = [m for m in makers.get(record.inputs[name], []) if m != record.stage]
                giver = giver if giver in made else next(iter(made), "")
            if giver in names:
                edges.setdefault((giver, record.stage), []).append(name)
    return {edge: ", ".join(words) for edge, words in edges.items()}


def said_by(file: str) -> Mapping[str, Mapping[str, str]]:
    """What a pipeline file says of who takes from whom; nothing where it cannot be read any more."""
    path = Path(file)
    try:
        found = path.stat()
    except OSError:
        return {}
    return _said_by(path, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=64)
def _said_by(path: Path, _written: int, _size: int) -> Mapping[str, Mapping[str, str]]:
    from runner.pipeline import read
    from runner.spec import Ref

    try:
        stages = read(path, commands=False).stages.values()
    except (UserError, OSError):
        return {}
    return {s.name: {name: v.stage for name, v in s.inputs.items() if isinstance(v, Ref)} for s in stages}


@functools.lru_cache(maxsize=64)
def _placed(names: tuple[str, ...], edges: tuple[Edge, ...]) -> dict[str, Any]:
    sizes = {n: (min(WIDEST, max(NARROWEST, len(n) * LETTER + 44)), HIGH) for n in names}
    made = layout(sizes, edges, gap=18, layer_gap=44)
    return {
        "width": made.width, "height": made.height,
        "boxes": {n: [b.x, b.y, b.width, b.height] for n, b in made.boxes.items()},
        "lines": [[a, b, made.path((a, b))] for a, b in made.lines],
    }  # fmt: skip


def graph(stages: Sequence[Record], file: str) -> dict[str, Any]:
    """Boxes and lines in px, and what each line hands over."""
    edges = edges_of(stages, said_by(file))
    placed = _placed(tuple(r.stage for r in stages), tuple(edges))
    return {**placed, "lines": [[*line, edges[line[0], line[1]]] for line in placed["lines"]]}
