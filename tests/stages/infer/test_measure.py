"""Given right answers, when forms of a model read them, then loss, agreement and forgetting are as the formulas say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from microstages.artifact import Draft, open_artifact
from microstages.tokens import ModelText
from microstages_infer.agreement import Agreement, Keeper, Kept, bins, common_prefix
from microstages_infer.decoding import Answer
from microstages_infer.teacher import Forced, Losses, batches

END = 0  # <|endoftext|> of the example model
ROWS = (
    ("The old man opened the door and", " went out into the night."),
    ("She said", " nothing"),
    ("It was a dark night, and the wind came over the hills so that nobody in the village", " slept."),
    ("When the king heard of it he", " was angry, and sent for his son, who"),
    ("They lived there for many years.<|endoftext|>", "One"),
    ("I do not know why, but", " it is so"),
)
NEUTRAL = "The sun rose over the hills, and the birds began to sing in the trees beside the river. " * 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose answers end with a token."""
    folder = tmp_path_factory.mktemp("data") / "dataset"
    with Draft(str(folder), "dataset") as draft:
        lines = (json.dumps({"prompt": p, "completion": c, "text": p + c}) for p, c in ROWS)
        (draft.path / "test.jsonl").write_text("".join(f"{line}\n" for line in lines))
        draft.metadata.update({"format": 1, "end_token_id": END})
        draft.commit({})
    return folder


@pytest.fixture(scope="module")
def neutral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("neutral") / "neutral.txt"
    file.write_text(NEUTRAL)
    return file


@pytest.fixture(scope="module")
def measured(infer: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs the stage on the data set once for each set of arguments; the folder of its predictions."""
    done: dict[tuple[str, ...], Path] = {}

    def measure(*arguments: object) -> Path:
        key = tuple(map(str, arguments))
        if key not in done:
            out = tmp_path_factory.mktemp("measured") / "predictions"
            result = infer(*key, "--dataset", data, "--max-new-tokens", 12, "--output", out)
            assert result.code == 0, result.stderr
            done[key] = out
        return done[key]

    return measure


@pytest.fixture(scope="module")
def scored(measured: Callable[..., Path], base: Path) -> Path:
    """The base model's predictions, with scores."""
    return measured("--model", base, "--keep-scores")


def load(folder: Path, adapter: Path | None = None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return (model if adapter is None else PeftModel.from_pretrained(model, str(adapter))).eval()


def encoded(base: Path) -> list[Forced]:
    """The rows as token ids: prompt, completion, end."""
    tokenizer = ModelText(base).tokenizer
    ids = [[tokenizer.encode(t, add_special_tokens=False).ids for t in row] for row in ROWS]
    return [Forced([*p, *c, END], len(p)) for p, c in ids]


def log_probabilities(model: Any, forced: Forced) -> np.ndarray[Any, Any]:
    """Of the whole vocabulary in front of each target, shape (targets, vocabulary)."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([forced.ids])).logits[0, forced.start - 1 : -1]
        found: np.ndarray[Any, Any] = torch.log_softmax(logits.double(), -1).numpy()
    return found


def test_the_loss_is_transformers_own_cross_entropy(base: Path, scored: Path, read: Any) -> None:
    import torch

    model, total, count = load(base), 0.0, 0
    for row, forced in zip(read.predictions(scored), encoded(base), strict=True):
        labels = torch.tensor([[-100] * forced.start + forced.targets])
        with torch.inference_mode():
            loss = float(model(input_ids=torch.tensor([forced.ids]), labels=labels).loss)
        assert row["loss"] == pytest.approx(loss, abs=1e-3)
        total += loss * len(forced.targets)
        count += len(forced.targets)
    found = read.manifest(scored)["metrics"]
    assert found["loss"] == pytest.approx(total / count, abs=1e-5) and found["loss_tokens"] == count
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4) and found["loss_rows"] == len(ROWS)


def test_fp32_onnx_measures_what_the_base_model_measures(
    base: Path, onnx: Path, neutral: Path, scored: Path, measured: Callable[..., Path], read: Any
) -> None:
    more = ("--neutral", neutral, "--neutral-window", 32, "--reference", scored)
    left, right = (read.manifest(measured("--model", m, *more))["metrics"] for m in (base, onnx))
    for name in ("loss", "perplexity", "neutral_loss", "neutral_perplexity", "accuracy", "common_prefix_tokens"):
        assert right[name] == pytest.approx(left[name], rel=1e-3, abs=1e-3), name
    for found in (left, right):
        assert found["kl_mean"] < 1e-5 and found["kl_max"] < 1e-4
        assert found["top1_agreement"] == 1 and found["identical_answers_share"] == 1


def test_agreement_with_a_model_that_differs(
    base: Path, scored: Path, measured: Callable[..., Path], read: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against the divergence over the whole vocabulary, of which it is a lower bound, and a near one."""
    adapter = read.write_adapter(base, tmp_path_factory.mktemp("far") / "lora", std=0.2)
    own, other = load(base), load(base, adapter)
    full, same, n = 0.0, 0, 0
    for forced in encoded(base):
        p, q = log_probabilities(own, forced), log_probabilities(other, forced)
        full += float((np.exp(p) * (p - q)).sum())
        same += int((p.argmax(1) == q.argmax(1)).sum())
        n += len(p)
    out = measured("--model", base, "--adapter", adapter, "--reference", scored)
    found, answers = read.manifest(out)["metrics"], read.predictions(out)
    assert full / n > 0.01
    assert 0.8 * full / n < found["kl_mean"] <= full / n + 1e-5
    assert found["top1_agreement"] == pytest.approx(same / n, abs=1e-6) and found["agreement_tokens"] == n
    theirs = read.predictions(scored)
    alike = sum(a["prediction"] == b["prediction"] and a["ended"] == b["ended"]
                for a, b in zip(answers, theirs, strict=True))  # fmt: skip
    assert found["identical_answers_share"] == pytest.approx(alike / len(ROWS), abs=1e-6) and alike < len(ROWS)
    assert 0 <= found["common_prefix_tokens"] < 12
    assert read.manifest(out)["metadata"]["reference"] == read.manifest(scored)["digest"]


def test_what_is_kept_are_the_likeliest_tokens(base: Path, scored: Path) -> None:
    from safetensors.numpy import load_file

    kept, model, at = load_file(scored / "scores.safetensors"), load(base), 0
    forced = encoded(base)
    assert kept["lengths"].tolist() == [len(f.targets) for f in forced]
    assert kept["ids"].shape == kept["logprobs"].shape == (sum(kept["lengths"]), 64)
    for f in forced:
        wanted = log_probabilities(model, f)
        part = slice(at, at + len(wanted))
        assert kept["tokens"][part].tolist() == f.targets
        best = np.sort(wanted, axis=1)[:, ::-1]
        assert np.allclose(kept["logprobs"][part], best[:, :64], rtol=2e-3, atol=2e-3)
        assert np.array_equal(kept["ids"][part, 0], wanted.argmax(1))
        assert np.allclose(np.exp(kept["rest"][part].astype(float)), np.exp(best[:, 64:]).sum(1), atol=2e-3)
        at += len(wanted)


def test_divergence_by_hand() -> None:
    """Reference (1/2, 1/4, 1/4), this model (1/4, 1/2, 1/4): 1/2 log 2 - 1/4 log 2, with nothing put together."""
    kept = keep([[0.5, 0.25, 0.25]], tokens=[1])
    assert agreement(kept, [[0.25, 0.5, 0.25]])["kl_mean"] == pytest.approx(0.25 * math.log(2), abs=1e-3)
    assert agreement(kept, [[0.25, 0.5, 0.25]])["top1_agreement"] == 0
    same = agreement(kept, [[0.5, 0.25, 0.25]])
    assert same["kl_mean"] < 1e-6 and same["top1_agreement"] == 1


def test_all_others_are_one_bin() -> None:
    """Of 100 tokens 64 are named; the others have 0.4 together here and 0.2 there."""
    p = [0.6 / 64] * 64 + [0.4 / 36] * 36
    kept = keep([[0.6] + [0.4 / 99] * 99], tokens=[0])
    assert kept.tensors["ids"].shape == (1, 64)
    rest = math.exp(float(kept.tensors["rest"][0]))
    assert rest == pytest.approx(0.4 * 36 / 99, abs=1e-3)
    chosen, others = bins(np.log(np.array([p])), np.arange(64)[None])
    assert np.allclose(chosen, 0.6 / 64) and np.allclose(others, 0.4)


def keep(p: list[list[float]], tokens: list[int]) -> Kept:
    found = Forced([0, *tokens], 1)
    keeper = Keeper([found])
    keeper.add(0, np.log(np.array(p, dtype=np.float32)))
    ids, logprobs, rest = keeper._kept[0]
    tensors = {"ids": ids, "logprobs": logprobs, "rest": rest, "ended": np.array([1], "u1")}
    artifact: Any = None
    return Kept(artifact, tensors, np.array([0, len(tokens)]), [[5, 6, 7]])


def agreement(kept: Kept, q: list[list[float]]) -> dict[str, float]:
    made = Agreement(kept)
    made.add(0, np.log(np.array(q, dtype=np.float32)))
    return made.figures([Answer(3, ids=[5, 6, 8], ended=True)])


def test_greedy_answers_by_hand() -> None:
    found = agreement(keep([[0.5, 0.5]], tokens=[1]), [[0.5, 0.5]])
    assert found["common_prefix_tokens"] == 2 and found["identical_answers_share"] == 0
    assert [common_prefix(a, b) for a, b in (([1, 2], [1, 2, 3]), ([], [1]), ([2], [1]))] == [2, 0, 0]


def test_forgetting_is_the_perplexity_of_windows(
    base: Path, neutral: Path, measured: Callable[..., Path], read: Any
) -> None:
    import torch

    more = ("--neutral", neutral, "--neutral-window", 40, "--neutral-tokens", 100)
    found = read.manifest(measured("--model", base, *more))["metrics"]
    ids = ModelText(base).tokenizer.encode(NEUTRAL, add_special_tokens=False).ids[:100]
    model, total = load(base), 0.0
    for window in (ids[:40], ids[40:80], ids[80:]):
        part = torch.tensor([window])
        with torch.inference_mode():
            total += float(model(input_ids=part, labels=part).loss) * (len(window) - 1)
    assert found["neutral_tokens"] == 97 and found["neutral_windows"] == 3
    assert found["neutral_loss"] == pytest.approx(total / 97, abs=1e-5)
    assert found["neutral_perplexity"] == pytest.approx(math.exp(total / 97), rel=1e-4)


@pytest.mark.parametrize("form", ["base", "onnx"])
def test_the_batch_does_not_change_the_loss(
    form: str, request: pytest.FixtureRequest, measured: Callable[..., Path], read: Any
) -> None:
    ask = ("--model", request.getfixturevalue(form), "--loss", "yes")
    together, alone = (read.manifest(measured(*ask, "--batch-size", n))["metrics"] for n in (16, 1))
    assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)


def test_logits_read_at_once_are_those_read_token_by_token(onnx: Path, base: Path) -> None:
    from microstages_infer.onnx_engine import OnnxEngine

    engine = OnnxEngine(open_artifact(str(onnx), ["onnx-model"]), "auto", 1)
    forced = encoded(base)
    at_once = engine.read([f.ids for f in forced], [f.start for f in forced])
    for f, logits in zip(forced, at_once, strict=True):
        assert logits.shape == (len(f.targets), 4096)
        assert np.allclose(logits, engine._one_by_one(f.ids, f.start), atol=1e-3)


def test_nothing_more_is_measured_unless_asked(
    base: Path, scored: Path, measured: Callable[..., Path], read: Any
) -> None:
    plain = measured("--model", base)
    rows = read.predictions(plain)
    assert all(set(r) == {"prompt", "completion", "prediction", "ended", "tokens", "correct"} for r in rows)
    assert rows == [{k: v for k, v in r.items() if k != "loss"} for r in read.predictions(scored)]
    found = read.manifest(plain)
    assert not {"loss", "kl_mean", "neutral_loss", "measuring_seconds"} & set(found["metrics"])
    assert [f["path"] for f in found["files"]] == ["predictions.jsonl"]
    assert found["metadata"]["rows_digest"] == read.manifest(scored)["metadata"]["rows_digest"]
    assert found["metrics"]["disk_bytes"] == sum(f.stat().st_size for f in base.rglob("*") if f.is_file())


def test_what_does_not_fit_the_context_has_no_loss(base: Path, tmp_path: Path, infer: Any, read: Any) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "She" + " the" * 255, "completion": " end"},
        {"prompt": "She said"},
        {"prompt": "She said", "completion": " so"},
        {"prompt": "", "completion": "x"},
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    ask = ("--model", base, "--prompts", file, "--max-new-tokens", 2, "--loss", "yes")
    assert infer(*ask, "--output", tmp_path / "out").code == 0
    assert [r["loss"] is None for r in read.predictions(tmp_path / "out")] == [True, True, False, True]
    assert read.manifest(tmp_path / "out")["metrics"]["loss_rows"] == 1


def test_answers_agree_where_nobody_knows_the_right_ones(
    base: Path, onnx: Path, prompts: Path, tmp_path: Path, infer: Any, read: Any
) -> None:
    ask = ("--prompts", prompts, "--max-new-tokens", 6)
    assert infer("--model", base, *ask, "--keep-scores", "--output", tmp_path / "kept").code == 0
    result = infer("--model", onnx, *ask, "--reference", tmp_path / "kept", "--output", tmp_path / "out")
    assert result.code == 0, result.stderr
    found = read.manifest(tmp_path / "out")["metrics"]
    assert found["identical_answers_share"] == 1 and 0 < found["common_prefix_tokens"] <= 6
    assert not {"kl_mean", "loss", "perplexity"} & set(found)


def test_batches_keep_the_logits_small() -> None:
    class Model:
        context, together, vocabulary = 100, 50, 1 << 20  # 4 MiB of logits a token

    engine: Any = Model()
    found = [Forced([1] * n, 1) for n in (5, 60, 10, 10, 10, 101, 4)] + [None]
    assert batches(engine, found, 3) == [[1], [2, 3, 4], [0, 6]]
    found = [Forced([1] * 40, 1)] * 3
    assert batches(engine, found, 3) == [[0], [1], [2]]


def test_losses_are_of_tokens_not_of_rows() -> None:
    losses = Losses(3)
    losses.add(0, np.log(np.array([[0.5, 0.5]], np.float32)), [0])
    losses.add(2, np.log(np.array([[0.25, 0.75], [0.25, 0.75]], np.float32)), [0, 0])
    assert losses.each[0] == pytest.approx(math.log(2)) and losses.each[1] is None
    assert losses.figures()["loss"] == pytest.approx((math.log(2) + 2 * math.log(4)) / 3, abs=1e-6)
