"""What is submitted is what Kubernetes' own schemas allow, strictly, in every version that they are there for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner.executors import Attempt, Carried
from runner.executors.kubernetes import manifests
from runner.executors.kubernetes.manifests import Given
from runner.executors.kubernetes.options import OPTIONS
from runner.executors.secrets import Secret
from runner.retry import Retry
from runner.spec import Resources

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="MANIFESTS NOT TESTED: make install")
VERSIONS = sorted(set(kubernetes_validate.utils.all_versions()), key=lambda v: int(v.split(".")[1]))
SECRET = "very-secret-value"
EVERYTHING = {
    "context": "x", "namespace": "ml", "registry": "ghcr.io/team/microstages", "images": {"merge": "x/merge:1"},
    "flavor": "cuda", "pull_policy": "Always", "pull_secrets": ["regcred"],
    "secrets": ["MY_TOKEN", {"name": "OTHER", "secret": "there", "key": "key"}], "service_account": "trainer",
    "token": True, "node_selector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "gpu": "amd.com/gpu", "queue": "team", "priority_class": "high", "labels": {"team": "nlp"},
    "annotations": {"note": "any text"}, "user": 2000, "volumes": [{"path": "/data", "claim": "data"}], "patience": 5,
    "ttl": 60,
}  # fmt: skip


def attempt(**more) -> Attempt:
    return Attempt(
        "20261121T202527-0a1b2c3d", more.pop("stage", "adapter"), (), Path("/"), Path("/log"), Path("/events"),
        {"OMP_NUM_THREADS": "64", "CUDA_VISIBLE_DEVICES": "1"}, arguments=("--steps=3", "--template={x}: $(y)"),
        uses="train-lora", code="sha256:abc", **more,
    )  # fmt: skip


def check(manifest) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


GIVEN = Given("image:1", {"AWS_REGION": "eu"}, [Secret("MY_TOKEN", SECRET), Secret("KEY", SECRET, Path("/key"))],
              [("OTHER", "there", "key")])  # fmt: skip
CASES = {
    "plain": (attempt(), {}),
    "everything": (
        attempt(resources=Resources(2, 7.5, 48 << 30, 8 << 30), retry=Retry(4, on=frozenset({75, 143, "timeout"})),
                timeout=90.5, grace=120.0),
        EVERYTHING,
    ),
    "nodes": (attempt(resources=Resources(8, 16, 1 << 40, nodes=4), retry=Retry(3)), {}),
    "never again": (attempt(retry=Retry(1, on=frozenset())), {}),
    "a name that is none": (attempt(stage="a_very-long_name" * 4), {}),
    "a plain command": (
        attempt(carried=Carried('{"outputs": "$(x)"}', "merge", "sha256:abc"), resources=Resources(1, 2, 64 << 20)),
        EVERYTHING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_job_is_what_every_version_takes(case):
    job = manifests.job(*CASES[case], GIVEN)
    check(job)
    assert SECRET not in str(job)
    owner = {"metadata": {**job["metadata"], "uid": "1234"}}
    check(manifests.secret(owner, {"MY_TOKEN": b"x"}))
    check(manifests.service(job["metadata"]["name"], {}, owner))
    name = job["metadata"]["name"]
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) and len(name) + 2 <= 63
    for value in (*job["metadata"]["labels"].values(), *job["spec"]["template"]["metadata"]["labels"].values()):
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", value)


def test_a_schema_rejects_what_it_does_not_know():
    job = manifests.job(*CASES["plain"], GIVEN)
    job["spec"]["template"]["spec"]["nothing"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        check(job)


def test_every_option_says_something():
    """An option that changes nothing of the Job is one of those that are about the runner."""
    about_the_runner = {"context", "namespace", "patience", "registry", "images", "flavor"}
    assert set(EVERYTHING) == set(OPTIONS)
    base = attempt(resources=Resources(gpus=1))
    plain = manifests.job(base, {}, GIVEN)
    for name, value in EVERYTHING.items():
        changed = manifests.job(base, {name: value}, GIVEN)
        if name in about_the_runner or name == "secrets":  # those are in what it is given
            assert changed == plain, name
        else:
            assert changed != plain, name


def test_a_job_retries_what_the_pipeline_wants():
    def policy(retry: Retry):
        spec = manifests.job(attempt(retry=retry), {}, GIVEN)["spec"]
        rules = spec["podFailurePolicy"]["rules"]
        assert rules[0]["onPodConditions"][0]["type"] == "DisruptionTarget"
        return spec["backoffLimit"], [r["onExitCodes"] for r in rules[1:]]

    assert policy(Retry(3)) == (2, [{"operator": "NotIn", "values": [75]}])
    both = frozenset({143, 75, "timeout"})
    assert policy(Retry(2, on=both)) == (1, [{"operator": "NotIn", "values": [75, 143]}])
    assert policy(Retry(1)) == (0, [])


def test_several_nodes_find_each_other():
    job = manifests.job(*CASES["nodes"], GIVEN)
    name, spec = job["metadata"]["name"], job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
    assert (env["MASTER_ADDR"], env["MASTER_PORT"], env["MICROSTAGES_NODES"]) == (f"{name}-0.{name}", "29500", "4")
    assert pod["subdomain"] == name
    service = manifests.service(name, {}, {"metadata": {**job["metadata"], "uid": "1"}})
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}


def test_a_plain_command_is_fetched_for_and_published_behind_the_same_walls():
    """What opens stores is in the helpers alone; the helpers take no GPU, and memory enough for themselves."""
    orders = Carried('{"a": "$(x)"}', "merge", "sha256:abc")
    work = attempt(carried=orders, resources=Resources(gpus=1, cpus=2, memory=64 << 20))
    known = [Secret("STORE_KEY", SECRET), Secret("STORE_FILE", SECRET, Path("/key")), Secret("MINE", SECRET)]
    given = Given("image:1", {"STORE_REGION": "eu"}, known, [("THEIRS", "there", "key")], porter="merge:1",
                  access=frozenset({"STORE_KEY", "STORE_FILE", "STORE_REGION"}))  # fmt: skip
    spec = manifests.job(work, {}, given)["spec"]["template"]["spec"]
    [fetch, stage], [publish] = spec["initContainers"], spec["containers"]
    assert [c["name"] for c in (fetch, stage, publish)] == list(manifests.CONTAINERS)
    assert [c["image"] for c in (fetch, stage, publish)] == ["merge:1", "image:1", "merge:1"]
    assert fetch["args"] == publish["args"] == ['{"a": "$$(x)"}'] and "command" not in stage
    assert [c["command"][-1] for c in (fetch, publish)] == ["fetch", "publish"]
    assert fetch["securityContext"] == stage["securityContext"] == publish["securityContext"]
    seen = [{e["name"] for e in c["env"]} for c in (fetch, stage, publish)]
    assert seen[0] == seen[2] and {"STORE_KEY", "STORE_REGION", "MINE", "THEIRS"} <= seen[0]
    assert {"MINE", "THEIRS"} <= seen[1] and not any(name.startswith("STORE") for name in seen[1])
    mounts = [{m["mountPath"]: m for m in c["volumeMounts"]} for c in (fetch, stage)]
    assert "/run/secrets/STORE_FILE" in mounts[0] and "/run/secrets/STORE_FILE" not in mounts[1]
    assert mounts[1]["/cache"]["readOnly"] and "readOnly" not in mounts[0]["/cache"]
    assert "readOnly" not in mounts[1]["/outputs"]
    assert stage["resources"]["limits"] == {"cpu": "2000m", "memory": str(64 << 20), "nvidia.com/gpu": "1"}
    assert fetch["resources"]["limits"] == publish["resources"]["limits"] == {"cpu": "2000m", "memory": str(512 << 20)}


def test_the_program_of_a_folder_is_started_in_the_place_of_the_image_s_own():
    from dataclasses import replace

    work = replace(attempt(carried=Carried("{}", "merge", "x")), command=("sh", "/cache/code/run.sh"))
    stage = manifests.job(work, {}, GIVEN)["spec"]["template"]["spec"]["initContainers"][1]
    assert stage["command"] == ["sh", "/cache/code/run.sh"]


def test_the_same_attempt_has_the_same_name_and_another_one_another():
    first = manifests.job(*CASES["plain"], GIVEN)["metadata"]["name"]
    assert first == manifests.job(*CASES["plain"], GIVEN)["metadata"]["name"]
    names = {manifests.job_name(stage, "20261121T202527-0a1b2c3d") for stage in ("a_b", "a-b", "x" * 60, "x" * 61)}
    assert len(names) >= 3
    assert manifests.dns_name("A.b") != manifests.dns_name("a-b")
