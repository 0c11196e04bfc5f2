"""A stage in another language takes part in a pipeline: cached, with progress, metrics and lineage."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ENGINE, EXAMPLES, without_engine
from foreign import DEDUPE, Own, built, digests

from runner.attempts import measured

ADDRESS = ENGINE or "unix:///var/run/docker.sock"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Own:
    """The committed pipeline in a copy of the examples."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    made = Own(folder)
    shutil.copy(folder / "own-stage.yaml", folder / "pipeline.yaml")
    return made


@pytest.fixture
def own(tmp_path: Path) -> Own:
    return Own(tmp_path)


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The example as an image of a real engine, which stands on the image of another stage."""
    try:
        with built(ADDRESS) as name:
            yield name
    except (OSError, subprocess.CalledProcessError) as error:
        without_engine(f"the example's image cannot be built: {error}")


def test_the_example_is_cached_measured_and_in_the_lineage(example):
    first = example.up("--target", "process")
    assert {s["status"] for s in first.values()} == {"done"}
    assert first["clean"]["metrics"] == {"rows": 646, "kept": 646}
    assert {s["status"] for s in example.up("--target", "process").values()} == {"reused"}
    data = json.loads((Path(first["data"]["outputs"]["dataset"]["uri"]) / "artifact.json").read_text())
    assert data["provenance"]["inputs"]["source"]["digest"] == first["clean"]["outputs"]["rows"]["digest"]
    clean = json.loads((Path(first["clean"]["outputs"]["rows"]["uri"]) / "artifact.json").read_text())
    assert (clean["kind"], clean["metrics"]) == ("files", {"rows": 646, "kept": 646})
    assert clean["provenance"]["inputs"]["rows"]["uri"].endswith("tones.jsonl")


def test_a_change_that_makes_no_difference_reruns_that_stage_alone(example):
    example.up("--target", "process")
    script = example.folder / "stages" / "dedupe" / "dedupe.sh"
    script.write_text(script.read_text() + "# said again\n")
    made = example.up("--target", "process")
    assert {n: s["status"] for n, s in made.items()} == {"clean": "done", "data": "reused"}


@pytest.mark.parametrize(("exact", "kept"), [("false", 2), ("true", 3)])
def test_it_drops_what_says_the_same(own, exact, kept):
    own.pipeline(f"  clean: {{uses: {DEDUPE}, inputs: {{rows: rows.jsonl}}, params: {{exact: {exact}}}}}\n")
    made = own.up("--target", "process")["clean"]
    assert made["metrics"] == {"rows": 4, "kept": kept}
    assert len((Path(made["outputs"]["rows"]["uri"]) / "rows.jsonl").read_text().splitlines()) == kept


def test_its_own_words_say_what_is_wrong(own):
    (own.folder / "both").mkdir()
    for name in ("a", "b"):
        (own.folder / "both" / name).write_text("{}\n")
    own.pipeline(f"  clean: {{uses: {DEDUPE}, inputs: {{rows: both}}}}\n")
    done = own.run("up", "--target", "process")
    assert done.returncode == 2
    assert "the rows are not one file" in done.stdout and "name a file, such as data.jsonl" in done.stdout


def test_the_example_is_short():
    lines = (DEDUPE / "dedupe.sh").read_text().splitlines()
    assert len(lines) <= 20 and max(map(len, lines)) <= 120


def test_an_image_that_says_what_it_is_makes_the_same(own, image):
    """Its labels are its own, not those of the stage's image that it stands on."""
    own.environment["DOCKER_HOST"] = ADDRESS
    own.pipeline(f"  clean: {{uses: '{image}', inputs: {{rows: rows.jsonl}}}}\n")
    made = own.up()
    assert made["clean"]["status"] == "done" and made["clean"]["metrics"] == {"rows": 4, "kept": 2}
    assert own.up()["clean"]["status"] == "reused"
    identity = subprocess.run(
        ["docker", "inspect", "--format", "{{.Id}}", image], env=own.environment, capture_output=True, text=True,
        check=True,
    ).stdout.strip()  # fmt: skip
    there = Path(made["clean"]["outputs"]["rows"]["uri"]) / "artifact.json"
    provenance = json.loads(there.read_text())["provenance"]
    assert (provenance["code"], provenance["software"]) == (identity, {"image": identity})
    here = Own(own.folder)
    here.pipeline(f"  clean: {{uses: {DEDUPE}, inputs: {{rows: rows.jsonl}}}}\n")
    assert digests(here.up("--target", "process")) == digests(made)


PROGRAM = r"""
#include <stdio.h>
#include <string.h>
int main(int count, char **words) {
  char path[4096] = "";
  for (int i = 1; i < count; i++)
    if (!strncmp(words[i], "--out=", 6)) snprintf(path, sizeof path, "%s/said", words[i] + 6);
  FILE *file = fopen(path, "w");
  if (!file) { puts("{\"event\": \"error\", \"what\": \"no place to write\", \"exit_code\": 2}"); return 2; }
  fputs("made without a shell\n", file);
  puts("{\"event\": \"metric\", \"lines\": 1}");
  return fclose(file);
}
"""


def test_an_image_that_holds_nothing_but_one_program(own):
    if not (compiler := shutil.which("gcc")):
        pytest.skip("a compiled stage is not tested: there is no gcc")
    place = own.folder / "image"
    place.mkdir()
    (place / "program.c").write_text(PROGRAM)
    (place / "Dockerfile").write_text('FROM scratch\nCOPY program /program\nENTRYPOINT ["/program"]\n')
    subprocess.run([compiler, "-static", "-o", place / "program", place / "program.c"], check=True)
    own.stage("say", "", command=["/program"], image="")
    interface = (own.folder / "say" / "interface.json").read_text()
    own.environment["DOCKER_HOST"] = ADDRESS
    name = "microstages-test/say:1"
    words = ["docker", "build", "--quiet", "--label", f"microstages.interface={interface}", "--tag", name, str(place)]
    try:
        subprocess.run(words, check=True, capture_output=True, env=own.environment)
    except (OSError, subprocess.CalledProcessError) as error:
        without_engine(f"an image cannot be built: {error}")
    try:
        own.pipeline(f"  say: {{uses: '{name}'}}\n")
        made = own.up()["say"]
        assert made["metrics"] == {"lines": 1}
        assert (Path(made["outputs"]["out"]["uri"]) / "said").read_text() == "made without a shell\n"
    finally:
        subprocess.run(["docker", "rmi", "--force", name], check=True, capture_output=True, env=own.environment)


def test_what_counts_as_measured():
    event = {"event": "metric", "stage": "x", "time": 1.5, "step": 3, "loss": 0.25, "rows": 7, "good": True,
             "name": "x", "odd": float("nan"), "by": {"set": 1, "words": "x"}, "none": {"words": "x"}}  # fmt: skip
    assert measured(event) == {"loss": 0.25, "rows": 7, "by": {"set": 1}}


def test_a_plain_command_without_an_image_is_refused_on_a_cluster(own):
    own.stage("work", "", image="")
    own.head = "store: abfs://x@y.dfs.core.windows.net/z\ntarget: box\ntargets: {box: {type: kubernetes}}\n"
    own.pipeline("  a: {uses: ./work}\n")
    done = own.run("plan")
    assert done.returncode == 2 and "is a plain command without an image" in done.stderr


def test_on_azure_ml_it_is_refused_with_the_reason(own):
    own.stage("work", "")
    own.head = "store: abfs://x@y.dfs.core.windows.net/z\ntarget: aml\ntargets: {aml: {type: azureml}}\n"
    own.pipeline("  a: {uses: ./work}\n")
    done = own.run("plan")
    assert done.returncode == 2
    assert "work is a plain command: aml cannot run it" in done.stderr and "another target" in done.stderr


def test_an_input_has_its_own_name_on_a_cluster_too():
    from runner.executors.porter import file_name

    names = {"data/rows.jsonl": "rows.jsonl", "abfs://c@a.dfs.core.windows.net/x/y.csv": "y.csv",
             "hf://owner/name@main": "name@main", "data/*.jsonl": "files", "a b/c d?.txt": "files",
             "/x/.hidden": "hidden", "abfs://c/rows.jsonl/": "rows.jsonl"}  # fmt: skip
    assert {uri: file_name(uri) for uri in names} == names
