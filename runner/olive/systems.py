"""`systems`: where stages run, and what their models are built for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.olive.resources import read_client, workspace
from runner.olive.section import CHANGED, LOST, NEEDLESS, USED, Section

# Olive's types, and the kinds of targets that they become.
TYPES = {"LocalSystem": "auto", "AzureML": "azureml", "Docker": "docker", "PythonEnvironment": "process",
         "IsolatedORT": "process", "Local": "auto"}  # fmt: skip
# What a model is built for. Providers that no build is for run one of these models or none.
PROVIDERS = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda", "DmlExecutionProvider": "dml",
             "JsExecutionProvider": "webgpu", "WebGpuExecutionProvider": "webgpu"}  # fmt: skip
OTHERS = ("TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", "OpenVINOExecutionProvider",
          "QNNExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider", "VitisAIExecutionProvider",
          "XnnpackExecutionProvider", "CoreMLExecutionProvider", "NnapiExecutionProvider",
          "AzureExecutionProvider")  # fmt: skip
DEVICES = ("cpu", "gpu", "npu")
OWN_IMAGES = "each stage runs in its own image, with its dependencies locked"


@dataclass(frozen=True)
class System:
    """A place: the kind of target, its options as a pipeline has them, GPUs for training, nodes, and the execution
    providers that models are built for. `store`: where artifacts can lie that it reaches."""

    name: str = ""
    kind: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    gpu: bool = False
    nodes: int = 1
    providers: tuple[str, ...] = ()
    store: str = ""


def read_systems(top: Section, client: Mapping[str, str]) -> dict[str, System]:
    """All systems by name."""
    out: dict[str, System] = {}
    if (section := top.child("systems")) is not None:
        for name in section.values:
            if (one := section.child(name)) is not None:
                out[name] = read_system(one, name, client)
    return out


def read_system(section: Section, name: str, client: Mapping[str, str]) -> System:
    """One system; also one that stands where a system's name could."""
    kind = section.kind(TYPES)
    becomes = {"auto": "target: auto", "process": "target: process"}.get(kind, f"targets.{name}, of type {kind}")
    section.fate("type", USED, becomes)
    nested = section.child("config")
    config = nested or section
    gpu, providers = _accelerators(config)
    options: dict[str, Any] = {}
    nodes, store = 1, ""
    if kind == "azureml":
        options, nodes, store = _azureml(config, client)
    elif kind == "docker":
        options = _docker(config)
    elif kind == "process":
        _process(config)
    elif kind:
        _local(config)
    if kind:
        config.close()
        if nested:
            section.close()
    return System(name, kind or "auto", options, gpu, nodes, providers, store)


def _accelerators(section: Section) -> tuple[bool, tuple[str, ...]]:
    """Whether there is a GPU, and the execution providers."""
    node = section.values.get("accelerators")
    devices: list[str] = []
    providers: list[str] = []
    plain = (
        isinstance(node.value, list) and node.value and all(isinstance(v.value, str) for v in node.value)
        if node
        else False
    )
    if plain:
        devices = [str(d).lower() for d in section.take("accelerators", "list", of="text", among=()) or ()]
        for one in devices:
            _known_device(section, "accelerators", one)
        section.fate("accelerators", USED, _becomes(devices))
    else:
        for one_ in section.children("accelerators"):
            device = one_.take("device", "text")
            if device is not None:
                _known_device(one_, "device", str(device).lower())
                devices.append(str(device).lower())
            one_.fate("device", USED, _becomes(devices[-1:]))
            providers += execution_providers(one_)
            one_.ignore({"memory": ("whole", "text", "number")}, NEEDLESS, "resources of stages say what they need")
            one_.close()
    if not providers and devices:
        providers = ["cuda" if "gpu" in devices else "cpu"]
    return "gpu" in devices, tuple(dict.fromkeys(providers))


def _becomes(devices: list[str]) -> str:
    return "resources: {gpus: 1} of training stages" if "gpu" in devices else "stages without GPUs"


def _known_device(section: Section, key: str, device: str) -> None:
    if device not in DEVICES:
        what = f"{section.at(key)} names {device!r}"
        section.wrong(section.place(key), what, f"one of: {', '.join(DEVICES)}")


def execution_providers(section: Section) -> list[str]:
    """The providers that models are built for; those without a build of their own are told."""
    given = section.take("execution_providers", "list", of="text") or []
    for name in given:
        if name not in PROVIDERS and name not in OTHERS:
            from microstages.errors import nearest

            what = f"{section.at('execution_providers')} names {name!r}{nearest(name, [*PROVIDERS, *OTHERS])}"
            section.wrong(section.place("execution_providers"), what, f"known here: {', '.join(PROVIDERS)}")
    found = [PROVIDERS[name] for name in given if name in PROVIDERS]
    lost = [name for name in given if name in OTHERS]
    if lost and not found:
        section.fate("execution_providers", LOST, f"no model is built for {', '.join(lost)}: built for the CPU")
    elif lost:
        why = f"no model is built for {', '.join(lost)}"
        section.fate("execution_providers", CHANGED, f"execution_provider {', '.join(found)}", why)
    else:
        section.fate("execution_providers", USED, f"execution_provider {', '.join(dict.fromkeys(found))} of build-onnx")
    return found


def _local(section: Section) -> None:
    section.ignore(
        {"hf_token": ("flag",)}, NEEDLESS, "HF_TOKEN or the token of `hf auth login` is used where it is there"
    )


def _process(section: Section) -> None:
    why = "a stage runs in its own environment, with its dependencies locked"
    section.ignore(
        dict.fromkeys(("python_environment_path", "requirements_file", "conda_yaml_path"), ("text",)), CHANGED, why
    )
    section.ignore({"olive_managed_env": ("flag",)}, NEEDLESS, why)
    section.ignore(
        {"environment_variables": ("mapping",), "prepend_to_path": ("list",)}, LOST, "set them before `runner up`"
    )
    _local(section)


def _docker(section: Section) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if section.read("hf_token", "flag", how=USED, text="secrets: [HF_TOKEN]"):
        options["secrets"] = ["HF_TOKEN"]
    for key in ("local_docker_config", "docker_config"):
        if (image := section.child(key)) is not None:
            texts = ("image_name", "dockerfile", "build_context_path", "requirements_file_path")
            image.ignore({**dict.fromkeys(texts, ("text",)), "build_args": ("mapping",)}, CHANGED, OWN_IMAGES)
            image.ignore(
                {"run_params": ("mapping",)}, LOST, "containers are shut in; resources, network and flavor can be said"
            )
            image.close()
    section.ignore(
        {"is_dev": ("flag",), "olive_managed_env": ("flag",), "clean_image": ("flag",)}, NEEDLESS, OWN_IMAGES
    )
    section.ignore({"requirements_file": ("text",)}, CHANGED, OWN_IMAGES)
    for key in ("image_name", "dockerfile", "build_context_path"):  # newer configs have them here
        section.read(key, "text", how=CHANGED, text="", why=OWN_IMAGES)
    section.ignore({"build_args": ("mapping",), "run_params": ("mapping",), "work_dir": ("text",)}, LOST, OWN_IMAGES)
    return options


def _azureml(section: Section, client: Mapping[str, str]) -> tuple[dict[str, Any], int, str]:
    own = {**client, **read_client(section.child("azureml_client_config"))}
    names = {"subscription_id": "subscription_id", "resource_group": "resource_group", "workspace_name": "workspace"}
    options: dict[str, Any] = {new: own[old] for old, new in names.items() if old in own}
    compute = section.read("aml_compute", "text", how=USED, text="compute")
    if not compute and not section.given("aml_compute"):
        section.wrong(section.node.place, f"{section.path} has no aml_compute", "write the name of a compute")
    options["compute"] = compute or ""
    _images(section)
    nodes = int(section.read("instance_count", "whole", how=USED, text="resources: {nodes: …}", default=1))
    if (resources := section.child("resources")) is not None:
        nodes = int(resources.read("instance_count", "whole", how=USED, text="resources: {nodes: …}", default=nodes))
        if size := resources.read("instance_type", "text", how=USED, text="instance_type"):
            options["instance_type"] = size
        why = "write resources: {shm: …} at the stage that needs it"
        resources.ignore({"shm_size": ("text",), "docker_args": ("text",)}, LOST, why)
        resources.ignore({"properties": ("mapping",)}, LOST, "of other services than Azure Machine Learning's own")
        resources.close()
    if section.read("hf_token", "flag", how=USED, text="secrets: HF_TOKEN from the Key Vault"):
        if "keyvault_name" in own:
            options["secrets"] = [{"name": "HF_TOKEN", "vault": own["keyvault_name"], "secret": "hf-token"}]
        else:
            what = f"{section.at('hf_token')} needs a Key Vault, and none is named"
            section.wrong(section.place("hf_token"), what, "write azureml_client.keyvault_name")
    tags = section.take("tags", "mapping") or {}
    section.fate("tags", USED, "tags")
    if tags:
        options["tags"] = {str(k): str(v) for k, v in tags.items()}
    store = section.read("datastores", "text", how=USED, text="store", default="workspaceblobstore")
    section.ignore({"is_dev": ("flag",), "olive_managed_env": ("flag",)}, NEEDLESS, OWN_IMAGES)
    section.ignore({"requirements_file": ("text",)}, CHANGED, OWN_IMAGES)
    return options, max(1, nodes), f"{workspace(own)}datastores/{store}/paths/microstages"


def _images(section: Section) -> None:
    if (image := section.child("aml_docker_config")) is not None:
        keys = ("base_image", "conda_file_path", "dockerfile", "build_context_path", "name", "version")
        image.ignore(dict.fromkeys(keys, ("text",)), CHANGED, OWN_IMAGES)
        image.close()
    if (environment := section.child("aml_environment_config")) is not None:
        environment.ignore(dict.fromkeys(("name", "version", "label"), ("text",)), CHANGED, OWN_IMAGES)
        environment.close()
