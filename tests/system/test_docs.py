"""The docs are true: every command in a ```sh block of README, docs and the stages' READMEs is run here.

The blocks run in one folder that holds what a clone holds, in the order a reader meets them; the stages' READMEs in the
order of the pipeline, so that one's output is the next one's input. `make test` is what runs this file.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stores.servers import Store

ROOT = Path(__file__).parent.parent.parent
STAGES = ("prepare-data", "train-lora", "train-qlora", "merge", "build-onnx", "infer")
DOCS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / "stages" / s / "README.md" for s in STAGES),
    ROOT / "stages/lib/README.md",
    ROOT / "stages/lib/training/README.md",
    ROOT / "runner/README.md",
]
# What cannot be run inside the tests: the tests themselves, and what needs other tools installed beside it.
NOT_HERE = re.compile(r"^(make test|make images FLAVOR=cuda|python benchmarks/|pip install )")
# What needs a cluster, a workspace or a second machine: the test that runs it against one, or a stand-in, and how it
# does so.
ELSEWHERE = {
    r"runner up --target (aml|azureml)$": ("tests/azureml/test_pipeline.py", '"--target", "aml"'),
    r"runner export kubernetes ": ("tests/k8s/test_export.py", "docs/kubernetes.md"),
    r"(infer .*--serve|curl .*http://127\.0\.0\.1:8080/)": ("tests/stages/infer/test_serve.py", "documented_commands"),
    r"MICROSTAGES_NODES=2 .* train-lora ": ("tests/stages/lib/training/test_nodes.py", '"MICROSTAGES_NODE_RANK"'),
}
# What needs a Docker engine with the stages' images, and sees it.
IN_CONTAINERS = re.compile(r"^(docker |make images|python images/|runner doctor|runner .*--target docker)")
# What reaches an object store: a container `models` of a real server.
IN_A_STORE = re.compile(r"abfs://models/")


def commands(file: Path) -> list[str]:
    """The commands of a file's sh blocks; a line that ends in a backslash goes on, a here-document to its end."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", file.read_text(), flags=re.S | re.M):
        lines = iter(block.replace("\\\n", " ").splitlines())
        for line in lines:
            if here := re.search(r"<<'(\w+)'", line):
                found.append("\n".join([line, *iter(lines.__next__, here[1]), here[1]]) + "\n")
            elif (text := line.partition(" # ")[0].strip()) and not text.startswith("#"):
                found.append(text)
    return found


ALL = [(str(f.relative_to(ROOT)), c) for f in DOCS for c in commands(f)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "clone"
    folder.mkdir()
    # links, so that `make` finds everything as old as it is and installs nothing into this environment
    for path in ROOT.iterdir():
        if path.name not in ("examples", "pipeline.yaml", ".git", ".runner", "out"):
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "examples", folder / "examples")
    text = (ROOT / "pipeline.yaml").read_text()
    assert "epochs: 8" in text
    # what is asked here is whether the commands run: how good the model is, tests/system/test_pipeline.py asks
    (folder / "pipeline.yaml").write_text(text.replace("epochs: 8", "epochs: 2"))
    return folder


@pytest.fixture(scope="module")
def models(azurite: Store) -> dict[str, str]:
    """The variables with which the container `models` is reached."""
    azurite.start()
    azurite.make(azurite.environment, "models")
    return azurite.environment


@pytest.mark.parametrize("file, command", ALL, ids=[f"{f}: {c.splitlines()[0][:60]}" for f, c in ALL])
def test_a_documented_command_runs(place: Path, file: str, command: str, request: pytest.FixtureRequest):
    if NOT_HERE.match(command):
        assert command.split(maxsplit=1)[0] != "make" or re.search(
            rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.M
        )
        for script in re.findall(r"\S+\.py", command):
            assert (ROOT / script).is_file()
        return
    for pattern, (test, words) in ELSEWHERE.items():
        if re.match(pattern, command):
            assert words in (ROOT / test).read_text()
            return
    own = [ROOT / "stages/train-qlora/.venv/bin", Path(sys.executable).parent]
    path = os.pathsep.join([*(str(p) for p in own), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTEST_ADDOPTS": ""}
    if IN_CONTAINERS.match(command):
        engine = request.getfixturevalue("engine")
        environment["DOCKER_HOST"] = engine.address
        environment["BASE"] = engine.base
    if IN_A_STORE.search(command):
        environment |= request.getfixturevalue("models")
    # the environments are this checkout's: `make` must not install into them from here, however old they are
    old = "make -o .venv/.installed -o stages/train-qlora/.venv/.installed "
    done = subprocess.run(
        re.sub(r"^make ", old, command),
        shell=True,
        executable="/bin/bash",
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{file}: {command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_there_are_commands_in_the_docs():
    files = {file for file, _ in ALL}
    assert {"README.md", "docs/first-hour.md", *(f"stages/{s}/README.md" for s in STAGES)} <= files


def anchors(file: Path) -> set[str]:
    """The headings of a file as addresses within it, as code hosts make them."""
    text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.S | re.M)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


def test_links_in_the_docs_lead_somewhere():
    broken = []
    for file in DOCS:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)]*)\)", file.read_text()):
            if "://" in target:
                continue
            there = file.parent / target if target else file
            if not there.exists() or (anchor and anchor not in anchors(there)):
                broken.append(f"{file.relative_to(ROOT)}: {target}#{anchor}")
    assert not broken


def test_every_page_is_in_the_index():
    index = ROOT / "docs/README.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index.read_text())}
    pages = {p.resolve() for p in (ROOT / "docs").rglob("*.md")} - {index.resolve()}
    assert pages <= linked
