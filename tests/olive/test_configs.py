"""Real configs and the fragments of the pages import without loss; ours import as they are written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from olive.samples import OWN, SHARED, Config, fragments, leaves, own_configs, shared_configs

from runner.document import parse
from runner.olive.convert import Made, convert
from runner.olive.write import pipeline_text
from runner.pipeline import Pipeline

ALL = {**own_configs(), **shared_configs(), **fragments()}
GENERATIONS = {
    "pages": "A", "alternatives": "A", "local-qlora": "B", "e2e-lora-aml": "A", "e2e-qlora-aml": "A",
    "olive-phi3-classification": "A", "phrase-classification": "A", "olive-llama3.2-1b-qlora": "B",
    "olive-open-llama-qlora": "B", "search": "B",
}  # fmt: skip


def test_the_real_configs_are_there():
    if not SHARED.is_dir():
        pytest.skip(f"REAL CONFIGS NOT TESTED: {SHARED} is not there; set MICROSTAGES_SHARED")
    assert len(shared_configs()) >= 6
    assert len(fragments()) >= 8


@pytest.mark.parametrize("name", ALL)
def test_each_key_has_exactly_one_fate(name: str, make: Callable[..., Made]):
    made = make(ALL[name])
    told = [fate.path for fate in made.report.fates]
    assert len(told) == len(set(told))
    for path, _ in leaves(ALL[name]):
        owners = [t for t in told if path == t or path.startswith((f"{t}.", f"{t}["))]
        assert len(owners) == 1, f"{path}: {owners}"
    for fate in made.report.fates:
        assert fate.becomes or fate.why, fate.path


@pytest.mark.parametrize("name", ALL)
def test_it_reads_as_a_pipeline(name: str, pipeline: Callable[..., Pipeline]):
    made = pipeline(ALL[name])
    assert made.warnings == ()
    assert {s.interface.name for s in made.stages.values()} & {"train-lora", "train-qlora"}


@pytest.mark.parametrize("name", GENERATIONS)
def test_the_generation_is_detected(name: str, make: Callable[..., Made]):
    if name not in ALL:
        pytest.skip(f"REAL CONFIGS NOT TESTED: {SHARED} is not there; set MICROSTAGES_SHARED")
    assert make(ALL[name]).generation == GENERATIONS[name]


@pytest.mark.parametrize("name", own_configs())
def test_our_configs_become_these_pipelines(name: str):
    """Written anew by `runner import olive tests/olive/configs/NAME.json -o tests/olive/configs/NAME.yaml --force`."""
    file = OWN / f"{name}.yaml"
    assert pipeline_text(convert(OWN / f"{name}.json", file)) == file.read_text()


@pytest.mark.parametrize("name", ALL)
def test_values_survive_the_writing(name: str, make: Callable[..., Made]):
    made = make(ALL[name])
    written = parse(pipeline_text(made), "pipeline.yaml").plain()
    assert written["params"] == dict(made.params)
    for draft in made.stages:
        for key, value in written["stages"][draft.name].get("params", {}).items():
            assert value == draft.params.values[key], f"{draft.name}.{key}"


def test_tabs_escapes_and_rare_characters_are_read(make: Callable[..., Made]):
    config: Config = own_configs()["pages"]
    text = 'a\t"b" \\ {Question}\n🙂 \u2028 \x7f: # {Best Answer}'
    config["data_configs"][0]["pre_process_data_config"]["params"]["text_template"] = text
    made = make(json.dumps(config, indent="\t"))  # the smiley as two escapes
    assert made.stages[0].params.values["template"] == text
    assert parse(pipeline_text(made), "p").plain()["stages"]["data"]["params"]["template"] == text


def test_paths_are_adapted_to_the_place_of_the_pipeline(tmp_path: Path):
    config = own_configs()["alternatives"]
    config["input_model"]["config"]["model_path"] = "model-cache/microsoft/phi"
    (tmp_path / "fine-tuning").mkdir()
    file = tmp_path / "fine-tuning" / "olive-config.json"
    file.write_text(json.dumps(config))
    beside, above = (convert(file, tmp_path / p).params for p in ("fine-tuning/pipeline.yaml", "pipeline.yaml"))
    assert beside == {"base_model": "model-cache/microsoft/phi", "data": "rows"}
    assert above == {"base_model": "fine-tuning/model-cache/microsoft/phi", "data": "fine-tuning/rows"}


def test_a_name_of_the_hub_is_a_folder_where_there_is_one(tmp_path: Path):
    file = tmp_path / "olive-config.json"
    file.write_text(json.dumps(own_configs()["local-qlora"]))
    assert convert(file, tmp_path / "p.yaml").params["base_model"] == "hf://owner/base-model@v2"
    (tmp_path / "owner" / "base-model").mkdir(parents=True)
    assert convert(file, tmp_path / "p.yaml").params["base_model"] == "owner/base-model"
