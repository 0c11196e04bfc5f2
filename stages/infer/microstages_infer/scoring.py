"""How good the answers are: facts that are the same on every run with the same answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from microstages_infer.decoding import Answer
from microstages_infer.prompts import Row

LABELS = 20  # with at most so many different references they are classes, and each one's recall is reported


def normalized(text: str, how: str) -> str:
    """Text as it is compared. `none`: as it is. `strip`: without white space at its ends. `case`: that, every run of
    white space one space, and without difference of case.
    """
    if how == "none":
        return text
    return text.strip() if how == "strip" else " ".join(text.split()).casefold()


def is_correct(prediction: str, reference: str, metric: str, how: str) -> bool:
    """`exact_match`: equal. `starts_with`: the prediction begins with the reference (which is not empty)."""
    said, right = normalized(prediction, how), normalized(reference, how)
    if metric == "starts_with":
        return bool(right) and said.startswith(right)
    return said == right


def score(
    rows: Sequence[Row], answers: Sequence[Answer], metric: str, how: str
) -> tuple[list[bool | None], dict[str, Any]]:
    """Whether each answer is right (None: nobody knows), and the facts over all.

    `accuracy` is over the rows with a reference; `majority_share` is what always saying the most frequent reference
    would reach. An answer that was never made is wrong.
    """
    marks: list[bool | None] = [
        None if row.reference is None or metric == "none" else is_correct(a.text, row.reference, metric, how)
        for row, a in zip(rows, answers, strict=True)
    ]
    marks = [False if a.problem and mark is not None else mark for a, mark in zip(answers, marks, strict=True)]
    facts: dict[str, Any] = {
        "rows": len(rows),
        "ended_share": share(sum(a.ended for a in answers), len(answers)),
        "unanswered": sum(a.problem is not None for a in answers),
        "prompt_tokens": sum(a.prompt_tokens for a in answers),
        "generated_tokens": sum(a.generated for a in answers),
    }
    known = [
        (normalized(r.reference or "", how), mark) for r, mark in zip(rows, marks, strict=True) if mark is not None
    ]
    if known:
        counts = Counter(label for label, _ in known)
        facts |= {
            "metric": metric,
            "normalize": how,
            "references": len(known),
            "correct": sum(bool(mark) for _, mark in known),
            "accuracy": share(sum(bool(mark) for _, mark in known), len(known)),
            "majority_share": share(max(counts.values()), len(known)),
            "distinct_references": len(counts),
        }
        if len(counts) <= LABELS:
            right = Counter(label for label, mark in known if mark)
            facts["labels"] = {
                label: {"rows": n, "recall": share(right[label], n)}
                for label, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            }
    return marks, facts


def share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile (0 to 100), linear between the nearest values; 0.0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    at = (len(ordered) - 1) * q / 100
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
