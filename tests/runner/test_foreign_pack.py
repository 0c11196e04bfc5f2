"""What a cluster is told of a plain command: where its inputs, its code and its outputs are there, and what it is made
of. The project lies on a volume that the cluster has too, so that nothing needs to be sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from foreign import Own
from microstages.errors import UserError

from runner.executors.porter import Load, pack
from runner.pipeline import read
from runner.store import Store

MADE = {"stage": "work", "fingerprint": "f"}


class Cluster:
    """A project on a volume of a cluster."""

    def __init__(self, folder: Path) -> None:
        self.own = Own(folder)
        self.volume = folder

    def pack(self, rest: str = "") -> Load:
        """What stage `a` is packed into."""
        self.own.head = (
            f"store: store\ntarget: box\ntargets: {{box: {{type: kubernetes,"
            f" volumes: [{{path: '{self.volume}', claim: x}}]}}}}\n"
        )
        self.own.pipeline(f"  a: {{uses: ./work, inputs: {{rows: rows.jsonl}}{rest}}}\n")
        stage = read(self.own.folder / "pipeline.yaml", [], None).stages["a"]
        rows = str(self.own.folder / "rows.jsonl")
        writes = {"out": "abfs://c/out"}
        return pack(stage, Store(str(self.own.folder / "store")), {"rows": rows}, {"rows": "abfs://c/in"},
                    {"rows": "sha256:1"}, writes, MADE)  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def orders(load: Load) -> dict[str, Any]:
    return dict(json.loads(load.carried.orders))


def test_paths_there_and_what_is_to_be_brought_to_them(cluster):
    cluster.own.stage("work", "", inputs=("rows",))
    load = cluster.pack()
    assert load.command == ("/cache/code/run.sh",)
    assert (load.inputs, load.outputs) == ({"rows": "/cache/inputs/rows/rows.jsonl"}, {"out": "/outputs/out"})
    told = orders(load)
    assert told["inputs"]["rows"] == {
        "uri": "abfs://c/in", "kinds": ["files"], "digest": "sha256:1", "path": "/cache/inputs/rows/rows.jsonl",
    }  # fmt: skip
    assert told["outputs"]["out"] == {"path": "/cache/outputs/out", "uri": "abfs://c/out", "kind": "files"}
    assert (told["stage"], told["provenance"]) == ("work", MADE)
    [code] = told["code"]
    assert (code["path"], code["programs"]) == ("/cache/code", ["run.sh"])
    assert code["uri"] == str(cluster.own.folder / "work") and code["digest"].startswith("sha256:")
    assert load.carried.uses == "merge" and load.carried.code.startswith("sha256:")


def test_code_beside_its_folder_lies_beside_it_there(cluster):
    cluster.own.stage("work", "", inputs=("rows",), code=[".", "../shared", "../one.txt"], command=["sh", "./run.sh"])
    (cluster.own.folder / "shared").mkdir()
    (cluster.own.folder / "shared" / "words").write_text("x")
    (cluster.own.folder / "one.txt").write_text("x")
    load = cluster.pack()
    assert load.command == ("sh", "/cache/code/work/run.sh")
    found = {c["path"]: c["programs"] for c in orders(load)["code"]}
    assert found == {"/cache/code/work": ["run.sh"], "/cache/code/shared": [], "/cache/code/one.txt": []}


def test_one_file_as_code_keeps_what_makes_it_a_program(cluster):
    cluster.own.stage("work", "", inputs=("rows",), code=["run.sh"])
    [code] = orders(load := cluster.pack())["code"]
    assert (code["path"], code["programs"], load.command) == ("/cache/code/run.sh", [""], ("/cache/code/run.sh",))


@pytest.mark.parametrize(
    ("interface", "rest", "words"),
    [
        ({"code": ["other.txt"]}, "", "names ./run.sh, which"),
        ({}, ", resources: {nodes: 2}", "runs on one node"),
    ],
)
def test_what_cannot_run_there_is_told(cluster, interface, rest, words):
    cluster.own.stage("work", "", inputs=("rows",), **interface)
    (cluster.own.folder / "work" / "other.txt").write_text("x")
    with pytest.raises(UserError) as error:
        cluster.pack(rest)
    assert words in error.value.what and error.value.fix


def test_code_that_the_cluster_does_not_see_is_told(cluster, tmp_path_factory):
    cluster.own.stage("work", "", inputs=("rows",), code=[".", str(tmp_path_factory.mktemp("away"))])
    (Path(json.loads((cluster.own.folder / "work/interface.json").read_text())["code"][1]) / "x").write_text("x")
    with pytest.raises(UserError) as error:
        cluster.pack()
    assert "box does not see its code" in error.value.what


def test_without_the_stages_it_says_what_is_missing(cluster, monkeypatch, tmp_path):
    cluster.own.stage("work", "", inputs=("rows",))
    monkeypatch.setenv("MICROSTAGES_STAGES", str(tmp_path / "none"))
    with pytest.raises(UserError) as error:
        cluster.pack()
    assert "needs the image of the stage merge" in error.value.what and "MICROSTAGES_STAGES" in error.value.fix
