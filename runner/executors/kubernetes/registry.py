"""Which digest a tag has in its registry now: what is run is then what is known, whatever the tag says later.

The registry's HTTP API v2, with the credentials of `docker login` where they lie in ~/.docker/config.json itself.
"""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

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
    api = HUB_HOST if host == HUB else host
    scheme = "http" if re.match(r"(localhost|127\.)", host) else "https"
    path = f"{'library/' if host == HUB and '/' not in name else ''}{name}"
    response = _ask(f"{scheme}://{api}/v2/{path}/manifests/{tag}", _credentials(host))
    digest = response.headers.get("Docker-Content-Digest", "")
    if response.status == 404:
        fix = "push it (docs/images.md), or name another with `images` of the target"
        raise UserError(f"the registry has no image {image}", fix=fix)
    if response.status != 200 or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise UserError(f"the registry {host} does not tell its digest (HTTP {response.status})")
    return f"{host}/{name}@{digest}"


def _split(rest: str) -> tuple[str, str]:
    name, colon, tag = rest.rpartition(":")
    return (name, tag) if colon else (rest, "latest")


def _ask(uri: str, credentials: str) -> Any:
    """A HEAD of a manifest, with a token where the registry wants one."""
    headers = {"Accept": ", ".join(TYPES)}
    first = _request("HEAD", uri, headers | ({"Authorization": f"Basic {credentials}"} if credentials else {}))
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
    return _request("HEAD", uri, headers | {"Authorization": f"Bearer {token}"})


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
