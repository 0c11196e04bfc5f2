"""Training from a data set to an adapter: what is written, what it depends on, what stops it."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from microstages.dataset import load_split
from microstages.errors import UserError
from microstages.reporting import Reporter
from microstages_training.distributed import launch
from microstages_training.settings import Settings
from microstages_training.train import Job
from safetensors.torch import load_file
from training_data import tones as tone_rows
from training_data import write

FILES = ["adapter_config.json", "adapter_model.safetensors", "loss.svg", "training.json"]


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def evaluations(folder: Path) -> list[float]:
    return [e["loss"] for e in json.loads((folder / "training.json").read_text())["evaluations"]]


def reloaded_loss(adapter: Path, base: Path, dataset, hidden: int = -1) -> float:
    """The held-out loss by transformers and PEFT alone, each example by itself; a token `hidden` from attention."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).eval()
    split = load_split(dataset, "test")
    total = count = at = 0
    for length in split.example_lengths.tolist():
        ids = torch.from_numpy(split.input_ids[at : at + length].astype(np.int64))[None]
        trained = torch.from_numpy(split.trained[at : at + length].astype(np.int64))[None]
        labels = ids.masked_fill(trained == 0, -100)
        with torch.no_grad():
            seen = (ids != hidden).long()
            loss = model(input_ids=ids, labels=labels, attention_mask=seen, use_cache=False).loss
        n = int((labels[:, 1:] != -100).sum())
        total, count, at = total + float(loss) * n, count + n, at + length
    return total / count


def test_the_same_inputs_give_the_same_bytes_whatever_the_threads(tones, tiny_model, train_here):
    first, found, _ = train_here(tones, tiny_model, precision="bf16", dropout=0.1)
    again, _, _ = train_here(tones, tiny_model, precision="bf16", dropout=0.1, threads=2)
    assert sorted(files(first)) == FILES
    assert files(first) == files(again)
    other, _, _ = train_here(tones, tiny_model, precision="bf16", dropout=0.1, seed=1)
    assert files(first)["adapter_model.safetensors"] != files(other)["adapter_model.safetensors"]
    assert found["metadata"]["precision"] == "bf16"


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_gradient_checkpointing_changes_nothing_in_the_result(precision, tones, tiny_model, train_here):
    kept, _, _ = train_here(tones, tiny_model, precision=precision, dropout=0.1)
    computed_again, _, _ = train_here(tones, tiny_model, precision=precision, dropout=0.1, gradient_checkpointing=True)
    assert files(kept) == files(computed_again)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"rslora": True, "init": "gaussian"},
        {"dora": True, "target_modules": ["qkv_proj", "down_proj"]},
        {"modules_to_save": ["lm_head"], "init": "orthogonal"},
    ],
    ids=str,
)
def test_peft_loads_the_adapter_and_gives_the_loss_that_was_measured(variant, tones, tiny_model, train_here):
    adapter, found, _ = train_here(tones, tiny_model, epochs=6.0, **variant)
    before, after = evaluations(adapter)[0], evaluations(adapter)[-1]
    assert after < before - 0.5
    assert reloaded_loss(adapter, tiny_model, tones) == pytest.approx(after, rel=1e-4)
    assert found["metrics"]["eval_loss"] == after and found["metrics"]["eval_loss_before"] == before


def test_a_token_that_the_data_set_hides_is_hidden(examples, train_here, tmp_path):
    base = examples / "tiny-phi3"
    stream = [i for ids, _ in tone_rows(examples / "tones.jsonl", base, 40) for i in ids]
    blocks = [stream[at : at + 64] for at in range(0, len(stream) - 64, 64)]
    rows = [(ids, [0, *(int(i != 0) for i in ids[1:])]) for ids in blocks]
    assert any(0 in ids[1:40] for ids in blocks)
    made = {}
    for name, more in (("hidden", {"hidden_token_id": 0}), ("seen", {})):
        dataset = write(tmp_path / name, base, rows[:-4], rows[-4:], packed=False, **more)
        made[name], _, said = train_here(dataset, base, steps=3, learning_rate=1e-3)
        assert "padded rows" not in said  # that is for models that take nothing else
        after = evaluations(made[name])[-1]
        losses = [reloaded_loss(made[name], base, dataset, hidden=token) for token in (0, -1)]
        is_, is_not = losses if more else losses[::-1]
        assert is_ == pytest.approx(after, rel=1e-4) and is_not != pytest.approx(after, rel=1e-3)
    one, other = (files(made[name])["adapter_model.safetensors"] for name in ("hidden", "seen"))
    assert one != other


def test_tied_layers_that_are_trained_whole_stay_one_tensor(examples, train_here, tmp_path):
    base = examples / "tiny-phi3"
    rows = tone_rows(examples / "tones.jsonl", base, 12)
    dataset = write(tmp_path / "data", base, rows[:8], rows[8:])
    adapter, _, _ = train_here(dataset, base, modules_to_save=["lm_head", "embed_tokens"], steps=2)
    saved = {k: v for k, v in load_file(adapter / "adapter_model.safetensors").items() if "lora" not in k}
    assert sorted(saved) == ["base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"]
    assert torch.equal(*saved.values())
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["embed_tokens", "lm_head"] and config["ensure_weight_tying"]
    assert reloaded_loss(adapter, base, dataset) == pytest.approx(evaluations(adapter)[-1], rel=1e-4)


def test_what_is_written_says_nothing_of_this_machine(tones, tiny_model, train_here):
    adapter, found, _ = train_here(tones, tiny_model, target_modules=["qkv_proj", "down_proj"], steps=1)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == found["metadata"]["base_model"]
    assert config["base_model_name_or_path"].startswith("sha256:")
    assert config["target_modules"] == ["down_proj", "qkv_proj"]
    assert not any("version" in k for k in config)
    text = b"".join(v for k, v in files(adapter).items() if not k.endswith("safetensors"))
    assert str(tiny_model).encode() not in text and str(adapter).encode() not in text
    assert {t.dtype for t in load_file(adapter / "adapter_model.safetensors").values()} == {torch.float32}


def test_what_later_stages_need_goes_into_the_metadata(tones, tiny_model, train_here):
    _, found, _ = train_here(tones, tiny_model, steps=1, rank=2, alpha=6.0)
    facts = found["metadata"]
    for name in ("tokenizer_sha256", "stop_token_ids", "end_token", "end_token_id", "template", "max_length"):
        assert facts[name] == tones.metadata[name]
    assert facts["method"] == "lora" and facts["rank"] == 2 and facts["alpha"] == 6.0
    assert facts["target_modules"] == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    assert "quantization" not in facts


def test_accumulated_micro_batches_are_one_big_one(tones, tiny_model, train_here):
    """The loss is the mean over all trained tokens of a step, however they are cut into micro-batches."""
    whole, _, _ = train_here(tones, tiny_model, batch_tokens=2048, steps=3, learning_rate=1e-3)
    parts, _, _ = train_here(tones, tiny_model, batch_tokens=256, accumulation=50, steps=3, learning_rate=1e-3)
    one, two = (json.loads((f / "training.json").read_text())["steps"] for f in (whole, parts))
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)


def test_two_processes_train_what_one_does(tones, tiny_model, train_here, tmp_path):
    settings = {"rank": 4, "alpha": 4.0, "learning_rate": 1e-3, "batch_tokens": 300, "accumulation": 3, "steps": 4,
                "precision": "fp32", "threads": 1}  # fmt: skip
    alone, found, _ = train_here(tones, tiny_model, **settings)
    job = Job(str(tones.path), tones.uri, dict(tones.metadata), str(tiny_model), found["metadata"]["base_model"],
              str(tmp_path), Settings(**settings))  # fmt: skip
    events = io.StringIO()
    report = Reporter("train", events, io.StringIO())
    together = launch(job, 2, report)
    assert together["metrics"]["processes"] == 2
    assert sorted(files(tmp_path)) == FILES
    one, two = (json.loads((f / "training.json").read_text()) for f in (alone, tmp_path))
    for kind in ("steps", "evaluations"):
        assert [p["loss"] for p in one[kind]] == pytest.approx([p["loss"] for p in two[kind]], rel=1e-4)
    assert [p["gradient_norm"] for p in one["steps"]] == pytest.approx(
        [p["gradient_norm"] for p in two["steps"]], rel=1e-3
    )
    assert {"progress", "metric"} <= {json.loads(line)["event"] for line in events.getvalue().splitlines()}


def test_an_error_in_a_process_is_the_caller_s_error(tones, tiny_model, tmp_path):
    settings = Settings(batch_tokens=1000, target_modules=["nothing"])
    job = Job(str(tones.path), tones.uri, dict(tones.metadata), str(tiny_model), "sha256:0", str(tmp_path), settings)
    with pytest.raises(UserError, match="no linear layer is named 'nothing'"):
        launch(job, 2, Reporter("train", None, io.StringIO()))


def test_early_stopping_keeps_the_best_adapter(tones, tiny_model, train_here):
    # given a learning rate so high that the held-out loss soon grows
    adapter, found, _ = train_here(
        tones, tiny_model, learning_rate=0.2, schedule="constant", max_grad_norm=0.0, epochs=30.0, eval_every=2,
        early_stopping_patience=2,
    )  # fmt: skip
    losses = evaluations(adapter)
    # then it ends two evaluations after the best, and what is written is the best
    assert found["metrics"]["stopped_early"]
    assert len(losses) == losses.index(min(losses)) + 3
    assert found["metrics"]["eval_loss"] == min(losses)
    assert reloaded_loss(adapter, tiny_model, tones) == pytest.approx(min(losses), rel=1e-3)


def test_a_loss_that_explodes_is_an_error_with_a_remedy(tones, tiny_model, train_here):
    with pytest.raises(UserError, match=r"the loss is (nan|inf)") as error:
        train_here(tones, tiny_model, learning_rate=1e30, schedule="constant", warmup=0.0, epochs=20.0)
    assert error.value.where == "--learning-rate" and "lower" in error.value.fix


def test_the_curve_has_each_step_with_its_learning_rate(tones, tiny_model, train_here):
    adapter, found, _ = train_here(
        tones, tiny_model, steps=4, schedule="linear", warmup=0.0, learning_rate=0.01, eval_every=0.5
    )
    log = json.loads((adapter / "training.json").read_text())
    assert [p["step"] for p in log["steps"]] == [1, 2, 3, 4]
    assert [p["learning_rate"] for p in log["steps"]] == [0.01, 0.0075, 0.005, 0.0025]
    assert [p["step"] for p in log["evaluations"]] == [0, 2, 4]
    assert found["metrics"]["steps"] == 4


def test_all_positions_of_the_metrics_are_there(tones, tiny_model, train_here):
    _, found, said = train_here(tones, tiny_model, steps=2)
    metrics = found["metrics"]
    assert metrics["trainable_parameters"] == 2 * 4 * (64 + 192 + 64 + 64 + 64 + 320 + 160 + 64)
    assert metrics["trained_tokens"] < metrics["tokens"]
    assert metrics["peak_memory_bytes"] > 1e6 and metrics["tokens_per_second"] > 0
    assert "held out" in said and "tokens/s" in said


def test_without_held_out_rows_it_trains_and_does_not_evaluate(examples, tiny_model, train_here, tmp_path):
    dataset = write(tmp_path / "data", tiny_model, tone_rows(examples / "tones.jsonl", tiny_model, 8))
    adapter, found, _ = train_here(dataset, tiny_model, steps=2)
    assert evaluations(adapter) == [] and "eval_loss" not in found["metrics"]
    with pytest.raises(UserError, match="early stopping needs held-out rows"):
        train_here(dataset, tiny_model, early_stopping_patience=1)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"tokenizer_sha256": "0" * 64}, "tokenizer of another model"),
        ({"format": 9}, "not a data set that this version reads"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused_before_the_model_is_loaded(
    metadata, said, examples, tiny_model, train_here, tmp_path
):
    dataset = write(tmp_path / "data", tiny_model, tone_rows(examples / "tones.jsonl", tiny_model, 4), **metadata)
    with pytest.raises(UserError, match=said) as error:
        train_here(dataset, tiny_model)
    assert error.value.where == dataset.uri and error.value.fix


def test_examples_longer_than_the_model_s_positions_are_refused(tiny_model, train_here, tmp_path):
    dataset = write(tmp_path / "data", tiny_model, [([7] * 300, [1] * 300)], max_length=300)
    with pytest.raises(UserError, match="examples of 300 tokens; the base model takes 256") as error:
        train_here(dataset, tiny_model)
    assert "--max-length 256" in error.value.fix


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, "quantized already"),
        ({"vocab_size": 300}, "has 300 embeddings, and the data the token id"),
    ],
)
def test_a_base_model_that_does_not_fit_is_refused(change, said, tones, tiny_model, train_here, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=said) as error:
        train_here(tones, tmp_path / "model")
    assert error.value.where == str(tmp_path / "model") and error.value.fix


def test_a_data_set_without_a_trained_token_is_refused(tiny_model, train_here, tmp_path):
    dataset = write(tmp_path / "data", tiny_model, [([7, 8, 9], [0, 0, 0])])
    with pytest.raises(UserError, match="no token to train on"):
        train_here(dataset, tiny_model)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"init": "orthogonal", "rank": 3}, "needs an even rank, not 3"),
        ({"target_modules": ["lm_head"], "modules_to_save": ["lm_head"]}, "'lm_head' is in --target-modules too"),
        ({"target_modules": []}, "it is empty"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        Settings(**settings).check()
