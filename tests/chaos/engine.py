"""A second Docker engine of this machine, started to be killed; the machine's own engine is never touched.

It has folders, a socket and a containerd of its own, and changes no rule of the network; so its containers have the
network `none` or `host`. An engine that is told to have no bridge removes the machine's, so it is told that one's name.
It gets the images that it needs from the machine's engine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

IMAGES = tuple(f"microstages/{name}:latest" for name in ("prepare-data", "train-lora", "merge"))
STARTED_WITHIN = 60  # seconds


class EngineError(Exception):
    """Why there is no second engine here."""


class OwnEngine:
    """A Docker engine at `address`, from the start of this context to its end."""

    def __init__(self, source: str) -> None:
        """`source`: the address of the machine's engine, which has the images."""
        if os.geteuid() != 0 or shutil.which("dockerd") is None:
            raise EngineError("a second engine needs dockerd and root")
        self.source = source
        self.folder = Path(tempfile.mkdtemp(prefix="microstages-engine-"))
        self.address = f"unix://{self.folder}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> OwnEngine:
        try:
            self.start()
            save = subprocess.Popen(["docker", "-H", self.source, "save", *IMAGES], stdout=subprocess.PIPE)
            load = subprocess.run(["docker", "-H", self.address, "load", "--quiet"], stdin=save.stdout, check=False,
                                  stdout=subprocess.DEVNULL)  # fmt: skip
            if save.wait() or load.returncode:
                raise EngineError("the images could not be copied into the second engine")
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
        self._end()
        self._end_containers()
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            place = line.split()[1]
            if place.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", place], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, and wait until it answers. Raises EngineError where it ends instead."""
        folder = self.folder
        for name in ("pid", "exec/containerd/containerd.pid"):  # a zombie that nobody buries would count as alive
            (folder / name).unlink(missing_ok=True)
        bridge = "docker0" if Path("/sys/class/net/docker0").exists() else "none"
        command = [
            "dockerd", "--host", self.address, "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec",
            "--pidfile", f"{folder}/pid", "--bridge", bridge, "--iptables=false", "--ip-forward=false",
            "--ip-masq=false",
        ]  # fmt: skip
        with open(folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + STARTED_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._answers():
                return
            time.sleep(0.1)
        self._end()
        raise EngineError(f"it did not start: {(folder / 'log').read_text(errors='replace')[-500:]}")

    def kill(self) -> None:
        """`kill -9`: it and its containerd are gone at once; containers go on until it starts again."""
        self._end()

    def _answers(self) -> bool:
        done = subprocess.run(["docker", "-H", self.address, "version"], capture_output=True, check=False)
        return done.returncode == 0

    def _end_containers(self) -> None:
        """End what it could not end itself: containers and their shims, which name its socket."""
        mark = f"{self.folder}/exec/containerd/containerd.sock".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (process / "cmdline").read_bytes().split(b"\0"):
                    below = (process / "task" / process.name / "children").read_text().split()
                    for pid in (*below, process.name):
                        os.kill(int(pid), signal.SIGKILL)

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
