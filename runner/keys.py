"""The keys of a pipeline file in words: what `runner explain` prints and the JSON Schema carries.

Which values they take stands in `schema.base.json` and, for the runner itself, in `spec`, `targets` and their options;
tests hold these together. A name that a pipeline chooses (of a stage, a target) is no part of a path: `stages.retry`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Key:
    """A key: `values` says what it takes, `default` what holds without it, `example` is YAML below the key's parent."""

    path: str
    help: str
    values: str
    default: Any = None
    example: str = ""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


_TIME = "a time: 90s, 30min, 2h, 1d; a number is seconds"
_SIZE = "a size: 48GiB, 500MB; a number is bytes"
_TEXT, _COUNT, _FLAG = "text", "a whole number, 0 or more", "true or false"
_TEXTS = "a mapping of text to text"

_ROOT = (
    Key("name", "The pipeline's name, in the history and in records.", _TEXT, "the folder's name", "name: tones"),
    Key("params", "Values that stages refer to as ${{ params.NAME }} and that --set params.NAME=VALUE replaces.",
        "a mapping of names to text, numbers, true or false, or lists of these", None,
        'params: {data: examples/tones.jsonl, rank: 64}'),
    Key("store", "Where artifacts are kept: a folder, relative to the pipeline file, or an address.",
        "a path, or abfs://…, s3://…, gs://…", ".runner/store", "store: abfs://models/tones"),
    Key("target", "Where stages run. auto: in containers where a Docker engine answers and has the stages' images, as "
        "processes otherwise.", "auto, process, docker, kubernetes, azureml, or a name below targets", "auto",
        "target: docker"),
    Key("targets", "Named places where stages can run, for `target`.", "a mapping of names to a `type` and its options",
        None, "targets:\n  cluster: {type: kubernetes, namespace: ml}"),
    Key("targets.type", "What kind of place it is.", "process, docker, kubernetes or azureml", None,
        "box: {type: docker}"),
    Key("stages", "The stages. The references in their inputs make the graph.",
        "a mapping of names (a-z, 0-9, - and _) to stages", None,
        'stages:\n  merged: {uses: merge, inputs: {base_model: model, adapter: "${{ stages.adapter.adapter }}"}}'),
)  # fmt: skip

_STAGE = (
    Key("uses", "Which stage it is.", "a stage of this repository, ./folder with an interface.json, or name:tag, an "
        "image that carries one", None, "uses: train-lora"),
    Key("inputs", "What it takes.", "a mapping of the stage's inputs to a path, an address, or "
        "${{ stages.NAME.OUTPUT }}", None,
        'inputs: {dataset: "${{ stages.data.dataset }}", base_model: examples/tiny-phi3}'),
    Key("params", "Its parameters; `runner explain STAGE` lists them.", "a mapping of the stage's parameters to "
        "values", None, 'params: {rank: "${{ params.rank }}", learning_rate: 1e-3}'),
    Key("matrix", "Values of parameters: the stage, and what takes from it, is made once for each combination.",
        "a mapping of parameters to lists of values", None, "matrix: {precision: [int4, int8]}"),
    Key("matrix.exclude", "Combinations to leave out.", "a list of mappings", None,
        "exclude: [{precision: int8, algorithm: k_quant}]"),
    Key("select", "The best variant of a stage that has a matrix, in place of `uses`; its outputs are that variant's.",
        "from, maximize or minimize, and where it helps take and where", None,
        "select: {from: quantized, take: onnx, maximize: accuracy, where: {size_mb: {max: 5}}}"),
    Key("select.from", "The stage whose variants are compared, by what it measured.", "the name of a stage", None,
        "from: quantized"),
    Key("select.take", "The stage whose outputs are the result.", "the name of a stage", "the stage of `from`",
        "take: onnx"),
    Key("select.maximize", "A metric: the larger the better.", "a metric's name", None, "maximize: accuracy"),
    Key("select.minimize", "A metric: the smaller the better.", "a metric's name, such as loss, size_mb, "
        "latency_ms_p95", None, "minimize: size_mb"),
    Key("select.where", "Limits that a variant must keep.", "a mapping of metrics to {min: …, max: …}", None,
        "where: {size_mb: {max: 3000}}"),
    Key("resources", "What it needs of a machine; of each of them where it runs on several.",
        "gpus, cpus, memory, shm, nodes", None, "resources: {gpus: 1, cpus: 4, memory: 48GiB}"),
    Key("resources.gpus", "GPUs.", _COUNT, 0, "gpus: 1"),
    Key("resources.cpus", "Processor cores.", "a number above 0", "an equal part of what is free", "cpus: 4"),
    Key("resources.memory", "Memory; in a container it is a limit.", _SIZE, "no limit", "memory: 48GiB"),
    Key("resources.shm", "Shared memory of a container.", _SIZE, "the engine's", "shm: 8GiB"),
    Key("resources.nodes", "Machines that train together, on a cluster.", "a whole number, 1 or more", 1, "nodes: 2"),
    Key("target", "Where this stage runs, in place of the pipeline's target.",
        "auto, process, docker, kubernetes, azureml, or a name below targets", "the pipeline's", "target: cluster"),
    Key("retries", "How often it is tried again after a temporary failure (exit code 75); `retry` says more.", _COUNT,
        2, "retries: 4"),
    Key("retry", "How often it is tried, after which ends and with what pauses, in place of `retries`.",
        "attempts, backoff, max_backoff, on", None,
        "retry: {attempts: 4, backoff: 2s, max_backoff: 1min, on: [75, 137, timeout]}"),
    Key("retry.attempts", "Attempts in all.", "a whole number, 1 or more", 3, "attempts: 4"),
    Key("retry.backoff", "Pause before the second attempt; it doubles, and is drawn between its half and its whole.",
        _TIME, "0.5s", "backoff: 2s"),
    Key("retry.max_backoff", "The longest pause.", _TIME, "1min", "max_backoff: 5min"),
    Key("retry.on", "Ends after which it is tried again. 137: killed, 143: told to stop; timeout: it took too long.",
        "a list of exit codes from 1 to 255 but 2, and the word timeout", [75], "on: [75, 137, timeout]"),
    Key("timeout", "How long one attempt may take.", _TIME, "no limit", "timeout: 2h"),
    Key("grace", "How long it may take to stop when told to; training saves a checkpoint then.", _TIME, "30s",
        "grace: 2min"),
)  # fmt: skip

_FLAVOR = Key("flavor", "Which images to take.", "cpu or cuda", "cuda for stages with GPUs, else cpu", "flavor: cuda")
_REGISTRY = Key("registry", "Where the stages' images lie.", _TEXT, None, "registry: ghcr.io/team/microstages")
_IMAGES = Key("images", "Images of single stages, in place of the registry's; best with their digest.", _TEXTS, None,
              "images: {merge: \"ghcr.io/team/merge@sha256:…\"}")  # fmt: skip

_DOCKER = (
    Key("network", "The network of the containers.", "none, bridge, host, or the name of one of the engine's",
        "none where inputs and outputs are all local, else bridge", "network: bridge"),
    _FLAVOR,
    Key("secrets", "Variables of your environment to pass on, or files that appear below /run/secrets. A value never "
        "stands in a pipeline.", "a list of names, and of {name: …, file: …}", None,
        "secrets: [HF_TOKEN, {name: key, file: ~/key}]"),
)  # fmt: skip

_KUBERNETES = (
    Key("context", "A context of the kubeconfig.", _TEXT, "the current one; in a pod its own cluster", "context: work"),
    Key("namespace", "The namespace of the Jobs.", _TEXT, "the context's", "namespace: ml"),
    _REGISTRY, _IMAGES, _FLAVOR,
    Key("pull_policy", "When a node pulls an image.", "IfNotPresent, Always or Never", "IfNotPresent",
        "pull_policy: Always"),
    Key("pull_secrets", "Secrets of the namespace with which images are pulled.", "a list of text", None,
        "pull_secrets: [registry]"),
    Key("secrets", "Variables of your environment to pass on, or keys of Secrets in the cluster.",
        "a list of names, and of {name: …, secret: …, key: …}", None,
        "secrets: [{name: HF_TOKEN, secret: hub, key: token}]"),
    Key("service_account", "The ServiceAccount of the pods.", _TEXT, "the namespace's", "service_account: trainer"),
    Key("token", "Whether a pod sees its account's token.", _FLAG, False, "token: true"),
    Key("node_selector", "Labels of the nodes.", _TEXTS, None, "node_selector: {gpu: a100}"),
    Key("tolerations", "Taints that the pods bear, as in a pod.", "a list of mappings", None,
        "tolerations: [{key: gpu, operator: Exists}]"),
    Key("gpu", "The resource that a GPU is.", _TEXT, "nvidia.com/gpu", "gpu: amd.com/gpu"),
    Key("queue", "A LocalQueue of Kueue.", _TEXT, None, "queue: gpus"),
    Key("priority_class", "A PriorityClass.", _TEXT, None, "priority_class: low"),
    Key("labels", "Labels of Jobs and pods.", _TEXTS, None, "labels: {team: nlp}"),
    Key("annotations", "Annotations of Jobs and pods.", _TEXTS, None, "annotations: {owner: nlp}"),
    Key("user", "The user id of the pods; never root's.", "a whole number, 1 or more", 10001, "user: 1000"),
    Key("volumes", "PersistentVolumeClaims that pods see, each at the path that it has here.",
        "a list of {path: …, claim: …}", None, "volumes: [{path: /data, claim: shared}]"),
    Key("patience", "How long a pod may wait for a node that is not there.", "seconds, 0 or more", 60, "patience: 600"),
    Key("ttl", "How long a Job stays after its end where no runner removes it.", "seconds, 0 or more", 86400,
        "ttl: 3600"),
)  # fmt: skip

_AZUREML = (
    Key("subscription_id", "The Azure subscription.", _TEXT, "that of config.json, beside the pipeline or above it",
        "subscription_id: 00000000-0000-0000-0000-000000000000"),
    Key("resource_group", "The resource group.", _TEXT, "that of config.json", "resource_group: nlp"),
    Key("workspace", "The workspace.", _TEXT, "that of config.json", "workspace: tones"),
    Key("compute", "A compute cluster, or an attached Kubernetes.", _TEXT, "serverless", "compute: gpu-cluster"),
    Key("instance_type", "A size, or an instance type of the attached Kubernetes.", _TEXT, None,
        "instance_type: Standard_NC24ads_A100_v4"),
    _REGISTRY, _IMAGES, _FLAVOR,
    Key("identity", "Who a job is.", "managed, user, or the client id of a managed identity", "that of the compute",
        "identity: managed"),
    Key("secrets", "Variables of a job whose values are secrets of a Key Vault (its name, or its address).",
        "a list of {name: …, vault: …, secret: …}", None, "secrets: [{name: HF_TOKEN, vault: team, secret: hub}]"),
    Key("tier", "spot: cheaper, and may be taken away.", "standard or spot", "standard", "tier: spot"),
    Key("experiment", "The experiment that jobs are listed below.", _TEXT, "the pipeline's name", "experiment: tones"),
    Key("tags", "Tags of the jobs.", _TEXTS, None, "tags: {team: nlp}"),
    Key("environment", "Variables of a job; nothing secret: many may read a job.", _TEXTS, None,
        "environment: {HF_HUB_OFFLINE: \"1\"}"),
)  # fmt: skip


def _below(parent: str, keys: Iterable[Key]) -> list[Key]:
    return [Key(f"{parent}.{k.path}", k.help, k.values, k.default, k.example) for k in keys]


KEYS: dict[str, Key] = {
    k.path: k
    for k in [
        *_ROOT,
        *_below("stages", _STAGE),
        *_below("targets.docker", _DOCKER),
        *_below("targets.kubernetes", _KUBERNETES),
        *_below("targets.azureml", _AZUREML),
    ]
}
