"""The runner itself, as a program, with its stages in Azure ML: killed, stopped, told of failures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from azureml.server import Azure

SAVER = f"""#!{sys.executable}
import os, sys, time
from microstages.artifact import Draft
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
with Draft(flags["out"], "dataset") as draft:
    print('{{"event": "metric", "n": 1}}', flush=True)
    print("for people", file=sys.stderr, flush=True)
    exec(flags["act"])
    (draft.path / "x").write_text("made\\n")
    draft.commit({{}})
"""
INTERFACE = {
    "schema": 1, "name": "saver", "version": "1", "summary": "A stage of a test.", "command": ["saver"], "code": ["."],
    "manifest": "stage", "inputs": {}, "outputs": {"out": {"flag": "--out", "kind": "dataset"}},
    "params": {"act": {"flag": "--act", "type": "string", "default": "pass"}},
}  # fmt: skip


class Team:
    """A pipeline of one stage, its store in Azurite, its stage in Azure ML."""

    def __init__(self, azure, azurite, folder: Path) -> None:
        self.azure, self.folder = azure, folder
        azure.vault["store"] = azurite.environment["AZURE_STORAGE_CONNECTION_STRING"]
        secret = {"name": "AZURE_STORAGE_CONNECTION_STRING", "vault": azure.url, "secret": "store"}
        own = {k: v for k, v in azure.options.items() if k == "compute"}
        spec = {
            "name": "demo", "store": azurite.uri("store"), "target": "aml",
            "targets": {"aml": {"type": "azureml", "secrets": [secret], **own}}, "stages": {"a": {"uses": "./saver"}},
        }  # fmt: skip
        (folder / "pipeline.yaml").write_text(json.dumps(spec))
        names = {
            "subscription_id": "subscription_id",
            "resource_group": "resource_group",
            "workspace": "workspace_name",
        }
        (folder / "config.json").write_text(json.dumps({new: azure.options[old] for old, new in names.items()}))
        (folder / "saver").mkdir()
        (folder / "saver" / "interface.json").write_text(json.dumps(INTERFACE))
        (folder / "saver" / "saver").write_text(SAVER)
        (folder / "saver" / "saver").chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AZURE", "IDENTITY", "MSI"))}
        self.environment = {**kept, **azurite.environment, **azure.environment, "MICROSTAGES_CACHE": str(folder / "c")}

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "runner.cli", *args], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, *args: str) -> tuple[int, str]:
        process = self.start(*args)
        said = process.communicate(timeout=120)[0]
        assert "Traceback" not in said
        return process.returncode, said

    def act(self, code: str) -> list[str]:
        return ["--set", f"stages.a.params.act={json.dumps(code)}"]

    def begun(self) -> None:
        end = time.monotonic() + 60
        while not any(b"for people" in job.log for job in self.azure.jobs.values()):
            assert time.monotonic() < end, "it never began"
            time.sleep(0.05)


@pytest.fixture
def team(specs, azurite, tmp_path, monkeypatch):
    azurite.start()
    monkeypatch.setenv("PATH", f"{tmp_path / 'saver'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    with Azure(specs) as azure:
        yield Team(azure, azurite, tmp_path)
        assert not azure.violations


def test_it_is_made_and_reused_in_the_workspace_of_config_json(team):
    code, said = team.run("up")
    assert code == 0, said
    code, said = team.run("plan")
    assert code == 0 and "reuse" in said
    assert "for people" in team.run("logs", "a")[1]


def test_a_runner_that_is_killed_submits_nothing_twice(team):
    act = team.act(f"while not os.path.exists({str(team.folder / 'go')!r}): time.sleep(0.05)")
    first = team.start("up", *act)
    team.begun()
    time.sleep(1)
    first.kill()
    first.communicate()
    second = team.start("up", *act)
    time.sleep(2)
    (team.folder / "go").touch()
    said = second.communicate(timeout=120)[0]
    assert second.returncode == 0, said
    assert "still running from before" in said
    assert [j.status for j in team.azure.jobs.values()] == ["Completed"]
    log = team.run("logs", "a")[1]
    assert log.count("for people") == 1


def test_ctrl_c_cancels_the_job(team):
    process = team.start("up", *team.act("time.sleep(60)"))
    team.begun()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 143, said
    assert [j.status for j in team.azure.jobs.values()] == ["Canceled"]


def test_a_temporary_failure_is_tried_again_and_a_mistake_is_not(team):
    code, said = team.run("up", *team.act("sys.exit(75)"), "--set", "stages.a.retry={attempts: 2, backoff: 0.1s}")
    assert code == 75 and len(team.azure.jobs) == 2, said
    code, said = team.run("up", *team.act("sys.exit(2)"))
    assert code == 2 and len(team.azure.jobs) == 3, said


def test_a_workspace_that_is_not_named_is_asked_for(team):
    (team.folder / "config.json").unlink()
    code, said = team.run("up")
    assert code == 2
    assert "no subscription_id and no resource_group and no workspace" in said and "config.json" in said


def test_doctor_asks_the_workspace(team):
    found = {f["what"]: f for f in json.loads(team.run("doctor", "--json")[1])}["aml (azureml)"]
    assert found["state"] == "ok" and found["text"].startswith("workspace team-ml in "), found
    config = json.loads((team.folder / "config.json").read_text())
    (team.folder / "config.json").write_text(json.dumps({**config, "workspace_name": "another"}))
    found = {f["what"]: f for f in json.loads(team.run("doctor", "--json")[1])}["aml (azureml)"]
    assert found["state"] == "missing" and found["fix"], found
