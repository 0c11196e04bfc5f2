"""What the state of a pod means. Pure functions of what the API says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from microstages.errors import EXIT_TEMPORARY, EXIT_USER, TemporaryError, UserError

from runner.executors import Attempt
from runner.executors.kubernetes.manifests import CONTAINERS, INDEX
from runner.executors.verdict import verdict

Object = Mapping[str, Any]

PULL = ("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable")
HICCUP = 15.0  # seconds in which a registry may come back
OWN_SECRET = 30.0  # seconds in which the Job's own Secret may be on its way
FINAL = re.compile(  # what a registry says of an image that trying again does not bring
    r"not found|manifest unknown|does not exist|denied|unauthorized|forbidden|invalid reference|no basic auth|403|401",
    re.IGNORECASE,
)
TAKEN = ("Evicted", "Preempting", "Preempted", "NodeLost", "Shutdown", "NodeShutdown", "Terminated", "NodeAffinity",
         "UnexpectedAdmissionError")  # fmt: skip
PROGRAM = re.compile(r"executable file not found|no such file or directory|exec format error|permission denied")
_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
          "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}  # fmt: skip


@dataclass(frozen=True)
class End:
    """How an attempt ended: its exit code as the executor tells it, and what the cluster knows of it."""

    code: int
    why: UserError | None = None


def uid(pod: Object) -> str:
    return str(pod["metadata"]["uid"])


def name(pod: Object) -> str:
    return str(pod["metadata"]["name"])


def index(pod: Object) -> int:
    """Which of the Job's nodes it is."""
    notes = pod["metadata"].get("annotations") or {}
    return int(notes.get(INDEX, 0))


def containers(pod: Object) -> list[tuple[Object, Object]]:
    """The containers that are ours with their states, in the order in which they run one after the other."""
    out = []
    for kind, statuses in (("initContainers", "initContainerStatuses"), ("containers", "containerStatuses")):
        found = pod.get("status", {}).get(statuses) or []
        states = {s.get("name"): s.get("state") or {} for s in found}
        out += [(c, states.get(c.get("name"), {})) for c in pod["spec"].get(kind) or [] if c.get("name") in CONTAINERS]
    return out


def current(pod: Object) -> tuple[Object, Object]:
    """The container whose turn it is, and its state; after the end of all that which ended last."""
    ours = containers(pod)
    return next((c for c in ours if c[1].get("terminated", {}).get("exitCode") != 0), ours[-1])


def state(pod: Object) -> Object:
    """The state of the container whose turn it is: one of waiting, running, terminated; empty where there is none
    yet."""
    return current(pod)[1]


def begun(pod: Object) -> dict[str, bool]:
    """The containers that have a log, and whether they have ended."""
    return {str(c["name"]): "terminated" in s for c, s in containers(pod) if {"running", "terminated"} & set(s)}


def said(pod: Object) -> bool:
    """Whether the container whose turn it is has begun."""
    return bool({"running", "terminated"} & set(state(pod)))


def ended(pod: Object) -> bool:
    return "terminated" in state(pod) or pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def clear(pod: Object) -> bool:
    """Whether it says how its container ended. One that is deleted may be called failed before its program ended."""
    return "terminated" in state(pod) and not taken(pod)


def deleted(pod: Object) -> bool:
    """Whether somebody deleted it, or the cluster did."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def taken(pod: Object) -> str:
    """Why the cluster took it away; empty where it did not."""
    status = pod.get("status", {})
    for condition in status.get("conditions") or []:
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"{condition.get('reason', 'disrupted')}: {condition.get('message', '')}".strip(": ")
    lost = state(pod).get("terminated", {}).get("reason") == "ContainerStatusUnknown"
    if status.get("reason") in TAKEN or str(status.get("reason", "")).startswith("OutOf") or lost:
        return f"{status.get('reason') or 'its node was lost'}: {status.get('message', '')}".strip(": ")
    return ""


def end_of(attempt: Attempt, pod: Object) -> End:
    """What the end of a pod means."""
    if why := taken(pod):
        fix = "run again; where it is its own use of disk or memory, ask for more below `resources:`"
        return End(EXIT_TEMPORARY, TemporaryError(f"the cluster took its pod away: {why}", fix=fix))
    found = state(pod).get("terminated")
    if found is None:
        status = pod.get("status", {})
        if status.get("phase") == "Succeeded":
            return End(0)
        text = ": ".join(t for t in (status.get("reason"), status.get("message")) if t)
        return End(EXIT_USER, UserError(f"its pod failed: {text or 'nobody says why'}", fix="see the stage's log"))
    if found.get("reason") in ("ContainerCannotRun", "StartError"):
        return End(EXIT_USER, _not_started(attempt, str(found.get("message", ""))))
    oom = found.get("reason") == "OOMKilled"
    code, why_ = verdict(attempt, {"ExitCode": found.get("exitCode", 0), "OOMKilled": oom})
    return End(code, why_)


def stuck(attempt: Attempt, pod: Object, seconds: float, detail: str) -> UserError | None:
    """Why a pod will never begin; None where it may. `seconds`: for how long it waits for this; `detail`: the most that
    was said of it."""
    waiting = state(pod).get("waiting") or {}
    reason, message = str(waiting.get("reason", "")), detail or str(waiting.get("message", ""))
    image = current(pod)[0]["image"]
    if reason == "InvalidImageName":
        fix = "check `images` and `registry` of the target"
        return UserError(f"{image!r} is no name of an image", where=attempt.stage, fix=fix)
    if reason == "ErrImageNeverPull":
        fix = "bring it to the nodes, or give the target another `pull_policy`"
        return UserError(f"the image {image} is not on the node, and is never pulled", where=attempt.stage, fix=fix)
    if reason in PULL and (FINAL.search(message) or seconds > HICCUP):
        fix = "push it where the cluster pulls it (docs/kubernetes.md); a private registry needs `pull_secrets`"
        return UserError(f"the cluster cannot pull {image}: {_short(message)}", where=attempt.stage, fix=fix)
    if reason == "CreateContainerConfigError":
        own = f'secret "{pod["metadata"]["labels"].get("job-name", "")}" not found' in message
        if not own or seconds > OWN_SECRET:
            fix = "check `secrets`, `user` and `volumes` of the target"
            return UserError(f"its container cannot be made: {_short(message)}", where=attempt.stage, fix=fix)
    if reason in ("CreateContainerError", "RunContainerError") and (PROGRAM.search(message) or seconds > HICCUP):
        return _not_started(attempt, message)
    return None


def unschedulable(pod: Object) -> str:
    """Why no node takes it now, as the scheduler says; empty where one has taken it."""
    for condition in pod.get("status", {}).get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "") if condition.get("reason") else ""
    return ""


def hopeless(pod: Object, message: str, nodes: Iterable[Object] | None) -> bool:
    """Whether no node of the cluster could ever take it, were it empty. `nodes`: None where they may not be seen; then
    only what the scheduler says counts, and a lack of room is taken to pass."""
    if nodes is None:
        return "Insufficient" not in message and "Too many pods" not in message
    spec = pod["spec"]
    wanted: dict[str, str] = {}
    for container, _ in containers(pod):  # one after the other: the most of each counts
        for name, amount in (container.get("resources", {}).get("requests") or {}).items():
            wanted[name] = max(wanted.get(name, "0"), amount, key=quantity)
    selector = spec.get("nodeSelector") or {}
    if "persistentvolumeclaim" in message.lower():
        return True
    return not any(_fits(node, wanted, selector, spec.get("tolerations") or []) for node in nodes)


def _fits(node: Object, wanted: Mapping[str, str], selector: Mapping[str, str], tolerations: list[Object]) -> bool:
    labels, room = node["metadata"].get("labels") or {}, node["status"].get("allocatable") or {}
    if any(labels.get(k) != v for k, v in selector.items()):
        return False
    for taint in node["spec"].get("taints") or []:
        if taint["effect"] == "PreferNoSchedule" or taint["key"].startswith("node.kubernetes.io/"):
            continue
        if not any(_tolerates(t, taint) for t in tolerations):
            return False
    return all(quantity(room.get(k, "0")) >= quantity(v) for k, v in wanted.items())


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return bool(toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", ""))


def quantity(text: object) -> float:
    """A quantity as Kubernetes writes it: `500m`, `16Gi`, `4`."""
    found = re.fullmatch(r"([0-9.]+(?:[eE][+-]?\d+)?)([a-zA-Z]*)", str(text))
    return float(found[1]) * _UNITS.get(found[2], 1.0) if found else 0.0


def _not_started(attempt: Attempt, message: str) -> UserError:
    if PROGRAM.search(message):
        fix = "check the image's entry point, or the `command` of its interface.json"
        return UserError(f"its image cannot start its program: {_short(message)}", where=attempt.stage, fix=fix)
    return UserError(f"its container cannot be started: {_short(message)}", where=attempt.stage, fix="see the log")


def _short(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= 300 else f"{text[:297]}…"
