"""Finds out what planning needs to know: digests of inputs from outside, code identities, what the store has."""

from __future__ import annotations

import functools
from pathlib import Path

from microstages.artifact import identify
from microstages.errors import TemporaryError, UserError
from microstages.identity import folder_lines

from runner.document import Problems
from runner.history import History
from runner.pipeline import External, Pipeline, Stage
from runner.plan import Facts
from runner.store import Damaged, Result, Store


def gather(pipeline: Pipeline, store: Store, history: History) -> Facts:
    """The facts as they are now. Raises PipelineError naming every input that is missing or of a wrong kind."""
    lines = functools.cache(folder_lines)
    code = {name: stage.found.code_identity(lines) for name, stage in pipeline.stages.items()}
    known: dict[tuple[str, str], Result | Damaged | None] = {}

    def look_up(stage: str, fingerprint: str) -> Result | Damaged | None:
        """A result once found stays; anything else is looked up again."""
        if not isinstance(known.get((stage, fingerprint)), Result):
            known[stage, fingerprint] = store.look_up(stage, fingerprint)
        return known[stage, fingerprint]

    return Facts(outside_digests(pipeline), code, look_up, history.last(pipeline.name))


def outside_digests(pipeline: Pipeline) -> dict[tuple[str, str], str]:
    """The content digest of every input from outside."""
    problems = Problems()
    opened: dict[tuple[str, tuple[str, ...]], str] = {}
    digests = {}
    for stage in pipeline.stages.values():
        for name, value in stage.inputs.items():
            if not isinstance(value, External):
                continue
            kinds = stage.interface.inputs[name].kinds
            try:
                if (value.uri, kinds) not in opened:
                    opened[value.uri, kinds] = identify(value.uri, kinds)
                digests[stage.name, name] = opened[value.uri, kinds]
            except TemporaryError:
                raise
            except UserError as error:
                what = f"{error.where}: {error.what}"
                value.wrong(problems, f"input {name} of stage {stage.name}", what, error.fix)
            except OSError as error:
                why = (error.strerror or str(error)).lower()
                problems.add(value.place, f"input {name} of stage {stage.name}: {value.uri}: {why}", "check the path")
    problems.check()
    return digests


def changed_since(stage: Stage, facts: Facts) -> list[str]:
    """What of a stage changed since the facts were gathered: its code, or inputs from outside."""
    changed = []
    if stage.found.code_identity() != facts.code[stage.name]:
        changed.append("the code")
    for name, value in stage.inputs.items():
        if isinstance(value, External):
            kinds = stage.interface.inputs[name].kinds
            try:
                same = identify(value.uri, kinds) == facts.outside[stage.name, name]
            except (UserError, OSError):
                same = False
            if not same:
                changed.append(f"the input {name} ({Path(value.uri).name})")
    return changed
