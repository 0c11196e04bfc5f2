"""A pipeline file as a person would write it: what differs from the defaults, in the order of the work."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runner.document import plain_scalar
from runner.olive.params import differing

if TYPE_CHECKING:
    from runner.olive.chain import Draft
    from runner.olive.convert import Made

WIDTH = 110
_PLAIN = re.compile(r"[A-Za-z_./][\w./@+=:-]*( [\w./@+=-]+)*")
_SPECIAL = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")


def pipeline_text(made: Made) -> str:
    """The whole file."""
    out = [f"# From {made.source}, a config of Olive (generation {made.generation}).", f"name: {scalar(made.name)}", ""]
    out += ["params:", *(f"  {scalar(k)}: {scalar(v)}" for k, v in made.params.items()), ""]
    where = [f"{key}: {scalar(value)}" for key, value in (("store", made.store), ("target", made.target)) if value]
    if made.targets:
        where.append("targets:")
        for name, options in made.targets.items():
            where += [f"  {scalar(name)}:", *(f"    {scalar(k)}: {_flow(v)}" for k, v in options.items())]
    if where:
        out += [*where, ""]
    out.append("stages:")
    for draft in made.stages:
        out += [*_stage(draft, made.default_target), ""]
    return "\n".join(out).rstrip() + "\n"


def _stage(draft: Draft, default: str) -> list[str]:
    out = [f"  # {draft.about}"] if draft.about else []
    if draft.select:
        return [*out, f"  {draft.name}:", *_mapping("select", draft.select, {})]
    out += [f"  {draft.name}:", f"    uses: {draft.uses}"]
    out += _mapping("inputs", draft.inputs, {})
    values = differing(draft.uses, draft.params.values)
    if values:
        out += _mapping("params", values, {k: v for k, v in draft.params.notes.items() if k in values})
    if draft.variants is not None:
        exclude = list(draft.variants.exclude)
        short = {**draft.variants.values, **({"exclude": exclude} if exclude else {})}
        rows = _mapping("matrix", short, {})
        if exclude and len(rows[-1]) > WIDTH:
            rows = [*rows[:-1], "      exclude:", *(f"        - {_flow(one)}" for one in exclude)]
        out += rows
    if draft.resources:
        out += _mapping("resources", draft.resources, {})
    if draft.target and draft.target != default:
        out.append(f"    target: {scalar(draft.target)}")
    return out


def _mapping(key: str, values: Mapping[str, Any], notes: Mapping[str, str]) -> list[str]:
    """In one line where it fits and has no notes, otherwise a line for each value."""
    line = f"    {key}: {_flow(values)}"
    if len(line) <= WIDTH and not notes:
        return [line]
    rows = [(k, f"      {scalar(k)}: {_flow(v)}") for k, v in values.items()]
    return [f"    {key}:", *(f"{row} # {notes[k]}" if k in notes else row for k, row in rows)]


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{scalar(k)}: {_flow(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_flow(v) for v in value) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    """A value as YAML 1.2 has it, plain where that cannot be taken for something else."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and plain_scalar(text) == text and not text.endswith(":"):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return _SPECIAL.sub(lambda m: f"\\u{ord(m.group()):04x}", quoted)
