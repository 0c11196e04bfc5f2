"""What Olive's search tries becomes a `matrix`: values of a pass's parameters, and alternatives of a pass.

Olive searches, where `search_strategy` is on: a value written as a SearchParameter; SEARCHABLE_VALUES; since v0.7 a
list in place of a value for the parameters of `SEARCHED`, and these also where a config does not name them.

A pass is read once for each combination. Where what is read differs in parameters of a stage, these are the matrix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runner.document import Node
from runner.matrix import MOST
from runner.olive.params import check, interface
from runner.olive.section import CHANGED, LOST, NEEDLESS, SAME, USED, Fate, Layers, Report, Section

if TYPE_CHECKING:
    from runner.olive.passes import Pass

_RANKS = {"r": (16, 32, 64)}
# The values that v0.13 tries of a parameter where a config names none; before v0.7 there were none for these passes.
SEARCHED: Mapping[str, Mapping[str, Sequence[Any]]] = {
    **dict.fromkeys(("lora", "qlora", "loftq", "dora"), _RANKS),
    "modelbuilder": {"int4_block_size": (32, 64, 128), "int4_is_symmetric": (True, False),
                     "int4_algo_config": ("default", "rtn", "k_quant_mixed", "k_quant_last")},
}  # fmt: skip
_OLDER = {"r": "lora_r"}
_SAMPLERS = ("exhaustive", "sequential", "random", "tpe")
_SAMPLING = {**dict.fromkeys(("num_samples", "max_samples", "seed"), ("whole",)),
             **dict.fromkeys(("with_replacement", "multivariate", "group"), ("flag",))}  # fmt: skip
MOST_LEFT_OUT = 4000  # combinations of alternatives: what is left out of more of them takes too long to tell
_ALL = "all combinations are run, side by side; what is there already is reused"

Read = Callable[[Section], "Pass | None"]
Point = dict[str, Any]


@dataclass(frozen=True)
class Search:
    """Whether values are searched, and whether those of passes that a config does not name."""

    on: bool = False
    params: bool = False


@dataclass(frozen=True)
class Variants:
    """The matrix of a stage: values by parameter, and the combinations that are left out."""

    values: Mapping[str, Sequence[Any]]
    exclude: Sequence[Point]


def read_search(top: Section, generation: str) -> Search:
    """`search_strategy`, of the engine or at the top."""
    layers = Layers(top.child("engine"), top)
    holder = layers.holder("search_strategy")
    if holder is None or not isinstance(holder.values["search_strategy"].value, dict):
        on = bool(layers.take("search_strategy", "flag", "mapping"))
        layers.fate("search_strategy", *((USED, "matrix and select") if on else (NEEDLESS, "nothing is searched")))
        return Search(on, on and generation == "B")
    strategy = holder.child("search_strategy")
    if strategy is None:
        return Search()
    order = strategy.take("execution_order", "text", among=("joint", "pass-by-pass"))
    why = "Olive went on with the best of each pass; here the best of all combinations is taken"
    strategy.fate("execution_order", *((CHANGED, "matrix", why) if order == "pass-by-pass" else (USED, "matrix")))
    for name in ("sampler", "search_algorithm"):
        given = strategy.word(name, {s: s for s in _SAMPLERS})
        strategy.fate(name, *((CHANGED, "matrix", _ALL) if given in ("random", "tpe") else (USED, "matrix")))
        if (config := strategy.child(f"{name}_config")) is not None:
            config.ignore(_SAMPLING, CHANGED, _ALL)
            config.close()
    strategy.ignore(_SAMPLING, CHANGED, _ALL)
    strategy.ignore({"stop_when_goals_met": ("flag",), "max_iter": ("whole",), "max_time": ("whole",)}, LOST, _ALL)
    strategy.ignore({"output_model_num": ("whole",)}, NEEDLESS, "every variant is kept; `select` takes the best one")
    params = bool(strategy.read("include_pass_params", "flag", how=USED, text="matrix", default=True))
    strategy.close()
    return Search(True, params and generation == "B")


def varied(search: Search, sections: Sequence[Section], read: Read) -> Pass | None:
    """The pass that stands in one section, or in several as alternatives, with its variants where it is searched."""
    tried = [(s, _axes(search, s)) for s in sections]
    many = sum(math.prod(map(len, axes.values())) for _, axes in tried)
    if many > MOST:  # they are counted before they are made: there may be more than fit into memory
        count = f"{many:,} combinations of values, more" if many < 1e12 else "far more combinations of values"
        sections[0].wrong(sections[0].node.place, f"{sections[0].path} has {count} than {MOST}", "search fewer values")
    made_of = ((s, dict(zip(axes, values, strict=True))) for s, axes in tried
               for values in itertools.product(*axes.values()))  # fmt: skip
    points = list(itertools.islice(made_of, 1 if many > MOST else None))
    found: list[Pass] = []
    for n, (section, point) in enumerate(points):
        first = n == 0 or points[n - 1][0] is not section
        made = _read(section, point, read, first)
        if made is None:
            return None
        found.append(made)
    return _joined(found, sections)


# --- the points of a pass ---


def _axes(search: Search, section: Section) -> dict[str, list[Any]]:
    """The values of a pass that are searched, by their keys."""
    config = _config(section)
    type_ = str(section.values["type"].value).lower() if "type" in section.values else ""
    usual = SEARCHED.get(type_, {})
    off = section.values.get("disable_search")
    on = search.on and not (off is not None and off.value is True)
    axes: dict[str, list[Any]] = {}
    for key, node in config.values.items():
        if (values := _values(config, key, node, usual, on)) is not None:
            axes[key] = values
    if on and search.params:
        precision = config.values.get("precision")
        for key, usual_values in usual.items():
            needless = key.startswith("int4_") and (precision is None or precision.value != "int4")
            if key not in config.values and _OLDER.get(key, key) not in config.values and not needless:
                axes[key] = list(usual_values)
                shown = ", ".join(str(v).lower() for v in usual_values)
                section.report.note(f"{config.at(key)} is not given, and with a search Olive tries {shown}: so here")
    return axes


def _config(section: Section) -> Section:
    nested = section.values.get("config")
    if nested is not None and isinstance(nested.value, dict):
        return Section(nested, section.at("config"), Report(), section.problems)
    return section


def _values(config: Section, key: str, node: Node, usual: Mapping[str, Sequence[Any]], on: bool) -> list[Any] | None:
    """The values of a key that are tried; None where it has one value, as it stands there."""
    value, newer = node.value, next((n for n, o in _OLDER.items() if o == key), key)
    if value == "DEFAULT_VALUE":
        return [None]
    if value == "SEARCHABLE_VALUES":
        if not on:
            config.wrong(node.place, f"{config.at(key)} is to be searched, and nothing is", "write search_strategy")
        return list(usual.get(newer, [None]))
    if isinstance(value, list) and value and on and newer in usual:
        return [v.plain() for v in value]
    if isinstance(value, dict) and {"olive_parameter_type", "support"} & value.keys():
        return _parameter(Section(node, config.at(key), Report(), config.problems), on)
    return None


def _parameter(section: Section, on: bool) -> list[Any]:
    """The values of a SearchParameter."""
    section.take("olive_parameter_type", "text", among=("SearchParameter",))
    kind = section.word("type", {"Categorical": "Categorical", "Boolean": "Boolean"}, "Categorical")
    support = section.take("support", "list")
    for key in section.asked:
        section.fate(key, USED)
    section.close()
    if not on:
        section.wrong(section.node.place, f"{section.path} is to be searched, and nothing is", "write search_strategy")
    if kind == "Categorical" and not support:
        section.wrong(section.node.place, f"{section.path} has no support", "write the values to try: [16, 32]")
    return list(support or ([True, False] if kind == "Boolean" else [None]))


# --- what is read at the points ---


def _read(section: Section, point: Point, read: Read, first: bool) -> Pass | None:
    """The pass with these values. What becomes of its keys is told for the first of its points."""
    if not point and first:
        return read(section)
    config = _config(section)
    values = dict(config.values)
    for key, value in point.items():
        old = values.get(key)
        place = old.place if old is not None else config.node.place
        entries = old.value if old is not None and isinstance(old.value, list) else ()
        place = next((e.place for e in entries if e.plain() == value), place)
        values[key] = _node(value, place)
    node = replace(config.node, value=values)
    if config is not section:
        node = replace(section.node, value={**section.values, "config": node})
    report = Report()
    made = read(Section(node, section.path, report, section.problems))
    if first:
        for note in report.notes:
            section.report.note(note)
        section.report.fates += [_searched(f, config, point) for f in report.fates if not _ours(f, config, point)]
    return made


def _ours(fate: Fate, config: Section, point: Point) -> bool:
    """Whether a value is a default of the search, and no key of the config."""
    key = fate.path.removeprefix(f"{config.path}.")
    return key in point and key not in config.values


def _searched(fate: Fate, config: Section, point: Point) -> Fate:
    """What becomes of a key, with the values that stand in the config."""
    key = fate.path.removeprefix(f"{config.path}.")
    if key not in point:
        return fate
    value = config.values[key].plain()
    if fate.how == USED:
        return replace(fate, value=value, becomes=f"matrix: {fate.becomes}")
    return replace(fate, value=value, why="Olive's default" if fate.how == SAME else fate.why)


def _node(value: Any, place: Any) -> Node:
    if isinstance(value, list):
        return Node([_node(v, place) for v in value], place)
    if isinstance(value, dict):
        return Node({k: _node(v, place) for k, v in value.items()}, place, dict.fromkeys(value, place))
    return Node(value, place)


def _joined(found: Sequence[Pass], sections: Sequence[Section]) -> Pass | None:
    """Passes that differ in parameters of one stage, as one with a matrix."""
    if len(found) == 1:
        return found[0]
    from runner.olive.passes import BUILD, TRAIN, stage_of

    first, top = found[0], sections[0]
    fix = "keep one of them, or write a config for each"
    if first.kind not in (TRAIN, BUILD) or any(_apart(p) != _apart(first) for p in found):
        what = f"{top.path} has alternatives that differ in more than parameters of one stage"
        top.wrong(top.node.place, what, fix)
        return first
    uses = stage_of(first)
    known = interface(uses).params
    names = dict.fromkeys(name for p in found for name in p.params.values)
    usual = {name: known[name].default if name in known else None for name in names}
    rows: list[Point] = []
    for one in found:
        check(uses, one.params, top.problems, one.place)
        row = {name: one.params.values.get(name, usual[name]) for name in names}
        if str(row.get("algorithm")).startswith("k_quant") and row.get("symmetric"):
            top.report.note(f"{top.path}: k_quant always writes zero points, so it is not tried with symmetric: true")
        elif row not in rows:
            rows.append(row)
    differing = [name for name in names if any(r[name] != rows[0][name] for r in rows)]
    if any(isinstance(r[name], list) for r in rows for name in differing):
        top.wrong(top.node.place, f"{top.path} has alternatives that differ in a list", fix)
        return first
    common = replace(first.params, values={k: rows[0][k] for k in first.params.values if k not in differing})
    if not differing:
        return replace(first, params=common)
    values = {name: list(dict.fromkeys(r[name] for r in rows)) for name in differing}
    if math.prod(map(len, values.values())) > MOST_LEFT_OUT:
        top.wrong(top.node.place, f"{top.path} has alternatives that differ in too many parameters", fix)
        return first
    wanted = [tuple(r[name] for name in differing) for r in rows]
    return replace(first, params=common, variants=Variants(values, _left_out(values, wanted)))


def _apart(one: Pass) -> tuple[Any, ...]:
    """All of a pass but its parameters."""
    from runner.olive.passes import stage_of

    parts = (one.host, one.train, one.evaluate)
    measured = one.evaluator and one.evaluator.name
    return (one.kind, stage_of(one), one.held_out, one.data_seed, one.metadata_only, measured,
            *(p.node.plain() if isinstance(p, Section) else p for p in parts))  # fmt: skip


def _left_out(values: Mapping[str, Sequence[Any]], wanted: Sequence[tuple[Any, ...]]) -> list[Point]:
    """The combinations that are not wanted, each told with as few keys as tell it."""
    left = set(itertools.product(*values.values())).difference(wanted)
    out: list[Point] = []
    for size in range(1, len(values) + 1):
        for places in itertools.combinations(range(len(values)), size):
            kept = {tuple(w[n] for n in places) for w in wanted}
            needless = {p for p in left if tuple(p[n] for n in places) not in kept}
            told = {tuple(p[n] for n in places) for p in needless}
            for point in itertools.product(*([*values.values()][n] for n in places)) if told else ():
                if point in told:
                    out.append(dict(zip([[*values][n] for n in places], point, strict=True)))
            left -= needless
    return out
