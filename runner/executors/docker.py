"""Attempts as containers of the local Docker engine, shut off from all that they do not need.

A container sees its inputs read-only and the folder of its own attempt, under the paths that they have outside, so no
artifact is copied and no address is translated. Beyond that: a read-only root, a scratch `/tmp` in memory, no
capabilities, no new privileges, a user that is not root, no network where everything is local. What it writes belongs
to the caller afterwards.

A thread beside each container carries its words into the attempt's files, waits for its end and removes it. A container
outlives a runner that is killed; the next runner finds it by its label and reads its words again from the start.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from microstages.errors import EXIT_TEMPORARY, EXIT_USER, UserError, from_os_error
from microstages.storage import local_path

from runner.executors import LOST, Attempt, Status
from runner.executors.engine import Image, connect, explained, image_named, image_of
from runner.executors.owner import hand_over
from runner.executors.words import Reader, Redactor

if TYPE_CHECKING:
    from docker import APIClient

LABEL = "microstages.attempt"
PIDS = 4096  # processes and threads that a container may have
SCRATCH = {"/tmp": "rw,nosuid,nodev,exec,mode=1777"}  # compiled kernels are loaded from there
GONE = 30.0  # seconds that an engine may take to come back
HOME = {"HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/.cache", "MICROSTAGES_CACHE": "/tmp/.microstages"}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


@dataclass
class _Container:
    """A container under watch. `code` and `why` are set when it has ended; `woken` becomes readable then."""

    attempt: Attempt
    id: str
    redact: Redactor
    reader: Reader
    woken: int
    wake: int
    code: int | None = None
    why: UserError | None = None
    left: bool = False  # let go of: it is another runner's now
    thread: threading.Thread | None = None
    told: list[str] = field(default_factory=list)


class DockerExecutor:
    """Runs attempts as containers. `options`: network, secrets and flavor of a target of type docker."""

    name = "docker"

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
        gpus = bool(attempt.gpus) or self.options.get("flavor") == "cuda"
        return image_of(self.client, attempt.uses, attempt.code, gpus)

    # --- the protocol ---

    def submit(self, attempt: Attempt) -> str:
        """Create the container and start it beside the caller. Raises UserError where that cannot be."""
        import docker

        image = self.image(attempt)
        secrets = _secrets(self.options.get("secrets") or [])
        folders = self._own(attempt, image)
        host = self.client.create_host_config(**self._limits(attempt), mounts=self._mounts(attempt, folders, secrets))
        values = {**HOME, **attempt.environment, "MICROSTAGES_IMAGE": image.digest}
        if host["NetworkMode"] != "none":
            values |= {name: os.environ[name] for name in PROXIES if name in os.environ}
        values |= {name: value for name, value, file in secrets if file is None}
        entry = {"entrypoint": list(attempt.command)} if attempt.code_folder else {}
        try:
            made = self.client.create_container(
                image.id, list(attempt.arguments), name=f"microstages-{attempt.stage}-{attempt.name}",
                labels={LABEL: attempt.name, "microstages.stage": attempt.stage}, user=_user(image),
                environment=values, host_config=host, stop_signal="SIGTERM", **entry,
            )  # fmt: skip
        except docker.errors.APIError as error:
            if error.status_code == 409 and self.find(attempt, ""):
                return self._containers[attempt.name].id
            raise explained(error, attempt.stage) from None
        except OSError as error:  # requests' errors are its children
            raise UserError(f"the Docker engine stopped answering ({type(error).__name__})", fix="start it") from None
        self._watch(attempt, made["Id"], [v for _, v, _ in secrets], start=True)
        return str(made["Id"])

    def find(self, attempt: Attempt, token: str) -> bool:  # noqa: ARG002 - its name is enough
        found = self.client.containers(all=True, filters={"label": f"{LABEL}={attempt.name}"})
        if not found:
            return False
        if found[0]["State"] == "created":  # its runner died before it was started
            self._remove(found[0]["Id"])
            return False
        ended = found[0]["State"] in ("exited", "dead")
        secrets = _secrets(self.options.get("secrets") or [], missing=True)
        container = self._watch(attempt, found[0]["Id"], [v for _, v, _ in secrets], start=False)
        if ended and container.thread:
            container.thread.join()
        return True

    def poll(self, attempt: Attempt) -> Status:
        container = self._containers[attempt.name]
        return Status(container.code is None, container.code, container.why)

    def wake(self, attempt: Attempt) -> int | None:
        return self._containers[attempt.name].woken

    def read(self, attempt: Attempt) -> str:
        return self._containers[attempt.name].reader.read()

    def cancel(self, attempt: Attempt, now: bool = False) -> None:
        import docker

        container = self._containers[attempt.name]
        if container.code is None:
            with suppress(docker.errors.APIError, OSError):
                self.client.kill(container.id, "SIGKILL" if now else "SIGTERM")

    def forget(self, attempt: Attempt, leave: bool = False) -> None:
        container = self._containers.pop(attempt.name)
        container.left = leave
        if not leave:
            if container.code is None:
                self._remove(container.id)
            if container.thread:
                container.thread.join(GONE)
            os.close(container.woken)
        container.reader.close()

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
        if wanted.memory:
            out |= {"mem_limit": wanted.memory, "memswap_limit": wanted.memory}
        if wanted.cpus:
            cores = float(os.cpu_count() or wanted.cpus)  # the engine refuses more than there are
            out["nano_cpus"] = int(min(wanted.cpus, cores) * 1e9)
        if wanted.shm:
            out["shm_size"] = wanted.shm
        if attempt.gpus:
            ids = [str(i) for i in attempt.gpus]
            out["device_requests"] = [docker.types.DeviceRequest(device_ids=ids, capabilities=[["gpu"]])]
        return out

    def _network(self, attempt: Attempt) -> str:
        if own := self.options.get("network"):
            return str(own)
        places = [*attempt.reads, *(str(p) for p in attempt.writes)]
        return "none" if all(local_path(uri) is not None for uri in places) else "bridge"

    def _own(self, attempt: Attempt, image: Image) -> list[Path]:
        """The folders that the container may write: made, and given to its user where the caller is root."""
        for folder in attempt.writes:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if os.geteuid() == 0:
                    os.chown(folder, image.user, image.user)
            except OSError as error:
                raise from_os_error(error, folder) or UserError(str(error), where=folder) from None
        return list(attempt.writes)

    def _mounts(self, attempt: Attempt, folders: Iterable[Path], secrets: Iterable[_Secret]) -> list[Any]:
        import docker

        def mount(target: Path, source: Path, read_only: bool) -> Any:
            return docker.types.Mount(str(target), str(source), type="bind", read_only=read_only)

        reads = {p: None for uri in attempt.reads if (p := local_path(uri)) is not None}
        out = [mount(p.absolute(), Path(os.path.realpath(p)), True) for p in map(without_pattern, reads)]
        out += [mount(p.absolute(), Path(os.path.realpath(p)), False) for p in folders]
        out += [mount(Path("/run/secrets", n), Path(file).absolute(), True) for n, _, file in secrets if file]
        if attempt.code_folder:
            out.append(mount(attempt.code_folder, Path(os.path.realpath(attempt.code_folder)), True))
        return list({m["Target"]: m for m in out}.values())

    # --- watching ---

    def _watch(self, attempt: Attempt, id: str, hidden: Iterable[str], start: bool) -> _Container:
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        container = _Container(attempt, id, Redactor(hidden), Reader(attempt.events), woken, wake)
        self._containers[attempt.name] = container
        container.thread = threading.Thread(target=self._follow, args=(container, start), daemon=True)
        container.thread.start()
        return container

    def _follow(self, c: _Container, start: bool) -> None:
        """In the thread beside a container: from its start to its removal."""
        code, why = LOST, None
        try:
            code, why = self._outcome(c, start)
        except UserError as error:
            code, why = error.exit_code, error
        except Exception as error:
            code, why = EXIT_USER, explained(error, c.attempt.stage)
        finally:
            if not c.left:
                self._remove(c.id)
                if os.geteuid() == 0:
                    for folder in c.attempt.writes:
                        hand_over(folder, 0, os.getegid())
                c.code, c.why = code, why
            os.close(c.wake)

    def _outcome(self, c: _Container, start: bool) -> tuple[int, UserError | None]:
        import docker

        if start:
            try:
                self.client.start(c.id)
            except docker.errors.APIError as error:
                return EXIT_USER, explained(error, c.attempt.stage)
        deadline = 0.0
        while not c.left:
            try:
                self._carry(c)
                state = self.client.inspect_container(c.id)["State"]
                if not state["Running"] and state["Status"] != "restarting":
                    return _verdict(c.attempt, state)
                deadline = 0.0
            except docker.errors.NotFound:
                return LOST, None
            except OSError:
                deadline = deadline or time.monotonic() + GONE
                if time.monotonic() > deadline:
                    what = "the Docker engine stopped answering"
                    fix = "start it, and run again: what still runs in it is taken up"
                    return EXIT_TEMPORARY, UserError(what, fix=fix)
                time.sleep(0.5)
        return LOST, None

    def _carry(self, c: _Container) -> None:
        """Write a container's words into the attempt's files, from the first on, until it ends."""
        a = c.attempt
        if a.events == a.log:
            self._copy(c, a.log, stdout=True, stderr=True)
            return
        beside = threading.Thread(target=self._copy_quietly, args=(c, a.log), daemon=True)
        beside.start()
        self._copy(c, a.events, stdout=True, stderr=False)
        beside.join()

    def _copy_quietly(self, c: _Container, file: Path) -> None:
        with suppress(Exception):  # the other stream meets the same fault, and tells it
            self._copy(c, file, stdout=False, stderr=True)

    def _copy(self, c: _Container, file: Path, stdout: bool, stderr: bool) -> None:
        stream: Iterator[bytes] = self.client.logs(c.id, stdout=stdout, stderr=stderr, stream=True, follow=True)
        out: IO[bytes]
        with file.open("wb", buffering=0) as out:
            for chunk in c.redact.stream(stream):
                if c.left:
                    return
                out.write(chunk)

    def _remove(self, id: str) -> None:
        import docker

        with suppress(docker.errors.APIError, OSError):
            self.client.remove_container(id, force=True, v=True)


_Secret = tuple[str, str, str | None]  # name, value, and the file that is mounted in place of a variable


def _secrets(wanted: Iterable[Any], missing: bool = False) -> list[_Secret]:
    """The values of `secrets`. `NAME`: a variable of the caller; `{name, file}`: a file, given as a file.

    Raises UserError for one that is not there, unless `missing` is allowed.
    """
    out: list[_Secret] = []
    for entry in wanted:
        name = entry if isinstance(entry, str) else str(entry["name"])
        file = None if isinstance(entry, str) else os.path.expanduser(str(entry["file"]))
        try:
            value = os.environ[name] if file is None else Path(file).read_text().strip()
        except (KeyError, OSError):
            if missing:
                continue
            what = f"the secret {name} is not set" if file is None else f"the file of the secret {name} cannot be read"
            fix = f"export {name}=…" if file is None else "check its path and its mode"
            raise UserError(what, where=file or "", fix=fix) from None
        out.append((name, value, file))
    return out


def without_pattern(path: Path) -> Path:
    """The path itself, or, for a pattern such as `data/*.jsonl`, the folder that it looks in."""
    parts = path.parts
    for n, part in enumerate(parts):
        if any(c in part for c in "*?[") and not path.exists():
            return Path(*parts[:n])
    return path


def _user(image: Image) -> str:
    """Never root: the caller, or, where the caller is root, the image's own user."""
    if uid := os.geteuid():
        return f"{uid}:{os.getegid()}"
    return f"{image.user}:{image.user}"


def _verdict(attempt: Attempt, state: Mapping[str, Any]) -> tuple[int, UserError | None]:
    """What the end of a container means."""
    code, limit = int(state["ExitCode"]), attempt.resources.memory
    if state.get("Error") and code in (125, 126, 127, 128):
        return EXIT_USER, explained(RuntimeError(state["Error"]), attempt.stage)
    if state.get("OOMKilled") and code:
        if limit:
            what = f"out of memory: it needed more than its limit of {_size(limit)}"
            return EXIT_USER, UserError(what, fix=f"raise `memory` below `resources:` of {attempt.stage}")
        return EXIT_USER, UserError("out of memory: the machine has no more", fix="use a smaller model or batch")
    if code in (129, 130, 131, 134, 135, 136, 137, 139):  # ended by a signal; 143 is the contract's own
        return 128 - code, None
    return code, None


def _size(count: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count} bytes"
