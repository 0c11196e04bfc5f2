"""Decides what must run, what is there already, what has to wait, and why. Nothing here reads or writes anything.

A stage's fingerprint covers its code, its parameters and the digests of its inputs. Where the inputs are known, the
fingerprint is, and so is whether a result of it exists. Behind a stage that must run nothing is known yet: if its new
result turns out to be the same bytes, what follows is not run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from microstages.identity import fingerprint

from runner.history import Record
from runner.pipeline import Pipeline, Stage
from runner.select import Select, pick
from runner.spec import Ref
from runner.store import Damaged, Result

Action = Literal["reuse", "run", "wait", "skip"]
BRIEF = 24  # characters of a value in a reason


@dataclass(frozen=True)
class Facts:
    """What planning needs to know about the world: digests of the inputs from outside (`(stage, input)` -> digest),
    code identities by stage, what the store has, and how each stage was made last."""

    outside: Mapping[tuple[str, str], str]
    code: Mapping[str, str]
    look_up: Callable[[str, str], Result | Damaged | None]
    last: Mapping[str, Record]


@dataclass(frozen=True)
class Step:
    """The decision for one stage.

    `reuse`: `result` is what it would make. `run`: nothing is there. `wait`: an input is not made yet. `skip`: it was
    not asked for, and nothing is there.
    """

    stage: str
    action: Action
    reason: str
    fingerprint: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    result: Result | None = None
    replace: str | None = None  # the attempt whose commit gives way: forced, or damaged (empty: it cannot be read)


@dataclass(frozen=True)
class Choice:
    """Which stages were asked for, and which of them run even though a result is there."""

    stages: Set[str]
    forced: Set[str] = frozenset()


def choose(pipeline: Pipeline, only: str | None = None, first: str | None = None, force: bool = False) -> Choice:
    """Everything, one stage alone (`only`), or one stage and what follows it (`first`)."""
    chosen: Set[str] = set(pipeline.stages)
    if only:
        chosen = pipeline.named(only)
    elif first:
        chosen = pipeline.downstream(first)
    return Choice(chosen, chosen if force else frozenset())


def plan(pipeline: Pipeline, facts: Facts, choice: Choice) -> dict[str, Step]:
    """The decision for every stage, as far as it can be known before anything runs."""
    steps: dict[str, Step] = {}
    for stage in pipeline.stages.values():
        steps[stage.name] = decide(stage, facts, choice, steps)
    return steps


def decide(stage: Stage, facts: Facts, choice: Choice, steps: Mapping[str, Step]) -> Step:
    """The decision for one stage, given those for the stages before it."""
    chosen = stage.name in choice.stages
    unmade = [up for up in stage.upstream if steps[up].result is None]
    last = facts.last.get(stage.name)
    if unmade:
        changed = _changes(stage, facts, last, {}) if last else "new"
        missing = [up for up in unmade if steps[up].action == "skip"]
        if not chosen:
            return Step(stage.name, "skip", f"needs {_and(unmade)}")
        if missing:
            return Step(stage.name, "skip", f"{_and(missing)} {'is' if len(missing) == 1 else 'are'} not done")
        waits = f"after {_and(unmade)}"
        return Step(stage.name, "wait", f"{waits}; {changed}" if changed else f"{waits}, unless its result is the same")
    digests = input_digests(stage, facts, steps)
    if stage.select is not None:
        return _selected(stage, stage.select, steps, digests)
    name = stage_fingerprint(stage, facts, digests)
    found = facts.look_up(stage.interface.name, name)
    if isinstance(found, Result) and stage.name not in choice.forced:
        return Step(stage.name, "reuse", "unchanged", name, digests, found)
    replace: str | None
    if isinstance(found, Damaged):
        reason, replace = f"its result is damaged: {found.why}", found.attempt
    elif found is not None:
        reason, replace = "forced", found.attempt
    elif last is None:
        reason, replace = "new", None
    elif last.fingerprint == name:
        reason, replace = "its result is not in the store any more", None
    else:
        reason, replace = _changes(stage, facts, last, digests) or "changed", None
    return Step(stage.name, "run" if chosen else "skip", reason, name, digests, None, replace)


def _selected(stage: Stage, select: Select, steps: Mapping[str, Step], digests: Mapping[str, str]) -> Step:
    """The best of some variants, all of them made: its result is theirs. Raises UserError where none is good enough."""
    results = {name: r for name in stage.upstream if (r := steps[name].result) is not None}
    if not all(o.manifest.files for r in results.values() for o in r.outputs.values()):
        return Step(stage.name, "wait", "what was measured is not looked at here")
    best = pick(select, results)
    result = results[best.candidate.taken]
    shown_values = ", ".join(f"{name} {value:.4g}" for name, value in best.metrics.items())
    reason = f"{best.candidate.taken}: {shown_values}"
    return Step(stage.name, "reuse", reason, result.fingerprint, digests, result)


def input_digests(stage: Stage, facts: Facts, steps: Mapping[str, Step]) -> dict[str, str]:
    """The content digest of each input. All stages before this one must have results."""
    digests = {}
    for name, value in stage.inputs.items():
        if isinstance(value, Ref):
            result = steps[value.stage].result
            assert result is not None
            digests[name] = result.outputs[value.output].digest
        else:
            digests[name] = facts.outside[stage.name, name]
    return digests


def stage_fingerprint(stage: Stage, facts: Facts, digests: Mapping[str, str]) -> str:
    """The name of this stage run."""
    interface = stage.interface
    return fingerprint(interface.name, facts.code[stage.name], interface.identity_params(stage.params), digests)


def _changes(stage: Stage, facts: Facts, last: Record, digests: Mapping[str, str]) -> str:
    """What is different from the last time, in words; inputs only where their digests are known."""
    if last.uses != stage.interface.name:
        return f"uses: {last.uses} → {stage.interface.name}"
    parts = []
    before = last.params or {}
    for name, value in stage.interface.identity_params(stage.params).items():
        if name not in before:
            parts.append(f"param {name} is new")
        elif before[name] != value:
            parts.append(f"param {name}: {' → '.join(both(before[name], value))}")
    parts += [f"param {name} is gone" for name in before if name not in stage.params]
    for name in stage.inputs:
        known = (last.inputs or {}).get(name)
        now = digests.get(name) or facts.outside.get((stage.name, name))
        if known is None:
            parts.append(f"input {name} is new")
        elif now is not None and known != now:
            parts.append(f"input {name} changed")
    parts += [f"input {name} is gone" for name in last.inputs or {} if name not in stage.inputs]
    if last.code != facts.code[stage.name]:
        parts.append(f"code of {stage.interface.name} changed")
    return ", ".join(parts)


def on_a_line(value: Any) -> str:
    """A value on one line, however long; numbers as people write them."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.10g}"
    return str(value).replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")


def shown(value: Any) -> str:
    """A value on one short line."""
    text = on_a_line(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def both(before: Any, after: Any) -> tuple[str, str]:
    """Two values that differ, so short that a reason of several stays readable: of long ones the beginning, or, where
    that is the same, what stands around the first difference."""
    a, b = on_a_line(before), on_a_line(after)
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = 0 if same < BRIEF - 4 or max(len(a), len(b)) <= BRIEF else same - BRIEF // 3

    def cut(text: str) -> str:
        end = start + BRIEF
        return f"{'…' if start else ''}{text[start:end]}{'…' if len(text) > end else ''}"

    return cut(a), cut(b)


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
