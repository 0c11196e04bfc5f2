"""Predictions of several forms, as `infer` writes them, with figures that are made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from microstages.artifact import Draft

HARDWARE = {"machine": "x86_64", "cores": 2, "memory_bytes": 25_000_000_000, "processor": "Some Processor"}
CLASSES = ("joy", "fear")
ROWS = [{"prompt": f"Text {i}", "completion": CLASSES[i % 2]} for i in range(120)]

Make = Callable[..., Path]


def write(folder: Path, said: Sequence[str], rows: Sequence[dict[str, str]] = (), **more: Any) -> Path:
    """Predictions that answer `rows` with `said`. `metrics` and `metadata` are put over what is counted here."""
    asked = rows or ROWS
    marks = [s == r["completion"] for s, r in zip(said, asked, strict=True)]
    classes = sorted({r["completion"] for r in asked})
    counts = [[0] * (len(classes) + 1) for _ in classes]
    for r, s in zip(asked, said, strict=True):
        counts[classes.index(r["completion"])][classes.index(s) if s in classes else -1] += 1
    labels = {c: {"rows": sum(n), "recall": 0.5, "precision": 0.25, "f1": 0.333333}
              for c, n in zip(classes, counts, strict=True)}  # fmt: skip
    with Draft(str(folder), "predictions") as draft:
        lines = [
            {**r, "prediction": s, "ended": True, "tokens": 2, "correct": m}
            for r, s, m in zip(asked, said, marks, strict=True)
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (draft.path / "predictions.jsonl").write_text(text, encoding="utf-8")
        draft.metrics.update({"accuracy": round(sum(marks) / len(marks), 6), "majority_share": 0.5,
                              "accuracy_low": 0.4, "accuracy_high": 0.9, "disk_bytes": 10_000_000,
                              "ended_share": 1.0, **more.get("metrics", {})})  # fmt: skip
        draft.metadata.update({"form": "onnx", "labels": labels, "confusion": {"classes": classes, "counts": counts},
                               "rows_digest": f"sha256:{len(asked)}", **more.get("metadata", {})})  # fmt: skip
        draft.commit({"hardware": more.get("hardware", HARDWARE)})
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make("int4", said, metrics=…)` writes predictions into a folder of that name."""
    return lambda name, said, rows=(), **more: write(tmp_path / name, said, rows, **more)


@pytest.fixture
def right() -> list[str]:
    """The right answers to the rows that are answered where none are given."""
    return [r["completion"] for r in ROWS]


@pytest.fixture
def forms(make: Make, right: list[str]) -> list[Path]:
    """Three forms: one that knows nothing, a merged one that errs in row 4, an int4 one that errs in rows 4 and 7."""

    def but(*rows: int) -> list[str]:
        return [{"joy": "fear", "fear": "joy"}[s] if i + 1 in rows else s for i, s in enumerate(right)]

    merged = make("merged", but(4), metadata={"form": "model"}, metrics={
        "loss": 0.1, "perplexity": 1.105, "peak_memory_bytes": 400_000_000, "decode_tokens_per_s": 1500.0,
        "time_to_first_token_p50_s": 0.05, "batch_size": 16,
    })  # fmt: skip
    digest = json.loads((merged / "artifact.json").read_text())["digest"]
    int4 = make("int4", but(4, 7), metadata={"reference": digest}, metrics={
        "loss": 0.125, "kl_mean": 0.0123, "top1_agreement": 0.97, "decode_tokens_per_s": 7000.0, "batch_size": 16,
        "disk_bytes": 3_000_000,
    })  # fmt: skip
    base = make("base", ["I do not know"] * 120, metadata={"form": "model"}, metrics={"loss": 5.0, "batch_size": 16})
    return [base, merged, int4]
