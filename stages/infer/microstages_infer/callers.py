"""Who asks: by the key that is brought, and the names of hosts that are this machine's own."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit


def key_in(authorization: str | None) -> str:
    """The key that a header brings; empty where it brings none."""
    kind, _, key = (authorization or "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def loops(url: str) -> bool:
    """Whether the host of a URL is this machine's own name."""
    try:
        return loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def loopback(host: str) -> bool:
    """Whether a name or address is this machine's own only, as far as the name says it."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
