"""Two runs side by side for a page: what differs (see `runner diff`), and the curves of both."""

from __future__ import annotations

from typing import Any

from runner.differences import as_data, compare, of_run
from runner.differences_text import BETTER
from runner.ui.answers import Answers


def compared(answers: Answers, before: int, after: int) -> dict[str, Any]:
    """What became of run `before` in run `after`. Raises MissingError."""
    runs = [answers.seen(before), answers.seen(after)]
    with answers.history() as history:
        data = as_data(compare(*(of_run(history, found.run) for found in runs)))
    for stage in data["stages"]:
        both = [answers.curves(found, stage["stage"]) if found.stage(stage["stage"]) else {} for found in runs]
        some = any(curves.get("lines") for curves in both)
        stage["curves"] = dict(zip(("before", "after"), both, strict=True)) if some else {}
        for result in stage["results"]:
            result["better"] = next((way for part, way in BETTER if part in result["name"]), 0)
    return data
