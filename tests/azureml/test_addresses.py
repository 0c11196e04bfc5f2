"""`azureml://`: datastores and registered models, read from Azure Blob storage as any other address."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from azureml.life import GROUP, NAME, PROVIDER, SUBSCRIPTION
from microstages import storage
from microstages.artifact import Draft, identify, open_artifact
from microstages.errors import UserError
from microstages.remote import azureml
from stores.servers import ACCOUNT, HOST, KEY

LONG = f"azureml://subscriptions/{SUBSCRIPTION}/resourcegroups/{GROUP}/workspaces/{NAME}"
MODEL = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b'{"t": 1}'}


@pytest.fixture
def datastore(azure, azurite, monkeypatch):
    """A container of Azurite that the workspace knows as the datastore `blobs`: its address by abfs://."""
    azurite.start()
    for name, value in azurite.environment.items():
        monkeypatch.setenv(name, value)
    uri = azurite.uri("data")
    container = uri.split("/")[2]
    azure.things["/datastores/blobs"] = {
        "properties": {
            "datastoreType": "AzureBlob", "accountName": ACCOUNT, "containerName": container,
            "endpoint": "core.windows.net", "credentials": {"credentialsType": "None"},
        }
    }  # fmt: skip
    for name, value in (("SUBSCRIPTION", SUBSCRIPTION), ("RESOURCEGROUP", GROUP), ("WORKSPACE_NAME", NAME)):
        monkeypatch.setenv(f"AZUREML_ARM_{name}", value)
    azureml.forget()
    yield f"abfs://{container}"
    azureml.forget()


def put(uri, files):
    for name, data in files.items():
        storage.replace(f"{uri}/{name}", data)


@pytest.mark.parametrize("head", ["azureml:/", LONG])
def test_a_datastore_is_its_container(datastore, head):
    put(f"{datastore}/models/phi", MODEL)
    found = open_artifact(f"{head}/datastores/blobs/paths/models/phi", ("model",))
    assert {n: (found.path / n).read_bytes() for n in found.files} == MODEL
    assert storage.folders(f"{head}/datastores/blobs/paths/models") == ["phi"]


def test_a_stage_writes_there(datastore):
    with Draft("azureml://datastores/blobs/paths/made/here", "dataset") as draft:
        (draft.path / "x").write_text("made\n")
        made = draft.commit({})
    assert json.loads(storage.read(f"{datastore}/made/here/artifact.json"))["kind"] == "dataset"
    assert open_artifact("azureml://datastores/blobs/paths/made/here", ("dataset",)).digest == made.digest


def test_what_it_is_changes_with_its_bytes(datastore):
    uri = "azureml://datastores/blobs/paths/models/phi"
    put(f"{datastore}/models/phi", MODEL)
    first = identify(uri, ("model",))
    assert identify(uri, ("model",)) == first
    put(f"{datastore}/models/phi", {"config.json": b"[]"})
    assert identify(uri, ("model",)) != first


def test_a_model_of_the_workspace(azure, datastore):
    put(f"{datastore}/registered/phi", MODEL)
    azure.things["/models/phi/versions/3"] = {
        "properties": {"modelUri": f"{LONG}/datastores/blobs/paths/registered/phi", "modelType": "custom_model"}
    }
    found = open_artifact("azureml://models/phi/versions/3", ("model",))
    assert {n: (found.path / n).read_bytes() for n in found.files} == MODEL
    with pytest.raises(UserError, match="cannot be written"):
        storage.create("azureml://models/phi/versions/3/x", b"x")


@pytest.mark.parametrize(
    "places",
    [
        {"model": "data/model", "tokenizer": "data/tokenizer", "config": "data/config"},
        {"model": "model", "tokenizer": "components/tokenizer", "config": "model"},
        {"model": "mlflow_model_folder/data/model", "tokenizer": "mlflow_model_folder/data/model", "config": ""},
    ],
)
def test_mlflow_models_are_the_folder_inside(azure, datastore, places):
    root = f"{datastore}/registered/{places['model'].replace('/', '-')}"
    top = "mlflow_model_folder/" if places["model"].startswith("mlflow") else ""
    put(root, {f"{top}MLmodel": b"flavors: {}", f"{top}requirements.txt": b"x"})
    put(f"{root}/{places['model']}", {"model.safetensors": b"weights", "config.json": b"{}"})
    put(f"{root}/{places['tokenizer']}", {"tokenizer.json": b'{"t": 1}'})
    if places["config"]:
        put(f"{root}/{places['config']}", {"config.json": b"{}"})
    inner = root.removeprefix(datastore).lstrip("/")
    azure.things["/models/phi/versions/1"] = {
        "properties": {"modelUri": f"{LONG}/datastores/blobs/paths/{inner}", "modelType": "mlflow_model"}
    }
    found = open_artifact("azureml://models/phi/versions/1", ("model",))
    assert {n: (found.path / n).read_bytes() for n in found.files} == MODEL


def test_an_mlflow_model_of_pickles_is_refused(azure, datastore):
    put(
        f"{datastore}/registered/old",
        {"MLmodel": b"x", "data/model/pytorch_model.bin": b"x", "data/model/config.json": b"{}"},
    )
    azure.things["/models/old/versions/1"] = {
        "properties": {"modelUri": f"{LONG}/datastores/blobs/paths/registered/old"}
    }
    with pytest.raises(UserError, match="no safetensors"):
        open_artifact("azureml://models/old/versions/1", ("model",))


def test_a_model_of_a_registry(azure, azurite, datastore, monkeypatch):
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    put(f"{datastore}/registry/phi", MODEL)
    container = datastore.removeprefix("abfs://")
    blob = f"http://{HOST}:{azurite.port}/{ACCOUNT}/{container}/registry/phi"
    until = datetime.now(UTC) + timedelta(hours=1)
    sas = generate_container_sas(
        ACCOUNT, container, account_key=KEY, permission=ContainerSasPermissions(read=True, list=True), expiry=until,
        start=datetime.now(UTC) - timedelta(days=1),
    )  # fmt: skip
    base = f"/mferp/managementfrontend/subscriptions/s/resourceGroups/g/{PROVIDER}/registries/azureml"
    azure.things["/registrymanagement/v1.0/registries/azureml/discovery"] = {
        "subscriptionId": "s", "resourceGroup": "g", "primaryRegionResourceProviderUri": f"{azure.url}/",
    }  # fmt: skip
    azure.things[f"{base}/models/phi/versions/4"] = {"properties": {"modelUri": blob}}
    asked = []

    def signed(body):
        asked.append(body)
        credential = {"credentialType": "SAS", "sasUri": f"{blob}?{sas}"}
        return {"blobReferenceForConsumption": {"blobUri": blob, "credential": credential}}

    azure.posts[f"{base}/datarefs/phi/versions/4"] = signed
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=own;AccountKey=b3du;EndpointSuffix=none.invalid")
    found = open_artifact("azureml://registries/azureml/models/phi/versions/4", ("model",))
    assert {n: (found.path / n).read_bytes() for n in found.files} == MODEL
    assert asked == [{"assetId": "azureml://registries/azureml/models/phi/versions/4", "blobUri": blob}]
    assert "sig=" not in found.uri


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("azureml://datastores/none/paths/x", "does not know it"),
        ("azureml://models/none/versions/1", "does not know it"),
        ("azureml://datastores/blobs", "not an address of Azure ML"),
        ("azureml://jobs/x", "not an address of Azure ML"),
        ("azureml://datastores/files/paths/x", "AzureFile"),
        ("azureml://datastores/blobs/paths/nothing", "nothing is there"),
    ],
)
@pytest.mark.usefixtures("datastore")
def test_what_is_wrong_is_told(azure, uri, words):
    azure.things["/datastores/files"] = {"properties": {"datastoreType": "AzureFile", "accountName": "x"}}
    with pytest.raises(UserError, match=words) as error:
        open_artifact(uri, ("model",))
    assert error.value.where.startswith(uri[:20]) and error.value.fix


@pytest.mark.usefixtures("datastore")
def test_without_a_workspace_the_long_address_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AZUREML_ARM_WORKSPACE_NAME")
    with pytest.raises(UserError, match="no workspace") as error:
        open_artifact("azureml://datastores/blobs/paths/x", ("model",))
    assert "azureml://subscriptions/" in error.value.fix
