"""What becomes of `data_configs`: the rows, the text of a row, the sequences, the split, by generation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from olive.samples import Config, own_configs

from runner.olive.chain import Draft
from runner.olive.convert import Made

ALWAYS = {"deduplicate": False}


def config_of(generation: str, load: Config, make_: Config, nesting: str = "params") -> Config:
    """A config of a generation with one data config, in one of the nestings."""
    config = own_configs()["pages" if generation == "A" else "local-qlora"]
    entry: Config = {"name": "rows", "type": "HuggingfaceContainer"}
    if nesting == "params_config":
        entry["params_config"] = {**load, "component_kwargs": {"pre_process_data": make_}}
    elif nesting == "flat":
        entry |= {"load_dataset_config": load, "pre_process_data_config": make_}
    else:
        entry |= {"load_dataset_config": {"params": load}, "pre_process_data_config": {"params": make_}}
    config["data_configs"] = [entry]
    one = {"type": "LoRA", "train_data_config": "rows", "target_modules": ["q_proj"]}
    config["passes"] = {"tune": one if generation == "B" else {"type": one.pop("type"), "config": one}}
    return config


def data(made: Made) -> Draft:
    return next(d for d in made.stages if d.uses == "prepare-data")


LOAD = {"data_name": "json", "data_files": "rows.json", "split": "train"}
TEXT_A = {"values": "python", "template": "{a}", "special_tokens_as_text": True}


@pytest.mark.parametrize("generation, given, wanted", [
    ("A", {"text_template": "{a}", "source_max_len": 64, "corpus_strategy": "join"},
     {**TEXT_A, "strategy": "join", "max_length": 64, "joiner": "", "keep_last_full": False, "loss_on_pad": False,
      "hide_pad": True, "empty_rows": "keep"}),
    ("A", {"text_template": "{a}", "source_max_len": 64},  # a row each, padded
     {**TEXT_A, "strategy": "line", "max_length": 64, "pad": True, "short_rows": "keep", "loss_on_pad": False,
      "hide_pad": True, "empty_rows": "keep"}),
    ("A", {"text_cols": "a", "source_max_len": 64, "pad_to_max_len": False, "use_attention_mask": False,
           "drop_short_sequences": True, "add_special_tokens": False, "max_samples": 9},
     {"columns": ["a"], "end_token": "none", "strategy": "line", "max_length": 64, "pad": False, "short_rows": "drop",
      "loss_on_pad": True, "empty_rows": "keep", "max_sequences": 9}),
    ("A", {"text_cols": ["a", "b c"], "source_max_len": 64, "corpus_strategy": "join-sliding-window", "stride": 16,
           "joiner": "\n", "use_attention_mask": False},
     {"columns": ["a", "b c"], "special_tokens_as_text": True, "strategy": "join-sliding", "max_length": 64,
      "stride": 16, "group_rows": 1024, "joiner": "\n", "keep_last_full": False, "loss_on_pad": True,
      "empty_rows": "keep"}),
    ("A", {"text_template": "{a}", "source_max_len": 64, "corpus_strategy": "line-by-line-random", "max_samples": 5,
           "random_seed": 3, "pad_to_max_len": False},
     {**TEXT_A, "strategy": "line-random", "max_length": 64, "max_sequences": 5, "draws": 10, "draw_seed": 3,
      "pad": False, "short_rows": "keep", "loss_on_pad": False, "hide_pad": True, "empty_rows": "keep"}),
    ("A", {"dataset_type": "pair", "source_max_len": 64, "target_max_len": 16, "ignore_source_in_labels": False},
     {"prompt_field": "input", "completion_field": "output", "loss": "all", "special_tokens_as_text": True,
      "strategy": "line", "prompt_max_length": 64, "max_length": 80, "pad": True, "short_rows": "keep",
      "loss_on_pad": False, "hide_pad": True, "empty_rows": "keep"}),
    ("B", {},  # the column `text`, joined with an empty line
     {"columns": ["text"], "special_tokens_as_text": True, "strategy": "join", "max_length": 1024, "joiner": "\n\n",
      "keep_last_full": False, "empty_rows": "drop"}),
    ("B", {"text_template": "{a}", "max_seq_len": 32, "strategy": "join-random", "max_samples": 4, "random_seed": 1,
           "random_retries": 2, "joiner": ""},
     {**TEXT_A, "strategy": "join-random", "max_length": 32, "joiner": "", "max_sequences": 4, "draws": 2,
      "draw_seed": 1, "empty_rows": "drop"}),
    ("B", {"chat_template": True, "message_col": "turns", "strategy": "line-by-line"},
     {"messages_field": "turns", "conversation": "text", "strategy": "line", "max_length": 1024, "pad": True,
      "short_rows": "keep", "empty_rows": "drop"}),
    ("B", {"chat_template": "{{ messages }}", "strategy": "line-by-line", "pad_to_max_len": False},
     {"messages_field": "messages", "conversation": "text", "chat_template": "{{ messages }}", "strategy": "line",
      "max_length": 1024, "pad": False, "short_rows": "keep", "empty_rows": "drop"}),
])  # fmt: skip
@pytest.mark.parametrize("nesting", ["params", "params_config", "flat"])
def test_texts_and_sequences(generation: str, given: Config, wanted: Config, nesting: str, make: Callable[..., Made]):
    made = make(config_of(generation, LOAD, given, nesting))
    assert data(made).params.values == {**wanted, **ALWAYS, "test_fraction": 0}
    assert made.params["data"] == "rows.json"


@pytest.mark.parametrize("load, source, values", [
    (LOAD, "rows.json", {}),
    ({**LOAD, "split": "train[:90%]"}, "rows.json", {"split": "train[:90%]"}),
    ({**LOAD, "data_files": ["d/a.json", "d/e/b.json"]}, "d", {"files": ["a.json", "e/b.json"], "split": "train"}),
    ({**LOAD, "data_files": "d/*.json"}, "d/*.json", {}),
    ({**LOAD, "data_files": {"train": "a.json", "test": "b.json"}}, "a.json", {}),
    ({**LOAD, "data_dir": "here"}, "here/rows.json", {}),
    ({**LOAD, "data_files": {"type": "azureml_datastore", "config": {
        "datastore_name": "d", "relative_path": "a b/100%.json",
        "azureml_client": {"subscription_id": "s", "resource_group": "g", "workspace_name": "w"}}}},
     "azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/d/paths/a b/100%25.json", {}),
    ({"data_name": "owner/rows", "split": "test"}, "hf://datasets/owner/rows", {"split": "test"}),
    ({"data_name": "owner/rows", "subset": "en", "revision": "v1"}, "hf://datasets/owner/rows@v1/en",
     {"split": "validation"}),
    ({**LOAD, "col_filters": {"a": "x", "b": 1, "c": True}}, "rows.json", {"where": ["a=x", "b=1", "c=true"]}),
])  # fmt: skip
def test_where_rows_come_from(load: Config, source: str, values: Config, make: Callable[..., Made]):
    made = make(config_of("B", load, {}))
    assert made.params["data"] == source
    found = data(made).params.values
    assert {k: found[k] for k in ("files", "split", "where") if k in found} == values


def test_a_file_has_no_default_split_and_it_is_said(make: Callable[..., Made]):
    made = make(config_of("B", {"data_name": "json", "data_files": "rows.json"}, {}))
    assert "split" not in data(made).params.values
    assert any("names no split" in n for n in made.report.notes)


@pytest.mark.parametrize("size, wanted", [(0.1, 0.1), (1024, 1024)])
@pytest.mark.parametrize("generation", ["A", "B"])
def test_blocks_are_held_out(generation: str, size: float, wanted: float, make: Callable[..., Made]):
    config = config_of(
        generation, LOAD, {"text_cols": "a", "source_max_len" if generation == "A" else "max_seq_len": 8}
    )
    one = config["passes"]["tune"]
    one.get("config", one).update(eval_dataset_size=size, training_args={"data_seed": 7})
    values = data(make(config)).params.values
    assert (values["test_sequences"], values["split_seed"]) == (wanted, 7)
    assert "test_fraction" not in values


def test_rows_of_another_config_are_held_out(make: Callable[..., Made]):
    config = config_of("B", LOAD, {})
    other = {**LOAD, "data_files": "other.json"}
    config["data_configs"].append({**config["data_configs"][0], "name": "held", "load_dataset_config": other})
    config["passes"]["tune"]["eval_data_config"] = "held"
    made = make(config)
    assert data(made).inputs == {
        "source": "${{ params.data }}", "model": "${{ params.base_model }}", "test_source": "${{ params.test_data }}"
    }  # fmt: skip
    assert (made.params["data"], made.params["test_data"]) == ("rows.json", "other.json")
    assert made.report.notes == []
    config["data_configs"][1]["pre_process_data_config"] = {"max_seq_len": 9}
    assert any("prepared as those of rows" in n for n in make(config).report.notes)


def test_passes_with_the_same_data_share_a_stage(make: Callable[..., Made]):
    config = config_of("B", LOAD, {})
    config["passes"]["again"] = dict(config["passes"]["tune"])
    config["pass_flows"] = [["tune"], ["again"]]
    assert [d.uses for d in make(config).stages] == ["prepare-data", "train-lora", "train-lora"]
    config["passes"]["again"]["training_args"] = {"seed": 1}
    assert [d.uses for d in make(config).stages].count("prepare-data") == 1
    config["passes"]["again"]["eval_dataset_size"] = 5
    assert [d.name for d in make(config).stages] == ["data", "tune", "data-again", "again"]


def test_a_data_config_inside_a_pass(make: Callable[..., Made]):
    config = config_of("B", LOAD, {})
    config["passes"]["tune"]["train_data_config"] = {**config["data_configs"][0], "name": "inside"}
    config["data_configs"] = []
    assert make(config).params["data"] == "rows.json"


@pytest.mark.parametrize("generation, load, given, words", [
    ("A", LOAD, {"text_template": "{a}"}, "has no source_max_len"),
    ("A", LOAD, {"source_max_len": 8}, "has no text_template or text_cols"),
    ("A", LOAD, {"source_max_len": 8, "text_cols": "a", "use_attention_mask": False}, "contradicts pad_to_max_len"),
    ("A", LOAD, {"source_max_len": 8, "text_cols": "a", "drop_short_sequences": True}, "contradicts pad_to_max_len"),
    ("A", LOAD, {"source_max_len": 8, "text_formatting_func": "f"}, "code of a config is never run"),
    ("A", LOAD, {"source_max_len": 8, "dataset_type": "pair", "target_max_len": 8, "pair_format": "alpaca"},
     "has no template of its own"),
    ("A", LOAD, {"source_max_len": 8, "dataset_type": "pair"}, "has no target_max_len"),
    ("B", LOAD, {"strategy": "join-sliding-window"}, "has no stride"),
    ("B", LOAD, {"strategy": "joins"}, "did you mean 'join'?"),
    ("B", LOAD, {"max_seq_len": 1}, "max_length of prepare-data"),
    ("B", LOAD, {"text_template": "${{ params.x }}"}, "which begins a reference"),
    ("B", {"split": "train"}, {}, "has no data_name"),
    ("B", {"data_name": "json"}, {}, "there are no data_files"),
    ("B", {"data_name": "text", "data_files": "a.txt"}, {}, "are not read here"),
    ("B", {"data_name": "rows"}, {}, "is neither a folder here nor a data set's name"),
    ("B", {**LOAD, "data_files": {"test": "b.json"}}, {}, "has no split 'train'"),
])  # fmt: skip
def test_what_cannot_be_prepared(generation: str, load: Config, given: Config, words: str, wrong: Callable[..., str]):
    assert words in wrong(config_of(generation, load, given))
