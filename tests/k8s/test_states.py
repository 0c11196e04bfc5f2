"""What the states of pods mean that a cluster of this machine cannot be brought into: lost nodes, evictions, taints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from microstages.errors import TemporaryError

from runner.executors import Attempt
from runner.executors.kubernetes import pods
from runner.executors.kubernetes.api import explained

ATTEMPT = Attempt("a", "work", (), Path("/"), Path("/none"), Path("/none"))


def pod(status: dict[str, Any], **spec: Any) -> dict[str, Any]:
    container = {"name": "stage", "image": "x:1", "resources": {"requests": {"cpu": "500m", "nvidia.com/gpu": "1"}}}
    meta = {"name": "p", "uid": "1", "labels": {"job-name": "job"}}
    return {"metadata": meta, "spec": {"containers": [container], **spec}, "status": status}


def node(cpu: str = "4", gpus: str = "1", taints: list[Any] | None = None, **labels: str) -> dict[str, Any]:
    room = {"cpu": cpu, "nvidia.com/gpu": gpus}
    return {"metadata": {"labels": labels}, "spec": {"taints": taints or []}, "status": {"allocatable": room}}


def test_an_evicted_pod_is_told_with_its_reason():
    end = pods.end_of(ATTEMPT, pod({"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}))
    assert end.code == 75 and isinstance(end.why, TemporaryError)
    assert "Evicted: The node was low on memory." in end.why.what


def test_a_pod_that_was_disrupted_did_not_fail_by_itself():
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "drained"}
    gone = pod({"phase": "Failed", "conditions": [condition],
                "containerStatuses": [{"name": "stage", "state": {"terminated": {"exitCode": 143}}}]})  # fmt: skip
    assert pods.taken(gone) == "DeletionByTaintManager: drained"
    unknown = {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}}
    assert "its node was lost" in pods.taken(
        pod({"phase": "Failed", "containerStatuses": [{"name": "stage", "state": unknown}]})
    )


BUSY = "0/1 nodes are available: 1 Insufficient cpu."
TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("nodes", "spec", "hopeless"),
    [
        ([node()], {}, False),
        ([node(cpu="400m")], {}, True),
        ([node(gpus="0")], {}, True),
        ([node(cpu="400m"), node()], {}, False),
        ([node(pool="a")], {"nodeSelector": {"pool": "b"}}, True),
        ([node(taints=[TAINT])], {}, True),
        ([node(taints=[TAINT])], {"tolerations": [{"key": "gpu", "operator": "Exists"}]}, False),
        ([node(taints=[TAINT])], {"tolerations": [{"key": "gpu", "value": "yes"}]}, False),
        ([node(taints=[TAINT])], {"tolerations": [{"key": "gpu", "value": "no"}]}, True),
        ([node(taints=[{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])], {}, False),
        ([], {}, True),
        (None, {}, False),
    ],
)
def test_whether_any_node_could_take_it(nodes, spec, hopeless):
    assert pods.hopeless(pod({}, **spec), BUSY, nodes) == hopeless


def test_what_the_scheduler_says_counts_where_nodes_are_not_seen():
    assert pods.hopeless(pod({}), "0/3 nodes are available: 3 node(s) didn't match node selector.", None)
    assert pods.hopeless(pod({}), 'persistentvolumeclaim "x" not found', [node()])


@pytest.mark.parametrize(
    ("text", "number"), [("500m", 0.5), ("4", 4), ("16Gi", 16 * 2**30), ("1e3", 1000), ("2k", 2000), ("?", 0)]
)
def test_quantities(text, number):
    assert pods.quantity(text) == number


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return pod({"containerStatuses": [{"name": "stage", "state": {"waiting": {"reason": reason, "message": message}}}]})


@pytest.mark.parametrize(
    ("reason", "message", "seconds", "stuck"),
    [
        ("ErrImagePull", "manifest unknown", 0, True),
        ("ErrImagePull", "i/o timeout", 0, False),
        ("ErrImagePull", "i/o timeout", 20, True),
        ("ContainerCreating", "", 1000, False),
        ("CreateContainerConfigError", 'secret "job" not found', 1, False),
        ("CreateContainerConfigError", 'secret "job" not found', 60, True),
        ("CreateContainerConfigError", 'secret "other" not found', 0, True),
        ("RunContainerError", "exec: executable file not found in $PATH", 0, True),
    ],
)
def test_when_a_pod_will_never_begin(reason, message, seconds, stuck):
    assert (pods.stuck(ATTEMPT, waiting(reason, message), seconds, message) is not None) == stuck


DONE, FAILED = {"terminated": {"exitCode": 0}}, {"terminated": {"exitCode": 3}}
RUNS, WAITS = {"running": {}}, {"waiting": {"reason": "PodInitializing"}}


def three(*states: Any) -> dict[str, Any]:
    """The pod of a plain command, by the states of its containers in their order; a mesh has put one of its own in
    each list."""

    def statuses(found: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"name": name, "state": state} for name, state in sorted(found.items())]

    names = ("fetch", "stage", "publish")
    made = dict(zip(names, states, strict=True))
    status = {
        "initContainerStatuses": statuses({"a-mesh": DONE, "fetch": made["fetch"], "stage": made["stage"]}),
        "containerStatuses": statuses({"mesh": RUNS, "publish": made["publish"]}),
    }
    containers = [{"name": n, "image": f"{n}:1", "resources": {"requests": {"memory": f"{i}Gi"}}}
                  for i, n in enumerate(("mesh", *names))]  # fmt: skip
    spec = {"initContainers": containers[1:3], "containers": [containers[0], containers[3]]}
    return pod(status, **spec)


@pytest.mark.parametrize(
    ("states", "turn", "said", "ended", "begun"),
    [
        ((WAITS, WAITS, WAITS), "fetch", False, False, {}),
        ((RUNS, WAITS, WAITS), "fetch", True, False, {"fetch": False}),
        ((FAILED, WAITS, WAITS), "fetch", True, True, {"fetch": True}),
        ((DONE, WAITS, WAITS), "stage", False, False, {"fetch": True}),
        ((DONE, RUNS, WAITS), "stage", True, False, {"fetch": True, "stage": False}),
        ((DONE, FAILED, WAITS), "stage", True, True, {"fetch": True, "stage": True}),
        ((DONE, DONE, RUNS), "publish", True, False, {"fetch": True, "stage": True, "publish": False}),
        ((DONE, DONE, FAILED), "publish", True, True, {"fetch": True, "stage": True, "publish": True}),
        ((DONE, DONE, DONE), "publish", True, True, {"fetch": True, "stage": True, "publish": True}),
    ],
)
def test_whose_turn_it_is_in_the_pod_of_a_plain_command(states, turn, said, ended, begun):
    found = three(*states)
    assert pods.current(found)[0]["name"] == turn
    assert (pods.said(found), pods.ended(found), pods.begun(found)) == (said, ended, begun)
    if ended:
        assert pods.end_of(ATTEMPT, found).code == (3 if FAILED in states else 0)


def test_what_a_pod_wants_is_the_most_that_one_of_its_containers_wants():
    big = {"metadata": {"labels": {}}, "spec": {}, "status": {"allocatable": {"memory": "3Gi"}}}
    small = {"metadata": {"labels": {}}, "spec": {}, "status": {"allocatable": {"memory": "2Gi"}}}
    found = three(WAITS, WAITS, WAITS)
    assert (pods.hopeless(found, BUSY, [big]), pods.hopeless(found, BUSY, [small])) == (False, True)


def test_the_image_that_is_told_is_the_one_that_is_not_there():
    why = pods.stuck(ATTEMPT, three(DONE, {"waiting": {"reason": "ErrImageNeverPull"}}, WAITS), 0, "")
    assert why is not None and "stage:1" in why.what


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_api_may_be_asked_again(status):
    assert isinstance(explained(status, b'{"message": "later"}', "create jobs", "ml"), TemporaryError)
