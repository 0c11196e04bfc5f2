"""Passes in any order and subset; systems and models of every kind; what cannot be is a mistake with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from olive.samples import Config, own_configs

from runner.olive.convert import Made


def config_of(*types: str, **changes: Any) -> Config:
    """A config of generation B with passes of these types."""
    config = own_configs()["local-qlora"]
    config["systems"]["here"]["accelerators"] = ["cpu"]
    config["passes"] = {}
    for n, kind in enumerate(types):
        one: Config = {"type": kind}
        if kind in ("LoRA", "QLoRA", "LoftQ", "DoRA"):
            one["train_data_config"] = "train"
        if kind == "ModelBuilder":
            one["precision"] = "int4"
        config["passes"][f"p{n}"] = one
    return {**config, **changes}


def stages(made: Made) -> list[tuple[str, str]]:
    return [(d.name, d.uses) for d in made.stages]


def fate(made: Made, path: str) -> str:
    return next(f.how for f in made.report.fates if f.path == path)


@pytest.mark.parametrize("types, wanted", [
    (("LoRA",), ["prepare-data", "train-lora"]),
    (("DoRA", "MergeAdapterWeights"), ["prepare-data", "train-lora", "merge"]),
    (("QLoRA", "ModelBuilder"), ["prepare-data", "train-qlora", "merge", "build-onnx"]),
    (("LoftQ", "MergeAdapterWeights", "ModelBuilder"), ["prepare-data", "train-qlora", "merge", "build-onnx"]),
    (("ModelBuilder",), ["build-onnx"]),
    (("LoRA", "MergeAdapterWeights", "QLoRA", "MergeAdapterWeights"),
     ["prepare-data", "train-lora", "merge", "train-qlora", "merge"]),
    (("OnnxConversion",), ["build-onnx"]),
    (("OnnxConversion", "OrtTransformersOptimization"), ["build-onnx"]),
])  # fmt: skip
def test_passes_become_stages(types: tuple[str, ...], wanted: list[str], make: Callable[..., Made]):
    made = make(config_of(*types))
    assert [d.uses for d in made.stages] == wanted
    if "ModelBuilder" in types and "MergeAdapterWeights" not in types and len(types) > 1:
        assert any("the stage merge is put between them" in n for n in made.report.notes)


def test_a_second_tuning_takes_the_merged_model(make: Callable[..., Made]):
    made = make(config_of("LoRA", "MergeAdapterWeights", "QLoRA", "MergeAdapterWeights"))
    second = next(d for d in made.stages if d.uses == "train-qlora")
    assert second.inputs["base_model"] == "${{ stages.p1.model }}"
    assert made.stages[-1].inputs == {"base_model": "${{ stages.p1.model }}", "adapter": "${{ stages.p2.adapter }}"}
    assert made.stages[-1].params.values == {"base": "original"}


@pytest.mark.parametrize("types, words", [
    (("MergeAdapterWeights",), "has no adapter to merge"),
    (("LoRA", "QLoRA"), "cannot train an adapter that is not merged"),
    (("ModelBuilder", "LoRA"), "cannot train an ONNX model"),
    (("ModelBuilder", "ModelBuilder"), "has an ONNX model already"),
    (("OrtTransformersOptimization",), "has no ONNX model to optimize"),
    (("GptqQuantizer",), "'GptqQuantizer'"), (("Lora1",), "did you mean 'lora'?"),
    ((), "there are no passes"),
])  # fmt: skip
def test_what_cannot_be_is_a_mistake(types: tuple[str, ...], words: str, wrong: Callable[..., str]):
    said = wrong(config_of(*types))
    assert words in said
    assert "\n  " in said  # each with what to do


def test_metadata_only_needs_a_model_of_onnx(wrong: Callable[..., str], make: Callable[..., Made]):
    config = config_of("LoRA", "ModelBuilder")
    config["passes"]["p1"]["metadata_only"] = True
    assert "metadata_only and has no ONNX model" in wrong(config)
    config = config_of("LoRA", "OnnxConversion", "OrtTransformersOptimization", "ModelBuilder")
    config["passes"]["p3"] |= {"metadata_only": True, "precision": "fp16"}
    made = make(config)
    assert made.stages[-1].params.values["precision"] == "fp16"
    assert fate(made, "passes.p3.metadata_only") == "changed"


def test_types_in_any_case_and_passes_in_lists(make: Callable[..., Made], wrong: Callable[..., str]):
    config = config_of("lora", "MERGEADAPTERWEIGHTS", "modelbuilder")
    config["passes"]["p0"]["train_data_config"] = "train"
    config["passes"]["p2"]["precision"] = "int4"
    config["passes"] = {k: [v] for k, v in config["passes"].items()}
    assert [u for _, u in stages(make(config))] == ["prepare-data", "train-lora", "merge", "build-onnx"]
    config["passes"]["p0"] *= 2
    assert "passes.p0 has 2 alternatives" in wrong(config)


def test_flows_share_what_they_begin_with(make: Callable[..., Made]):
    made = make(own_configs()["alternatives"])
    assert [n for n, _ in stages(made)] == ["data", "lora", "merge", "small", "exact"]
    assert {d.inputs["model"] for d in made.stages if d.uses == "build-onnx"} == {"${{ stages.merge.model }}"}


def test_one_build_for_each_execution_provider(make: Callable[..., Made]):
    config = config_of("ModelBuilder")
    names = ["CPUExecutionProvider", "DmlExecutionProvider", "WebGpuExecutionProvider", "QNNExecutionProvider"]
    config["systems"]["here"]["accelerators"] = [{"device": "gpu", "execution_providers": names}]
    made = make(config)
    assert [n for n, _ in stages(made)] == ["p0-cpu", "p0-dml", "p0-webgpu"]
    assert fate(made, "systems.here.accelerators[0].execution_providers") == "changed"
    config["systems"]["here"]["accelerators"][0]["execution_providers"] = ["CUDAExecutionProvidr"]
    with pytest.raises(Exception, match="did you mean 'CUDAExecutionProvider'"):
        make(config)


def test_execution_providers_of_the_engine_count_as_then(make: Callable[..., Made]):
    config = own_configs()["pages"]
    config["engine"]["execution_providers"] = ["CPUExecutionProvider"]
    assert make(config).stages[-1].params.values["execution_provider"] == "cpu"


@pytest.mark.parametrize("type_, modules", [("phi3", ["o_proj", "qkv_proj"]), ("llama", ["q_proj", "v_proj"])])
def test_layers_where_none_are_named(type_: str, modules: list[str], make: Callable[..., Made], tmp_path: Any):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(f'{{"model_type": "{type_}"}}')
    config = config_of("LoRA", input_model={"type": "HfModel", "model_path": "model"})
    assert make(config).stages[1].params.values["target_modules"] == modules
    config["passes"]["p0"]["type"] = "QLoRA"
    assert "target_modules" not in make(config).stages[1].params.values


def test_layers_of_a_model_that_is_elsewhere_are_told(make: Callable[..., Made]):
    made = make(config_of("LoRA"))
    assert "target_modules" not in made.stages[1].params.values
    assert any("names no target_modules" in n for n in made.report.notes)


def test_a_quantized_base_overrides_the_layers(make: Callable[..., Made]):
    config = config_of("QLoRA")
    config["passes"]["p0"]["target_modules"] = ["q_proj"]
    made = make(config)
    assert "target_modules" not in made.stages[1].params.values
    assert fate(made, "passes.p0.target_modules") == "changed"


def test_loftq_and_dora(make: Callable[..., Made]):
    config = config_of("LoftQ", "MergeAdapterWeights")
    config["passes"]["p0"] |= {"loftq_iter": 1, "r": 8, "double_quant": True, "quant_type": "fp4"}
    made = make(config)
    values = made.stages[1].params.values
    assert (values["init"], values["rank"], values["double_quant"]) == ("loftq", 8, False)
    assert "quant_type" not in values
    assert made.stages[2].params.values == {}  # its adapter belongs to the dequantized base, there as here
    assert fate(made, "passes.p0.loftq_iter") == "used"
    config["passes"]["p0"]["loftq_iter"] = 5
    assert fate(make(config), "passes.p0.loftq_iter") == "changed"
    assert make(config_of("DoRA")).stages[1].params.values["dora"] is True


def test_half_precision_becomes_fp32(make: Callable[..., Made]):
    config = config_of("LoRA")
    config["passes"]["p0"]["torch_dtype"] = "float16"
    made = make(config)
    assert made.stages[1].params.values["precision"] == "fp32"
    assert fate(made, "passes.p0.torch_dtype") == "changed"


def test_azure_machine_learning(make: Callable[..., Made], wrong: Callable[..., str]):
    config = own_configs()["pages"]
    made = make(config)
    workspace = "subscriptions/00000000-0000-0000-0000-000000000000/resourcegroups/team/workspaces/models"
    assert made.store == f"azureml://{workspace}/datastores/workspaceblobstore/paths/microstages"
    assert made.params["data"] == f"azureml://{workspace}/datastores/workspaceblobstore/paths/data/questions.json"
    assert made.target == "aml"
    assert made.targets["aml"] == {
        "type": "azureml", "subscription_id": "00000000-0000-0000-0000-000000000000", "resource_group": "team",
        "workspace": "models", "compute": "gpus", "tags": {"team": "words"},
        "secrets": [{"name": "HF_TOKEN", "vault": "team-vault", "secret": "hf-token"}],
    }  # fmt: skip
    assert [d.resources for d in made.stages if d.uses == "train-lora"] == [{"gpus": 1}]
    config["systems"]["aml"]["config"] |= {"instance_count": 2, "datastores": "other"}
    made = make(config)
    assert next(d for d in made.stages if d.uses == "train-lora").resources == {"gpus": 1, "nodes": 2}
    assert "/datastores/other/paths/" in made.store
    del config["azureml_client"]["keyvault_name"]
    assert "needs a Key Vault" in wrong(config)
    del config["systems"]["aml"]["config"]["aml_compute"]
    assert "has no aml_compute" in wrong(config)


@pytest.mark.parametrize("type_, target", [
    ("LocalSystem", ""), ("Docker", "docker"), ("PythonEnvironment", "process"), ("IsolatedORT", "process"),
])  # fmt: skip
def test_other_systems(type_: str, target: str, make: Callable[..., Made]):
    config = config_of("ModelBuilder")
    config["systems"]["here"] = {"type": type_}
    assert make(config).target == target


def test_a_pass_runs_on_a_host_of_its_own(make: Callable[..., Made]):
    made = make(own_configs()["alternatives"])
    assert {d.name: d.target for d in made.stages if d.target != "auto"} == {"merge": "box"}
    assert made.targets == {"box": {"type": "docker", "secrets": ["HF_TOKEN"]}}
    config = config_of("LoRA")
    config["passes"]["p0"]["host"] = {"type": "Docker"}
    assert next(d for d in make(config).stages if d.uses == "train-lora").target == "docker"


@pytest.mark.parametrize("model, wanted", [
    ({"type": "HfModel", "model_path": "owner/name", "load_kwargs": {"revision": "main"}}, "hf://owner/name@main"),
    ({"type": "HfModel", "model_path": "model-cache/microsoft/phi"}, "model-cache/microsoft/phi"),
    ({"type": "HfModel", "model_path": "/models/phi"}, "/models/phi"),
    ({"type": "HfModel", "model_path": {"type": "local_folder", "path": "./phi"}}, "./phi"),
    ({"type": "HfModel", "model_path": {"type": "azureml_registry_model", "registry_name": "azureml", "name": "Phi",
                                        "version": 3}}, "azureml://registries/azureml/models/Phi/versions/3"),
    ({"type": "PyTorchModel", "config": {"model_path": {"type": "azureml_model", "config": {
        "name": "mine", "version": "2", "azureml_client": {"subscription_id": "s", "resource_group": "g",
                                                            "workspace_name": "w"}}}}},
     "azureml://subscriptions/s/resourcegroups/g/workspaces/w/models/mine/versions/2"),
    ({"type": "PyTorchModel", "config": {"hf_config": {"model_name": "a/b", "model_loading_args": {
        "trust_remote_code": True}}}}, "hf://a/b"),
])  # fmt: skip
def test_input_models(model: Config, wanted: str, make: Callable[..., Made]):
    assert make(config_of("ModelBuilder", input_model=model)).params["base_model"] == wanted


def test_an_adapter_that_comes_with_the_model_is_merged(make: Callable[..., Made], wrong: Callable[..., str]):
    model = {"type": "HfModel", "model_path": "a/b", "adapter_path": "adapters/one"}
    made = make(config_of("MergeAdapterWeights", "ModelBuilder", input_model=model))
    assert made.stages[0].inputs["adapter"] == "adapters/one"
    assert "cannot train an adapter that is not merged" in wrong(config_of("LoRA", input_model=model))


@pytest.mark.parametrize("model, words", [
    ({"type": "ONNXModel", "model_path": "x.onnx"}, "'ONNXModel'"),
    ({"type": "HfModel"}, "does not say where the model is"),
    ({"type": "HfModel", "model_path": "a/b", "task": "text-classification"}, "only text-generation"),
    ({"type": "HfModel", "model_path": {"type": "azureml_model", "name": "x"}}, "version is missing"),
])  # fmt: skip
def test_models_that_cannot_be(model: Config, words: str, wrong: Callable[..., str]):
    assert words in wrong(config_of("ModelBuilder", input_model=model))


def test_the_generation_can_be_said(make: Callable[..., Made]):
    config = config_of("LoRA")
    assert make(config).stages[1].params.values["batch_size"] == 8
    assert make(config, "A").stages[1].params.values["batch_size"] == 1
