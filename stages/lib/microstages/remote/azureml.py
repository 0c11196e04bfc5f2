"""Azure Machine Learning's addresses, as its users write them:

    azureml://subscriptions/S/resourcegroups/G/workspaces/W/datastores/D/paths/P    a place in a datastore
    azureml://datastores/D/paths/P                                                  the same, in this workspace
    azureml://subscriptions/…/workspaces/W/models/M/versions/V                      a model of a workspace
    azureml://models/M/versions/V                                                   the same, in this workspace
    azureml://registries/R/models/M/versions/V                                      a model of a registry

"This workspace" is that of the job, or of a config.json in the working folder or above it. A datastore is a container
of Azure Blob storage: the bytes come from there, with the credentials of `abfs://`. Those of a registry come with a
signature that the registry gives. A model in MLflow's format is the Hugging Face folder inside: its weights, with the
tokenizer that lies beside them.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from microstages import arm, remote
from microstages.errors import UserError
from microstages.storage import Entry, public

DATA_API = "2021-10-01-dataplanepreview"  # that of registries, as Azure's own client has it
REGISTRIES = {  # resource manager -> where a registry says where it is
    arm.PUBLIC: "https://eastus.api.azureml.ms",
    "https://management.usgovcloudapi.net": "https://usgovarizona.api.ml.azure.us",
    "https://management.chinacloudapi.cn": "https://chinaeast2.api.ml.azure.cn",
}
KEPT = 1800.0  # seconds for which an answer is kept; signatures hold longer
ADDRESS = re.compile(
    r"azureml://(?:subscriptions/(?P<subscription>[^/]+)/resource[gG]roups/(?P<group>[^/]+)/"
    r"(?:providers/Microsoft\.MachineLearningServices/)?workspaces/(?P<workspace>[^/]+)/)?"
    r"(?:datastores/(?P<datastore>[^/]+)/paths(?:/(?P<path>.*))?|models/(?P<model>[^/]+)/versions/(?P<version>[^/]+)/?)"
)
REGISTRY = re.compile(r"azureml://registries/(?P<registry>[^/]+)/models/(?P<model>[^/]+)/versions/(?P<version>[^/]+)/?")
FORMS = (
    "write azureml://datastores/D/paths/P, azureml://models/M/versions/V or azureml://registries/R/models/M/versions/V"
)


@dataclass(frozen=True)
class Place:
    """Where the bytes lie: an address of `abfs://`, or a path and the client that has a signature for it."""

    path: str
    model: bool = False
    client: Any = None


_known: dict[str, tuple[float, Place]] = {}
_tokens: dict[str, arm.Token] = {}
_lock = threading.Lock()


def driver(uri: str) -> tuple[remote.Driver, str]:
    """See `remote.driver`. Raises UserError where Azure ML does not know the address."""
    found = re.match(r"(azureml://.*?models/[^/]+/versions/[^/]+)/(.+)$", uri)
    head, below = found.groups() if found else (uri, "")
    with _lock:
        when, place = _known.get(head, (0.0, None))
        if place is None or time.monotonic() - when > KEPT:
            place = _asked_for(head)
            _known[head] = time.monotonic(), place
    if place.client is None:
        inner, root = remote.driver(place.path)
    else:
        from microstages.remote.azure import Azure

        inner, root = Azure(_Signed(place.client)), place.path
    path = f"{root.rstrip('/')}/{below}" if below else root
    return (Model(inner, root) if place.model else inner), path


class _Signed:
    """As much of adlfs as the driver of Azure needs, for a client that has its credential already."""

    def __init__(self, client: Any) -> None:
        self.service_client = client

    @staticmethod
    def split_path(path: str) -> tuple[str, str, None]:
        container, _, name = path.lstrip("/").partition("/")
        return container, name, None


def forget() -> None:
    """Ask anew next time."""
    with _lock:
        _known.clear()
        _tokens.clear()


def _asked_for(uri: str) -> Place:
    manager = arm.endpoint()
    token = _tokens.setdefault(manager, arm.Token(arm.scope_of(manager)))
    rest = arm.Rest(token)
    try:
        if found := REGISTRY.fullmatch(uri):
            return _of_registry(rest, manager, uri, **found.groupdict())
        if not (found := ADDRESS.fullmatch(uri)):
            raise UserError("this is not an address of Azure ML", where=public(uri), fix=FORMS)
        parts = found.groupdict()
        if parts["subscription"]:
            workspace = arm.Workspace(parts["subscription"], parts["group"], parts["workspace"], manager)
        else:
            workspace = _this(uri)
        if parts["datastore"]:
            return Place(_in_datastore(rest, workspace, parts["datastore"], parts["path"] or "", uri))
        return _of_workspace(rest, workspace, parts["model"], parts["version"], uri)
    except arm.RefusedError as error:
        what = error.what if error.status != 404 else f"Azure ML does not know it: {error.what}"
        raise UserError(what, where=public(uri), fix=error.fix) from None
    finally:
        rest.close()


def _this(uri: str) -> arm.Workspace:
    try:
        return arm.Workspace.find(Path(), {})
    except UserError as error:
        fix = "write the long address, azureml://subscriptions/…, or set " + ", ".join(arm.KEYS.values())
        raise UserError(error.what, where=public(uri), fix=fix) from None


def _in_datastore(rest: arm.Rest, workspace: arm.Workspace, name: str, path: str, uri: str) -> str:
    found = rest.ask("GET", workspace.url(f"datastores/{name}")).json["properties"]
    container = found.get("containerName") or found.get("filesystem")
    if found.get("datastoreType") not in ("AzureBlob", "AzureDataLakeGen2") or not container:
        what = f"the datastore {name} is of type {found.get('datastoreType')}"
        raise UserError(what, where=public(uri), fix="use one of type AzureBlob or AzureDataLakeGen2")
    suffix = found.get("endpoint") or "core.windows.net"
    return f"abfs://{container}@{found['accountName']}.dfs.{suffix}/{unquote(path)}"


def _of_workspace(rest: arm.Rest, workspace: arm.Workspace, model: str, version: str, uri: str) -> Place:
    found = rest.ask("GET", workspace.url(f"models/{model}/versions/{version}")).json["properties"]
    inner = str(found.get("modelUri") or "")
    parts = ADDRESS.fullmatch(inner)
    if not parts or not parts["datastore"]:
        raise UserError(f"the model lies at {inner!r}, not in a datastore", where=public(uri), fix="register it anew")
    return Place(_in_datastore(rest, workspace, parts["datastore"], parts["path"] or "", uri), model=True)


def _of_registry(rest: arm.Rest, manager: str, uri: str, registry: str, model: str, version: str) -> Place:
    """A registry says where it is managed; there the model's address is known, and a signature is given for it."""
    home = REGISTRIES.get(manager, manager)
    found = rest.ask("GET", f"{home}/registrymanagement/v1.0/registries/{registry}/discovery").json
    base = arm.checked(str(found["primaryRegionResourceProviderUri"]).rstrip("/"), public(uri))
    group = f"/subscriptions/{found['subscriptionId']}/resourceGroups/{found['resourceGroup']}"
    base += f"/mferp/managementfrontend{group}/{arm.PROVIDER}/registries/{registry}"
    place = rest.ask("GET", f"{base}/models/{model}/versions/{version}?api-version={DATA_API}").json["properties"]
    body = {"assetId": f"azureml://registries/{registry}/models/{model}/versions/{version}"}
    body["blobUri"] = str(place["modelUri"])
    given = rest.ask("POST", f"{base}/datarefs/{model}/versions/{version}?api-version={DATA_API}", body).json
    blob = given["blobReferenceForConsumption"]
    account, path = _account(arm.checked(str(blob["blobUri"]), public(uri)))
    signed = urlsplit(str((blob.get("credential") or {}).get("sasUri") or "")).query
    from azure.core.credentials import AzureSasCredential
    from azure.storage.blob.aio import BlobServiceClient

    client = BlobServiceClient(account, credential=AzureSasCredential(signed) if signed else None)
    return Place(path, model=True, client=client)


def _account(blob: str) -> tuple[str, str]:
    """The address of a blob's account, and its path there. At an IP address the account is the path's first part."""
    url = urlsplit(blob)
    path = url.path.lstrip("/")
    account = f"{url.scheme}://{url.netloc}"
    if re.fullmatch(r"[\d.]+|localhost", url.hostname or ""):
        first, _, path = path.partition("/")
        account += f"/{first}"
    return account, unquote(path)


class Model:
    """The files of a model for one who reads them: of MLflow's format only what a Hugging Face folder has. See
    `remote.Driver`."""

    def __init__(self, inner: Any, root: str) -> None:
        self.inner, self.root = inner, root.rstrip("/")
        self._names: dict[str, str] | None = None

    async def entries(self, path: str) -> dict[str, Entry]:
        found = await self.inner.entries(self.root)
        self._names = names(sorted(found))
        below = self._below(path)
        prefix = f"{below}/" if below else ""
        return {
            shown.removeprefix(prefix) if shown != below else "": found[real]
            for shown, real in self._names.items()
            if shown.startswith(prefix) or shown == below
        }

    async def read(self, path: str, start: int = 0, length: int | None = None, tag: str = "") -> bytes:
        if self._names is None:
            await self.entries(self.root)
        assert self._names is not None
        real = self._names.get(self._below(path))
        if real is None:
            raise FileNotFoundError(path)
        data: bytes = await self.inner.read(f"{self.root}/{real}" if real else self.root, start, length, tag)
        return data

    async def folders(self, path: str) -> list[str]:
        found = await self.entries(path)
        return sorted({PurePosixPath(n).parts[0] for n in found if "/" in n})

    async def write(self, path: str, data: bytes, create: bool = False) -> None:  # noqa: ARG002
        raise UserError("a registered model cannot be written", fix="write to a datastore, and register it")

    async def remove(self, path: str, names: list[str]) -> None:  # noqa: ARG002
        raise UserError("a registered model cannot be removed from here", fix="use Azure ML's own tools")

    async def upload(self, path: str, size: int, resume: bool) -> None:  # noqa: ARG002
        raise UserError("a registered model cannot be written", fix="write to a datastore, and register it")

    def _below(self, path: str) -> str:
        return path.rstrip("/").removeprefix(self.root).lstrip("/")


def names(files: list[str]) -> dict[str, str]:
    """Of a model's files (paths below it): the name in the model folder -> where it lies.

    MLflow keeps the weights in a folder of its own and, mostly, the tokenizer in another. Any other model is as it is.
    """
    above = {str(PurePosixPath(f).parent) for f in files if PurePosixPath(f).name == "MLmodel"}
    if not above:
        return {f: f for f in files}
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(str(PurePosixPath(file).parent), []).append(PurePosixPath(file).name)
    weights = [f for f, inner in folders.items() if any(n.endswith(".safetensors") for n in inner)]
    if not weights:
        what = "this MLflow model holds no safetensors"
        raise UserError(what, fix="models are read from safetensors only; register one that has them")
    first = min(weights, key=lambda f: ("config.json" not in folders[f], len(f), f))
    out: dict[str, str] = {}
    others = [f for f in folders if f != first and PurePosixPath(f).name in ("tokenizer", "config")]
    for folder in (first, *sorted(others, key=lambda f: (PurePosixPath(f).name != "tokenizer", f))):
        for name in folders[folder]:
            out.setdefault(name, name if folder == "." else f"{folder}/{name}")
    return out
