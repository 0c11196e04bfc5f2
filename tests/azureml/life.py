"""What becomes of the jobs of the stand-in: the states of Azure ML, and a command that really runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from azureml.server import Azure

SUBSCRIPTION, GROUP, NAME = "11111111-2222-3333-4444-555555555555", "team-rg", "team-ml"
PROVIDER = "providers/Microsoft.MachineLearningServices"
WORKSPACE = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/{PROVIDER}/workspaces/{NAME}"
DONE = ("Completed", "Failed", "Canceled")


@dataclass
class Fate:
    """What becomes of a job. `before`: why it never starts; `after`: Azure ML's error although its program ended well;
    `silent`: its exit code is in no log; `states`: what it goes through before Running; `late`: seconds until its last
    words can be read; `kind`: the code of the error; `cancelled`: somebody
    cancels it after so many seconds."""

    before: str = ""
    after: str = ""
    kind: str = "UserError"
    silent: bool = False
    states: tuple[str, ...] = ("NotStarted", "Queued", "Preparing", "Provisioning", "Starting")
    late: float = 0.0
    cancelled: float = 0.0


@dataclass
class Job:
    body: dict[str, Any]
    status: str = "NotStarted"
    states: list[str] = field(default_factory=lambda: ["NotStarted"])
    log: bytes = b""
    error: dict[str, Any] = field(default_factory=dict)
    cancel: threading.Event = field(default_factory=threading.Event)
    times: dict[str, str] = field(default_factory=dict)

    def to(self, status: str) -> None:
        now = datetime.now(UTC).isoformat()
        if status == "Running":
            self.times["startTimeUtc"] = now
        elif status in DONE:
            self.times["endTimeUtc"] = now
        self.status = status
        self.states.append(status)


def live(azure: Azure, name: str, job: Job) -> None:
    fate = azure.fate.get(name) or azure.fate.get("") or Fate()
    try:
        for state in fate.states[1:]:
            time.sleep(0.05)
            job.to(state)
            if job.cancel.is_set():
                break
        if fate.before:
            job.error = {"code": fate.kind, "message": fate.before}
            job.to("Failed")
        elif job.cancel.is_set():
            job.to("CancelRequested")
            job.to("Canceled")
        else:
            _run(azure, name, job, fate)
    except Exception as error:
        job.error = {"code": "ServiceError", "message": f"the stand-in failed: {error!r}"}
        job.to("Failed")


def _run(azure: Azure, name: str, job: Job, fate: Fate) -> None:
    job.to("Running")
    limit = float((job.body["properties"].get("limits") or {"timeout": "PT0S"})["timeout"][2:-1])
    if after := fate.cancelled or limit:
        timer = threading.Timer(after, job.cancel.set)
        timer.daemon = True
        timer.start()
    kept: list[bytes] = []

    def hear(data: bytes) -> None:
        if fate.late:
            kept.append(data)
        else:
            job.log += data

    run = _container if azure.engine else _process
    code = run(azure, name, job, hear)
    if fate.silent:
        job.log = re.sub(rb'\{"event": "exit".*\n', b"", job.log)
    job.to("CancelRequested" if job.cancel.is_set() else "Finalizing")
    if fate.after or (code and not job.cancel.is_set()):
        text = f"Execution failed. User process 'sh' exited with status code {code}. Please check log file "
        text += "'user_logs/std_log.txt' for error details. Error: "
        job.error = {"code": fate.kind, "message": fate.after or text}
    job.to("Canceled" if job.cancel.is_set() else "Failed" if job.error else "Completed")
    if fate.late:
        time.sleep(fate.late)
        job.log += b"".join(kept)


def _variables(azure: Azure, job: Job) -> dict[str, str]:
    """What Azure ML itself puts into a job's environment."""
    nodes = job.body["properties"]["resources"]["instanceCount"]
    own = {"NODE_RANK": "0", "MASTER_ADDR": "10.0.0.4", "MASTER_PORT": "6105"} if nodes > 1 else {}
    return {
        "AZUREML_ARM_SUBSCRIPTION": SUBSCRIPTION, "AZUREML_ARM_RESOURCEGROUP": GROUP,
        "AZUREML_ARM_WORKSPACE_NAME": NAME, "MSI_ENDPOINT": f"{azure.url}/job-identity", "MSI_SECRET": azure.header,
        "DEFAULT_IDENTITY_CLIENT_ID": "99999999-0000-0000-0000-000000000000", **own,
        **job.body["properties"]["environmentVariables"],
    }  # fmt: skip


def _process(azure: Azure, name: str, job: Job, hear: Callable[[bytes], None]) -> int:  # noqa: ARG001
    environment = {"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1", **_variables(azure, job)}
    process = subprocess.Popen(
        ["sh", "-c", job.body["properties"]["command"]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
    )  # fmt: skip

    def stop() -> None:
        job.cancel.wait()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(10)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    threading.Thread(target=stop, daemon=True).start()
    assert process.stdout
    while data := process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
        hear(data)
    process.stdout.close()
    return process.wait()


def _container(azure: Azure, name: str, job: Job, hear: Callable[[bytes], None]) -> int:
    import docker

    client = docker.APIClient(azure.engine.address)
    properties = job.body["properties"]
    image = azure.environments[properties["environmentId"].removeprefix(WORKSPACE)]["properties"]["image"]
    host = client.create_host_config(network_mode="host", init=True)
    made = client.create_container(
        image, entrypoint=["/bin/sh", "-c"], command=["exec 2>&1\n" + properties["command"]],
        environment=_variables(azure, job), host_config=host, name=name, labels={"microstages.test": "azureml"},
    )["Id"]  # fmt: skip
    try:
        client.start(made)

        def stop() -> None:
            job.cancel.wait()
            try:
                client.stop(made, timeout=10)
            except docker.errors.APIError:
                return

        threading.Thread(target=stop, daemon=True).start()
        for data in client.logs(made, stdout=True, stderr=True, stream=True, follow=True):
            hear(data)
        return int(client.wait(made)["StatusCode"])
    finally:
        client.remove_container(made, force=True)
