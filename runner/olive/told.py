"""What became of each key of a config, for people and as data."""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microstages.reporting import number_of

from runner.olive.section import CHANGED, LOST, NEEDLESS, SAME, USED, Fate

if TYPE_CHECKING:
    from runner.olive.convert import Made

ORDER = (CHANGED, LOST, USED, NEEDLESS, SAME)


def as_text(made: Made, output: Path) -> str:
    """The report: first what is not as it was."""
    out = [f"{made.source}: generation {made.generation} ({made.evidence})", f"written: {output}"]
    width = max(100, shutil.get_terminal_size((120, 40)).columns)
    for how in ORDER:
        if fates := [f for f in made.report.fates if f.how == how]:
            out += ["", f"{how}:", *_table(fates, width)]
    if made.report.notes:
        out += ["", "to know"]
        for note in made.report.notes:
            out += textwrap.wrap(note, width - 4, initial_indent="  - ", subsequent_indent="    ")
    counts = Counter(f.how for f in made.report.fates)
    told = ", ".join(f"{counts[how]} {how}" for how in ORDER if counts[how])
    return "\n".join([*out, "", f"{number_of(sum(counts.values()), 'key')}: {told}", f"next: runner plan {output}"])


def _table(fates: Sequence[Fate], width: int) -> list[str]:
    """key | becomes | why; keys stand below the mapping that they are in."""
    keys = min(34, max(len(_parts(f.path)[1]) for f in fates))
    becomes = min(50, max(len(f.becomes) for f in fates))
    start = 4 + keys + 2 + (becomes + 2 if becomes else 0)
    out: list[str] = []
    above = ""
    for fate in fates:
        parent, key = _parts(fate.path)
        if parent != above:
            out.append(f"  {parent}")
            above = parent
        indent = "    " if parent else "  "
        left = f"{indent}{key:<{keys}}  {fate.becomes:<{becomes}}".rstrip()
        first, *more = textwrap.wrap(fate.why, max(30, width - start)) or [""]
        if len(left) >= start and first:
            out.append(left)
            left = ""
        out += [f"{left:<{start}}{first}".rstrip(), *(" " * start + line for line in more)]
    return out


def _parts(path: str) -> tuple[str, str]:
    """The mapping and the key."""
    parent, _, key = path.rpartition(".")
    return parent, key


def as_data(made: Made, output: Path) -> dict[str, Any]:
    """The same as data."""
    return {
        "config": made.source,
        "generation": made.generation,
        "evidence": made.evidence,
        "pipeline": str(output),
        "stages": [{"name": d.name, "uses": d.uses} for d in made.stages],
        "counts": dict(Counter(f.how for f in made.report.fates)),
        "keys": [asdict(f) for f in made.report.fates],
        "notes": list(made.report.notes),
    }
