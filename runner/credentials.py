"""What a container needs to reach addresses elsewhere: of the caller's environment exactly what their protocols use.

For each protocol: variables whose values are secret, variables that are plain (endpoints, regions, names), and files.
A file is named by a variable, or lies where the protocol's own tools look; it appears read-only below /run/secrets, and
the variable names it there. `FSSPEC_<PROTOCOL>…` is passed on as well. The names are those that adlfs with
azure-identity, s3fs with botocore, gcsfs with google-auth, and huggingface_hub read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from microstages.errors import UserError
from microstages.storage import local_path

from runner.executors.secrets import PLACE, Secret, is_secret, parts


@dataclass(frozen=True)
class Driver:
    """What one kind of store uses. `files`: variable -> where the file lies if the variable is not set."""

    secret: tuple[str, ...]
    plain: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)


AZURE = Driver(
    secret=(
        "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PASSWORD", "AZURE_PASSWORD",
        "IDENTITY_HEADER", "MSI_SECRET",
    ),
    plain=(
        "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CLIENT_ID", "AZURE_STORAGE_TENANT_ID", "AZURE_STORAGE_ANON",
        "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_USERNAME", "AZURE_AUTHORITY_HOST", "AZURE_TOKEN_CREDENTIALS",
        "AZURE_CLIENT_SEND_CERTIFICATE_CHAIN", "AZURE_REGIONAL_AUTHORITY_NAME", "AZURE_POD_IDENTITY_AUTHORITY_HOST",
        "IDENTITY_ENDPOINT", "IDENTITY_SERVER_THUMBPRINT", "IMDS_ENDPOINT", "MSI_ENDPOINT",
        "AZURE_RESOURCE_MANAGER_URL", "AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP",
        "AZUREML_ARM_WORKSPACE_NAME",
    ),
    files={"AZURE_FEDERATED_TOKEN_FILE": "", "AZURE_CLIENT_CERTIFICATE_PATH": ""},
)  # fmt: skip
S3 = Driver(
    secret=(
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    ),
    plain=(
        "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_EC2_METADATA_DISABLED",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_STS_REGIONAL_ENDPOINTS", "AWS_REQUEST_CHECKSUM_CALCULATION",
        "AWS_RESPONSE_CHECKSUM_VALIDATION", "AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS",
    ),
    files={
        "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "", "AWS_CA_BUNDLE": "",
    },
)  # fmt: skip
GOOGLE = Driver(
    secret=(),
    plain=(
        "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_QUOTA_PROJECT", "GOOGLE_CLOUD_UNIVERSE_DOMAIN", "GCSFS_DEFAULT_PROJECT",
        "STORAGE_EMULATOR_HOST", "GCE_METADATA_HOST", "NO_GCE_CHECK",
    ),
    files={"GOOGLE_APPLICATION_CREDENTIALS": "~/.config/gcloud/application_default_credentials.json"},
)  # fmt: skip
HUB = Driver(
    secret=("HF_TOKEN",),
    plain=("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"),
    files={"HF_TOKEN_PATH": "~/.cache/huggingface/token"},
)
DRIVERS = {
    **dict.fromkeys(("abfs", "abfss", "az", "adl", "azureml"), AZURE),
    **dict.fromkeys(("s3", "s3a"), S3),
    **dict.fromkeys(("gs", "gcs"), GOOGLE),
    "hf": HUB,
}
FILES = frozenset(name for driver in DRIVERS.values() for name in driver.files)
PUBLIC = frozenset({"AWS_CA_BUNDLE"})  # files in which nothing is secret


def passed_on(addresses: Iterable[str]) -> tuple[list[Secret], dict[str, str]]:
    """The secrets, and the plain variables, that a container needs for these addresses; local ones need nothing.

    Raises UserError where a variable names a file that cannot be read.
    """
    protocols = {uri.partition(":")[0].lower() for uri in addresses if local_path(uri) is None}
    secrets: dict[str, Secret] = {}
    plain: dict[str, str] = {}
    for driver in {id(d): d for p in protocols if (d := DRIVERS.get(p))}.values():
        secrets |= {n: Secret(n, os.environ[n]) for n in driver.secret if os.environ.get(n)}
        plain |= {n: os.environ[n] for n in driver.plain if n in os.environ}
        for name, usual in driver.files.items():
            if found := _file(name, usual):
                secrets[name] = found
                plain[name] = f"{PLACE}/{name}"
    for name, value in os.environ.items():
        words = name.split("_", 2)
        if words[0] == "FSSPEC" and len(words) > 1 and words[1].lower() in protocols:
            if is_secret(name) or parts(value):
                secrets[name] = Secret(name, value)
            else:
                plain[name] = value
    return list(secrets.values()), plain


def _file(name: str, usual: str) -> Secret | None:
    own = os.environ.get(name)
    if not own and not usual:
        return None
    file = Path(own or usual).expanduser()
    try:
        text = file.read_bytes().decode(errors="replace")
    except OSError:
        if not own:
            return None
        raise UserError(f"the file that {name} names cannot be read", where=file, fix="check its path") from None
    return Secret(name, hidden(name, text), file.absolute())


def hidden(name: str, text: str) -> str:
    """What of a file no log may show. Of a file of credentials: its secret values, or all of it where it names none."""
    if name in PUBLIC:
        return ""
    return ("\n".join(parts(text)) if name in FILES else "") or text.strip()
