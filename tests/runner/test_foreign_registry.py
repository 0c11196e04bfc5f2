"""A stage that is an image of a registry, where no engine of this machine has it; the registry is a real one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import ENGINE, without_engine
from foreign import DEDUPE, Own
from microstages.errors import UserError
from stores.servers import HOST, Server

from runner import stages

PROGRAM = shutil.which("docker-registry")
ADDRESS = ENGINE or "unix:///var/run/docker.sock"
LABEL = f"microstages.interface={(DEDUPE / 'interface.json').read_text()}"


@dataclass(frozen=True)
class Pushed:
    """A registry with the example's image, whose id the engine that made it says; `push` puts more there."""

    host: str
    id: str
    push: Callable[[str, str], str]

    @property
    def name(self) -> str:
        return f"{self.host}/team/dedupe:1"


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    if PROGRAM is None:
        pytest.skip("IMAGES OF A REGISTRY NOT TESTED: apt-get install docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    (folder / "image").mkdir()
    (folder / "image" / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")

    def command(port: int) -> list[str]:
        storage = {"filesystem": {"rootdirectory": str(folder / "data")}}
        text = yaml.safe_dump({"version": 0.1, "storage": storage, "http": {"addr": f"{HOST}:{port}"}})
        (folder / "registry.yml").write_text(text)
        return [str(PROGRAM), "serve", str(folder / "registry.yml")]

    def docker(*words: str) -> str:
        done = subprocess.run(["docker", "--host", ADDRESS, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def push(name: str, label: str) -> str:
        """Build an image, push it, and remove it here; its id."""
        id = docker("build", "--quiet", "--label", label, "--tag", name, str(folder / "image"))
        docker("push", name)
        docker("rmi", "--force", name)
        return id

    server = Server(command, folder / "log")
    server.start()
    host = f"{HOST}:{server.port}"
    try:
        yield Pushed(host, push(f"{host}/team/dedupe:1", LABEL), push)
    except (OSError, subprocess.CalledProcessError) as error:
        without_engine(f"an image cannot be pushed: {error}")
    finally:
        server.stop()


def test_its_interface_its_identity_and_the_name_to_pull_are_those_that_an_engine_tells(pushed):
    found = stages.find(pushed.name, Path())
    assert (found.interface.name, found.code_identity()) == ("dedupe", pushed.id)
    assert found.pulled.startswith(f"{pushed.host}/team/dedupe@sha256:")
    again = stages.find(found.pulled, Path())
    assert (again.pulled, again.code_identity()) == (found.pulled, pushed.id)


def test_a_pipeline_for_a_cluster_is_planned_without_an_engine(pushed, tmp_path):
    own = Own(tmp_path)
    own.head = f"store: store\ntargets: {{box: {{type: kubernetes, volumes: [{{path: '{tmp_path}', claim: x}}]}}}}\n"
    own.pipeline(f"  clean: {{uses: '{pushed.name}', inputs: {{rows: rows.jsonl}}, target: box}}\n")
    done = own.run("plan")
    assert done.returncode == 0, done.stderr
    assert "clean" in done.stdout


@pytest.mark.parametrize(
    ("tag", "words"), [("team/none:1", "the registry has no image"), ("team/plain:1", "does not say")]
)
def test_what_is_no_stage_there_is_told(pushed, tag, words):
    pushed.push(f"{pushed.host}/team/plain:1", "a=b")
    with pytest.raises(UserError) as error:
        stages.find(f"{pushed.host}/{tag}", Path())
    assert words in error.value.what and error.value.fix


def test_a_registry_that_is_not_reached_is_told_beside_the_engine():
    with pytest.raises(UserError) as error:
        stages.find("127.0.0.1:9/team/dedupe:1", Path())
    assert "no Docker engine answers" in error.value.what and "is not reached from here" in error.value.what


def test_a_name_without_a_registry_is_looked_for_in_the_engine_alone():
    with pytest.raises(UserError) as error:
        stages.find("dedupe:1", Path())
    assert error.value.what == "no Docker engine answers"
