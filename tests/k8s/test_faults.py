"""What can go wrong with a cluster, each for real: told in a line that says what to do, and nothing is left over."""

from __future__ import annotations

import json
import time

import pytest
import yaml
from microstages.errors import TemporaryError, UserError

from runner.executors.kubernetes import watch
from runner.executors.kubernetes.executor import KubernetesExecutor
from runner.spec import Resources


def test_an_image_that_is_not_there(bench, eventually):
    running = bench.begin("exit 0", image="127.0.0.1:9/nobody/nothing:1")
    ended = running.ended()
    assert ended.code == 2
    assert "cannot pull 127.0.0.1:9/nobody/nothing:1" in ended.status.why.what
    assert "pull_secrets" in ended.status.why.fix
    assert any("Failed" in line for line in ended.told)
    eventually(lambda: not bench.left(running.attempt))


def test_an_image_that_is_never_pulled(bench):
    ended = bench.run("exit 0", {"pull_policy": "Never"}, image="nobody/nothing:1")
    assert ended.code == 2
    assert "is not on the node, and is never pulled" in ended.status.why.what


def test_an_image_whose_name_is_none(bench):
    assert "is no name of an image" in bench.run("exit 0", image="Not An Image").status.why.what


def test_a_program_that_the_image_does_not_hold(bench):
    attempt = bench.attempt("")
    executor = bench.executor()
    attempt = attempt.__class__(**{**attempt.__dict__, "command": ("/no/such/program",)})
    executor.submit(attempt)
    while executor.poll(attempt).running:
        time.sleep(0.05)
    status = executor.poll(attempt)
    executor.forget(attempt)
    assert status.code == 2
    assert "its image cannot start its program" in status.why.what


def test_what_no_node_can_ever_take(bench):
    ended = bench.run("exit 0", {"patience": 1}, resources=Resources(cpus=5000))
    assert ended.code == 2
    assert "no node of the cluster can take it" in ended.status.why.what
    assert "Insufficient cpu" in ended.status.why.what
    assert any("FailedScheduling" in line for line in ended.told)


def test_a_gpu_where_there_is_none(bench):
    ended = bench.run("exit 0", {"patience": 1}, resources=Resources(gpus=1))
    assert "Insufficient nvidia.com/gpu" in ended.status.why.what


def test_a_node_selector_that_no_node_has(bench):
    ended = bench.run("exit 0", {"patience": 1, "node_selector": {"zone": "mars"}})
    assert "no node of the cluster can take it" in ended.status.why.what


def test_a_node_that_is_only_busy_is_waited_for(bench, eventually):
    from runner.executors.kubernetes.pods import quantity

    cores = max(quantity(n["status"]["allocatable"]["cpu"]) for n in bench.place.nodes())
    wanted = Resources(cpus=cores * 0.6)
    nodes = len(bench.place.nodes())
    first = [bench.begin("sleep 300", {"patience": 1}, resources=wanted, grace=1.0) for _ in range(nodes)]
    eventually(lambda: all(r.pod().get("status", {}).get("phase") == "Running" for r in first))
    second = bench.begin("echo at last", {"patience": 1}, resources=wanted)
    eventually(lambda: "FailedScheduling" in second.log())
    time.sleep(4)  # more than its patience
    assert second.executor.poll(second.attempt).running
    first[0].executor.cancel(first[0].attempt, now=True)
    assert second.ended().words == ["at last"]


def test_a_volume_that_is_not_there(bench):
    ended = bench.run("exit 0", {"patience": 1, "volumes": [{"path": "/data", "claim": "nothing"}]})
    assert ended.code == 2
    assert '"nothing" not found' in ended.status.why.what


def test_a_service_account_that_is_not_there(bench, cluster):
    if cluster.own or cluster.port:
        pytest.skip("this cluster does not check service accounts")
    assert "service account" in bench.run("exit 0", {"service_account": "nobody"}).status.why.what


def test_a_quota_that_is_used_up(bench):
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    bench.place.create("resourcequotas", quota)
    try:
        running = bench.begin("exit 0", {"patience": 0})
        ended = running.ended()
    finally:
        bench.place.delete("resourcequotas", "none")
    assert ended.code == 2
    assert "exceeded quota" in ended.status.why.what


def test_a_namespace_that_is_not_there(bench):
    error = bench.refused("exit 0", {"namespace": "nowhere"})
    assert "there is no namespace 'nowhere'" in error.what
    assert "kubectl create namespace nowhere" in error.fix


def test_what_the_cluster_refuses_is_told_in_its_words(bench):
    error = bench.refused("exit 0", {"labels": {"Not a label!": "x"}})
    assert "refused to create jobs" in error.what
    assert "Not a label!" in error.what


@pytest.fixture
def config(cluster, tmp_path, monkeypatch):
    """A kubeconfig of a test's own, which it may spoil."""

    def write(change):
        value = cluster.config
        change(value)
        file = tmp_path / "config"
        file.write_text(yaml.safe_dump(value))
        monkeypatch.setenv("KUBECONFIG", str(file))

    return write


def test_credentials_that_are_not_accepted(config):
    config(lambda c: c["users"][0].update(user={"token": "wrong"}))
    with pytest.raises(UserError, match="does not accept your credentials"):
        KubernetesExecutor({}).cluster.listed("jobs")


def test_a_user_who_may_not_create_jobs(bench, config):
    base = f"/api/v1/namespaces/{bench.place.namespace}/serviceaccounts/default/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = bench.place._call("POST", base, "create", body=request)["status"]["token"]
    config(lambda c: c["users"][0].update(user={"token": token}))
    error = bench.refused("exit 0")
    assert f"you may not create jobs in the namespace {bench.place.namespace}" in error.what
    assert "cannot create resource" in error.fix


def test_an_api_that_does_not_answer(config, bench):
    config(lambda c: c["clusters"][0]["cluster"].update(server="https://127.0.0.1:9"))
    error = bench.refused("exit 0")
    assert isinstance(error, TemporaryError)
    assert "the cluster does not answer" in error.what


@pytest.mark.usefixtures("namespace")
def test_a_context_that_is_not_there():
    with pytest.raises(UserError, match="there is no context 'nowhere'"):
        assert KubernetesExecutor({"context": "nowhere"}).address


def test_no_kubeconfig(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no kubeconfig"):
        assert KubernetesExecutor({}).address


@pytest.mark.parametrize("text", ["", "a: [", "[]", "kind: Config"])
def test_a_kubeconfig_that_is_none(monkeypatch, tmp_path, text):
    file = tmp_path / "config"
    file.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(UserError, match="kubeconfig"):
        assert KubernetesExecutor({}).address


def test_an_api_that_is_away_for_a_while_changes_nothing(bench, gate, eventually):
    running = bench.begin("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.5; done; exit 70")
    eventually(lambda: "2" in running.log().split())
    gate.down()
    time.sleep(3)
    gate.up()
    ended = running.ended()
    assert (ended.code, ended.words) == (70, [str(i) for i in range(1, 9)])


def test_an_api_that_stays_away_leaves_the_job_to_the_next_runner(bench, gate, eventually, monkeypatch):
    monkeypatch.setattr(watch, "AWAY", 2.0)
    script = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.5; done; exit 70"
    running = bench.begin(script)
    eventually(lambda: "2" in running.log().split())
    gate.down()
    ended = running.ended()
    assert ended.status.left and ended.code == 75
    assert "run again: what still runs in it is taken up" in ended.status.why.fix
    running.executor.forget(running.attempt, leave=True)
    gate.up()
    again = KubernetesExecutor()
    assert again.find(running.attempt, running.token)
    running.executor = again
    ended = running.ended()
    assert (ended.code, ended.words) == (70, [str(i) for i in range(1, 9)])
    again.forget(running.attempt)
    assert json.loads(running.token)["namespace"] == bench.place.namespace
