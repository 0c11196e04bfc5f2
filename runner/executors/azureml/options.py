"""What may be said of a target of type azureml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.options import FLAVORS, Check, Wrong, entries, mapping, one_of, text


def _secrets(value: Any) -> Wrong | None:
    return entries(
        value, ("name", "vault", "secret"), "give `{name: HF_TOKEN, vault: <Key Vault>, secret: <its name>}`"
    )


OPTIONS: Mapping[str, Check] = {
    "subscription_id": text("the id of an Azure subscription"),
    "resource_group": text("the name of a resource group"),
    "workspace": text("the name of a workspace"),
    "compute": text("the name of a compute cluster or of an attached Kubernetes; without it: serverless"),
    "instance_type": text("a size such as Standard_NC24ads_A100_v4, or an instance type of the attached Kubernetes"),
    "registry": text("where the images lie: team.azurecr.io/microstages"),
    "images": mapping("stage: image, best with its digest (name@sha256:…)"),
    "flavor": one_of(FLAVORS, "see docs/images.md"),
    "identity": text("`managed`, `user`, or the client id of a managed identity"),
    "secrets": _secrets,
    "tier": one_of(("standard", "spot"), "spot is the low-priority tier: cheaper, and may be taken away"),
    "experiment": text("the experiment that jobs are listed below; without it the pipeline's name"),
    "tags": mapping("tag: value"),
    "environment": mapping("variable: value, for what a job needs besides secrets"),
}
