"""What fetches for a plain command and publishes what it wrote, as the program that a pod runs."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from microstages.artifact import Artifact, identify, open_artifact
from microstages.errors import UserError

DIGEST = "sha256:" + "0" * 64


class Pod:
    """A folder that is as the volume of a pod."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "rows.jsonl").write_text("{}\n")
        (folder / "code").mkdir()
        (folder / "code" / "run.sh").write_text("#!/bin/sh\n")
        (folder / "code" / "words.txt").write_text("x")
        files = ["files"]
        self.orders: dict[str, Any] = {
            "stage": "work",
            "inputs": {"rows": {"uri": f"{folder}/rows.jsonl", "kinds": files, "path": f"{folder}/in/rows/rows.jsonl",
                                "digest": identify(f"{folder}/rows.jsonl", files)}},
            "code": [{"uri": f"{folder}/code", "kinds": files, "path": f"{folder}/brought", "programs": ["run.sh"],
                      "digest": identify(f"{folder}/code", files)}],
            "outputs": {"out": {"path": f"{folder}/out", "uri": f"{folder}/store/out", "kind": "dataset"}},
            "began": f"{folder}/began",
            "provenance": {"stage": "work", "fingerprint": "f"},
        }  # fmt: skip

    def does(self, word: str, code: int = 0, before: Callable[[], None] | None = None) -> list[dict[str, Any]]:
        """Run the porter; its events."""
        done = subprocess.run(
            [sys.executable, "-m", "microstages.porter", word, json.dumps(self.orders)], capture_output=True, text=True,
            check=False, env={**os.environ, "MICROSTAGES_IMAGE": "image@sha256:1"}, stdin=subprocess.DEVNULL,
            preexec_fn=before,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def made(self) -> Artifact:
        return open_artifact(self.orders["outputs"]["out"]["uri"], ["dataset"])


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_what_was_written_becomes_an_artifact(pod):
    pod.does("fetch")
    assert (pod.folder / "in" / "rows" / "rows.jsonl").read_text() == "{}\n"
    assert os.access(pod.folder / "brought" / "run.sh", os.X_OK)
    assert not os.access(pod.folder / "brought" / "words.txt", os.X_OK)
    (pod.folder / "out" / "deep").mkdir()
    (pod.folder / "out" / "deep" / "x").write_text("made\n")
    [event] = pod.does("publish")
    found = pod.made()
    assert (event["event"], event["digest"]) == ("artifact", found.digest)
    assert (found.path / "deep" / "x").read_text() == "made\n" and found.manifest is not None
    made = found.manifest.provenance
    assert (made["stage"], made["fingerprint"], made["software"]) == ("work", "f", {"image": "image@sha256:1"})
    assert made["started"] <= made["finished"] and made["hardware"]["cores"] == os.cpu_count()


def _as_anybody() -> None:
    """Without what root may do beside the modes of files."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_folders_that_nobody_may_write_in_are_moved_as_well(pod):
    """As in a pod, where the command and the porter are not root."""
    pod.does("fetch")
    deep = pod.folder / "out" / "deep" / "deeper"
    deep.mkdir(parents=True)
    (deep / "x").write_text("made\n")
    for path in (deep, deep.parent):
        path.chmod(0o555)
    pod.does("publish", before=_as_anybody)
    assert (pod.made().path / "deep" / "deeper" / "x").read_text() == "made\n"


def test_another_pod_brings_it_all_again(pod):
    pod.does("fetch")
    (pod.folder / "brought" / "run.sh").write_text("half")
    pod.does("fetch")
    assert (pod.folder / "brought" / "run.sh").read_text() == "#!/bin/sh\n"


@pytest.mark.parametrize("what", ["input", "code"])
def test_what_is_not_what_was_planned_with_is_refused(pod, what):
    (pod.orders["inputs"]["rows"] if what == "input" else pod.orders["code"][0])["digest"] = DIGEST
    [error] = pod.does("fetch", 2)
    assert (error["event"], error["exit_code"]) == ("error", 2)
    assert "changed since the run began" in error["what"] and error["fix"] == "run again"


@pytest.mark.parametrize("written", ["nothing", "a link out of it", "a name of ours"])
def test_what_is_no_artifact_is_not_published(pod, written):
    pod.does("fetch")
    if written == "a link out of it":
        (pod.folder / "out" / "x").symlink_to("/etc/passwd")
    elif written == "a name of ours":
        (pod.folder / "out" / "artifact.json").write_text("{}")
    [error] = pod.does("publish", 2)
    assert error["event"] == "error"
    with pytest.raises(UserError):
        pod.made()


def test_a_place_that_is_taken_is_told(pod):
    pod.does("fetch")
    (pod.folder / "out" / "x").write_text("made\n")
    pod.does("publish")
    pod.does("fetch")
    (pod.folder / "out" / "x").write_text("other\n")
    [error] = pod.does("publish", 2)
    assert "something lies there already" in error["what"]
    assert (pod.made().path / "x").read_text() == "made\n"


def test_an_address_that_nobody_serves_is_no_bug(pod):
    pod.orders["inputs"]["rows"]["uri"] = "nonsense://x/y"
    [error] = pod.does("fetch", 2)
    assert error["event"] == "error" and "nonsense" in error["message"]


def test_what_is_said_wrongly_is_told():
    done = subprocess.run(
        [sys.executable, "-m", "microstages.porter", "carry"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "usage" in done.stderr
