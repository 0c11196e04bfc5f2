"""What may be said of a target of type azureml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from runner.executors.secrets import parts
from runner.options import FLAVORS, Check, Wrong, entries, mapping, one_of, text


def _secrets(value: Any) -> Wrong | None:
    return entries(
        value, ("name", "vault", "secret"), "give `{name: HF_TOKEN, vault: <Key Vault>, secret: <its name>}`"
    )


def _identity(value: Any) -> Wrong | None:
    good = isinstance(value, str) and (value in ("managed", "user") or _UUID.fullmatch(value))
    return None if good else (f"must be managed, user or a client id, not {value!r}", "see docs/azureml.md")


def _environment(value: Any) -> Wrong | None:
    if wrong := _variables(value):
        return wrong
    hidden = [name for name, text in value.items() if _SECRET.search(name) or parts(text)]
    fix = "put it into a Key Vault and name it below `secrets:`"
    return (f"holds what looks like a secret ({', '.join(hidden)}): many may read a job", fix) if hidden else None


_variables = mapping("variable: value, for what a job needs besides secrets")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SECRET = re.compile(r"(KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)

OPTIONS: Mapping[str, Check] = {
    "subscription_id": text("the id of an Azure subscription"),
    "resource_group": text("the name of a resource group"),
    "workspace": text("the name of a workspace"),
    "compute": text("the name of a compute cluster or of an attached Kubernetes; without it: serverless"),
    "instance_type": text("a size such as Standard_NC24ads_A100_v4, or an instance type of the attached Kubernetes"),
    "registry": text("where the images lie: team.azurecr.io/microstages"),
    "images": mapping("stage: image, best with its digest (name@sha256:…)"),
    "flavor": one_of(FLAVORS, "see docs/images.md"),
    "identity": _identity,
    "secrets": _secrets,
    "tier": one_of(("standard", "spot"), "spot is the low-priority tier: cheaper, and may be taken away"),
    "experiment": text("the experiment that jobs are listed below; without it the pipeline's name"),
    "tags": mapping("tag: value"),
    "environment": _environment,
}
