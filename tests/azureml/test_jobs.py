"""What is sent: where it runs, what it may cost, who it is, and that no secret is in it."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from azureml.server import Fault
from microstages.errors import UserError

from runner.executors.azureml import body
from runner.executors.azureml.executor import AzureMLExecutor
from runner.executors.azureml.options import OPTIONS
from runner.spec import Resources

IDENTITY = "12345678-1111-2222-3333-444444444444"


def sent(runs, options=None, **more):
    """The properties of the job that is sent."""
    runs.executor = AzureMLExecutor({**runs.azure.options, **(options or {})}, runs.folder)
    _, _, attempt = runs.run("exit 0", **more)
    return runs.job(attempt).body["properties"]


def test_what_a_job_is(runs):
    found = sent(runs, {"tags": {"team": "tones"}}, timeout=90.5)
    assert found["jobType"] == "Command" and found["displayName"] == "work"
    assert found["experimentName"] == "microstages"
    assert found["tags"]["team"] == "tones" and found["tags"]["microstages.attempt"].startswith("20260101")
    assert found["limits"] == {"jobLimitsType": "Command", "timeout": "PT91S"}
    assert found["computeId"].endswith("/workspaces/team-ml/computes/gpu-cluster")
    assert found["resources"] == {"instanceCount": 1}
    assert "identity" not in found and "queueSettings" not in found and "distribution" not in found
    environment = runs.azure.environments[found["environmentId"].removeprefix(runs.executor.workspace.id)]
    assert environment["properties"]["image"] == runs.image


def test_serverless_and_kubernetes(runs):
    found = sent(runs, {"compute": "", "instance_type": "Standard_NC24ads_A100_v4", "tier": "spot"})
    assert "computeId" not in found
    assert found["resources"] == {"instanceCount": 1, "instanceType": "Standard_NC24ads_A100_v4"}
    assert found["queueSettings"] == {"jobTier": "Spot"}
    found = sent(runs, {"compute": "kube", "instance_type": "gpu-large", "experiment": "tones"})
    assert found["computeId"].endswith("/computes/kube") and found["resources"]["instanceType"] == "gpu-large"
    assert found["experimentName"] == "tones"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("managed", {"identityType": "Managed"}), ("user", {"identityType": "UserIdentity"}),
        (IDENTITY, {"identityType": "Managed", "clientId": IDENTITY}),
    ],
)  # fmt: skip
def test_who_a_job_is(runs, given, expected):
    assert sent(runs, {"identity": given})["identity"] == expected


def test_an_image_is_one_environment(runs):
    first, second = sent(runs)["environmentId"], sent(runs)["environmentId"]
    assert first == second and len(runs.azure.environments) == 1
    assert body.environment_name("merge", "a:1") != body.environment_name("merge", "a:2")


def test_memory_is_rounded_up(runs):
    found = sent(runs, resources=Resources(shm=(64 << 20) + 1))
    assert found["resources"]["shmSize"] == "65m"


def test_secrets_of_the_caller_are_in_no_request(runs, monkeypatch, tmp_path):
    hidden = {
        "AZURE_STORAGE_CONNECTION_STRING": "AccountName=team;AccountKey=TOPSECRETKEY==;EndpointSuffix=core.windows.net",
        "AZURE_CLIENT_SECRET": "TOPSECRETCLIENT", "AWS_SECRET_ACCESS_KEY": "TOPSECRETAWS", "HF_TOKEN": "TOPSECRETHUB",
        "AWS_ACCESS_KEY_ID": "TOPSECRETID", "FSSPEC_S3_SECRET": "TOPSECRETFSSPEC",
    }  # fmt: skip
    for name, value in hidden.items():
        monkeypatch.setenv(name, value)
    key = tmp_path / "key.json"
    key.write_text('{"private_key": "TOPSECRETFILE"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    for name, value in (
        ("AZURE_CLIENT_ID", "mine"),
        ("AWS_REGION", "eu-west-1"),
        ("HF_ENDPOINT", "https://hub.example"),
    ):
        monkeypatch.setenv(name, value)
    remote = ("abfs://models/x", "s3://bucket/x", "gs://bucket/x", "hf://owner/name")
    found = sent(runs, remote=remote, arguments=("--dataset=abfs://models/x",))["environmentVariables"]
    for request in runs.azure.requests:
        assert "TOPSECRET" not in f"{request.path} {request.headers} {request.body.decode()}"
    assert found["AZURE_STORAGE_ACCOUNT_NAME"] == "team" and found["AZURE_STORAGE_ANON"] == "false"
    assert found["AWS_REGION"] == "eu-west-1" and found["HF_ENDPOINT"] == "https://hub.example"
    assert not {"AZURE_CLIENT_ID", "IDENTITY_ENDPOINT", "GOOGLE_APPLICATION_CREDENTIALS"} & set(found)


def test_the_account_must_be_known(runs):
    attempt = runs.attempt("exit 0", remote=("abfs://models/x",))
    with pytest.raises(UserError, match="which storage account"):
        runs.executor.submit(attempt)
    found = sent(runs, remote=("abfs://models@team.dfs.core.windows.net/x",))["environmentVariables"]
    assert found["AZURE_STORAGE_ANON"] == "false"


@pytest.fixture
def vaulted(runs, monkeypatch):
    """Jobs whose target names a secret of the vault; their Python is this one."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    options = {"secrets": [{"name": "HF_TOKEN", "vault": runs.azure.url, "secret": "hub"}]}
    runs.executor = AzureMLExecutor({**runs.azure.options, **options})
    return runs


def test_named_secrets_are_read_inside_the_job(vaulted):
    vaulted.azure.vault["hub"] = "TOPSECRETHUB"
    code = "import hashlib, os; print(hashlib.sha256(os.environ['HF_TOKEN'].encode()).hexdigest())"
    status, _, attempt = vaulted.run("", command=("python3", "-c", code))
    assert status.code == 0, attempt.log.read_text()
    assert attempt.log.read_text().strip() == hashlib.sha256(b"TOPSECRETHUB").hexdigest()
    assert "TOPSECRETHUB" not in json.dumps(vaulted.job(attempt).body)


def test_a_secret_that_is_not_there_is_the_callers_mistake(vaulted):
    status, said, attempt = vaulted.run("echo never")
    assert status.code == 2
    error = next(json.loads(line) for line in said.splitlines() if '"error"' in line)
    assert "was not found" in error["what"] and error["where"].endswith("/secrets/hub")
    assert "never" not in attempt.log.read_text()


def test_a_vault_that_does_not_answer_is_tried_again_later(vaulted):
    vaulted.azure.vault["hub"] = "x"
    vaulted.azure.faults.append(Fault("GET", "/secrets/", 503, times=10**6))
    vaulted.executor.options["environment"] = {"MICROSTAGES_PATIENCE": "0.2"}
    assert vaulted.run("echo never")[0].code == 75


@pytest.mark.usefixtures("azure")
def test_the_workspace_comes_from_its_file(tmp_path, monkeypatch):
    (tmp_path / "pipelines" / "x").mkdir(parents=True)
    (tmp_path / "pipelines" / "config.json").write_text('{"model_type": "phi3"}')
    (tmp_path / ".azureml").mkdir()
    found = {"subscription_id": "s", "resource_group": "g", "workspace_name": "w"}
    (tmp_path / ".azureml" / "config.json").write_text(json.dumps(found))
    at = AzureMLExecutor({"resource_group": "own"}, tmp_path / "pipelines" / "x").workspace
    assert (at.subscription_id, at.resource_group, at.name) == ("s", "own", "w")
    monkeypatch.setenv("AZUREML_ARM_SUBSCRIPTION", "of-a-job")
    with pytest.raises(UserError, match="no resource_group and no workspace"):
        AzureMLExecutor({}, tmp_path.parent).address  # noqa: B018


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("identity", "somebody"), ("tier", "cheap"), ("secrets", ["HF_TOKEN"]), ("tags", {"a": 1}), ("flavor", "rocm"),
        ("environment", {"HF_TOKEN": "hf_x"}), ("environment", {"X": "AccountName=a;AccountKey=b"}), ("compute", 3),
    ],
)  # fmt: skip
def test_options_that_are_wrong(key, value):
    assert OPTIONS[key](value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("identity", "managed"), ("identity", IDENTITY), ("tier", "spot"),
        ("secrets", [{"name": "A", "vault": "v", "secret": "s"}]),
        ("environment", {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "8"}),
    ],
)  # fmt: skip
def test_options_that_are_right(key, value):
    assert OPTIONS[key](value) is None


def test_jobs_are_listed_below_the_pipelines_name():
    from runner.executors.azureml.body import experiment

    assert experiment({}, "tone-classifier") == "tone-classifier"
    assert experiment({}, "Grüße, Welt / 2") == "Gr-e-Welt-2"
    assert experiment({"experiment": "mine"}, "tone-classifier") == "mine"
    assert experiment({}, "") == experiment({}, "…") == "microstages"
