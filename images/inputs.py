"""What a build takes from this machine: certificates, pip's settings, wheels in local folders, the checkout's revision.

None of it is kept in an image. Where a machine has none of it, a build gets none.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from layers import LOCKS, ROOT, read_lock


class BuildError(Exception):
    """What is wrong, and what to do; shown without a traceback, exit code 2."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}\n  {fix}")


PASSED = ("index-url", "extra-index-url", "no-index", "proxy", "trusted-host", "timeout", "default-timeout", "retries")


@cache
def pip_config() -> dict[str, str]:
    """pip's settings on this machine by name; a variable of the environment wins over a file."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    found: dict[str, str] = {}
    environment: dict[str, str] = {}
    for line in done.stdout.splitlines():
        if match := re.match(r"^(:env:|global|install|user|site)\.([\w-]+)='(.*)'$", line.strip()):
            (environment if match[1] == ":env:" else found)[match[2]] = match[3].replace("\\n", " ").strip()
    return found | environment


def certificates() -> str | None:
    """The file of certificates that pip or Python trusts here, where one is named."""
    candidates = [pip_config().get("cert"), *(os.environ.get(n) for n in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"))]
    return next((c for c in candidates if c and os.path.isfile(c)), None)


def proxies() -> list[str]:
    """Options that hand this machine's proxies to a build. These arguments are in no image's history."""
    names = (n for v in ("http_proxy", "https_proxy", "no_proxy") for n in (v, v.upper()))
    return [o for n in names if os.environ.get(n) for o in ("--build-arg", n)]


def pip_settings(indexes: list[str], no_index: bool) -> tuple[str, list[Path]]:
    """The text of a pip.conf for a build, and the local folders of wheels that pip knows here."""
    config = dict(pip_config())
    folders = [
        Path(unquote(urlsplit(w).path)) if w.startswith("file:") else Path(w)
        for w in config.get("find-links", "").split()
    ]
    reached = [u for u in config.get("extra-index-url", "").split() if not u.startswith("file:")] + indexes
    config["extra-index-url"] = " ".join(reached)
    if no_index:
        config["no-index"] = "true"
    lines = [f"{name} = {config[name].strip()}" for name in PASSED if config.get(name)]
    lines = [line.replace("default-timeout", "timeout") for line in lines]
    return ("[global]\n" + "\n".join(dict.fromkeys(lines)) + "\n" if lines else ""), [f for f in folders if f.is_dir()]


def wheels_at_hand(folders: list[Path]) -> dict[str, Path]:
    """sha256 -> file of the wheels in these folders that any lock names by hash.

    All locks, not only those of this build: a builder that mounts other wheels would not be the cached one.
    """
    wanted: dict[tuple[str, str], set[str]] = {}
    for file in sorted(LOCKS.glob("*.txt")):
        for package, (version, hashes) in read_lock(file).items():
            wanted.setdefault((package, version), set()).update(hashes)
    found: dict[str, Path] = {}
    for wheel in sorted(w for folder in folders for w in folder.glob("*.whl")):
        package, version = wheel.name.split("-")[:2]
        key = (re.sub(r"[-_.]+", "-", package).lower(), unquote(version).partition("+")[0])
        if key in wanted:
            with open(wheel, "rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
            if digest in wanted[key]:
                found.setdefault(digest, wheel)
    return found


def wheel_image(client: str, found: dict[str, Path]) -> str:
    """An image of these wheels, which a build mounts; `scratch` where there is none. Its tag is made of the hashes."""
    if not found:
        return "scratch"
    image = "microstages/wheels:" + hashlib.sha256("".join(sorted(found)).encode()).hexdigest()[:12]
    if subprocess.run([client, "image", "inspect", image], capture_output=True, check=False).returncode == 0:
        return image
    with subprocess.Popen([client, "import", "-", image], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as load:
        assert load.stdin is not None
        with tarfile.open(fileobj=load.stdin, mode="w|") as tar:
            for _, wheel in sorted(found.items()):
                info = tarfile.TarInfo(wheel.name)
                info.size, info.mode = wheel.stat().st_size, 0o644
                with open(wheel, "rb") as f:
                    tar.addfile(info, f)
        load.stdin.close()
    if load.returncode:
        raise BuildError(f"{client} did not take the wheels", "is there room on the engine's disk?")
    return image


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def revision(folders: tuple[Path, ...] = (ROOT,)) -> str:
    """$REVISION, else the last commit of this checkout that changed these folders; empty outside of one."""
    return os.environ.get("REVISION") or _git("log", "-1", "--format=%H", "--", *map(str, folders))


@cache
def source_address() -> str:
    """Where the sources are, without user and password; empty where the checkout does not say."""
    address = _git("config", "--get", "remote.origin.url")
    return re.sub(r"//[^/@]*@", "//", address) if address.startswith("https://") else ""
