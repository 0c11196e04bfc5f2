"""What may be said of a target of type kubernetes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.options import FLAVORS, Check, Wrong, entries, flag, mapping, one_of, text, whole, words


def _secrets(value: Any) -> Wrong | None:
    fix = "name variables of your environment, or give `{name: …, secret: …, key: …}` of a Secret in the cluster"
    return entries(value, ("name", "secret", "key"), fix, plain=True)


def _volumes(value: Any) -> Wrong | None:
    return entries(value, ("path", "claim"), "give `{path: /data, claim: <name of a PersistentVolumeClaim>}`")


def _tolerations(value: Any) -> Wrong | None:
    good = isinstance(value, list) and all(isinstance(v, dict) for v in value)
    return None if good else ("must be a list of mappings", "as in a pod: `{key: gpu, operator: Exists}`")


OPTIONS: Mapping[str, Check] = {
    "context": text("a context of your kubeconfig; without it the current one"),
    "namespace": text("a namespace of the cluster"),
    "registry": text("where the images lie: ghcr.io/team/microstages"),
    "images": mapping("stage: image, best with its digest (name@sha256:…)"),
    "flavor": one_of(FLAVORS, "see docs/images.md"),
    "pull_policy": one_of(("IfNotPresent", "Always", "Never"), "see Kubernetes' imagePullPolicy"),
    "pull_secrets": words("names of Secrets in the namespace"),
    "secrets": _secrets,
    "service_account": text("the name of a ServiceAccount"),
    "token": flag("true: the pod sees the token of its service account"),
    "node_selector": mapping("label: value"),
    "tolerations": _tolerations,
    "gpu": text("the resource that a GPU is: nvidia.com/gpu"),
    "queue": text("a LocalQueue of Kueue"),
    "priority_class": text("the name of a PriorityClass"),
    "labels": mapping("label: value, for Jobs and pods"),
    "annotations": mapping("annotation: value, for Jobs and pods"),
    "user": whole(1, "a user id that is not root's"),
    "volumes": _volumes,
    "patience": whole(0, "seconds that a pod may wait for a node that is not there"),
    "ttl": whole(0, "seconds that a Job stays after its end"),
}
