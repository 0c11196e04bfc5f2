"""Small stages and pipelines in folders of their own, and the runner as a program."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from relay import Relay

# Turns `--name=value` into the shell variable of that name.
FLAGS = 'for a in "$@"; do k="${a%%=*}"; eval "${k#--}=\\${a#*=}"; done\n'

Waiter = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def states(self) -> dict[str, str]:
        """What `up --json` says: stage -> status."""
        return {s["stage"]: s["status"] for s in self.json["stages"]}


class Project:
    """A folder with a pipeline and its stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "pipeline.yaml"
        self.environment = {**os.environ, "MICROSTAGES_CACHE": str(folder / "cache"), "TRACE": str(folder / "trace")}

    def stage(
        self,
        name: str,
        script: str,
        *,
        inputs: Mapping[str, list[str]] | None = None,
        outputs: Mapping[str, str] | None = None,
        params: Mapping[str, Mapping[str, Any]] | None = None,
        **more: Any,
    ) -> Path:
        """A plain command stage whose shell script has each flag as a variable, and notes in `trace` that it ran."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        interface = {
            "schema": 1, "name": name, "version": "1", "summary": "A stage of a test.", "command": ["sh", "./run.sh"],
            "code": ["."], "manifest": "runner",
            "inputs": {k: {"flag": f"--{k}", "kinds": v} for k, v in (inputs or {}).items()},
            "outputs": {k: {"flag": f"--{k}", "kind": v} for k, v in (outputs or {"out": "dataset"}).items()},
            "params": {k: {"flag": f"--{k}", **v} for k, v in (params or {}).items()},
            **more,
        }  # fmt: skip
        (folder / "interface.json").write_text(json.dumps(interface))
        (folder / "run.sh").write_text(f'{FLAGS}echo {name} >> "$TRACE"\n{textwrap.dedent(script)}\n')
        return folder

    def pipeline(self, text: str) -> Path:
        self.file.write_text(textwrap.dedent(text))
        return self.file

    def command(self, *args: object) -> list[str]:
        return [sys.executable, "-m", "runner.cli", *map(str, args)]

    def run(self, *args: object, **options: Any) -> Ended:
        """Run the runner in the project's folder. No command may end with a traceback."""
        environment = {**self.environment, **options.pop("environment", {})}
        done = subprocess.run(
            self.command(*args), cwd=self.folder, env=environment, capture_output=True, text=True, check=False,
            timeout=120, stdin=subprocess.DEVNULL, **options,
        )  # fmt: skip
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *args: object) -> subprocess.Popen[str]:
        """Start the runner and go on."""
        return subprocess.Popen(
            self.command(*args), cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def up(self, *args: object) -> dict[str, str]:
        """Run `up`, which must end well; stage -> status."""
        done = self.run("up", "--json", *args)
        assert done.code == 0, done.err
        return done.states

    def plan(self, *args: object) -> dict[str, tuple[str, str]]:
        """What `plan` says: stage -> action and reason."""
        done = self.run("plan", "--json", *args)
        assert done.code == 0, done.err
        return {s["stage"]: (s["action"], s["reason"]) for s in done.json["stages"]}

    def ran(self) -> list[str]:
        """The names of the stages whose scripts ran, in order, since the last call."""
        file = self.folder / "trace"
        names = file.read_text().split() if file.exists() else []
        file.unlink(missing_ok=True)
        return names

    def output(self, stage: str, output: str = "out") -> Path:
        """Where the result of a stage lies now."""
        done = self.run("plan", "--json")
        return Path(next(s["outputs"][output] for s in done.json["stages"] if s["stage"] == stage))

    def store(self) -> list[str]:
        """Every file and folder below the store, hidden ones too."""
        root = self.folder / ".runner" / "store"
        return sorted(p.relative_to(root).as_posix() for p in root.rglob("*"))

    def nothing_half_made(self) -> bool:
        """Whether only committed results are in the store, and no claim is left."""
        for attempt in (self.folder / ".runner/store/artifacts").glob("*/*/*-*"):
            commit = json.loads((attempt.parent / "commit.json").read_text())
            assert commit["attempt"] == attempt.name, f"{attempt} is left behind"
        names = [name.replace("/.verified", "") for name in self.store()]
        assert not [name for name in names if name.endswith(".partial") or "/." in name]
        db = sqlite3.connect(self.folder / ".runner/history.db")
        assert db.execute("SELECT count(*) FROM claims").fetchone() == (0,)
        db.close()
        return True

    def running(self) -> int:
        """How many runs are under way."""
        return sum(run["status"] == "running" for run in self.run("ps", "--json").json)

    def begun(self, eventually: Waiter) -> int:
        """Wait until a stage has written its process id into `trace.pid`; that id."""
        file = self.folder / "trace.pid"
        return int(eventually(lambda: file.exists() and file.read_text().strip()))

    @staticmethod
    def alive(pid: int) -> bool:
        """Whether a process runs."""
        try:
            return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
        except OSError:
            return False


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """An empty project. What a test that failed left running is ended."""
    made = Project(tmp_path)
    yield made
    mark = f"TRACE={made.environment['TRACE']}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture(scope="module")
def module_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that the tests of a file share, and leave as it is."""
    return Project(tmp_path_factory.mktemp("project"))


@dataclass(frozen=True)
class CommonStore:
    """A store that several runners share: its address, and what they need in their environment to reach it."""

    uri: str
    environment: Mapping[str, str]

    def leases(self) -> list[str]:
        """The leases that are held, or were left behind."""
        from microstages.storage import listing

        return [name for name in listing(self.uri) if "/lease-" in name]


@pytest.fixture(params=["folder", "azurite", "s3"])
def common_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommonStore:
    """A place for the artifacts of several runners at once; the test runs once with each kind."""
    if request.param == "folder":
        return CommonStore(str(tmp_path / "store"), {})
    store = request.getfixturevalue(request.param)
    store.start()
    store.use(monkeypatch)
    return CommonStore(store.uri("store"), store.environment)


@pytest.fixture
def chain(project: Project) -> Project:
    """`first` reads data.txt and adds its word; `second` adds its own; `side` counts the lines of `first`."""
    project.stage(
        "append", '{ if [ -d "$text" ]; then cat "$text/text"; else cat "$text"; fi; echo "$word"; } > "$out/text"',
        inputs={"text": ["files"]}, params={"word": {"type": "string", "default": "end"}},
    )  # fmt: skip
    project.stage("count", 'wc -l < "$text/text" > "$out/lines"', inputs={"text": ["dataset"]})
    (project.folder / "data.txt").write_text("one\ntwo\n")
    project.pipeline("""\
        name: demo
        params:
          data: data.txt
          word: hello
        stages:
          first: {uses: ./append, inputs: {text: "${{ params.data }}"}, params: {word: "${{ params.word }}"}}
          second: {uses: ./append, inputs: {text: "${{ stages.first.out }}"}}
          side: {uses: ./count, inputs: {text: "${{ stages.first.out }}"}}
        """)
    return project


@pytest.fixture
def work(project: Project) -> Project:
    """A stage that does what the environment variable ACT says, in a chain of two; `beside` depends on nothing."""
    project.stage("work", 'eval "$ACT"; echo "$n" > "$out/x"', params={"n": {"type": "integer", "default": 0}})
    project.stage("next", 'cat "$x/x" > "$out/x"', inputs={"x": ["dataset"]})
    project.stage("good", 'sleep 0.2; echo good > "$out/x"')
    project.pipeline("""\
        name: demo
        stages:
          bad: {uses: ./work}
          after: {uses: ./next, inputs: {x: "${{ stages.bad.out }}"}}
          beside: {uses: ./good}
        """)
    return project


SAVER = """
import os, sys, time
from microstages.artifact import Draft
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
trace = os.environ["TRACE"]
open(trace, "a").write("work\\n")
with Draft(flags["out"], "dataset") as draft:
    open(trace + ".pid", "w").write(str(os.getpid()))
    while os.path.exists(trace + ".wait"):
        time.sleep(0.02)
    (draft.path / "x").write_text("made\\n")
    draft.commit({})
open(trace + ".done", "w").close()
"""


@pytest.fixture
def saver(work: Project) -> Project:
    """`bad` writes its own manifest, and waits as long as the file `trace.wait` is there."""
    (work.folder / "work" / "tool.py").write_text(SAVER)
    interface = work.folder / "work" / "interface.json"
    text = interface.read_text().replace('["sh", "./run.sh"]', f'["{sys.executable}", "./tool.py"]')
    interface.write_text(text.replace('"manifest": "runner"', '"manifest": "stage"'))
    (work.folder / "trace.wait").touch()
    return work


class Boxed(Project):
    """A project whose stages run in containers of a real engine."""

    image = "microstages/prepare-data:latest"  # its shell and its Python are all that is used

    def __init__(self, folder: Path, engine: Any) -> None:
        super().__init__(folder)
        self.engine = engine
        self.environment["DOCKER_HOST"] = engine.address

    def stage(self, name: str, script: str, **more: Any) -> Path:
        return super().stage(name, script, **{"image": self.image, **more})

    def one(self, script: str, rest: str = "", **more: Any) -> None:
        """A pipeline of one stage that runs in a container."""
        self.stage("work", script, **more)
        self.pipeline(f"target: docker\nstages:\n  a: {{uses: ./work{rest}}}\n")

    def containers(self) -> list[dict[str, Any]]:
        """The containers, in any state, that hold something of this project's folder."""
        found = self.engine.client.containers(all=True)
        return [c for c in found if any(m["Source"].startswith(str(self.folder)) for m in c["Mounts"])]

    def container(self) -> dict[str, Any] | None:
        """The one that runs, inspected."""
        found = [c for c in self.containers() if c["State"] == "running"]
        return self.engine.client.inspect_container(found[0]["Id"]) if found else None


@pytest.fixture
def boxed(tmp_path: Path, engine: Any) -> Iterator[Boxed]:
    """An empty project for containers. What a test that failed left there is removed."""
    made = Boxed(tmp_path, engine)
    yield made
    for container in made.containers():
        engine.client.remove_container(container["Id"], force=True)


@pytest.fixture
def proxy(tmp_path: Path, engine: Any) -> Iterator[Relay]:
    """A socket in front of the engine's."""
    if not engine.address.startswith("unix://"):
        pytest.skip("this engine is not behind a socket of this machine")
    made = Relay(engine.address, tmp_path / "docker.sock")
    yield made
    made.down()
