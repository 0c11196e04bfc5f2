"""`runner export kubernetes`: manifests that people apply themselves, which the schemas allow and no secret is in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="EXPORT NOT TESTED: make install")
VERSIONS = sorted(set(kubernetes_validate.utils.all_versions()), key=lambda v: int(v.split(".")[1]))
PIPELINE = """\
name: demo
store: /shared/store
targets:
  cluster:
    type: kubernetes
    namespace: ml
    volumes: [{path: /shared, claim: work}]
    secrets: [MY_TOKEN, {name: OTHER, secret: there, key: key}]
target: cluster
stages:
  data:
    uses: prepare-data
    inputs: {source: FOLDER/rows.jsonl, model: FOLDER/tiny-phi3}
    params: {template: "{phrase}: $(HOME) {{x}} {tone}", completion: tone, max_length: 64}
  adapter:
    uses: train-lora
    inputs: {dataset: "${{ stages.data.dataset }}", base_model: FOLDER/tiny-phi3}
    resources: {gpus: 1, memory: 8GiB, cpus: 4}
    timeout: 1h
    retry: {attempts: 4, on: [75, 143]}
  merged:
    uses: merge
    inputs: {base_model: FOLDER/tiny-phi3, adapter: "${{ stages.adapter.adapter }}"}
"""


@pytest.fixture
def exported(tmp_path: Path) -> Any:
    """Export the pipeline; the process, and a mapping of file -> objects."""

    def run(text: str = PIPELINE, shared: bool = True, *more: str) -> tuple[Any, dict[str, list[dict[str, Any]]]]:
        (tmp_path / "shared").mkdir(exist_ok=True)
        for name in ("tones.jsonl", "tiny-phi3"):
            place = tmp_path / "shared" / name.replace("tones", "rows")
            if not place.exists():
                place.symlink_to(ROOT / "examples" / name)
        text = text.replace("FOLDER", str(tmp_path / "shared"))
        if shared:
            text = text.replace("/shared/store", f"{tmp_path}/shared/store").replace(
                "path: /shared", f"path: {tmp_path}/shared"
            )
        (tmp_path / "pipeline.yaml").write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "runner.cli", "export", "kubernetes", "-o", "out", *more], cwd=tmp_path, text=True,
            capture_output=True, check=False, stdin=subprocess.DEVNULL, env={**os.environ, "MY_TOKEN": "very-secret"},
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        files = sorted((tmp_path / "out").glob("*.yaml"))
        return done, {f.name: list(yaml.safe_load_all(f.read_text())) for f in files}

    return run


def test_a_job_for_each_stage_in_order_and_a_workflow(exported, tmp_path):
    done, files = exported()
    assert done.returncode == 0, done.stderr
    assert list(files) == ["01-data.yaml", "02-adapter.yaml", "03-merged.yaml", "workflow.yaml"]
    for objects in list(files.values())[:3]:
        for version in VERSIONS:
            kubernetes_validate.validate(objects[-1], version, strict=True)
    text = "".join(f.read_text() for f in (tmp_path / "out").iterdir())
    assert "very-secret" not in text
    assert "microstages-demo" in text


def test_a_stage_reads_where_the_one_before_it_writes(exported):
    _, files = exported()
    args = {
        n[3:-5]: o[-1]["spec"]["template"]["spec"]["containers"][0]["args"] for n, o in files.items() if n[0] == "0"
    }
    written = next(a.partition("=")[2] for a in args["data"] if a.startswith("--output="))
    assert f"--dataset={written}" in args["adapter"]
    assert "/exported/demo/" in written and written.endswith("/data/dataset")


def test_the_same_pipeline_has_the_same_places_and_another_one_others(exported):
    def place(text: str = PIPELINE) -> str:
        return next(a for a in exported(text)[1]["01-data.yaml"][0]["spec"]["template"]["spec"]["containers"][0]["args"]
                    if a.startswith("--output="))  # fmt: skip

    first = place()
    assert place() == first
    assert place(PIPELINE.replace("max_length: 64", "max_length: 65")) != first


def test_the_workflow_is_the_same_pods_in_order(exported):
    _, files = exported()
    [flow] = files["workflow.yaml"]
    main, *templates = flow["spec"]["templates"]
    tasks = {t["name"]: t.get("depends", "") for t in main["dag"]["tasks"]}
    assert tasks == {"data": "", "adapter": "data", "merged": "adapter"}
    for template in templates:
        pod = {k: v for k, v in template.items() if k not in ("name", "metadata", "container", "retryStrategy",
                                                              "activeDeadlineSeconds")}  # fmt: skip
        pod |= {"containers": [template["container"]]}
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": template["name"]}, "spec": pod}
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)
    adapter = templates[1]
    assert adapter["retryStrategy"]["limit"] == 3
    assert adapter["retryStrategy"]["expression"] == "asInt(lastRetry.exitCode) in [75, 143]"
    assert adapter["activeDeadlineSeconds"] == 3600
    assert adapter["container"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert not any("{{x}}" in a for a in templates[0]["container"]["args"])


def test_secrets_are_references(exported):
    _, files = exported()
    env = files["01-data.yaml"][0]["spec"]["template"]["spec"]["containers"][0]["env"]
    found = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in env if "valueFrom" in e}
    assert found["MY_TOKEN"] == {"name": "microstages-demo", "key": "MY_TOKEN"}
    assert found["OTHER"] == {"name": "there", "key": "key"}


def test_several_nodes_are_an_indexed_job_with_its_service(exported):
    _, files = exported(PIPELINE.replace("gpus: 1,", "gpus: 1, nodes: 2,"))
    service, job = files["02-adapter.yaml"]
    for one in (service, job):
        for version in VERSIONS:
            kubernetes_validate.validate(one, version, strict=True)
    assert job["spec"]["completionMode"] == "Indexed"
    assert service["metadata"]["name"] == job["metadata"]["name"]


def test_an_input_of_this_machine_must_be_pushed_first(exported, tmp_path):
    text = PIPELINE.replace("volumes: [{path: /shared, claim: work}]", "ttl: 1").replace(
        "/shared/store", "memory://s/x"
    )
    done, files = exported(text, False)
    assert done.returncode == 2 and not files
    assert "lies on this machine" in done.stderr
    assert f"runner push {tmp_path}" in done.stderr


def test_the_command_of_the_docs_writes_what_they_say(exported, tmp_path):
    exported()
    (command,) = re.findall(r"^runner (export kubernetes [^#\n]*)", (ROOT / "docs/kubernetes.md").read_text(), re.M)
    done = subprocess.run([sys.executable, "-m", "runner.cli", *command.split()], cwd=tmp_path, text=True, check=False,
                          capture_output=True, env={**os.environ, "MY_TOKEN": "very-secret"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "manifests").iterdir()) == [
        "01-data.yaml", "02-adapter.yaml", "03-merged.yaml", "workflow.yaml"
    ]  # fmt: skip
