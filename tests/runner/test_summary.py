"""What `up` says at its end: whether figures are good for anything, and what one may do next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from microstages.reporting import number_of

from runner.history import Record
from runner.otherwise import _how
from runner.pipeline import Pipeline
from runner.spec import Ref
from runner.summary import Ended, notes, summary


def measured(right: int, rows: int, most: int, classes: int = 3) -> dict[str, Any]:
    """Metrics as infer writes them."""
    from microstages_infer.scoring import wilson

    low, high = wilson(right, rows)
    return {"accuracy": right / rows, "accuracy_low": low, "accuracy_high": high, "majority_share": most / rows,
            "references": rows, "distinct_references": classes}  # fmt: skip


MADE = Ref("merged", "model")


def told(metrics: dict[str, dict[str, Any]], model: Any = MADE) -> list[str]:
    stages = {name: SimpleNamespace(name=name, inputs={"model": model}, select=None) for name in metrics}
    results = {name: SimpleNamespace(metrics=m, outputs={}) for name, m in metrics.items()}
    return notes(SimpleNamespace(stages=stages), results)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("right", "rows", "most", "words"),
    [
        (42, 64, 18, ""),  # clearly better
        (8, 13, 6, "not shown to be better"),  # better, on too few rows
        (6, 13, 6, "not shown to be better"),
        (2, 64, 32, "worse than always giving the most frequent answer (0.500)"),
    ],
)
def test_a_model_that_is_not_shown_to_be_better_than_a_constant(right, rows, most, words):
    found = told({"tuned": measured(right, rows, most)})
    assert len(found) == bool(words) and words in "".join(found)


def test_forms_with_the_same_rows_share_a_note_that_says_the_intervals():
    (note,) = told({"tuned": measured(7, 13, 6), "quantized": measured(6, 13, 6), "good": measured(13, 13, 6)})
    assert "tuned 0.291–0.768, quantized 0.232–0.709" in note and "13 held-out rows" in note and "good" not in note


@pytest.mark.parametrize(("steps", "right", "told_of"), [(20, 6, True), (400, 6, False), (20, 13, False)])
def test_few_steps_of_training_are_told_where_a_model_is_no_good(steps, right, told_of):
    found = "".join(told({"adapter": {"steps": steps}, "tuned": measured(right, 13, 6)}))
    assert ("adapter was trained in only 20 steps: more epochs, or fewer batch_tokens" in found) == told_of


def test_of_a_base_from_outside_and_of_free_texts_nothing_is_said():
    assert told({"base": measured(0, 13, 6)}, model="hf://owner/name") == []
    assert told({"tuned": measured(1, 13, 1, classes=13)}) == []
    assert told({"tuned": {"accuracy": 0.5}}) == []


def test_the_commands_at_the_end_mean_the_same_results_and_stand_below_each_other():
    manifest = SimpleNamespace(kind="onnx-model", size=1000)
    output = SimpleNamespace(manifest=manifest, digest="sha256:" + "0" * 64, uri="s3://b/x")
    pipeline: Pipeline = SimpleNamespace(name="demo", stages={"onnx": SimpleNamespace(select=None, inputs={})})  # type: ignore[assignment]
    results: Any = {"onnx": SimpleNamespace(metrics={}, outputs={"model": output})}

    def last(*settings: str) -> list[str]:
        ended = Ended("done", {"onnx": "done"}, 1.0, 3, 1, {}, ("-p", "a.yaml"), settings)
        return summary(pipeline, results, ended).split("\n\n")[-1].splitlines()

    short = last("params.n=1")
    assert [line.split("   ")[0].strip() for line in short] == [
        "runner diff 1 3 -p a.yaml", "runner lineage onnx -p a.yaml --set params.n=1",
        "runner pull onnx ./model -p a.yaml --set params.n=1",
    ]  # fmt: skip
    assert len({line.rindex("   ") for line in short}) == 1, "aligned"
    long = last("store=s3://bucket/a", "params.template=" + "x" * 80)
    assert long[:2] == ["  # what is different from run 1", "  runner diff 1 3 -p a.yaml --set store=s3://bucket/a"]
    assert len(long) == 6


def test_numbers_are_told_as_they_were_written():
    stage = SimpleNamespace(params={"epochs": 8.0, "rate": 2e-5, "template": "x" * 100, "same": 1}, upstream=())
    known: Any = SimpleNamespace(pipeline=SimpleNamespace(stages={"adapter": stage}))
    before = {"epochs": 1.0, "rate": 0.5, "template": "y" * 100, "same": 1}
    said = _how(known, "adapter", Record(1, "adapter", "train", "done", params=before))
    assert said == f" (epochs 1, not 8, rate 0.5, not 2e-05, template {'y' * 24}…, not {'x' * 24}…)"


def test_one_is_not_several():
    assert [number_of(n, "file") for n in (0, 1, 1200)] == ["0 files", "1 file", "1,200 files"]
    assert (number_of(1, "address", "addresses"), number_of(2, "address", "addresses")) == ("1 address", "2 addresses")
