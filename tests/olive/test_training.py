"""Training is what Olive of the generation would have done: against tables that are written down here, and against what
its source says (`recorded_defaults.json`)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from olive.samples import ROOT, Config, own_configs

from runner.document import parse
from runner.olive.convert import Made
from runner.olive.section import CHANGED, LOST, NEEDLESS, SAME, USED
from runner.pipeline import Pipeline

# What each generation trains with where a config says nothing: the Trainer's arguments, under our names.
USUAL: dict[str, dict[str, Any]] = {
    "A": {"learning_rate": 2e-4, "schedule": "constant", "warmup": 0, "weight_decay": 0, "max_grad_norm": 1.0,
          "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "batch_size": 1, "accumulation": 16,
          "steps": 10000, "gradient_checkpointing": True, "seed": 42, "rank": 64, "alpha": 16, "dropout": 0.0},
    "B": {"learning_rate": 2e-4, "schedule": "constant", "warmup": 0, "weight_decay": 0, "max_grad_norm": 1.0,
          "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "batch_size": 8, "accumulation": 1,
          "epochs": 3.0, "gradient_checkpointing": True, "seed": 42, "rank": 64, "alpha": 16, "dropout": 0.05},
}  # fmt: skip

# What the real configs train with, computed by hand from their arguments and the defaults of their generation.
REAL: dict[str, dict[str, Any]] = {
    "e2e-lora-aml": {"learning_rate": 1e-4, "steps": 100, "batch_size": 1, "accumulation": 4, "seed": 0,
                     "data_seed": 42, "gradient_checkpointing": False, "max_grad_norm": 0.3, "eval_every": 187,
                     "rank": 64, "alpha": 64, "dropout": 0.1, "target_modules": ["o_proj", "qkv_proj"],
                     "precision": "bf16"},
    "e2e-qlora-aml": {"learning_rate": 1e-4, "steps": 10, "batch_size": 1, "accumulation": 4, "seed": 0,
                      "data_seed": 42, "gradient_checkpointing": False, "max_grad_norm": 0.3, "eval_every": 187,
                      "rank": 64, "alpha": 64, "dropout": 0.1, "target_modules": None, "compute_dtype": "bf16",
                      "quant_type": "nf4", "double_quant": True},
    "phrase-classification": {"learning_rate": 1e-4, "steps": 150, "batch_size": 1, "accumulation": 4, "seed": 0,
                              "data_seed": 42, "gradient_checkpointing": False, "max_grad_norm": 0.3, "eval_every": 10,
                              "rank": 64, "alpha": 64, "dropout": 0.1, "target_modules": ["o_proj", "qkv_proj"]},
    "olive-phi3-classification": {"learning_rate": 2e-4, "steps": 150, "batch_size": 16, "accumulation": 1, "seed": 42,
                                  "gradient_checkpointing": True, "max_grad_norm": 0.3, "eval_every": 100,
                                  "keep_best": True, "rank": 64, "alpha": 16, "dropout": 0.1, "double_quant": False},
    "olive-open-llama-qlora": {"learning_rate": 2e-4, "steps": 1500, "batch_size": 16, "accumulation": 1, "seed": 42,
                               "gradient_checkpointing": True, "max_grad_norm": 0.3, "eval_every": 100,
                               "keep_best": True, "checkpoint_every": 100, "dropout": 0.1, "double_quant": False},
    "olive-llama3.2-1b-qlora": {"learning_rate": 2e-4, "steps": 150, "batch_size": 16, "accumulation": 1, "seed": 42,
                                "gradient_checkpointing": True, "max_grad_norm": 1.0, "eval_every": 50, "rank": 64,
                                "alpha": 16, "dropout": 0.05, "compute_dtype": "fp32", "double_quant": False},
}  # fmt: skip

# Fields of transformers 4.40's TrainingArguments that 5.x has no more.
OLDER: dict[str, Any] = {
    "evaluation_strategy": "no", "per_gpu_train_batch_size": 2, "per_gpu_eval_batch_size": 2, "warmup_ratio": 0.1,
    "logging_dir": "logs", "save_safetensors": True, "no_cuda": False, "use_mps_device": False, "jit_mode_eval": False,
    "use_ipex": False, "fp16_opt_level": "O1", "half_precision_backend": "auto", "tpu_num_cores": 1,
    "tpu_metrics_debug": False, "past_index": -1, "fsdp_min_num_params": 0, "fsdp_transformer_layer_cls_to_wrap": "X",
    "adafactor": False, "group_by_length": True, "overwrite_output_dir": True, "fp16_backend": "auto",
    "push_to_hub_model_id": "x", "push_to_hub_organization": "x", "push_to_hub_token": "x", "torchdynamo": "x",
    "include_inputs_for_metrics": False, "mp_parameters": "", "ray_scope": "last", "dispatch_batches": True,
    "split_batches": False, "include_tokens_per_second": False, "optim": "adamw_torch", "xpu_backend": "mpi",
    "use_legacy_prediction_loop": False, "evaluate_during_training": False,
}  # fmt: skip


def trained(made: Made) -> dict[str, Any]:
    """The parameters of the training stage."""
    return next(d for d in made.stages if d.uses.startswith("train-")).params.values


def config_of(generation: str, **arguments: Any) -> Config:
    """A config of a generation, with these training arguments and nothing else."""
    config = own_configs()["pages" if generation == "A" else "local-qlora"]
    for one in config["passes"].values():
        found = one.get("config", one)
        if "train_data_config" in found:
            kept = {
                k: v
                for k, v in found.items()
                if k in ("type", "train_data_config", "eval_dataset_size", "eval_data_config")
            }
            found.clear()
            found.update(kept, training_args=arguments)
            if generation == "B":
                found["type"] = "LoRA"
                found["target_modules"] = ["q_proj"]
    return config


@pytest.mark.parametrize("generation", USUAL)
def test_the_defaults_of_a_generation(generation: str, make: Callable[..., Made]):
    values = trained(make(config_of(generation)))
    assert {k: values.get(k) for k in USUAL[generation]} == USUAL[generation]
    assert not {"epochs", "steps"} - set(USUAL[generation]) & set(values)


@pytest.mark.parametrize("name", REAL)
def test_the_arguments_of_real_configs(name: str, make: Callable[..., Made], shared: Any):
    import json

    values = trained(make(json.loads((shared / "olive" / f"{name}.json").read_text())))
    assert {k: values.get(k) for k in REAL[name]} == REAL[name]


def test_the_pipeline_resolves_to_the_same_arguments(make: Callable[..., Made], pipeline: Callable[..., Pipeline]):
    for config in own_configs().values():
        values = trained(make(config))
        stage = next(s for s in pipeline(config).stages.values() if s.interface.name.startswith("train-"))
        assert {k: stage.params[k] for k in values} == values


@pytest.mark.parametrize("given, generation, wanted", [
    ({"evaluation_strategy": "steps"}, "A", 10),  # logging_steps of the generation
    ({"evaluation_strategy": "steps", "logging_steps": 7}, "A", 7),
    ({"evaluation_strategy": "steps", "eval_steps": 3}, "A", 3),
    ({}, "A", 0), ({"evaluation_strategy": "no", "eval_steps": 5}, "A", 0),
    ({"evaluation_strategy": "epoch", "max_steps": -1, "num_train_epochs": 4}, "A", 0.25),
    ({}, "B", 500), ({"eval_strategy": "no"}, "B", 500), ({"eval_strategy": "epoch"}, "B", 0.333333),
    ({"eval_strategy": "epoch", "num_train_epochs": 1}, "B", 0.0),
])  # fmt: skip
def test_when_it_evaluates(given: Config, generation: str, wanted: float, make: Callable[..., Made]):
    assert trained(make(config_of(generation, **given)))["eval_every"] == wanted


def test_without_held_out_rows_nothing_is_evaluated(make: Callable[..., Made]):
    config = config_of("A", evaluation_strategy="steps", load_best_model_at_end=True)
    del config["passes"]["lora"]["config"]["eval_dataset_size"]
    values = trained(make(config))
    assert not {"eval_every", "keep_best"} & set(values)


@pytest.mark.parametrize("given, schedule, warmup", [
    ({"lr_scheduler_type": "constant", "warmup_ratio": 0.5}, "constant", 0),
    ({"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.5}, "constant", 0.5),
    ({"lr_scheduler_type": "linear"}, "linear", 0.03),
    ({"lr_scheduler_type": "cosine", "warmup_steps": 9}, "cosine", 9),
])  # fmt: skip
def test_schedules_and_warm_up(given: Config, schedule: str, warmup: float, make: Callable[..., Made]):
    values = trained(make(config_of("B", **given)))
    assert (values["schedule"], values["warmup"]) == (schedule, warmup)


@pytest.mark.parametrize("generation, given, seed, data_seed", [
    ("A", {}, 42, None), ("A", {"seed": 1}, 1, 42), ("A", {"data_seed": 5}, 42, 5),
    ("B", {}, 42, None), ("B", {"seed": 1}, 1, None), ("B", {"seed": 1, "data_seed": 2}, 1, 2),
])  # fmt: skip
def test_seeds(generation: str, given: Config, seed: int, data_seed: int | None, make: Callable[..., Made]):
    made = make(config_of(generation, **given))
    assert (trained(made)["seed"], trained(made).get("data_seed")) == (seed, data_seed)
    if generation == "A":  # the sequences that are held out are chosen by data_seed
        assert made.stages[0].params.values["split_seed"] == (42 if data_seed is None else data_seed)


def test_a_step_count_wins_over_epochs_and_the_report_says_so(make: Callable[..., Made]):
    made = make(config_of("A", num_train_epochs=5))
    assert trained(made)["steps"] == 10000
    fate = next(f for f in made.report.fates if f.path.endswith("num_train_epochs"))
    assert (fate.how, fate.why) == (NEEDLESS, "max_steps decides (10,000, the default)")
    assert trained(make(config_of("A", num_train_epochs=5, max_steps=-1)))["epochs"] == 5


@pytest.mark.parametrize("key, neutral, lost", [
    ("label_smoothing_factor", 0.0, 0.1), ("neftune_noise_alpha", 0, 5), ("dataloader_drop_last", False, True),
    ("metric_for_best_model", "eval_loss", "accuracy"),
])  # fmt: skip
def test_what_would_change_a_result_is_told_as_lost(key: str, neutral: Any, lost: Any, make: Callable[..., Made]):
    for value, how in ((neutral, SAME), (lost, LOST)):
        fates = make(config_of("B", **{key: value})).report.fates
        assert next(f for f in fates if f.path.endswith(key)).how == how


@pytest.mark.parametrize("optim, method, how, wanted", [
    ("adamw_torch", "LoRA", USED, None), ("paged_adamw_32bit", "QLoRA", CHANGED, None), ("sgd", "LoRA", LOST, None),
    ("adamw_bnb_8bit", "LoRA", CHANGED, None), ("paged_adamw_8bit", "QLoRA", USED, "paged-adamw-8bit"),
])  # fmt: skip
def test_optimizers(optim: str, method: str, how: str, wanted: str | None, make: Callable[..., Made]):
    config = config_of("A", optim=optim)
    config["passes"]["lora"]["type"] = method
    made = make(config)
    assert trained(made).get("optimizer") == wanted
    assert next(f for f in made.report.fates if f.path.endswith("optim")).how == how


def test_every_field_of_training_arguments_is_known(make: Callable[..., Made]):
    from transformers import TrainingArguments

    fields = {f.name: f.default for f in dataclasses.fields(TrainingArguments) if f.init}
    plain = {k: v for k, v in fields.items() if isinstance(v, (str, int, float, bool))}
    given = {k: str(v.value) if hasattr(v, "value") else v for k, v in {**dict.fromkeys(fields), **plain}.items()}
    for arguments in (given, OLDER, {"extra_args": OLDER}):
        made = make(config_of("A", **arguments))
        told = [f.path.rpartition(".")[2] for f in made.report.fates if ".training_args." in f.path]
        assert sorted(told) == sorted(OLDER if "extra_args" in arguments else arguments)


def test_a_token_is_not_repeated(make: Callable[..., Made]):
    made = make(config_of("A", hub_token="hf_secret"))
    assert "hf_secret" not in repr(made.report)


def table() -> list[tuple[list[str], dict[str, Any], str]]:
    """The table of docs/olive.md: names of an argument, its value by generation, what it is here."""
    lines = (ROOT / "docs" / "olive.md").read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("| `training_args` | A | B |")) + 2
    out = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        names, a, b, here = (cell.strip() for cell in line.strip("|").split("|"))
        values = {g: parse(re.split("[,;: ]", cell)[0], "cell").plain() for g, cell in (("A", a), ("B", b))}
        out.append((re.findall("`([^`]+)`", names), values, (re.findall("`([^`]+)`", here) or [""])[0]))
    return out


@pytest.mark.parametrize("generation", USUAL)
def test_the_page_says_what_olive_did_and_what_is_imported(generation: str, pipeline: Callable[..., Pipeline]):
    from transformers import TrainingArguments

    olive = json.loads((Path(__file__).parent / "recorded_defaults.json").read_text())[generation]
    theirs = {f.name: getattr(f.default, "value", f.default) for f in dataclasses.fields(TrainingArguments)}
    if generation == "B":
        olive["eval_strategy"] = "steps"  # wherever there is something to evaluate on
    rows = table()
    assert len(rows) > 20
    said = {name: values[generation] for names, values, _ in rows for name in names}

    def imported(**arguments: Any) -> dict[str, Any]:
        made = pipeline(config_of(generation, **arguments))
        return dict(next(s for s in made.stages.values() if s.interface.name.startswith("train-")).params)

    here, evaluating = imported(), imported(evaluation_strategy="steps")
    for names, values, becomes in rows:
        value = None if values[generation] == "none" else values[generation]
        assert value == next((olive[n] for n in names if n in olive), theirs.get(names[0])), names
        name, _, fixed = becomes.partition(": ")
        if fixed:
            assert here[name] == float(fixed), names
        elif "eval_strategy" in names:
            assert here[name] == (0 if value == "no" else said["logging_steps"])
        elif "logging_steps" in names:
            assert evaluating[name] == value
        elif "data_seed" in names:
            assert here[name] in (None, said["seed"]) and value in (None, said["seed"])
        elif name:
            assert here[name] == (None if value == -1 else value), names
