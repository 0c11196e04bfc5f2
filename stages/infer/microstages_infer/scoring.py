"""How good the answers are: facts that are the same on every run with the same answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from microstages_infer.decoding import Answer
from microstages_infer.prompts import Row

LABELS = 20  # with at most so many different references they are classes, and each one's figures are reported
Z = 1.959963984540054  # of a two-sided interval of 95 %


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
        "empty_share": share(sum(not a.text.strip() for a in answers), len(answers)),
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
            **dict(
                zip(("accuracy_low", "accuracy_high"), wilson(sum(bool(m) for _, m in known), len(known)), strict=True)
            ),
            "majority_share": share(max(counts.values()), len(known)),
            "distinct_references": len(counts),
        }
        if len(counts) <= LABELS:
            classes = sorted(counts, key=lambda label: (-counts[label], label))
            said = [
                None if a.problem else label_of(a.text, classes, metric, how)
                for a, mark in zip(answers, marks, strict=True)
                if mark is not None
            ]
            pairs = [(label, label if mark else s) for (label, mark), s in zip(known, said, strict=True)]
            facts |= class_figures(classes, pairs)
    return marks, facts


def label_of(prediction: str, classes: Sequence[str], metric: str, how: str) -> str | None:
    """The class that an answer names, the longest where several do; None where it names none."""
    named = [c for c in classes if is_correct(prediction, c, metric, how)]
    return max(named, key=len, default=None)


def class_figures(classes: Sequence[str], pairs: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    """Figures of `pairs` (right class, class said; None: an answer that is no class).

    `confusion`: `counts[i][j]` rows of class i were answered by class j; the last column counts answers that are no
    class. `labels`: rows, precision, recall and F1 of each class, 0 where nothing is to divide by. `macro_f1`: their
    plain mean. `no_class_share`: of these rows.
    """
    at = {c: i for i, c in enumerate(classes)}
    counts = [[0] * (len(classes) + 1) for _ in classes]
    for right, said in pairs:
        counts[at[right]][len(classes) if said is None else at[said]] += 1
    labels = {}
    for c, i in at.items():
        rows, as_it = sum(counts[i]), sum(row[i] for row in counts)
        precision, recall = share(counts[i][i], as_it), share(counts[i][i], rows)
        labels[c] = {
            "rows": rows,
            "recall": recall,
            "precision": precision,
            "f1": share(2 * counts[i][i], rows + as_it),
        }
    return {
        "labels": labels,
        "confusion": {"classes": list(classes), "counts": counts},
        "macro_f1": round(sum(v["f1"] for v in labels.values()) / len(labels), 6),
        "no_class_share": share(sum(said is None for _, said in pairs), len(pairs)),
    }


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that was seen as `right` of `count` (Wilson 1927, without continuity correction)."""
    if not count:
        return 0.0, 1.0
    p, zz = right / count, Z * Z / count
    centre = (p + zz / 2) / (1 + zz)
    half = Z / (1 + zz) * math.sqrt(p * (1 - p) / count + zz / (4 * count))
    return round(max(0.0, centre - half), 6), round(min(1.0, centre + half), 6)


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
