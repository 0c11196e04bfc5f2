"""What a pod sees and may do, as it really is: its walls, its secrets, its shares."""

from __future__ import annotations

import pytest

from runner.executors.kubernetes.executor import KubernetesExecutor
from runner.spec import Resources

VALUE = "s3cret-välue/with=signs"


def test_it_is_shut_in(bench):
    ended = bench.run(
        "id -u; id -g; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; touch /x 2>&1; touch /opt/x 2>&1;"
        "touch /tmp/x /cache/x && echo scratch; ls /var/run/secrets 2>&1; env"
    )
    words = "\n".join(ended.words)
    assert ended.words[:2] == ["10001", "10001"]
    assert "CapEff:\t0000000000000000" in words
    assert "NoNewPrivs:\t1" in words
    assert words.count("Read-only file system") == 2
    assert "scratch" in ended.words
    assert "kubernetes.io" not in words
    assert "NVIDIA_VISIBLE_DEVICES=void" in ended.words
    assert "HOME=/tmp" in ended.words


def test_its_manifest_says_so(bench, eventually):
    running = bench.begin("sleep 300", grace=1.0)
    spec = eventually(running.pod)["spec"]
    assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = spec["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert running.pod()["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "microstages"


def test_shares_are_kept(bench, eventually):
    wanted = Resources(cpus=1.5, memory=256 << 20, shm=32 << 20)
    running = bench.begin('echo $OMP_NUM_THREADS; stat -f -c "%b %S" /dev/shm; sleep 2', resources=wanted)
    [container] = eventually(running.pod)["spec"]["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"] == {"cpu": "1500m", "memory": str(256 << 20)}
    threads, room = running.ended().words
    blocks, size = room.split()
    assert threads == "1"
    assert int(blocks) * int(size) >= 32 << 20


@pytest.mark.parametrize("word", ["$HOME", "$(HOME)", "$$(HOME)", "a$$b", "%s {x} 'q' \"d\"", "é"])
def test_arguments_arrive_as_they_are(bench, word):
    attempt = bench.attempt("")
    attempt = attempt.__class__(**{**attempt.__dict__, "command": ("printf", "%s\\n"), "arguments": (word,)})
    executor = bench.executor()
    executor.submit(attempt)
    bench.running.append((executor, attempt))
    while executor.poll(attempt).running:
        pass
    assert attempt.log.read_text().splitlines()[-1] == word


def test_a_secret_of_the_caller_is_seen_hidden_and_gone(bench, monkeypatch, eventually):
    monkeypatch.setenv("MY_TOKEN", VALUE)
    script = 'echo "it is $MY_TOKEN"; test "${#MY_TOKEN}" -gt 20 && echo whole; sleep 1'
    running = bench.begin(script, {"secrets": ["MY_TOKEN"]})
    owned = bench.place.get("secrets", running.job)
    assert owned["metadata"]["ownerReferences"][0]["name"] == running.job
    job = bench.place.get("jobs", running.job)
    assert VALUE not in str(job)
    ended = running.ended()
    assert ended.words == ["it is ***", "whole"]
    eventually(lambda: not bench.left(running.attempt))


def test_a_secret_stays_hidden_for_the_next_runner(bench, monkeypatch, eventually):
    monkeypatch.setenv("MY_TOKEN", VALUE)
    running = bench.begin('echo one; sleep 3; echo "it is $MY_TOKEN"', {"secrets": ["MY_TOKEN"]})
    eventually(lambda: "one" in running.log())
    running.executor.forget(running.attempt, leave=True)
    monkeypatch.delenv("MY_TOKEN")
    running.executor = KubernetesExecutor()
    assert running.executor.find(running.attempt, running.token)
    assert running.ended().words == ["one", "it is ***"]


def test_a_secret_of_the_cluster(bench):
    body = {"metadata": {"name": "there"}, "stringData": {"key": "from-the-cluster"}}
    bench.place.create("secrets", body)
    stored = [{"name": "MY_TOKEN", "secret": "there", "key": "key"}]
    try:
        assert bench.run("echo $MY_TOKEN", {"secrets": stored}).words == ["from-the-cluster"]
        ended = bench.run("exit 0", {"secrets": [{**stored[0], "key": "other"}]})
    finally:
        bench.place.delete("secrets", "there")
    assert ended.code == 2
    assert "its container cannot be made" in ended.status.why.what


def test_a_secret_that_is_not_set_is_told_before_anything_is_made(bench, monkeypatch):
    monkeypatch.delenv("MY_TOKEN", raising=False)
    assert bench.refused("exit 0", {"secrets": ["MY_TOKEN"]}).what == "the secret MY_TOKEN is not set"


def test_credentials_of_a_store_are_given_as_variables_and_files(bench, monkeypatch, tmp_path):
    key = tmp_path / "key.json"
    key.write_text('{"private_key": "very-private-key", "client_email": "me@x"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "mine")
    script = 'echo $GOOGLE_CLOUD_PROJECT $GOOGLE_APPLICATION_CREDENTIALS; cat "$GOOGLE_APPLICATION_CREDENTIALS"'
    ended = bench.run(f"{script}; echo", remote=("gs://bucket/x",))
    place = "/run/secrets/GOOGLE_APPLICATION_CREDENTIALS"
    assert ended.words == [f"mine {place}", '{"private_key": "***", "client_email": "me@x"}']


def test_a_job_whose_secret_never_came_is_removed(bench, monkeypatch, eventually):
    monkeypatch.setenv("MY_TOKEN", VALUE)
    running = bench.begin("sleep 300", {"secrets": ["MY_TOKEN"]}, grace=1.0)
    running.executor.forget(running.attempt, leave=True)
    bench.place.delete("secrets", running.job)
    assert not KubernetesExecutor().find(running.attempt, running.token)
    eventually(running.gone)


def test_a_job_that_was_submitted_already_is_taken_up(bench):
    attempt, executor = bench.attempt("echo once"), bench.executor()
    token = executor.submit(attempt)
    executor.forget(attempt, leave=True)
    again = bench.executor()
    assert again.submit(attempt) == token
    bench.running.append((again, attempt))
    while again.poll(attempt).running:
        pass
    assert again.poll(attempt).code == 0
    assert [line for line in attempt.log.read_text().splitlines() if line == "once"] == ["once"]
