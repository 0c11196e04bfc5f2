"""Plain commands as Jobs of a real cluster: what they read is fetched, they run, what they wrote is published, in one
pod each; and the bytes are those that processes make here."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ENGINE, without_engine
from foreign import Own, built, digests, fingerprints, stages
from k8s.cluster import Started, engine
from k8s.fixtures import tagged
from microstages.errors import UserError
from microstages.storage import read
from stores.servers import Store

from runner.executors.kubernetes.api import Cluster

ADDRESS = ENGINE or "unix:///var/run/docker.sock"
SECRET = "a value of mine"


@pytest.fixture(scope="module")
def image(cluster: Started) -> Iterator[str]:  # noqa: ARG001
    """The example stage as an image, beside the one that fetches and publishes."""
    try:
        with tagged(engine(ENGINE), ["merge"]), built(ADDRESS) as name:
            yield name
    except UserError as error:
        without_engine(error.what)


@pytest.fixture
def own(image: str, namespace: Cluster, pod_store: Store, tmp_path: Path) -> Own:  # noqa: ARG001
    """A project whose stages run on the cluster, but where it is said otherwise."""
    made = Own(tmp_path)
    made.environment |= {**pod_store.environment, "OWN_SECRET": SECRET, "DOCKER_HOST": ADDRESS}
    made.head = (
        f"store: {pod_store.uri()}\ntarget: cluster\ntargets:\n  cluster: {{type: kubernetes, namespace:"
        f" {namespace.namespace}, pull_policy: Never, secrets: [OWN_SECRET]}}\n"
    )
    return made


def nothing_left(namespace: Cluster) -> bool:
    return not namespace.listed("jobs", "app.kubernetes.io/managed-by=microstages")["items"]


def test_an_image_and_a_folder_make_what_they_make_here(own, image, pod_store, namespace, monkeypatch):
    """The example as an image; after it a folder whose program is brought with the bits that make it one."""
    own.stage("count", 'ls /cache/code >&2 || true; wc -l < "$rows/rows.jsonl" > "$out/lines"', inputs=("rows",))
    own.pipeline(
        f"  clean: {{uses: '{image}', inputs: {{rows: rows.jsonl}}}}\n"
        "  count: {uses: ./count, inputs: {rows: '${{ stages.clean.rows }}'}}\n"
    )
    there = own.up()
    assert {s["status"] for s in there.values()} == {"done"} and nothing_left(namespace)
    here = own.up("--target", "docker", "--set", "store=here")
    assert digests(here) == digests(there) and fingerprints(here) == fingerprints(there)
    assert there["clean"]["metrics"] == here["clean"]["metrics"] == {"rows": 4, "kept": 2}
    assert {s["status"] for s in own.up().values()} == {"reused"}
    pod_store.use(monkeypatch)
    made = json.loads(read(f"{there['count']['outputs']['out']['uri']}/artifact.json"))["provenance"]
    assert made["inputs"]["rows"]["digest"] == there["clean"]["outputs"]["rows"]["digest"]
    assert made["fingerprint"] == there["count"]["fingerprint"]
    assert made["started"] <= made["finished"] and made["hardware"]["cores"] > 0
    clean = own.run("logs", "clean").stdout
    assert clean.index("inputs are there") < clean.index('"kept": 2') < clean.index('"event": "artifact"')
    assert "run.sh\n" in own.run("logs", "count").stdout and "interface.json" in own.run("logs", "count").stdout


def test_the_command_sees_its_inputs_its_secrets_and_no_store(own):
    script = 'env >&2; id -u >&2; touch /cache/x "$rows" /x 2>&1 >&2 || true; cat "$rows" > "$out/$(basename "$rows")"'
    own.stage("look", script, inputs=("rows",))
    own.pipeline("  look: {uses: ./look, inputs: {rows: rows.jsonl}, resources: {cpus: 0.5, memory: 64MiB}}\n")
    own.up()
    log = own.run("logs", "look").stdout
    assert "OWN_SECRET=***" in log and SECRET not in log
    assert "AZURE_" not in log and "AccountKey" not in log
    assert "\n10001\n" in log and log.count("Read-only file system") == 3


def test_how_it_ends_is_told(own, namespace):
    error = '{"event": "error", "what": "the rows are odd", "fix": "make them even", "exit_code": 2}'
    own.stage("odd", f"echo '{error}'; exit 2")
    own.stage("nothing", "exit 0")
    own.stage("missing", "exit 0", command=["/no/such/program"])
    own.stage("big", "awk 'BEGIN { for (x = \"0123456789abcdef\"; ; ) x = x x }'")
    own.pipeline(
        "".join(f"  {name}: {{uses: ./{name}, retries: 0}}\n" for name in ("odd", "nothing", "missing"))
        + "  big: {uses: ./big, resources: {memory: 32MiB}}\n"
    )
    done = own.run("up", "--json", "--jobs", "4")
    assert done.returncode == 2
    made = stages(done.stdout)
    assert {s["status"] for s in made.values()} == {"failed"}
    for words in ("the rows are odd", "make them even", "wrote nothing", "/no/such/program", "its limit of 32 MiB"):
        assert words in done.stderr
    assert nothing_left(namespace)


def test_a_killed_runner_is_followed_by_one_that_takes_it_up(own, namespace, eventually):
    own.stage("slow", 'echo begun; sleep 12; echo \'{"event": "metric", "seen": 7}\'; echo x > "$out/x"')
    own.pipeline("  slow: {uses: ./slow}\n")
    first = subprocess.Popen(own.command("up"), cwd=own.folder, env=own.environment, stdout=subprocess.DEVNULL)
    eventually(lambda: any("begun" in log.read_text() for log in own.folder.glob(".runner/logs/*/slow.log")))
    first.send_signal(signal.SIGKILL)
    first.wait()
    pods = namespace.listed("pods", "microstages/stage=slow")["items"]
    made = own.up()["slow"]
    assert made["status"] in ("done", "reused") and made["metrics"] == {"seen": 7}
    assert [p["metadata"]["labels"]["microstages/attempt"] in made["outputs"]["out"]["uri"] for p in pods] == [True]
