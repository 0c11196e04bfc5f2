"""What a registry knows of an image: which digest its tag has now, so that what is run is what is known, whatever the
tag says later; and its labels, where no engine of this machine has it.

The registry's HTTP API v2, with the credentials of `docker login` where they lie in ~/.docker/config.json itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

from microstages.errors import UserError

TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
SECONDS = 5.0
HUB, HUB_HOST = "docker.io", "registry-1.docker.io"
HUB_KEY = "https://index.docker.io/v1/"


def host_of(image: str) -> str:
    """The registry that an image's name says; empty where it says none."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else ""


def pinned(image: str) -> str:
    """The image by its digest. Raises UserError that says why its registry cannot tell it."""
    host = host_of(image)
    if "@" in image or not host:
        return image
    name, tag = _split(image.removeprefix(f"{host}/"))
    response = _ask("HEAD", f"{_repository(host, name)}/manifests/{tag}", _credentials(host))
    digest = response.headers.get("Docker-Content-Digest", "")
    if response.status == 404:
        fix = "push it (docs/images.md), or name another with `images` of the target"
        raise UserError(f"the registry has no image {image}", fix=fix)
    if response.status != 200 or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise UserError(f"the registry {host} does not tell its digest (HTTP {response.status})")
    return f"{host}/{name}@{digest}"


@dataclass(frozen=True)
class Described:
    """An image in its registry: its name by digest, its id as an engine has it, its labels."""

    name: str
    id: str
    labels: Mapping[str, str]


def described(image: str) -> Described:
    """What its registry says of an image. Raises UserError where it says nothing."""
    host = host_of(image)
    name, tag = _split(image.removeprefix(f"{host}/"))
    place = _repository(host, name)
    digest, found = _document(f"{place}/manifests/{tag}", host, image)
    manifest = found
    if "manifests" in found:  # for several kinds of machines; the labels are the same
        ours = {"os": "linux", "architecture": "amd64"}
        entries = sorted(found["manifests"], key=lambda e: {k: e.get("platform", {}).get(k) for k in ours} != ours)
        _, manifest = _document(f"{place}/manifests/{entries[0]['digest']}", host, image)
    id, config = _document(f"{place}/blobs/{manifest['config']['digest']}", host, image)
    return Described(f"{host}/{name}@{digest}", id, (config.get("config") or {}).get("Labels") or {})


def _document(uri: str, host: str, image: str) -> tuple[str, Any]:
    """A JSON document of a registry, and its digest."""
    response = _ask("GET", uri, _credentials(host))
    if response.status in (301, 302, 303, 307, 308):  # where it lies; the credentials are not for there
        response = _request("GET", urljoin(uri, response.headers["Location"]), {})
    if response.status == 404:
        raise UserError(f"the registry has no image {image}", fix="push it, or correct its name")
    digest = f"sha256:{hashlib.sha256(response.data).hexdigest()}"
    try:
        if response.status == 200 and (":" not in uri.rpartition("/")[2] or uri.endswith(digest)):
            return digest, json.loads(response.data)
    except ValueError:
        pass
    fix = "docker login, if it wants to know who asks"
    raise UserError(f"the registry {host} does not describe {image} (HTTP {response.status})", fix=fix)


def _repository(host: str, name: str) -> str:
    """The address of an image's repository in the API."""
    api = HUB_HOST if host == HUB else host
    scheme = "http" if re.match(r"(localhost|127\.)", host) else "https"
    return f"{scheme}://{api}/v2/{'library/' if host == HUB and '/' not in name else ''}{name}"


def _split(rest: str) -> tuple[str, str]:
    name, at, digest = rest.partition("@")
    if at:
        return name.partition(":")[0], digest
    name, colon, tag = rest.rpartition(":")
    return (name, tag) if colon else (rest, "latest")


def _ask(method: str, uri: str, credentials: str) -> Any:
    """A manifest or a part of an image, with a token where the registry wants one."""
    headers = {"Accept": ", ".join(TYPES)}
    first = _request(method, uri, headers | ({"Authorization": f"Basic {credentials}"} if credentials else {}))
    challenge = first.headers.get("WWW-Authenticate", "")
    if first.status != 401 or not challenge.lower().startswith("bearer "):
        return first
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = urlencode({k: asked[k] for k in ("service", "scope") if k in asked})
    basic = {"Authorization": f"Basic {credentials}"} if credentials else {}
    answer = _request("GET", f"{asked.get('realm', '')}?{query}", basic)
    try:
        found = json.loads(answer.data)
        token = found.get("token") or found["access_token"]
    except (ValueError, KeyError, AttributeError):
        return first
    return _request(method, uri, headers | {"Authorization": f"Bearer {token}"})


def _request(method: str, uri: str, headers: dict[str, str]) -> Any:
    import urllib3

    timeout = urllib3.Timeout(total=SECONDS)
    try:
        return _pool(uri).request(method, uri, headers=headers, timeout=timeout, retries=False)
    except (urllib3.exceptions.HTTPError, OSError, ValueError):
        raise UserError(f"the registry {urllib3.util.parse_url(uri).host} is not reached from here") from None


def _pool(uri: str) -> Any:
    """Through this machine's proxy where there is one for the address."""
    from urllib.request import getproxies, proxy_bypass

    import urllib3

    found = urllib3.util.parse_url(uri)
    proxy = getproxies().get(found.scheme or "")
    if proxy and not proxy_bypass(str(found.host)):
        return urllib3.ProxyManager(proxy)
    return urllib3.PoolManager()


def _credentials(host: str) -> str:
    """`user:password` in base64, as `docker login` kept it; empty where there is none."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser())
    try:
        auths = json.loads((folder / "config.json").read_text()).get("auths") or {}
    except (OSError, ValueError, AttributeError):
        return ""
    keys = (host, f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/", *((HUB_KEY,) if host == HUB else ()))
    entry: dict[str, Any] = next((auths[k] for k in keys if k in auths), {})
    if entry.get("auth"):
        return str(entry["auth"])
    if entry.get("username"):
        return base64.b64encode(f"{entry['username']}:{entry.get('password', '')}".encode()).decode()
    return ""
