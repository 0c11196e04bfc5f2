"""Evaluators become stages that measure, and a search variants and the best of them."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from olive.samples import Config, own_configs

from runner.olive.chain import Draft
from runner.olive.convert import Made
from runner.olive.evaluators import TYPES
from runner.olive.section import CHANGED, LOST, NEEDLESS, USED
from runner.pipeline import Pipeline

RIGHT = "evaluators.common_evaluator.metrics[0]"


def config_of(**changes: Any) -> Config:
    """The config with a search, with some of its keys changed; None removes one."""
    config = {**own_configs()["search"], **changes}
    return {k: v for k, v in config.items() if v is not None}


def measured(*sub_types: Config, type_: str = "accuracy", **more: Any) -> Config:
    """A config with one metric, and a search over the precision."""
    metric = {"name": "m", "type": type_, "data_config": "common_evaluator_data", "sub_types": list(sub_types), **more}
    passes = {"build": [{"type": "ModelBuilder", "precision": p} for p in ("int8", "fp32")]}
    return config_of(evaluators={"common_evaluator": {"metrics": [metric]}}, passes=passes,
                     search_strategy={"include_pass_params": False})  # fmt: skip


def stage(made: Made, uses: str, n: int = 0) -> Draft:
    return [d for d in made.stages if d.uses == uses][n]


def fate(made: Made, path: str) -> tuple[str, str]:
    found = next(f for f in made.report.fates if f.path == path)
    return found.how, found.becomes


# --- what is searched ---


def test_values_and_alternatives_become_a_matrix(make: Callable[..., Made], pipeline: Callable[..., Pipeline]):
    made = make(config_of())
    assert stage(made, "train-lora").variants.values == {"rank": [8, 16], "alpha": [16, 32]}
    assert stage(made, "train-lora").variants.exclude == []
    build = stage(made, "build-onnx")
    assert build.params.values == {"block_size": 32, "execution_provider": "cpu"}
    tried = {
        (b.params["precision"], b.params["algorithm"], b.params["symmetric"])
        for b in pipeline(config_of()).stages.values()
        if b.interface.name == "build-onnx" and b.select is None
    }
    assert tried == {("int4", "rtn", True), ("int4", "rtn", False), ("int4", "k_quant_mixed", False),
                     ("fp32", "default", None)}  # fmt: skip
    assert any("k_quant always writes zero points" in n for n in made.report.notes)
    assert fate(made, "passes.tune.r") == (USED, "matrix: rank")
    assert next(f for f in made.report.fates if f.path == "passes.tune.r").value == [8, 16]


@pytest.mark.parametrize("given, wanted", [
    ({"r": 8}, {}), ({}, {"rank": [16, 32, 64]}), ({"lora_r": 8}, {}), ({"r": "DEFAULT_VALUE"}, {}),
    ({"r": "SEARCHABLE_VALUES"}, {"rank": [16, 32, 64]}), ({"lora_r": "SEARCHABLE_VALUES"}, {"rank": [16, 32, 64]}),
    ({"r": 8, "torch_dtype": {"olive_parameter_type": "SearchParameter", "support": ["bfloat16", "float32"]}},
     {"precision": ["bf16", "fp32"]}),
    ({"r": 8, "alpha": "SEARCHABLE_VALUES"}, {}),  # there are none: the default
    ({"disable_search": True}, {}),
])  # fmt: skip
@pytest.mark.parametrize("include", [True, False])
def test_what_a_search_tries_of_training(given: Config, wanted: Config, include: bool, make: Callable[..., Made]):
    passes = {"tune": {"type": "LoRA", "train_data_config": "train", "target_modules": ["o_proj"], **given}}
    made = make(config_of(passes=passes, search_strategy={"include_pass_params": include}))
    found = stage(made, "train-lora").variants
    implicit = not include and given == {}
    assert (dict(found.values) if found else {}) == ({} if implicit else wanted)
    if given == {} and include:
        assert any("is not given, and with a search Olive tries 16, 32, 64" in n for n in made.report.notes)


def test_generation_a_tries_only_what_a_config_asks_for(make: Callable[..., Made]):
    config = own_configs()["pages"]
    metric = {"name": "m", "type": "size_on_disk", "sub_types": [{"name": "bytes"}]}
    config["evaluators"] = {"e": {"metrics": [metric]}}
    config["engine"] |= {"evaluator": "e", "search_strategy": {"execution_order": "pass-by-pass",
                                                               "search_algorithm": "exhaustive"}}  # fmt: skip
    assert stage(make(config), "train-lora").variants is None
    parameter = {"olive_parameter_type": "SearchParameter", "type": "Categorical", "support": [0.0, 0.1]}
    config["passes"]["lora"]["config"]["lora_dropout"] = parameter
    made = make(config)
    assert stage(made, "train-lora").variants.values == {"dropout": [0.0, 0.1]}
    assert fate(made, "passes.lora.config.lora_dropout") == (USED, "matrix: dropout")
    assert fate(made, "engine.search_strategy.execution_order")[0] == CHANGED
    assert stage(made, "select").select == {"from": "builder", "minimize": "model_bytes"}


@pytest.mark.parametrize("passes, strategy, words", [
    ({"b": [{"type": "ModelBuilder", "precision": "int4"}, {"type": "OnnxConversion"}]}, True,
     "differ in more than parameters of one stage"),
    ({"b": [{"type": "ModelBuilder", "precision": "int4"}, {"type": "ModelBuilder", "precision": "fp32"}]}, None,
     "has 2 alternatives"),
    ({"b": {"type": "ModelBuilder", "precision": "int4", "int4_block_size": "SEARCHABLE_VALUES"}}, None,
     "is to be searched, and nothing is"),
    ({"b": {"type": "ModelBuilder", "precision": "int4", "int4_block_size": [32, 48.5]}}, True,
     "must be a whole number"),
    ({"b": {"type": "ModelBuilder", "precision": "int4", "int4_block_size": [8]}}, True, "block_size of build-onnx"),
    ({"b": {"type": "ModelBuilder", "precision": {"olive_parameter_type": "SearchParameter", "type": "Conditional",
                                                  "support": {}}}}, True, "'Conditional'"),
    ({"b": {"type": "ModelBuilder", "precision": "int4", "int4_nodes_to_exclude": {
        "olive_parameter_type": "SearchParameter", "support": [["a"], ["b"]]}}}, True, "differ in a list"),
    ({"b": {"type": "ModelBuilder", "precision": "int4", "int4_block_size": {
        "olive_parameter_type": "SearchParameter", "support": list(range(16, 233))}}}, True, "more than 200"),
])  # fmt: skip
def test_what_cannot_be_searched(passes: Config, strategy: Any, words: str, wrong: Callable[..., str]):
    assert words in wrong(config_of(passes=passes, search_strategy=strategy))


def test_more_combinations_than_fit_into_memory_are_counted_and_not_made(wrong: Callable[..., str]):
    many = {"olive_parameter_type": "SearchParameter", "support": list(range(200))}
    passes = {"tune": {"type": "LoRA", "train_data_config": "train", **dict.fromkeys(("r", "alpha"), many)}}
    assert "passes.tune has 40,000 combinations of values, more than 200" in wrong(config_of(passes=passes))
    keys = ("r", "alpha", "lora_dropout", "torch_dtype", "target_modules", *(f"x{n}" for n in range(20)))
    passes = {"tune": {"type": "LoRA", "train_data_config": "train", **dict.fromkeys(keys, many)}}
    assert "passes.tune has far more combinations of values than 200" in wrong(config_of(passes=passes))


def test_alternatives_that_differ_in_many_parameters_are_refused_and_not_pondered(
    make: Callable[..., Made], wrong: Callable[..., str]
):
    def config(keys: int) -> Config:
        values = {"r": 8, "alpha": 16, "lora_dropout": 1, "training_args.weight_decay": 1,
                  "training_args.learning_rate": 1, "training_args.max_steps": 30}  # fmt: skip
        every = []
        for n in range(8):
            one: Config = {"type": "LoRA", "train_data_config": "train", "training_args": {}}
            for key, first in list(values.items())[:keys]:
                value = (first + n) * (0.01 if key.endswith(("dropout", "rate", "decay")) else 1)
                (one["training_args"] if "." in key else one)[key.rpartition(".")[2]] = value
            every.append(one)
        return config_of(passes={"tune": every}, search_strategy={"include_pass_params": False})

    said = wrong(config(6))
    assert "differ in too many parameters" in said and "keep one of them, or write a config for each" in said
    variants = stage(make(config(3)), "train-lora").variants
    assert [len(v) for v in variants.values.values()] == [8, 8, 8]
    kept = [
        p
        for p in itertools.product(*variants.values.values())
        if not any(e.items() <= dict(zip(variants.values, p, strict=True)).items() for e in variants.exclude)
    ]
    assert kept == list(zip(*variants.values.values(), strict=True))


def test_a_search_needs_an_evaluator(wrong: Callable[..., str], make: Callable[..., Made]):
    assert "names nothing to search by" in wrong(config_of(evaluator=None))
    assert "no such evaluator (did you mean 'common_evaluator'?)" in wrong(config_of(evaluator="comon_evaluator"))
    passes = {"b": {"type": "ModelBuilder", "precision": "fp32"}}
    assert any("there are no values to try" in n for n in make(config_of(passes=passes)).report.notes)


# --- what is measured ---


@pytest.mark.parametrize("type_, name, measure, goal, how", [
    ("accuracy", "accuracy_score", "accuracy", "maximize", CHANGED),
    ("accuracy", "exact_match", "accuracy", "maximize", USED),
    ("accuracy", "f1_score", "macro_f1", "maximize", CHANGED),
    ("accuracy", "perplexity", "perplexity", "minimize", CHANGED),
    ("latency", "avg", "time_to_first_token_mean_s", "minimize", CHANGED),
    ("latency", "p95", "ttft_ms_p95", "minimize", CHANGED), ("latency", "p999", "ttft_ms_p95", "minimize", CHANGED),
    ("throughput", "avg", "tokens_per_s", "maximize", CHANGED),
    ("size_on_disk", "bytes", "model_bytes", "minimize", USED),
])  # fmt: skip
def test_measures(type_: str, name: str, measure: str, goal: str, how: str, make: Callable[..., Made]):
    made = make(measured({"name": name}, type_=type_))
    path = "evaluators.common_evaluator.metrics[0].sub_types[0].name"
    assert fate(made, path) == (how, f"{measure} of infer")
    assert stage(made, "select").select[goal] == measure
    if type_ == "size_on_disk":  # what is there says it: nobody has to answer
        assert not [d for d in made.stages if d.uses == "infer"]
        return
    asked = stage(made, "infer").params.values
    assert asked.get("loss") == ("yes" if name == "perplexity" else None)
    assert asked.get("batch_size") == (1 if type_ in ("latency", "throughput") else None)


@pytest.mark.parametrize("type_, name", [
    ("accuracy", "auroc"), ("accuracy", "precision"), ("accuracy", "recall"), ("accuracy", "wer"), ("custom", "mine"),
])  # fmt: skip
def test_what_has_no_measure_is_told_and_ranks_nothing(type_: str, name: str, make: Callable[..., Made]):
    made = make(measured({"name": name, "priority": 1, "higher_is_better": True}, type_=type_))
    assert fate(made, f"{RIGHT}.sub_types[0].name")[0] == LOST
    assert not {"infer", "select"} & {d.uses for d in made.stages}
    assert fate(made, "evaluator")[0] == LOST


def test_the_most_important_measure_decides(make: Callable[..., Made]):
    made = make(measured({"name": "exact_match", "priority": 2}, {"name": "perplexity", "priority": 1},
                         {"name": "auroc", "priority": -1}))  # fmt: skip
    assert stage(made, "select").select == {"from": "evaluated-build", "take": "build", "minimize": "perplexity"}
    turned = make(measured({"name": "perplexity", "higher_is_better": True}))
    assert stage(turned, "select").select["maximize"] == "perplexity"


@pytest.mark.parametrize("type_, sub_type, limit", [
    ("accuracy", {"name": "exact_match", "goal": {"type": "threshold", "value": 0.8}}, {"accuracy": {"min": 0.8}}),
    ("accuracy", {"name": "perplexity", "goal": {"type": "threshold", "value": 9}}, {"perplexity": {"max": 9}}),
    ("latency", {"name": "avg", "goal": {"type": "threshold", "value": 50}},
     {"time_to_first_token_mean_s": {"max": 0.05}}),
    ("latency", {"name": "p50", "goal": {"type": "threshold", "value": 50}}, {"ttft_ms_p50": {"max": 50}}),
    ("size_on_disk", {"name": "bytes", "goal": {"type": "threshold", "value": 5e9}}, {"model_bytes": {"max": 5e9}}),
    ("accuracy", {"name": "exact_match", "goal": {"type": "max-degradation", "value": 0.01}}, None),
    ("throughput", {"name": "avg", "goal": {"type": "threshold", "value": 50}}, None),
])  # fmt: skip
def test_goals_are_limits(type_: str, sub_type: Config, limit: Any, make: Callable[..., Made]):
    made = make(measured(sub_type, type_=type_))
    assert stage(made, "select").select.get("where") == limit
    assert fate(made, f"{RIGHT}.sub_types[0].goal.value")[0] == (USED if limit else LOST)


def test_two_goals_for_one_measure_both_count(make: Callable[..., Made]):
    goals = [
        {"name": n, "priority": 1, "goal": {"type": "threshold", "value": v}} for n, v in (("p90", 80), ("p99", 70))
    ]
    assert stage(make(measured(*goals, type_="latency")), "select").select["where"] == {"ttft_ms_p95": {"max": 70}}


def test_without_a_search_the_last_model_and_the_input_are_measured(make: Callable[..., Made]):
    passes = copy.deepcopy(config_of()["passes"])
    passes["tune"] |= {"r": 8, "alpha": 16}
    passes["build"] = passes["build"][1]
    made = make(config_of(search_strategy=False, passes=passes))
    assert [d.name for d in made.stages] == ["data", "tune", "merge", "build", "questions", "evaluated-build",
                                             "evaluated-input"]  # fmt: skip
    last, first = (stage(made, "infer", n) for n in (0, 1))
    assert last.inputs == {"model": "${{ stages.build.model }}", "dataset": "${{ stages.questions.dataset }}"}
    assert first.inputs["model"] == "${{ params.base_model }}"
    assert fate(made, f"{RIGHT}.sub_types[0].goal.value")[0] == NEEDLESS
    assert fate(made, f"{RIGHT}.sub_types[0].priority")[0] == NEEDLESS
    del passes["merge"], passes["build"]
    made = make(config_of(search_strategy=False, passes=passes, evaluate_input_model=False))
    assert [d.name for d in made.stages] == ["data", "tune", "questions", "evaluated-tune"]
    assert stage(made, "infer").inputs["adapter"] == "${{ stages.tune.adapter }}"


def test_a_pass_is_measured_by_its_own_evaluator(make: Callable[..., Made]):
    passes = {"tune": {**config_of()["passes"]["tune"], "r": 8, "alpha": 16, "evaluator": "common_evaluator"},
              "merge": {"type": "MergeAdapterWeights"}}  # fmt: skip
    made = make(config_of(passes=passes, search_strategy=None, evaluator=None))
    assert [d.name for d in made.stages] == ["data", "tune", "questions", "evaluated-tune", "merge"]
    assert fate(made, "passes.tune.evaluator") == (USED, "a stage infer behind it")


def test_an_evaluator_that_stands_where_its_name_could(make: Callable[..., Made]):
    inline = config_of()["evaluators"]["common_evaluator"]
    inline["metrics"][0]["data_config"] = copy.deepcopy(config_of()["data_configs"][1])
    made = make(config_of(evaluators=None, evaluator=inline))
    assert made.params["questions"] == "test.jsonl"
    told = [f.path for f in made.report.fates]
    assert len(told) == len(set(told))


def test_rows_that_nobody_has_are_told_at_their_place(wrong: Callable[..., str]):
    config = config_of()
    config["evaluators"]["common_evaluator"]["metrics"][1]["data_config"] = "common_evaluator_dat"
    said = wrong(config)
    assert "there is no data config 'common_evaluator_dat' (did you mean 'common_evaluator_data'?)" in said
    assert said.count("there is no data config") == 1


def of_rows(text: Config, **top: Any) -> Config:
    config = config_of(**top)
    entry = config["data_configs"][1]
    entry["pre_process_data_config"] = {"max_seq_len": 64, **text}
    return config


@pytest.mark.parametrize("text, data, asked", [
    ({"text_template": "### {phrase}: {tone}\n<|end|>\n"},
     {"template": "### {phrase}: {tone}", "completion": "tone", "special_tokens_as_text": True}, {"stop": ["<|end|>"]}),
    ({"text_cols": ["a b", "c"], "add_special_tokens": False},
     {"template": "{a b} {c}", "completion": "c", "end_token": "none"}, {}),
    ({"chat_template": True, "message_col": "turns"}, {"messages_field": "turns"}, {}),
    ({"dataset_type": "pair", "pair_format": "self_instruct", "target_max_len": 8},
     {"prompt_field": "prompt", "completion_field": "completion", "special_tokens_as_text": True}, {}),
])  # fmt: skip
def test_rows_become_questions(text: Config, data: Config, asked: Config, make: Callable[..., Made]):
    made = make(of_rows(text))
    found = stage(made, "prepare-data", 1).params.values
    own = {"test_split", "max_length", "prompt_max_length", "empty_rows", "strategy", "deduplicate"}
    assert {k: v for k, v in found.items() if k not in own} == data
    assert (found["test_split"], found["strategy"], found["deduplicate"]) == ("train", "line", False)
    values = stage(made, "infer").params.values
    assert {k: v for k, v in values.items() if k == "stop"} == asked


@pytest.mark.parametrize("text", [
    {"text_cols": ["text"]}, {"text_template": "Say {a}"}, {"text_template": "{a!r} is {b}"},
    {"text_template": "{a[x]} is {b}"}, {"text_template": "{{x}} {a} is {b}"},
])  # fmt: skip
def test_rows_of_plain_text_cannot_be_asked_and_it_is_told(text: Config, make: Callable[..., Made]):
    made = make(of_rows(text))
    assert not {"infer", "select"} & {d.uses for d in made.stages}
    assert any("are plain text, without prompts and answers" in n for n in made.report.notes)
    assert any("none is chosen" in n for n in made.report.notes)


def test_a_template_that_cannot_be_read_is_told_at_its_place(wrong: Callable[..., str]):
    said = wrong(of_rows({"text_template": "a {phrase} } {tone}"}))
    assert said.count("cannot be read: Single '}' encountered in format string") == 1
    assert '"text_template": "a {phrase} } {tone}"' in said and "write {{ and }}" in said


def test_what_is_built_for_another_machine_is_not_measured(make: Callable[..., Made]):
    config = measured({"name": "exact_match"})
    config["systems"]["here"]["accelerators"][0] |= {"execution_providers": ["DmlExecutionProvider"]}
    config["evaluate_input_model"] = False
    made = make(config)
    assert not [d for d in made.stages if d.uses == "infer"]
    assert any("infer runs models for the CPU and for CUDA" in n for n in made.report.notes)
    config["systems"]["here"]["accelerators"][0] |= {"device": "gpu", "execution_providers": ["CUDAExecutionProvider"]}
    assert stage(make(config), "infer").resources == {"gpus": 1}


def test_an_evaluator_without_rows_takes_those_of_training(make: Callable[..., Made]):
    config = config_of()
    for metric in config["evaluators"]["common_evaluator"]["metrics"]:
        metric.pop("data_config", None)
    assert "questions" not in make(config).params  # the same file
    config["passes"]["tune"]["eval_data_config"] = "common_evaluator_data"
    made = make(config)
    assert stage(made, "prepare-data", 1).inputs["source"] == "${{ params.test_data }}"


def test_every_kind_of_metric_of_olive_is_known():
    assert set(TYPES) == {"accuracy", "latency", "throughput", "size_on_disk", "custom"}


# --- it runs ---


def test_a_search_runs_and_takes_the_best(tmp_path: Path, examples: Path):
    """Two builds of the example model, compared by perplexity: what is taken is what was measured best."""
    (tmp_path / "model").symlink_to(examples / "tiny-phi3")
    rows = (examples / "tones.jsonl").read_text().splitlines()[:4]
    (tmp_path / "test.jsonl").write_text("\n".join(rows))
    config = measured({"name": "perplexity", "priority": 1, "goal": {"type": "threshold", "value": 1e9}})
    config["evaluate_input_model"] = False
    config["passes"] = {"build": [{"type": "ModelBuilder", "precision": "fp32"},
                                  {"type": "ModelBuilder", "precision": "int4", "int4_block_size": 64,
                                   "int4_algo_config": "rtn"}]}  # fmt: skip
    (tmp_path / "olive.json").write_text(json.dumps(config))

    def run(*arguments: str) -> Any:
        done = subprocess.run([sys.executable, "-m", "runner.cli", *arguments], cwd=tmp_path, capture_output=True,
                              text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    run("import", "olive", "olive.json", "--json")
    few = ["stages.build.params.prompt_count=1", "stages.build.params.compare_tokens=2",
           "stages.evaluated-build.params.max_new_tokens=2"]  # fmt: skip
    outcome = run("up", "--target", "process", "--json", *(w for f in few for w in ("--set", f)))
    stages = {s["stage"]: s for s in outcome["stages"]}
    measures = {}
    for name, one in stages.items():
        if name.startswith("evaluated-"):
            manifest = json.loads((Path(one["outputs"]["predictions"]["uri"]) / "artifact.json").read_text())
            measures[name.removeprefix("evaluated-")] = manifest["metrics"]["perplexity"]
            assert manifest["metadata"]["rows"] == 4
    assert len(measures) == 2 and all(math.isfinite(v) for v in measures.values())
    assert len(set(measures.values())) == 2
    best = min(measures, key=lambda name: measures[name])
    assert stages["best"]["outputs"] == stages[best]["outputs"]
