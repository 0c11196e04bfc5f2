"""Eight runners start at once, each in a clone of its own, on one store: every stage runs once, all have the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chaos.audit import Blobs, Folder, audit
from stores.servers import Store

RUNNERS = 8
# one and two, side by side; left follows one; join follows both
PIPELINE = """\
name: eight
stages:
  one: {uses: ./make, params: {n: 1}}
  two: {uses: ./make, params: {n: 2}}
  left: {uses: ./more, inputs: {x: "${{ stages.one.out }}"}}
  join: {uses: ./join, inputs: {x: "${{ stages.left.out }}", y: "${{ stages.two.out }}"}}
"""
SCRIPTS = {
    "make": 'echo "make $n" >> "$TRACE"; sleep 0.5; echo "$n" > "$out/x"',
    "more": 'echo more >> "$TRACE"; sleep 0.5; cat "$x/x" "$x/x" > "$out/x"',
    "join": 'echo join >> "$TRACE"; sleep 0.5; cat "$x/x" "$y/x" > "$out/x"',
}
INPUTS = {"make": (), "more": ("x",), "join": ("x", "y")}


def write_clone(folder: Path) -> Path:
    folder.mkdir()
    (folder / "pipeline.yaml").write_text(PIPELINE)
    for name, script in SCRIPTS.items():
        (folder / name).mkdir()
        flags = 'for a in "$@"; do k="${a%%=*}"; eval "${k#--}=\\${a#*=}"; done\n'
        (folder / name / "run.sh").write_text(f"{flags}{script}\n")
        interface = {
            "schema": 1, "name": name, "version": "1", "summary": "A stage of a test.", "command": ["sh", "./run.sh"],
            "code": ["."], "manifest": "runner",
            "inputs": {k: {"flag": f"--{k}", "kinds": ["dataset"]} for k in INPUTS[name]},
            "outputs": {"out": {"flag": "--out", "kind": "dataset"}},
            "params": {"n": {"flag": "--n", "type": "integer", "default": 0}},
        }  # fmt: skip
        (folder / name / "interface.json").write_text(json.dumps(interface))
    return folder


def start(clone: Path, uri: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "runner.cli", "up", "--json", "--set", f"store={uri}"]
    own = {"TRACE": str(clone.parent / "trace"), "MICROSTAGES_CACHE": str(clone / "cache")}
    return subprocess.Popen(
        command, cwd=clone, env={**os.environ, **environment, **own}, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def all_at_once(folder: Path, uri: str, environment: dict[str, str]) -> None:
    """Start them, and check how each ended and what ran."""
    clones = [write_clone(folder / f"clone-{n}") for n in range(RUNNERS)]
    started = [start(clone, uri, environment) for clone in clones]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * RUNNERS, [err for _, err in said]
    assert sorted((folder / "trace").read_text().splitlines()) == ["join", "make 1", "make 2", "more"]
    outputs = [{s["stage"]: s["outputs"] for s in json.loads(out)["stages"]} for out, _ in said]
    assert outputs == [outputs[0]] * RUNNERS, "all have the same artifacts"


def test_in_a_folder_that_eight_clones_share(tmp_path: Path):
    store = tmp_path / "store"
    all_at_once(tmp_path, str(store), {})
    found = audit(Folder(store))
    assert (len(found.commits), found.wrong, found.left) == (4, [], [])


@pytest.mark.parametrize("remote", ["azurite", "s3"], indirect=True)
def test_in_a_store_elsewhere(remote: Store, tmp_path: Path):
    uri = remote.uri("eight")
    all_at_once(tmp_path, uri, remote.environment)
    if remote.name == "azurite":
        found = audit(Blobs(remote.environment["AZURE_STORAGE_CONNECTION_STRING"], uri))
        assert (len(found.commits), found.wrong, found.left) == (4, [], [])
