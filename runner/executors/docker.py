"""Attempts as containers of the local Docker engine, shut off from all that they do not need.

A container sees its inputs read-only and the folder of its own attempt, under the paths that they have outside, so no
artifact is copied and no address is translated. Beyond that: a read-only root, a scratch `/tmp` in memory, no
capabilities, no new privileges, a user that is not root, no network where everything is local. What it writes belongs
to the caller afterwards. Where something is elsewhere the container has a network, the credentials of just these
addresses (`credentials`), and the caller's cache.

A thread beside each container carries its words into the attempt's files, waits for its end and removes it. A container
outlives a runner that is killed; the next runner finds it by its label and reads its words again from the start.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microstages.errors import EXIT_TEMPORARY, EXIT_USER, TemporaryError, UserError, from_os_error

from runner.credentials import hidden, passed_on
from runner.executors import LOST, Attempt, Status, secrets
from runner.executors.engine import Image, asked, connect, explained, image_named, image_of, ran_out
from runner.executors.mounts import CACHE, mounts, own_cache
from runner.executors.owner import hand_over
from runner.executors.secrets import Redactor, Secret
from runner.executors.verdict import verdict
from runner.executors.watched import Watched
from runner.resources import visible_gpus

if TYPE_CHECKING:
    from docker import APIClient

LABEL, SECRETS = "microstages.attempt", "microstages.secrets"  # the second: names, never values
PIDS = 4096  # processes and threads that a container may have
SCRATCH = {"/tmp": "rw,nosuid,nodev,exec,mode=1777"}  # compiled kernels are loaded from there
GONE = 30.0  # seconds that an engine may take to come back
HOME = {"HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/.cache", "MICROSTAGES_CACHE": "/tmp/.microstages"}
SETTINGS = ("MICROSTAGES_CACHE_SIZE", "MICROSTAGES_PATIENCE")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


@dataclass(kw_only=True)
class _Container(Watched):
    """A container under watch."""

    id: str
    redact: Redactor
    image: str = ""  # by its digest
    signal: str = ""  # what it was told before it was started
    started: bool = True
    fault: UserError | None = None  # its words cannot be written


class DockerExecutor:
    """Runs attempts as containers. `options`: network, secrets and flavor of a target of type docker."""

    name = "docker"
    elsewhere = False
    retries = False
    address = ""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self._client: APIClient | None = None
        self._containers: dict[str, _Container] = {}

    @property
    def client(self) -> APIClient:
        if self._client is None:
            self._client = connect()
        return self._client

    def image(self, attempt: Attempt) -> Image:
        """The image that an attempt runs in. Raises UserError where it is not there."""
        if attempt.image:
            return image_named(self.client, attempt.image)
        flavor = self.options.get("flavor") or ("cuda" if attempt.resources.gpus else "cpu")
        return image_of(self.client, attempt.uses, attempt.code, flavor)

    # --- the protocol ---

    def submit(self, attempt: Attempt) -> str:
        """Create the container; it is started beside the caller. Raises UserError where that cannot be."""
        image = self.image(attempt)
        own = secrets.read(self.options.get("secrets") or [], attempt.folder)
        found, plain = passed_on(attempt.remote)
        given = [*own, *(s for s in found if s.name not in [o.name for o in own])]
        self._own(attempt, image)
        cache = own_cache(image.user) if attempt.remote else None
        seen = mounts(attempt, given, image.user, cache)
        labels = {LABEL: attempt.name, "microstages.stage": attempt.stage}
        labels[SECRETS] = " ".join(s.name for s in given if s.file is None)
        entry = {"entrypoint": list(attempt.command)} if attempt.code_folders else {}
        try:
            host = self.client.create_host_config(**self._limits(attempt), mounts=seen)
            values = plain | self._environment(attempt, image, given, host["NetworkMode"])
            with asked(attempt.stage):
                made = self.client.create_container(
                    image.id, list(attempt.arguments), name=f"microstages-{attempt.stage}-{attempt.name}",
                    labels=labels, user=_user(image), environment=values, host_config=host, stop_signal="SIGTERM",
                    **entry,
                )  # fmt: skip
        except BaseException:
            for mount in seen:
                secrets.drop(Path(mount["Source"]))
            raise
        self._watch(attempt, made["Id"], [s.value for s in given], start=True, image=image.digest)
        return str(made["Id"])

    def find(self, attempt: Attempt, token: str) -> bool:  # noqa: ARG002 - its name is enough
        with asked(attempt.stage):
            found = self.client.containers(all=True, filters={"label": f"{LABEL}={attempt.name}"})
        if not found:
            return False
        if found[0]["State"] == "created":  # its runner died before it was started
            self._remove(found[0]["Id"])
            return False
        hidden = self._hidden(found[0]["Id"])
        if hidden is None:
            return False
        container = self._watch(attempt, found[0]["Id"], hidden, start=False)
        if found[0]["State"] in ("exited", "dead"):
            container.join()
        return True

    def poll(self, attempt: Attempt) -> Status:
        return self._containers[attempt.name].status

    def wake(self, attempt: Attempt) -> int | None:
        return self._containers[attempt.name].woken

    def read(self, attempt: Attempt) -> str:
        return self._containers[attempt.name].reader.read()

    def ran_in(self, attempt: Attempt) -> str:
        return self._containers[attempt.name].image

    def cancel(self, attempt: Attempt, now: bool = False) -> None:
        container = self._containers[attempt.name]
        container.signal = "SIGKILL" if now else "SIGTERM"
        if container.code is None and container.started:
            self._tell(container)

    def forget(self, attempt: Attempt, leave: bool = False) -> None:
        container = self._containers.pop(attempt.name)
        container.left = container.left or leave
        if not container.left:
            if container.code is None:
                self._remove(container.id)
            container.join(GONE)
        container.close()

    # --- making ---

    def _limits(self, attempt: Attempt) -> dict[str, Any]:
        """The host's side of a container, all but its mounts."""
        import docker

        wanted = attempt.resources
        out: dict[str, Any] = {
            "read_only": True, "tmpfs": SCRATCH, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"],
            "pids_limit": PIDS, "init": True, "network_mode": self._network(attempt), "ipc_mode": "private",
            "log_config": docker.types.LogConfig(type="json-file", config={}),
        }  # fmt: skip
        if os.geteuid() != 0:  # what the caller may read through its groups
            out["group_add"] = [str(g) for g in os.getgroups() if g != 0]
        if wanted.memory:
            out |= {"mem_limit": wanted.memory, "memswap_limit": wanted.memory}
        if wanted.cpus:
            cores = float(os.cpu_count() or wanted.cpus)  # the engine refuses more than there are
            out["nano_cpus"] = int(min(wanted.cpus, cores) * 1e9)
        if wanted.shm:
            out["shm_size"] = wanted.shm
        if wanted.gpus:  # which ones, where this machine's are known
            all_ = visible_gpus()
            which = {"device_ids": [all_[i] for i in attempt.gpus]} if attempt.gpus else {"count": wanted.gpus}
            out["device_requests"] = [docker.types.DeviceRequest(**which, capabilities=[["gpu"]])]
        return out

    def _network(self, attempt: Attempt) -> str:
        if own := self.options.get("network"):
            return str(own)
        return "bridge" if attempt.remote else "none"

    def _environment(self, attempt: Attempt, image: Image, given: list[Secret], network: str) -> dict[str, str]:
        own = {name: os.environ[name] for name in SETTINGS if name in os.environ}
        values = {**HOME, **own, **attempt.environment, "MICROSTAGES_IMAGE": image.digest}
        if attempt.remote:
            values["MICROSTAGES_CACHE"] = str(CACHE)
        values.pop("CUDA_VISIBLE_DEVICES", None)  # a container has only its own GPUs, counted from 0
        if not attempt.resources.gpus:
            values["NVIDIA_VISIBLE_DEVICES"] = "void"  # images made on CUDA's say "all"
        if network != "none":
            values |= {name: os.environ[name] for name in PROXIES if name in os.environ}
        return values | {s.name: s.value for s in given if s.file is None}

    @staticmethod
    def _own(attempt: Attempt, image: Image) -> None:
        """Make the folders that the container may write, and give them to its user where the caller is root."""
        for folder in attempt.writes:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if os.geteuid() == 0:
                    hand_over(folder, image.user, image.user)
            except OSError as error:
                raise from_os_error(error, folder) or UserError(str(error), where=folder) from None

    # --- watching ---

    def _watch(self, attempt: Attempt, id: str, hidden: list[str], start: bool, image: str = "") -> _Container:
        container = _Container(attempt=attempt, id=id, redact=Redactor(hidden), started=not start, image=image)
        self._containers[attempt.name] = container
        container.follow(self._follow)
        return container

    def _hidden(self, id: str) -> list[str] | None:
        """The secrets that a container was given, whatever this runner's target and environment say; None where it is
        gone meanwhile."""
        import docker

        with asked():
            try:
                found = self.client.inspect_container(id)
            except docker.errors.NotFound:
                return None
        values = dict(entry.partition("=")[::2] for entry in found["Config"]["Env"])
        names = (found["Config"]["Labels"] or {}).get(SECRETS, "").split()
        out = [values[n] for n in names if n in values]
        for mount in found["Mounts"]:
            if mount["Destination"].startswith(secrets.PLACE):
                with suppress(OSError):
                    text = Path(mount["Source"]).read_bytes().decode(errors="replace")
                    out.append(hidden(Path(mount["Destination"]).name, text))
        return out

    def _follow(self, c: _Container) -> None:
        """In the thread beside a container: from its start to its removal."""
        code, why = LOST, None
        try:
            code, why = self._outcome(c)
        except UserError as error:
            code, why = error.exit_code, error
        except Exception as error:
            code, why = EXIT_USER, explained(error, c.attempt.stage)
        finally:
            try:
                if not c.left:
                    self._remove(c.id)
                    if os.geteuid() == 0:
                        for folder in c.attempt.writes:
                            hand_over(folder, 0, os.getegid())
            except Exception as error:
                code, why = EXIT_USER, UserError(f"its output cannot be taken over: {error}", where=c.attempt.stage)
            finally:
                c.ended(code, why)

    def _outcome(self, c: _Container) -> tuple[int, UserError | None]:
        import docker

        away = 0.0  # since when the engine does not answer
        while not c.left:
            try:
                if not c.started and not self._start(c, was_away=away > 0):
                    return LOST, None
                self._carry(c)
                if c.fault:
                    raise c.fault
                state = self.client.inspect_container(c.id)["State"]
                if not state["Running"] and state["Status"] != "restarting":
                    self._carry(c, follow=False)  # an engine that follows drops a last line that has no end
                    if state["ExitCode"] == 137 and c.attempt.resources.memory and not state.get("OOMKilled"):
                        state["OOMKilled"] = ran_out(self.client, c.id)
                    return verdict(c.attempt, state)
                away = 0.0
            except docker.errors.NotFound:
                return LOST, None
            except docker.errors.APIError as error:
                return EXIT_USER, explained(error, c.attempt.stage)
            except OSError:
                away = away or time.monotonic()
                if time.monotonic() - away > GONE:
                    c.left = True
                    what = "the Docker engine stopped answering"
                    fix = "start it, and run again: what still runs in it is taken up"
                    return EXIT_TEMPORARY, TemporaryError(what, fix=fix)
                time.sleep(0.5)
        return LOST, None

    def _start(self, c: _Container, was_away: bool) -> bool:
        """Start a container that was made. False where an engine that died in the middle of that left it half started:
        nobody can start it then, and another one is to be made. Raises UserError where the engine refuses it."""
        import docker

        if not c.signal:  # told to stop already: it need not begin
            try:
                self.client.start(c.id)  # to start what runs changes nothing
            except docker.errors.APIError as error:  # also what it does not find: a network
                if was_away or "already exists" in str(error):
                    return False
                raise explained(error, c.attempt.stage) from None
        c.started = True
        if c.signal:
            self._tell(c)
        return True

    def _tell(self, c: _Container) -> None:
        import docker

        with suppress(docker.errors.APIError, OSError):
            self.client.kill(c.id, c.signal)

    def _carry(self, c: _Container, follow: bool = True) -> None:
        """Write a container's words into the attempt's files, those that are not there yet, until it ends."""
        a = c.attempt
        if a.events == a.log:
            self._copy(c, a.log, follow, stdout=True, stderr=True)
            return
        beside = threading.Thread(target=self._copy_beside, args=(c, a.log, follow), daemon=True)
        beside.start()
        self._copy(c, a.events, follow, stdout=True, stderr=False)
        beside.join()

    def _copy_beside(self, c: _Container, file: Path, follow: bool) -> None:
        try:
            self._copy(c, file, follow, stdout=False, stderr=True)
        except UserError as error:
            c.fault = error
            self._remove(c.id)
        except Exception:  # the other stream meets the same fault, and tells it
            return

    def _copy(self, c: _Container, file: Path, follow: bool, *, stdout: bool, stderr: bool) -> None:
        stream: Iterator[bytes] = self.client.logs(c.id, stdout=stdout, stderr=stderr, stream=True, follow=follow)
        with _told(file):
            out = file.open("ab", buffering=0)
        with out:
            known = out.tell()  # the same words as before come first
            for chunk in c.redact.stream(stream):
                if c.left:
                    return
                skip = min(known, len(chunk))
                known -= skip
                with _told(file):
                    out.write(chunk[skip:])

    def _remove(self, id: str) -> None:
        """Remove a container with what it holds; tried again for as long as an engine may be away."""
        import docker

        end = time.monotonic() + GONE
        while True:
            try:
                for mount in self.client.inspect_container(id)["Mounts"]:
                    if mount["Destination"].startswith(secrets.PLACE):
                        secrets.drop(Path(mount["Source"]))
                self.client.remove_container(id, force=True, v=True)
                return
            except (docker.errors.APIError, OSError) as error:
                gone = getattr(error, "status_code", None) in (404, 409)  # or somebody else is removing it
                if gone or time.monotonic() > end:
                    return
                time.sleep(0.5)


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """A fault of this machine's files is a UserError, so that it is not taken for one of the engine."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, file) or UserError(str(error), where=file) from None


def _user(image: Image) -> str:
    """Never root: the caller, or, where the caller is root, the image's own user."""
    if uid := os.geteuid():
        return f"{uid}:{os.getegid()}"
    return f"{image.user}:{image.user}"
