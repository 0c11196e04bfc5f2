"""Resource paths: what Olive calls the places of models and data. Each becomes one address."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from runner.olive.section import LOST, NEEDLESS, USED, Section

LOCAL = ("file", "folder", "local_file", "local_folder", "string_name")
CLOUD = ("azureml_model", "azureml_registry_model", "azureml_datastore", "azureml_job_output")
DOCS = "see Olive's documentation of resource paths"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def read_client(section: Section | None) -> dict[str, str]:
    """An `azureml_client`: subscription_id, resource_group, workspace_name, keyvault_name, those that are given."""
    if section is None:
        return {}
    out = {}
    for key in ("subscription_id", "resource_group", "workspace_name", "keyvault_name"):
        use = (
            "the Key Vault of the targets' secrets"
            if key == "keyvault_name"
            else "the workspace of targets and addresses"
        )
        if value := section.read(key, "text", how=USED, text=use):
            out[key] = str(value)
    found = "config.json or .azureml/config.json, here or above, is found by itself"
    section.ignore({"aml_config_path": ("text",)}, NEEDLESS, found)
    tries = ("read_timeout", "max_operation_retries", "operation_retry_interval")
    section.ignore(dict.fromkeys(tries, ("whole",)), NEEDLESS, "requests are tried again for as long as it makes sense")
    order = "azure-identity's usual order: variables, managed identity, az login"
    section.ignore({"default_auth_params": ("mapping",)}, NEEDLESS, order)
    section.close()
    return out


def workspace(client: Mapping[str, str]) -> str:
    """The beginning of an azureml:// address; without a workspace that of the one that config.json names."""
    if not {"subscription_id", "resource_group", "workspace_name"} <= client.keys():
        return "azureml://"
    return (
        f"azureml://subscriptions/{client['subscription_id']}/resourcegroups/{client['resource_group']}"
        f"/workspaces/{client['workspace_name']}/"
    )


def read_path(section: Section, key: str, client: Mapping[str, str], becomes: str) -> str | None:
    """The address that a key names: text, or `{type, config}`. None where it is not given."""
    node = section.values.get(key)
    if node is None or not isinstance(node.value, dict):
        return _text(section.read(key, "text", "mapping", how=USED, text=becomes))
    outer = section.child(key)
    if outer is None:
        return None
    kind = outer.kind({name: name for name in (*LOCAL, *CLOUD)})
    outer.fate("type", USED, "an address")
    if not kind:
        return None
    nested = outer.child("config")
    found = nested or outer
    uri = _local(found, becomes) if kind in LOCAL else _cloud(found, kind, client, becomes)
    found.close()
    if nested:
        outer.close()
    return uri


def _text(value: object) -> str | None:
    return str(value) if value else None


def _local(section: Section, becomes: str) -> str | None:
    values = [section.read(key, "text", how=USED, text=becomes) for key in ("path", "name")]
    return next((str(v) for v in values if v), None) or _missing(section, "path")


def _cloud(section: Section, kind: str, client: Mapping[str, str], becomes: str) -> str | None:
    own = read_client(section.child("azureml_client")) or client

    def part(key: str, *kinds: str) -> str | None:
        value = section.read(key, *(kinds or ("text",)), how=USED, text=becomes)
        return None if value is None else str(value)

    if kind == "azureml_datastore":
        store, path, url = part("datastore_name"), part("relative_path"), part("datastore_url")
        if url:
            return url
        if not store or not path:
            return _missing(section, "relative_path" if store else "datastore_name")
        return f"{workspace(own)}datastores/{store}/paths/{path.replace('%', '%25').lstrip('/')}"
    if kind == "azureml_job_output":
        why = "a job's output lies at the address of a datastore: write that one"
        section.ignore(dict.fromkeys(("job_name", "output_name", "relative_path"), ("text",)), LOST, why)
        section.wrong(section.node.place, f"{section.path} is the output of a job", why)
        return None
    name, version = part("name"), part("version", "text", "whole")
    registry = part("registry_name") if kind == "azureml_registry_model" else ""
    for key, value in (("name", name), ("version", version), ("registry_name", registry)):
        if value is None:
            return _missing(section, key)
    name = str(name).rpartition("/")[2]  # models of Azure have no slash in their names
    if registry:
        return f"azureml://registries/{registry}/models/{name}/versions/{version}"
    return f"{workspace(own)}models/{name}/versions/{version}"


def _missing(section: Section, key: str) -> str | None:
    section.wrong(section.node.place, f"{section.path} does not say enough to find it: {key} is missing", DOCS)
    return None


class Paths:
    """Addresses as a pipeline has them: local paths start at its folder."""

    def __init__(self, config: Path, pipeline: Path) -> None:
        self.config, self.pipeline = config.resolve(), pipeline.resolve()
        self.data_root = ""  # where relative paths of data start

    def rows(self, text: str) -> str:
        """A path or pattern of rows."""
        return self.data(text if "://" in text else os.path.join(self.data_root, text))

    def data(self, text: str) -> str:
        """A path as it stands in the config, or an address."""
        if "://" in text or os.path.isabs(text) or self.config == self.pipeline:
            return text
        return os.path.relpath(self.config / text, self.pipeline)

    def model(self, text: str, revision: str = "") -> str:
        """A folder where there is one, or the address of a model of the hub."""
        there = "://" in text or os.path.isabs(text) or text.startswith(".") or (self.config / text).exists()
        if there or not (HUB_NAME.fullmatch(text) or re.fullmatch(r"[\w.-]+", text)):
            return self.data(text)
        return f"hf://{text}" + (f"@{revision}" if revision else "")

    def here(self, uri: str) -> Path | None:
        """The folder of this machine that a model's address names."""
        return None if "://" in uri else self.pipeline / uri
