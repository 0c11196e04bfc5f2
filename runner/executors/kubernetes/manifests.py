"""What is submitted to a cluster: a Job for each attempt, with a Secret and a Service of its own where it needs them.

Pure functions of the attempt and the options of the target, so that what is submitted and what is exported is the same.
A pod is shut in: no root, no capabilities, a read-only root, no token of the cluster. It may write to `/tmp`, to its
cache, and to the volumes that the target names.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.credentials import FILES, hidden
from runner.executors import Attempt
from runner.executors.secrets import PLACE, Secret

Object = dict[str, Any]

OWN = "microstages"
ATTEMPT, STAGE, SECRETS = "microstages/attempt", "microstages/stage", "microstages/secrets"
MANAGED = "app.kubernetes.io/managed-by"
CONTAINERS = FETCH, STAGE_ITSELF, PUBLISH = ("fetch", "stage", "publish")  # in the order in which they run
USER = 10001
HELPER = 512 << 20  # bytes of memory that fetching and publishing may take
GPU, TTL = "nvidia.com/gpu", 86400
CACHE, OUTPUTS, PORT = "/cache", "/outputs", 29500
HOME = {"HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/.cache", "MICROSTAGES_CACHE": CACHE}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
INDEX = "batch.kubernetes.io/job-completion-index"
AS_THEY_ARE = {"node_selector": "nodeSelector", "tolerations": "tolerations", "priority_class": "priorityClassName",
               "service_account": "serviceAccountName"}  # fmt: skip
LONGEST = 52  # characters of a Job's name: its pods and their hosts add to it


@dataclass(frozen=True)
class Given:
    """What an attempt is given beside its arguments: the image, plain variables, and names of secrets.

    `secrets` are those of the caller, which lie in a Secret of the Job, or in the one that `kept` names; `stored` those
    of the target that lie in the cluster: (variable, Secret, key). `access` names those that open stores, which a plain
    command does not see; `porter` is the image of what fetches and publishes for it."""

    image: str
    plain: Mapping[str, str]
    secrets: Sequence[Secret] = ()
    stored: Sequence[tuple[str, str, str]] = ()
    kept: str = ""
    access: frozenset[str] = frozenset()
    porter: str = ""


def job_name(stage: str, attempt: str) -> str:
    """The name of an attempt's Job, always the same for the same attempt."""
    return dns_name(f"{OWN}-{stage}-{attempt}", LONGEST)


def dns_name(text: str, longest: int = 63) -> str:
    """A name as DNS has it; what had to be changed leaves a trace, so that two names never become one."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if name == text.lower().replace("_", "-") and len(name) <= longest:
        return name
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: longest - 9].rstrip('-')}-{mark}"


def label(text: str) -> str:
    """A text as the value of a label."""
    return text if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", text) else dns_name(text)


def as_is(words: Iterable[str]) -> list[str]:
    """Words of a command line as a pod needs them, which would put variables in the place of `$(NAME)`."""
    return [word.replace("$", "$$") for word in words]


def selector(attempt: str) -> str:
    """By which the Job of an attempt is found."""
    return f"{ATTEMPT}={label(attempt)}"


def job(attempt: Attempt, options: Mapping[str, Any], given: Given, name: str = "") -> Object:
    """The Job of an attempt."""
    name = name or job_name(attempt.stage, attempt.name)
    labels = {**(options.get("labels") or {}), **_labels(attempt)}
    notes = dict(options.get("annotations") or {})
    top = {**labels, "kueue.x-k8s.io/queue-name": str(options["queue"])} if options.get("queue") else labels
    nodes = attempt.resources.nodes
    spec: Object = {
        "backoffLimit": 0 if nodes > 1 else attempt.retry.attempts - 1,
        "ttlSecondsAfterFinished": int(options.get("ttl", TTL)),
        "podFailurePolicy": {"rules": _rules(attempt)},
        "template": {
            "metadata": {"labels": labels, **({"annotations": notes} if notes else {})},
            "spec": pod(attempt, options, given, name),
        },
    }
    if attempt.timeout:
        spec["activeDeadlineSeconds"] = math.ceil(attempt.timeout)
    if nodes > 1:
        spec |= {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
    if options.get("queue"):
        spec["suspend"] = True
    if given.secrets and not given.kept:
        notes[SECRETS] = " ".join(s.name for s in given.secrets)
    meta: Object = {"name": name, "labels": top}
    if notes:
        meta["annotations"] = notes
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}


def pod(attempt: Attempt, options: Mapping[str, Any], given: Given, name: str) -> Object:
    """The pod of a Job of that name."""
    user = int(options.get("user", USER))
    volumes, mounts = _volumes(attempt, options, given, name)
    container = _container(attempt, options, given, name, mounts)
    spec: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": bool(options.get("token", False)),
        "enableServiceLinks": False,
        "shareProcessNamespace": True,  # the stage is not process 1, which would be deaf to SIGTERM
        "terminationGracePeriodSeconds": max(1, math.ceil(attempt.grace)),
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }  # fmt: skip
    if attempt.carried:  # one after the other: what it reads is fetched, it runs, what it wrote is published
        first, last = (_helper(container, word, attempt.carried.orders, given) for word in (FETCH, PUBLISH))
        spec |= {"initContainers": [first, _plain(container, given)], "containers": [last]}
    if attempt.resources.nodes > 1:
        spec["subdomain"] = name
    for option, key in AS_THEY_ARE.items():
        if options.get(option):
            spec[key] = options[option]
    if options.get("pull_secrets"):
        spec["imagePullSecrets"] = [{"name": n} for n in options["pull_secrets"]]
    return spec


def _container(
    attempt: Attempt, options: Mapping[str, Any], given: Given, name: str, mounts: list[Object]
) -> Object:  # fmt: skip
    """The container of the stage itself."""
    container: Object = {
        "name": STAGE_ITSELF,
        "image": given.image,
        "imagePullPolicy": options.get("pull_policy") or "IfNotPresent",
        "args": as_is(attempt.arguments),
        "env": environment(attempt, given, name),
        "resources": _resources(attempt, options),
        "securityContext": {
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "privileged": False,
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }  # fmt: skip
    if attempt.command and (attempt.carried or not attempt.uses):  # a program that the image has beside its own
        container["command"] = as_is(attempt.command)
    return container


def _plain(stage: Object, given: Given) -> Object:
    """The container of a plain command. It sees what was fetched, and a place to write; it does not see the stores."""
    mounts: list[Object] = [
        {**m, "readOnly": True} if m["mountPath"] == CACHE else m
        for m in stage["volumeMounts"]
        if m.get("subPath") not in given.access
    ]
    mounts.append({"name": "cache", "mountPath": OUTPUTS, "subPath": OUTPUTS.strip("/")})
    env = [e for e in stage["env"] if e["name"] not in (*given.access, "MICROSTAGES_CACHE")]
    return {**stage, "env": env, "volumeMounts": mounts}


def _helper(stage: Object, word: str, orders: str, given: Given) -> Object:
    """What runs before a plain command, or after it, behind the same walls. It takes no more than the command, but the
    memory that it needs itself."""
    amounts = {k: v for k, v in stage["resources"].get("limits", {}).items() if k in ("cpu", "memory")}
    if "memory" in amounts:
        amounts["memory"] = str(max(HELPER, int(amounts["memory"])))
    return {
        **stage,
        "name": word,
        "image": given.porter,
        "command": ["python3", "-m", "microstages.porter", word],
        "args": as_is([orders]),
        "resources": {"requests": dict(amounts), "limits": amounts} if amounts else {},
    }


def environment(attempt: Attempt, given: Given, name: str) -> list[Object]:
    """The variables of a pod, in the order of their names; what is secret as a reference."""
    values = {**HOME, **{k: v for k, v in attempt.environment.items() if k not in (*THREADS, "CUDA_VISIBLE_DEVICES")}}
    if attempt.resources.cpus:
        values |= dict.fromkeys(THREADS, str(max(1, math.floor(attempt.resources.cpus))))
    if not attempt.resources.gpus:
        values["NVIDIA_VISIBLE_DEVICES"] = "void"  # images made on CUDA's say "all"
    values |= {**given.plain, "MICROSTAGES_ATTEMPT": attempt.name, "MICROSTAGES_IMAGE": given.image}
    nodes = attempt.resources.nodes
    if nodes > 1:
        values |= {"MASTER_ADDR": f"{name}-0.{name}", "MASTER_PORT": str(PORT), "MICROSTAGES_NODES": str(nodes)}
    out: list[Object] = [{"name": k, "value": as_is([v])[0]} for k, v in values.items()]
    refs = [(s.name, given.kept or name, s.name) for s in given.secrets if s.file is None]
    for variable, secret, key in (*refs, *given.stored):
        out = [e for e in out if e["name"] != variable]
        out.append({"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    if nodes > 1:
        field = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
        out.append({"name": "MICROSTAGES_NODE_RANK", "valueFrom": field})
    return sorted(out, key=lambda e: str(e["name"]))


def secret(owner: Object, values: Mapping[str, bytes]) -> Object:
    """The Secret of a Job that was created: it goes with it."""
    data = {name: base64.b64encode(value).decode() for name, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": _owned(owner), "type": "Opaque", "immutable": True,
            "data": data}  # fmt: skip


def service(name: str, labels: Mapping[str, str], owner: Object | None = None) -> Object:
    """The Service by which the pods of a Job of several nodes find the first one."""
    spec: Object = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": name},
                    "ports": [{"name": "rendezvous", "port": PORT}]}  # fmt: skip
    meta = _owned(owner) if owner else {"name": name, "labels": dict(labels)}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def revealed(found: Object) -> list[str]:
    """The values of a Job's Secret, as no log may show them."""
    values = {k: base64.b64decode(v).decode(errors="replace") for k, v in (found.get("data") or {}).items()}
    return [hidden(k, v) if k in FILES else v for k, v in values.items()]


def stored(wanted: Iterable[Any]) -> list[tuple[str, str, str]]:
    """Of a target's `secrets` those that lie in the cluster."""
    return [(str(e["name"]), str(e["secret"]), str(e["key"])) for e in wanted if not isinstance(e, str)]


def _labels(attempt: Attempt) -> dict[str, str]:
    return {
        MANAGED: OWN, "app.kubernetes.io/name": OWN, "app.kubernetes.io/component": label(attempt.uses or "command"),
        ATTEMPT: label(attempt.name), STAGE: label(attempt.stage),
    }  # fmt: skip


def _owned(owner: Object) -> Object:
    meta = owner["metadata"]
    labels = {k: v for k, v in meta["labels"].items() if not k.startswith("kueue")}
    ref = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"],
           "blockOwnerDeletion": False, "controller": True}  # fmt: skip
    return {"name": meta["name"], "labels": labels, "ownerReferences": [ref]}


def _rules(attempt: Attempt) -> list[Object]:
    """A pod that the cluster took away is no failure; an end that is final ends the Job at once."""
    rules: list[Object] = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    ]  # fmt: skip
    codes = sorted(code for code in attempt.retry.on if isinstance(code, int) and code)
    if codes and attempt.retry.attempts > 1:
        final = {"operator": "NotIn", "values": codes}
        rules.append({"action": "FailJob", "onExitCodes": final, "onPodConditions": []})  # [] for kubectl 1.25 alone
    return rules


def _resources(attempt: Attempt, options: Mapping[str, Any]) -> Object:
    """What is asked for is also the limit."""
    wanted = attempt.resources
    amounts: dict[str, str] = {}
    if wanted.cpus:
        amounts["cpu"] = f"{math.ceil(wanted.cpus * 1000)}m"
    if wanted.memory:
        amounts["memory"] = str(wanted.memory)
    limits = {**amounts, **({str(options.get("gpu") or GPU): str(wanted.gpus)} if wanted.gpus else {})}
    return {"requests": dict(limits), "limits": limits} if limits else {}


def _volumes(
    attempt: Attempt, options: Mapping[str, Any], given: Given, name: str
) -> tuple[list[Object], list[Object]]:
    """The volumes of a pod, and where its container has them."""
    found: list[tuple[str, str, Object]] = [("tmp", "/tmp", {"emptyDir": {}}), ("cache", CACHE, {"emptyDir": {}})]
    if attempt.resources.shm:
        found.append(("shm", "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": str(attempt.resources.shm)}}))
    for place, entry in enumerate(options.get("volumes") or []):
        claim = {"persistentVolumeClaim": {"claimName": entry["claim"]}}
        found.append((f"volume-{place}", entry["path"], claim))
    volumes = [{"name": n, **source} for n, _, source in found]
    mounts: list[Object] = [{"name": n, "mountPath": path} for n, path, _ in found]
    files = [s for s in given.secrets if s.file is not None]
    if files:
        items = [{"key": s.name, "path": s.name} for s in files]
        volumes.append(
            {"name": "secrets", "secret": {"secretName": given.kept or name, "items": items, "defaultMode": 0o440}}
        )
        # One by one: a token of the cluster appears in the same folder.
        mounts += [
            {"name": "secrets", "mountPath": f"{PLACE}/{s.name}", "subPath": s.name, "readOnly": True} for s in files
        ]
    return volumes, mounts
