"""Configs of Olive for Azure ML, imported and run to the end through the stand-in: data in a datastore, jobs on a
compute, a token from the Key Vault, results in the workspace's own datastore; once with the model of a registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from azureml.life import GROUP, NAME, SUBSCRIPTION
from microstages import storage
from microstages.remote import azureml
from olive.samples import parts
from stores.servers import ACCOUNT, HOST, KEY

from runner.olive import import_config

ROOT = Path(__file__).parent.parent.parent
OWN = {"subscription_id": SUBSCRIPTION, "resource_group": GROUP, "workspace_name": NAME}


@pytest.fixture
def datastore(azure, azurite, monkeypatch):
    """The workspace's own datastore, on Azurite."""
    azurite.start()
    container = azurite.uri("workspace").split("/")[2]
    azure.things["/datastores/workspaceblobstore"] = {
        "properties": {
            "datastoreType": "AzureBlob", "accountName": ACCOUNT, "containerName": container,
            "endpoint": "core.windows.net", "credentials": {"credentialsType": "None"},
        }
    }  # fmt: skip
    for name, value in azurite.environment.items():
        monkeypatch.setenv(name, value)
    azureml.forget()
    yield f"abfs://{container}"
    azureml.forget()


@pytest.fixture
def registry(azure, azurite, datastore):
    """The example model as a registry has models: in MLflow's format, signed for whoever asks. Its address."""
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    base = f"{datastore}/registry/phi"
    storage.replace(f"{base}/mlflow_model_folder/MLmodel", b"flavors: {}")
    for file in (ROOT / "examples/tiny-phi3").iterdir():
        storage.replace(f"{base}/mlflow_model_folder/data/model/{file.name}", file.read_bytes())
    container = datastore.removeprefix("abfs://")
    blob = f"http://{HOST}:{azurite.port}/{ACCOUNT}/{container}/registry/phi"
    now = datetime.now(UTC)
    read = ContainerSasPermissions(read=True, list=True)
    sas = generate_container_sas(ACCOUNT, container, account_key=KEY, permission=read, start=now - timedelta(days=1),
                                 expiry=now + timedelta(hours=2))  # fmt: skip
    home = "/mferp/managementfrontend/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices"
    home += "/registries/azureml-msr"
    azure.things["/registrymanagement/v1.0/registries/azureml-msr/discovery"] = {
        "subscriptionId": "s", "resourceGroup": "g", "primaryRegionResourceProviderUri": f"{azure.url}/",
    }  # fmt: skip
    model = "Phi-3-mini-4k-instruct/versions/11"
    azure.things[f"{home}/models/{model}"] = {"properties": {"modelUri": blob}}
    credential = {"credentialType": "SAS", "sasUri": f"{blob}?{sas}"}
    azure.posts[f"{home}/datarefs/{model}"] = lambda _: {
        "blobReferenceForConsumption": {"blobUri": blob, "credential": credential}
    }
    return f"azureml://registries/azureml-msr/models/{model}"


def from_the_registry() -> dict:
    """The page's input_model that names a model of a registry."""
    found = [p for p in parts().values() if "azureml_registry_model" in json.dumps(p)]
    if not found:
        pytest.skip("OLIVE'S PAGES NOT TESTED: they are not there")
    return found[0]["input_model"]


def config(shared: Path, name: str, folder: Path, vault: str) -> Path:
    """A config as the pages have it, its placeholders filled in."""
    file = shared / "olive" / name
    if not file.is_file():
        pytest.skip(f"OLIVE'S CONFIGS NOT TESTED: {file} is not there")
    value = json.loads(file.read_text())
    value["azureml_client"] |= {**OWN, "keyvault_name": vault}
    files = value["data_configs"][0]["load_dataset_config"]["params"]["data_files"]["config"]
    files["azureml_client"], files["relative_path"] = OWN, "train/rows.json"
    for system in value["systems"].values():
        system["config"]["aml_compute"] = "gpu-cluster"
    (folder / name).write_text(json.dumps(value))
    return folder / name


@pytest.mark.parametrize(("name", "registered"), [("e2e-lora-aml.json", False), ("e2e-qlora-aml.json", True)])
def test_a_config_of_the_pages_runs_to_the_end(
    azure, azurite, datastore, registry, shared, tmp_path, monkeypatch, name, registered
):
    rows = [json.loads(line) for line in (ROOT / "examples/tones.jsonl").read_text().splitlines()[:80]]
    text = "".join(json.dumps({"Question": r["phrase"], "Best Answer": r["tone"]}) + "\n" for r in rows)
    storage.replace(f"{datastore}/train/rows.json", text.encode())
    azure.vault["hf-token"] = "a-token-of-the-hub"
    file = tmp_path / "pipeline.yaml"
    given = config(shared, name, tmp_path, azure.url)
    if registered:
        given.write_text(json.dumps({**json.loads(given.read_text()), "input_model": from_the_registry()}))
    import_config(given, file)
    pipeline = yaml.safe_load(file.read_text())
    assert pipeline["store"].startswith(f"azureml://subscriptions/{SUBSCRIPTION}/")
    assert pipeline["target"] == "aml" and pipeline["targets"]["aml"]["compute"] == "gpu-cluster"
    # what stands in for the cloud, and makes it short: a small model, small blocks, two steps
    if registered:
        assert pipeline["params"]["base_model"] == registry
    else:
        pipeline["params"]["base_model"] = str(ROOT / "examples/tiny-phi3")
    pipeline["stages"]["data"]["params"] |= {"max_length": 128}
    train = next(n for n, s in pipeline["stages"].items() if s["uses"].startswith("train-"))
    pipeline["stages"][train]["params"] |= {"steps": 2, "rank": 4, "alpha": 4, "threads": 1}
    azure.vault["store"] = azurite.environment["AZURE_STORAGE_CONNECTION_STRING"]
    secret = {"name": "AZURE_STORAGE_CONNECTION_STRING", "vault": azure.url, "secret": "store"}
    pipeline["targets"]["aml"].setdefault("secrets", []).append(secret)
    pipeline["targets"]["aml"]["environment"] = {"MICROSTAGES_CACHE": str(tmp_path / "there")}
    for stage in pipeline["stages"].values():
        stage.pop("resources", None)  # jobs of the stand-in are processes here
    file.write_text(yaml.safe_dump(pipeline))
    programs = [str(ROOT / "stages/train-qlora/.venv/bin"), str(Path(sys.executable).parent)]
    monkeypatch.setenv("PATH", os.pathsep.join([*programs, os.environ["PATH"]]))
    monkeypatch.setenv("MICROSTAGES_CACHE", str(tmp_path / "here"))
    done = subprocess.run(
        [sys.executable, "-m", "runner.cli", "up", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=600, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stages = {s["stage"]: s for s in json.loads(done.stdout)["stages"]}
    assert {s["status"] for s in stages.values()} == {"done"} and set(stages) == set(pipeline["stages"])
    assert len(azure.jobs) == len(stages) and {j.status for j in azure.jobs.values()} == {"Completed"}
    assert all(o["uri"].startswith("azureml://") for s in stages.values() for o in s["outputs"].values())
    found = storage.listing(f"{datastore}/microstages")
    assert sum(n.endswith("/commit.json") for n in found) == len(stages)
    signed = [r for r in azure.requests if "/registries/" in r.path and "/datarefs/" in r.path]
    assert bool(signed) == registered
    for request in azure.requests:
        assert "a-token-of-the-hub" not in request.body.decode(errors="replace")
