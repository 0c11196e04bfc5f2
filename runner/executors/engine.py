"""The Docker engine: how to reach it, and which of its images holds a stage's code.

An image of a stage says what it is by its labels (`images/`): `microstages.stage`, `microstages.code` (the code
identity), `microstages.flavor` (cpu or cuda), `microstages.interface` (interface.json). Nothing has to be run to know
it, and a name or tag that was moved changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microstages.errors import TemporaryError, UserError, from_os_error

if TYPE_CHECKING:
    from docker import APIClient

STAGE, CODE, FLAVOR, INTERFACE = (f"microstages.{word}" for word in ("stage", "code", "flavor", "interface"))
CONNECT, SECONDS = 5, 120  # to find out whether an engine answers, and for a call to be answered
USER = 10001  # user id in containers where the caller is root and the image names none


@dataclass(frozen=True)
class Image:
    """An image of a stage, by what its labels say."""

    id: str
    name: str
    digest: str  # repository@sha256:… where it was pushed or pulled, its id otherwise
    user: int
    labels: Mapping[str, str]

    @property
    def flavor(self) -> str:
        return self.labels.get(FLAVOR, "")


def address() -> str:
    """Where the engine answers: $DOCKER_HOST, or the first of the usual sockets that is there. Empty: nowhere."""
    if own := os.environ.get("DOCKER_HOST"):
        return own
    home, runtime = Path(os.environ.get("HOME") or "/"), os.environ.get("XDG_RUNTIME_DIR", "")
    places = [Path("/var/run/docker.sock"), home / ".docker/run/docker.sock", home / ".docker/desktop/docker.sock"]
    places += [Path(runtime, "docker.sock")] if runtime else []
    return next((f"unix://{p}" for p in places if p.exists()), "")


def connect() -> APIClient:
    """A client of the engine. Raises UserError where none answers."""
    where = address()
    named = "correct or unset the variable DOCKER_HOST" if os.environ.get("DOCKER_HOST") else ""
    start = f"{named or 'start it (systemctl start docker)'}, or run with --target process"
    if not where:
        raise UserError("there is no Docker engine here", fix="install Docker, or run with --target process")
    if where.startswith("unix://") and not os.path.exists(where.removeprefix("unix://")):
        raise UserError("no Docker engine answers", where=where, fix=start)
    try:
        import docker
    except ImportError:
        fix = "pip install docker, or run with --target process"
        raise UserError("the Python package docker is not installed", fix=fix) from None
    try:
        client = docker.APIClient(base_url=where, version="auto", timeout=CONNECT)
        client.timeout = SECONDS
        return client
    except Exception as error:
        text = str(error)
        if "Permission" in text:
            fix = "add yourself to the group docker and log in again, or use rootless Docker"
            raise UserError("you may not use the Docker engine", where=where, fix=fix) from None
        raise UserError("no Docker engine answers", where=where, fix=start) from None


def image_of(client: APIClient, stage: str, code: str, flavor: str) -> Image:
    """The image that holds this code of a stage; of several one of the flavor (cpu or cuda).

    Raises UserError that says whether there is none, or an older one.
    """
    with asked():
        all_ = client.images(filters={"label": f"{STAGE}={stage}"})
    found = sorted(all_, key=lambda e: -e["Created"])
    same = [i for i in found if i["Labels"].get(CODE) == code]
    if same:
        best = next((i for i in same if i["Labels"].get(FLAVOR) == flavor), same[0])
        return _image(client, best["Id"])
    what = f"there is no image of {stage}"
    if found:
        name = (found[0].get("RepoTags") or [found[0]["Id"]])[0]
        what = f"{name} was made from other code of {stage} than lies here"
    raise UserError(what, fix="make images, or run with --target process")


def ran_out(client: APIClient, container: str) -> bool:
    """Whether the engine told lately that a container had no more memory. Its state lacks it where that was told after
    its end; this waits for that word, some two seconds at most."""
    now = int(time.time())
    told = client.events(since=now - 60, until=now + 2, filters={"container": container, "event": "oom"}, decode=True)
    return bool(list(told))


def image_named(client: APIClient, name: str) -> Image:
    """An image by its name or digest; it is not pulled. Raises UserError where it is not there."""
    import docker

    try:
        return _image(client, name)
    except UserError as error:
        if isinstance(error.__cause__, docker.errors.NotFound):
            raise UserError(f"the image {name} is not there", fix=f"docker pull {name}, or build it") from None
        raise


def _image(client: APIClient, name: str) -> Image:
    with asked():
        found: dict[str, Any] = client.inspect_image(name)
    config = found.get("Config") or {}
    user = (config.get("User") or "").partition(":")[0]
    names, digests = found.get("RepoTags") or [], found.get("RepoDigests") or []
    return Image(
        found["Id"], names[0] if names else found["Id"], digests[0] if digests else found["Id"],
        int(user) if user.isdigit() and int(user) else USER, config.get("Labels") or {},
    )  # fmt: skip


@contextmanager
def asked(where: object = "") -> Iterator[None]:
    """Around calls of the engine: UserError explains what it refuses, TemporaryError says that it does not answer."""
    import docker

    try:
        yield
    except docker.errors.APIError as error:
        raise explained(error, where) from error
    except OSError as error:  # requests' errors are its children
        what = f"the Docker engine stopped answering ({type(error).__name__})"
        raise TemporaryError(what, where=where, fix="start it, and run again") from None


def explained(error: Exception, where: object = "") -> UserError:
    """What the engine refused, in words that say what to do."""
    text = str(getattr(error, "explanation", None) or error)
    if "could not select device driver" in text or "nvidia-container" in text:
        fix = "install the NVIDIA Container Toolkit and restart the engine, or set `resources: {gpus: 0}`"
        return UserError("the Docker engine cannot give GPUs to containers", where=where, fix=fix)
    if "bind source path does not exist" in text:
        path = text.rpartition("path: ")[2].strip() or text
        return UserError("the Docker engine does not see this path", where=path, fix="share the folder with the engine")
    if "no space left" in text:
        return from_os_error(OSError(28, "")) or UserError(text)
    if "executable file not found" in text or "no such file or directory" in text:
        fix = "check the `command` of its interface.json against what the image holds"
        return UserError(f"its image does not hold its program ({text})", where=where, fix=fix)
    return UserError(f"the Docker engine refused: {text}", where=where, fix="see docker events, or its log")
