"""Given rows with known answers, when they are answered, then the file and the figures say what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from microstages.artifact import Draft
from microstages_infer.decoding import Answer, Limits
from microstages_infer.prompts import Row
from microstages_infer.sampling import Sampler, Sampling
from microstages_infer.scoring import is_correct, percentile, score, wilson


def said(text: str, ended: bool = True, problem: str | None = None) -> Answer:
    return Answer(prompt_tokens=3, ids=[1], text=text, ended=ended, generated=2, problem=problem)


def test_score_of_hand_made_answers() -> None:
    rows = [Row("a", "joy"), Row("b", "joy"), Row("c", "joy"), Row("d", "fear"), Row("e", "sadness"), Row("f")]
    answers = [
        said(" joy\n"),
        said("Joy"),
        said("joy", ended=False),
        said("fear"),
        said("", problem="too long"),
        said("?"),
    ]
    marks, facts = score(rows, answers, "exact_match", "strip")
    assert marks == [True, False, True, True, False, None]
    assert facts["accuracy"] == 0.6 and facts["correct"] == 3 and facts["references"] == 5 and facts["rows"] == 6
    assert facts["majority_share"] == 0.6 and facts["distinct_references"] == 3
    assert facts["labels"] == {
        "joy": {"rows": 3, "recall": 0.666667, "precision": 1.0, "f1": 0.8},
        "fear": {"rows": 1, "recall": 1.0, "precision": 1.0, "f1": 1.0},
        "sadness": {"rows": 1, "recall": 0.0, "precision": 0.0, "f1": 0.0},
    }
    # one answer is no class ("Joy"), one was never made
    assert facts["confusion"] == {
        "classes": ["joy", "fear", "sadness"], "counts": [[2, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]],
    }  # fmt: skip
    assert facts["macro_f1"] == 0.6 and facts["no_class_share"] == 0.4 and facts["empty_share"] == round(1 / 6, 6)
    assert (facts["accuracy_low"], facts["accuracy_high"]) == wilson(3, 5)
    assert facts["ended_share"] == round(5 / 6, 6) and facts["unanswered"] == 1
    assert (facts["prompt_tokens"], facts["generated_tokens"]) == (18, 12)


def test_without_references_there_is_no_accuracy() -> None:
    marks, facts = score([Row("a"), Row("b")], [said("x"), said("y")], "exact_match", "strip")
    assert marks == [None, None] and "accuracy" not in facts and "metric" not in facts


def test_confusions_of_classes() -> None:
    """Three of `a` and two of `b`; one `a` is taken for `b`, one `b` for `a`."""
    rows = [Row("p", c) for c in "aaabb"]
    _, facts = score(rows, [said(c) for c in "aabba"], "exact_match", "strip")
    assert facts["confusion"] == {"classes": ["a", "b"], "counts": [[2, 1, 0], [1, 1, 0]]}
    assert facts["labels"]["a"] == {"rows": 3, "recall": 0.666667, "precision": 0.666667, "f1": 0.666667}
    assert facts["labels"]["b"] == {"rows": 2, "recall": 0.5, "precision": 0.5, "f1": 0.5}
    assert facts["macro_f1"] == pytest.approx(7 / 12, abs=1e-6) and facts["no_class_share"] == 0


def test_an_answer_that_goes_on_is_of_the_class_it_starts_with() -> None:
    rows = [Row("p", c) for c in ("joy", "joyless", "joy")]
    _, facts = score(rows, [said(t) for t in ("joyless, I think", "joyless.", "joy!")], "starts_with", "strip")
    assert facts["accuracy"] == 1  # the first begins with `joy` too, so it is right
    assert facts["confusion"]["counts"] == [[2, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # the formula, by hand, proportion_confint(method="wilson")
        (8, 10, 0.490162, 0.943318),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (50, 100, 0.403832, 0.596168),
        (0, 0, 0.0, 1.0),
    ],
)
def test_the_interval_of_an_accuracy(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right, count) == (pytest.approx(low, abs=2e-6), pytest.approx(high, abs=2e-6))


def test_many_references_are_no_classes() -> None:
    rows = [Row("p", f"answer {i}") for i in range(30)]
    _, facts = score(rows, [said(r.reference or "") for r in rows], "exact_match", "strip")
    assert facts["accuracy"] == 1 and facts["distinct_references"] == 30 and "labels" not in facts


@pytest.mark.parametrize(
    ("prediction", "metric", "how", "right"),
    [
        ("joy", "exact_match", "none", True),
        ("joy\n", "exact_match", "none", False),
        ("joy\n", "exact_match", "strip", True),
        ("Joy", "exact_match", "strip", False),
        ("JOY", "exact_match", "case", True),
        ("joy and more", "exact_match", "case", False),
        ("joy and more", "starts_with", "strip", True),
        ("more joy", "starts_with", "strip", False),
    ],
)
def test_what_is_right(prediction: str, metric: str, how: str, right: bool) -> None:
    assert is_correct(prediction, "joy", metric, how) is right


def test_white_space_is_one_space_with_case() -> None:
    assert is_correct("Two\n  words", "two words", "exact_match", "case")


def test_percentiles() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert (percentile(values, 0), percentile(values, 50), percentile(values, 100)) == (1, 2.5, 4)
    assert percentile([], 95) == 0


def test_sampling_keeps_to_top_k_and_top_p() -> None:
    import numpy as np

    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    free = Sampler(Sampling(temperature=1.0), 0, [])
    counts = np.bincount([free.pick(logits) for _ in range(4000)], minlength=4) / 4000
    assert np.allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    assert {Sampler(Sampling(1.0, top_k=2), i, []).pick(logits) for i in range(60)} == {0, 1}
    assert {Sampler(Sampling(1.0, top_p=0.7), i, []).pick(logits) for i in range(60)} == {0, 1}
    assert {Sampler(Sampling(1.0, top_p=0.4), i, []).pick(logits) for i in range(20)} == {0}
    assert Sampler(Sampling(repetition_penalty=2.0), 0, [0]).pick([1.0, 0.9]) == 1
    assert Sampler(Sampling(repetition_penalty=2.0), 0, [0]).pick([-1.0, -1.9]) == 1


def rows_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def test_the_file_and_the_manifest_of_a_batch(onnx: Path, prompts: Path, tmp_path: Path, infer: Any, read: Any) -> None:
    ask = ("--model", onnx, "--max-new-tokens", 12)
    assert infer(*ask, "--prompts", prompts, "--output", tmp_path / "first").code == 0
    first = read.predictions(tmp_path / "first")
    assert [r["prompt"] for r in first] == list(read.prompts)
    assert all(r["completion"] is None and r["correct"] is None and 0 < r["tokens"] <= 12 for r in first)
    # given the model's own words as references for all but two rows
    known = [{"prompt": r["prompt"], "completion": r["prediction"]} for r in first]
    known[1]["completion"] = known[2]["completion"] = "something else"
    result = infer(*ask, "--prompts", rows_file(tmp_path, known), "--output", tmp_path / "second")
    assert result.code == 0
    assert [r["correct"] for r in read.predictions(tmp_path / "second")] == [True, False, False, True, True, True]
    found = read.manifest(tmp_path / "second")
    assert found["kind"] == "predictions" and [f["path"] for f in found["files"]] == ["predictions.jsonl"]
    assert found["metadata"]["accuracy"] == 0.666667 and found["metadata"]["majority_share"] == 0.333333
    assert found["metadata"]["rows"] == 6
    m = found["metrics"]
    for name in (
        "time_to_first_token_mean_s", "time_to_first_token_p50_s", "time_to_first_token_p95_s", "latency_p50_s",
        "latency_p95_s", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_memory_bytes", "load_seconds",
    ):  # fmt: skip
        assert m[name] > 0, name
    assert m["time_to_first_token_p50_s"] <= m["latency_p50_s"] <= m["latency_p95_s"]
    assert m["model_bytes"] == sum(f.stat().st_size for f in onnx.glob("model.onnx*"))
    # the person sees the figures and what went wrong
    assert "accuracy         0.667" in result.stderr and "wanted 'something else'" in result.stderr
    assert result.said("metric")[-1]["accuracy"] == 0.666667
    assert result.said("artifact")[-1]["output"] == "predictions"


def test_answers_with_known_references_stop_soon_after_the_longest(
    onnx: Path, tmp_path: Path, infer: Any, read: Any
) -> None:
    file = rows_file(tmp_path, [{"prompt": "She said", "completion": "no"}])
    assert infer("--model", onnx, "--prompts", file, "--output", tmp_path / "out").code == 0
    assert 16 < read.manifest(tmp_path / "out")["metadata"]["max_new_tokens"] <= 19


def dataset(folder: Path, rows: list[dict[str, Any]], **metadata: Any) -> Path:
    with Draft(str(folder), "dataset") as draft:
        (draft.path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        draft.metadata.update({"format": 1, **metadata})
        draft.commit({})
    return folder


def test_the_held_out_rows_of_a_data_set(onnx: Path, tmp_path: Path, infer: Any, read: Any) -> None:
    rows: list[dict[str, Any]]
    rows = [{"prompt": f"Text {i}", "completion": "joy", "text": f"Text {i}joy"} for i in range(4)]
    rows[1]["prompt"] = None
    data = dataset(tmp_path / "data", rows, vocab_size=32064)
    result = infer("--model", onnx, "--dataset", data, "--limit", 2, "--output", tmp_path / "out")
    assert result.code == 0
    assert [r["prompt"] for r in read.predictions(tmp_path / "out")] == ["Text 0", "Text 2"]
    assert "1 held-out rows are left out" in result.stderr
    assert "prepared for a tokenizer of 32,064 entries" in result.stderr


@pytest.mark.parametrize("form", ["base", "onnx"])
def test_prompts_that_fill_the_context(
    form: str, request: pytest.FixtureRequest, tmp_path: Path, infer: Any, read: Any
) -> None:
    """The context of the example model is 256 tokens; " the" is one token."""
    rows = [{"prompt": "She" + " the" * n} for n in (255 + 100, 250, 254, 20, 3)] + [{"prompt": ""}]
    file = rows_file(tmp_path, rows)
    ask = ("--model", request.getfixturevalue(form), "--prompts", file, "--max-new-tokens", 40)
    result = infer(*ask, "--output", tmp_path / "out")
    assert result.code == 0, result.stderr
    found = read.predictions(tmp_path / "out")
    assert found[0]["problem"].endswith("leaves no room in the context of 256") and found[0]["tokens"] == 0
    assert found[5]["problem"] == "the prompt is empty"
    assert [found[i]["tokens"] + n for i, n in ((1, 251), (2, 255))] == [256, 256]
    assert read.manifest(tmp_path / "out")["metadata"]["unanswered"] == 2
    assert "2 prompts that are empty or too long" in result.stderr
    assert infer(*ask, "--batch-size", 1, "--output", tmp_path / "alone").code == 0
    assert found == read.predictions(tmp_path / "alone")


def test_an_answer_ends_before_a_stop_text(onnx: Path, prompts: Path, tmp_path: Path, infer: Any, read: Any) -> None:
    whole = ("--prompts", prompts, "--max-new-tokens", 40)
    assert infer("--model", onnx, *whole, "--output", tmp_path / "whole").code == 0
    assert infer("--model", onnx, *whole, "--stop", " the", "--stop", ".", "--output", tmp_path / "cut").code == 0
    for full, cut in zip(read.predictions(tmp_path / "whole"), read.predictions(tmp_path / "cut"), strict=True):
        at = min((i for i in (full["prediction"].find(s) for s in (" the", ".")) if i >= 0), default=None)
        assert cut["prediction"] == full["prediction"][:at]
        assert cut["ended"] or at is None


def test_the_stop_tokens_of_an_adapter_end_answers(
    base: Path, adapter: Path, prompts: Path, infer: Any, read: Any
) -> None:
    from microstages.tokens import ModelText

    tmp_path, whole = prompts.parent, ("--prompts", prompts, "--max-new-tokens", 40)
    comma = ModelText(base).token_id(",")
    assert comma is not None
    ending = read.write_adapter(base, tmp_path / "ending", {"stop_token_ids": [comma]})
    assert infer("--model", base, "--adapter", ending, *whole, "--output", tmp_path / "ended").code == 0
    assert infer("--model", base, "--adapter", adapter, *whole, "--output", tmp_path / "running").code == 0
    ended = 0
    for full, cut in zip(read.predictions(tmp_path / "running"), read.predictions(tmp_path / "ended"), strict=True):
        assert full["prediction"].startswith(cut["prediction"] + ("," if cut["ended"] and not full["ended"] else ""))
        ended += cut["ended"] and not full["ended"]
    assert ended > 0


def test_a_run_again_makes_the_same_bytes(base: Path, prompts: Path, tmp_path: Path, infer: Any, read: Any) -> None:
    for name in ("a", "b"):
        ask = ("--model", base, "--prompts", prompts, "--max-new-tokens", 8, "--threads", 1)
        assert infer(*ask, "--output", tmp_path / name).code == 0
    assert read.manifest(tmp_path / "a")["digest"] == read.manifest(tmp_path / "b")["digest"]
    assert read.manifest(tmp_path / "a")["metadata"] == read.manifest(tmp_path / "b")["metadata"]


def test_forms_of_prompts_files(base: Path, tmp_path: Path) -> None:
    from microstages.artifact import open_artifact
    from microstages.tokens import ModelText
    from microstages_infer.prompts import Wrap, from_files

    def rows(name: str, content: bytes, wrap: Wrap | None = None) -> list[Row]:
        file = tmp_path / name
        file.write_bytes(content)
        return from_files(open_artifact(str(file), ["files"]), wrap or Wrap(ModelText(base)))

    assert rows("a.txt", b"\xef\xbb\xbfone\r\n\r\n {two}\n") == [Row("one"), Row(" {two}")]
    assert rows("b.jsonl", b'{"prompt": "x", "completion": "y"}\n\n{"prompt": "z", "reference": "r"}') == [
        Row("x", "y"), Row("z", "r"),
    ]  # fmt: skip
    assert rows("c.json", b'[{"prompt": "x"},\n {"prompt": "y"}]') == [Row("x"), Row("y")]
    talk = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}'
    asked = "<|user|>\nhi<|end|>\n<|assistant|>\n"
    assert rows("d.jsonl", talk) == [Row(asked, "ho")]
    assert rows("e.txt", b"hi", Wrap(ModelText(base), chat=True)) == [Row(asked)]
    assert rows("f.txt", b"hi", Wrap(ModelText(base), chat=True, system="Be kind.")) == [
        Row("<|system|>\nBe kind.<|end|>\n" + asked)
    ]


def test_limits_are_plain_values() -> None:
    assert Limits(3) == Limits(3, ()) and Sampling().plain and not Sampling(temperature=0.1).plain


def test_the_signature_is_the_committed_interface() -> None:
    from microstages_infer.cli import main

    committed = Path(__file__).parents[3] / "stages" / "infer" / "interface.json"
    assert committed.read_text() == main.interface().to_json()
