"""What is sent to Azure ML: an environment that is an image, and a command job that runs a stage in it.

Names come from what they stand for, so to send something again changes nothing: an environment's version from the name
of its image, a job's name from the attempt's. No secret is in either: a job names secrets of a Key Vault, and
`microstages.vault` reads them inside it.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shlex
from collections.abc import Mapping
from typing import Any

from microstages.arm import ENDPOINT, Workspace
from microstages.errors import UserError
from microstages.vault import address

from runner.credentials import DRIVERS, passed_on
from runner.executors import Attempt
from runner.executors.secrets import PLACE, is_secret, parts

EXPERIMENT = "microstages"
TAG = "microstages.attempt"
SETTINGS = ("MICROSTAGES_CACHE_SIZE", "MICROSTAGES_PATIENCE", ENDPOINT)
CACHE = "/tmp/.microstages"
AZURE = DRIVERS["abfs"]
# Of the plain variables those that hold for this machine only: who it is, its files, its own cache.
OWN = re.compile(
    r"AZURE_(CLIENT|TENANT|USERNAME|TOKEN|REGIONAL|POD|FEDERATED|STORAGE_CLIENT|STORAGE_TENANT)|IDENTITY_|IMDS_|MSI_|"
    r"AWS_(DEFAULT_)?PROFILE$|AWS_CONTAINER_|AWS_ROLE_|AWS_EC2_METADATA_SERVICE_|GCE_|HF_HUB_OFFLINE$|AZUREML_"
)
# On a compute with an identity that somebody gave it, Azure ML says which one; azure-identity has to be told.
IDENTITY = '[ -z "${DEFAULT_IDENTITY_CLIENT_ID:-}" ] || export AZURE_CLIENT_ID="$DEFAULT_IDENTITY_CLIENT_ID"'
# The program is told to stop when the job is, and the last line of the log is its exit code: Azure ML itself only says
# that a job failed.
END = '{"event": "exit", "exit_code": %d}'
WATCHED = """{program} & program=$!
trap 'kill -TERM "$program" 2>/dev/null' TERM INT
wait "$program"; code=$?
while kill -0 "$program" 2>/dev/null; do wait "$program"; code=$?; done
printf '{end}\\n' "$code"
exit "$code\""""


def job_name(attempt: str) -> str:
    """The name of an attempt's job."""
    return f"microstages-{attempt}"


def environment_name(stage: str, image: str) -> tuple[str, str]:
    """Name and version of the environment that is this image."""
    clean = re.sub(r"[^A-Za-z0-9-]+", "-", stage).strip("-") or "stage"
    return f"microstages-{clean}"[:255], hashlib.sha256(image.encode()).hexdigest()[:16]


def environment(stage: str, image: str) -> dict[str, Any]:
    """An environment version."""
    return {"properties": {"image": image, "osType": "Linux", "description": f"the image of {stage}"}}


def experiment(options: Mapping[str, Any], pipeline: str) -> str:
    """Below which experiment a job is listed: the target's, else the pipeline's name as far as Azure ML takes it."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", pipeline).strip("-_")[:200]
    return str(options.get("experiment") or name or EXPERIMENT)


def job(
    attempt: Attempt, options: Mapping[str, Any], workspace: Workspace, image: str, environment_id: str
) -> dict[str, Any]:
    """A command job. Raises UserError where it could not reach what the stage reads or writes."""
    resources: dict[str, Any] = {"instanceCount": attempt.resources.nodes}
    out: dict[str, Any] = {
        "jobType": "Command", "displayName": attempt.stage, "experimentName": experiment(options, attempt.pipeline),
        "command": command(attempt, options), "environmentId": environment_id, "resources": resources,
        "environmentVariables": variables(attempt, options, image),
        "tags": {**(options.get("tags") or {}), TAG: attempt.name, "microstages.stage": attempt.stage},
    }  # fmt: skip
    if compute := options.get("compute"):
        out["computeId"] = compute if compute.startswith("/") else f"{workspace.id}/computes/{compute}"
    if options.get("instance_type"):
        resources["instanceType"] = options["instance_type"]
    if attempt.resources.shm:
        resources["shmSize"] = f"{math.ceil(attempt.resources.shm / (1 << 20))}m"
    if attempt.resources.nodes > 1:  # one process on each; it starts one for each GPU itself
        out["distribution"] = {"distributionType": "PyTorch", "processCountPerInstance": 1}
    if attempt.timeout:
        out["limits"] = {"jobLimitsType": "Command", "timeout": f"PT{math.ceil(attempt.timeout)}S"}
    if identity := options.get("identity"):
        out["identity"] = {"identityType": {"managed": "Managed", "user": "UserIdentity"}.get(identity, "Managed")}
        if identity not in ("managed", "user"):
            out["identity"]["clientId"] = identity
    if tier := options.get("tier"):
        out["queueSettings"] = {"jobTier": tier.capitalize()}
    return {"properties": out}


def command(attempt: Attempt, options: Mapping[str, Any]) -> str:
    """What a job runs, for a POSIX shell."""
    return "\n".join([*before(attempt), WATCHED.format(program=program(attempt, options), end=END)])


def before(attempt: Attempt) -> list[str]:
    """What is set before the program starts, of that which Azure ML says to each job."""
    lines = [IDENTITY]
    if attempt.resources.nodes > 1:
        rank = '"${NODE_RANK:-0}"'
        lines.append(f"export MICROSTAGES_NODES={attempt.resources.nodes} MICROSTAGES_NODE_RANK={rank}")
    return lines


def program(attempt: Attempt, options: Mapping[str, Any]) -> str:
    """A stage's program with its flags, quoted, and with the secrets that the target names."""
    words = [*(attempt.command or (attempt.uses,)), *attempt.arguments]
    if given := options.get("secrets"):
        named = [f"{s['name']}={address(s['vault'], s['secret'])}" for s in given]
        words = ["python3", "-m", "microstages.vault", *named, "--", *words]
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    """A word of a shell. Azure ML fills in `${{…}}` itself, so a stage's own is taken apart."""
    quoted = shlex.quote(word)
    return quoted.replace("${{", "$''{{")


def variables(attempt: Attempt, options: Mapping[str, Any], image: str) -> dict[str, str]:
    """The plain variables of a job: what addresses need, what the attempt has, what the target says."""
    own: Mapping[str, str] = options.get("environment") or {}
    known = {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}
    for name, value in passed_on(attempt.remote)[1].items():
        hidden = is_secret(name) or parts(value) or value.startswith(PLACE)
        if not (hidden or OWN.match(name)):
            known[name] = value
    azure = [uri for uri in attempt.remote if DRIVERS.get(uri.partition(":")[0].lower()) is AZURE]
    by_hand = {*own, *(s["name"] for s in options.get("secrets") or [])}
    if azure and "AZURE_STORAGE_CONNECTION_STRING" not in by_hand:
        known["AZURE_STORAGE_ANON"] = "false"
        bare = [uri for uri in azure if uri.startswith("a") and "@" not in uri and not uri.startswith("azureml:")]
        if account := os.environ.get("AZURE_STORAGE_ACCOUNT_NAME") or _account():
            known["AZURE_STORAGE_ACCOUNT_NAME"] = account
        elif bare and "AZURE_STORAGE_ACCOUNT_NAME" not in by_hand:
            fix = "write abfs://container@account.dfs.core.windows.net/path, or set AZURE_STORAGE_ACCOUNT_NAME"
            raise UserError("a job cannot know which storage account this is in", where=bare[0], fix=fix)
    marks = {"MICROSTAGES_ATTEMPT": attempt.name, "MICROSTAGES_CACHE": CACHE}
    if "@" in image:
        marks["MICROSTAGES_IMAGE"] = image.partition("@")[2]
    given = {name: value for name, value in attempt.environment.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**known, **marks, **given, **own}


def _account() -> str:
    """The name of the storage account in a connection string; its key stays here."""
    found = re.search(r"(?:^|;)AccountName=([^;]+)", os.environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    return found.group(1) if found else ""
