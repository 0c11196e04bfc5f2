"""The example pipeline, stage by stage as jobs of Azure ML: the same bytes as on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from azureml.server import Azure

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def place(specs, engine, azurite, tmp_path):
    """The example pipeline with a target `aml`, and the environment to run it in."""
    azurite.start()
    with Azure(specs, engine) as azure:
        azure.vault["store"] = azurite.environment["AZURE_STORAGE_CONNECTION_STRING"]
        spec = yaml.safe_load((ROOT / "pipeline.yaml").read_text())
        secret = {"name": "AZURE_STORAGE_CONNECTION_STRING", "vault": azure.url, "secret": "store"}
        spec["targets"] = {"aml": {"type": "azureml", **azure.options, "identity": "managed", "secrets": [secret]}}
        spec["params"] |= {k: str(ROOT / spec["params"][k]) for k in ("base_model", "data")}
        spec["stages"]["adapter"]["params"]["epochs"] = 1
        (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(spec))
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("AZURE", "IDENTITY", "MSI"))}
        environment |= {**azurite.environment, **azure.environment, "MICROSTAGES_CACHE": str(tmp_path / "cache")}

        def run(*args):
            command = [sys.executable, "-m", "runner.cli", "up", "--json", *args]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=900
            )
            assert done.returncode == 0, done.stderr
            return {s["stage"]: s for s in json.loads(done.stdout)["stages"]}, done.stderr

        yield azure, run
        assert not azure.violations


def digests(stages):
    return {(name, output): v["digest"] for name, s in stages.items() for output, v in s["outputs"].items()}


def test_the_example_runs_through_it_with_the_same_digests(place, azurite):
    azure, run = place
    store = azurite.uri("store")
    there, said = run("--set", f"store={store}", "--target", "aml")
    assert {s["status"] for s in there.values()} == {"done"}
    assert len(azure.jobs) == len(there)
    assert {job.status for job in azure.jobs.values()} == {"Completed"}
    assert "Azure ML: " in said or "adapter" in said
    here, _ = run("--set", "store=here", "--target", "process")
    assert digests(there) == digests(here)
    again, _ = run("--set", f"store={store}", "--target", "process")
    assert {s["status"] for s in again.values()} == {"reused"}
    key = "AccountKey=" + azure.vault["store"].partition("AccountKey=")[2].partition(";")[0]
    for request in azure.requests:
        assert key not in f"{request.path} {request.headers} {request.body.decode(errors='replace')}"
