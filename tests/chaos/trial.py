"""One trial: the pipeline from an empty store to its end, however often something dies on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.audit import Audit, StageRun, Wrong, audit
from chaos.places import Place

ROOT = Path(__file__).parent.parent.parent
EVERY = 4  # steps that may be lost
STAGES = 4
PIPELINE = """\
name: chaos
target: TARGET
targets: {host: {type: docker, network: host}}
stages:
  data:
    uses: prepare-data
    inputs: {source: rows.jsonl, model: tiny-phi3}
    params: {template: "{phrase}: {tone}", completion: tone, max_length: 32, test_fraction: 0.2}
  words:
    uses: ./words
    inputs: {dataset: "${{ stages.data.dataset }}"}
  adapter:
    uses: train-lora
    inputs: {dataset: "${{ stages.data.dataset }}", base_model: tiny-phi3}
    params: {steps: 32, rank: 4, alpha: 4, batch_tokens: 64, threads: 1, checkpoint_every: EVERY}
  merged:
    uses: merge
    inputs: {base_model: tiny-phi3, adapter: "${{ stages.adapter.adapter }}"}
"""
WORDS = {
    "schema": 1, "name": "words", "version": "1", "summary": "A plain command.", "command": ["sh", "./run.sh"],
    "code": ["."], "manifest": "runner", "image": "microstages/prepare-data:latest",
    "inputs": {"dataset": {"flag": "--dataset", "kinds": ["dataset"]}},
    "outputs": {"out": {"flag": "--out", "kind": "dataset"}}, "params": {},
}  # fmt: skip
SCRIPT = """\
for a in "$@"; do k="${a%%=*}"; eval "${k#--}=\\${a#*=}"; done
cp "$dataset/report.json" "$out/report.json"
sleep 0.4
wc -c < "$dataset/train.safetensors" > "$out/size"
"""
MARK = "MICROSTAGES_CHAOS"  # in the environment of everything that a trial starts


def write_project(folder: Path, target: str) -> None:
    """A pipeline of four real stages on forty rows, one of them a plain command."""
    (folder / "words").mkdir(parents=True)
    (folder / "words" / "interface.json").write_text(json.dumps(WORDS))
    (folder / "words" / "run.sh").write_text(SCRIPT)
    rows = (ROOT / "examples" / "tones.jsonl").read_text().splitlines(keepends=True)[:40]
    (folder / "rows.jsonl").write_text("".join(rows))
    shutil.copytree(ROOT / "examples" / "tiny-phi3", folder / "tiny-phi3")
    (folder / "pipeline.yaml").write_text(PIPELINE.replace("TARGET", target).replace("EVERY", str(EVERY)))


@dataclass
class Up:
    """One `runner up`; `strikes` is what died while it ran."""

    process: subprocess.Popen[bytes]
    said: Path
    began: float = field(default_factory=time.monotonic)
    strikes: list[str] = field(default_factory=list)

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll()

    def words(self) -> str:
        """What it said to people."""
        return self.said.with_suffix(".err").read_text(errors="replace")

    def states(self) -> dict[str, str]:
        """What `--json` says at the end: stage -> status."""
        return {s["stage"]: s["status"] for s in json.loads(self.said.read_text())["stages"]}


class Trial:
    """A project in a folder of its own, with a store of its own."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place, self.folder = place, folder
        write_project(folder, place.target)
        self.uri = place.uri(folder.name)
        self.files = place.files(folder, self.uri)
        self.ups: list[Up] = []
        self.cache = 0
        self.forgetful = False  # the store was killed: it may have forgotten its last seconds
        self.known: dict[StageRun, str] = {}  # what was committed before the last `up`
        self.seen_runs = 0
        self._looks: dict[str, int] = {}

    # --- running ---

    def environment(self) -> dict[str, str]:
        """What the runner is started with."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("AZURE_", "AWS_"))}
        environment |= {**self.place.environment, MARK: str(self.folder), "HF_HUB_OFFLINE": "1"}
        return environment | {"MICROSTAGES_CACHE": str(self.folder / f"cache-{self.cache}")}

    def up(self, *words: str) -> Up:
        """Start the runner."""
        said = self.folder / f"up-{len(self.ups)}.json"
        command = [sys.executable, "-m", "runner.cli", "up", "--json", "--set", f"store={self.uri}", *words]
        with open(said, "wb") as out, open(said.with_suffix(".err"), "wb") as err:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        self.ups.append(Up(process, said))
        return self.ups[-1]

    def gc(self) -> None:
        """Remove what killed programs left where no `up` looks."""
        command = [
            sys.executable,
            "-m",
            "runner.cli",
            "gc",
            "--older-than",
            "0s",
            "--yes",
            "--set",
            f"store={self.uri}",
        ]
        subprocess.run(command, cwd=self.folder, env=self.environment(), check=True, stdout=subprocess.DEVNULL)

    def processes(self) -> dict[int, bool]:
        """The processes that this trial started and that live: id -> whether it is a stage's."""
        mark, found = f"{MARK}={self.folder}".encode(), {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (process / "environ").read_bytes().split(b"\0")
                ended = (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
                if mark in words and not ended:
                    found[int(process.name)] = any(w.startswith(b"MICROSTAGES_ATTEMPT=") for w in words)
        return found

    def containers(self) -> dict[str, int]:
        """The containers, in any state, that hold something of this folder: id -> process id (0: it does not run)."""
        if not self.place.address:
            return {}
        import docker

        client = docker.APIClient(self.place.address, version="auto")
        found = {}
        for one in client.containers(all=True):
            if any(m["Source"].startswith(f"{self.folder}/") for m in one["Mounts"]):
                with suppress(docker.errors.NotFound):
                    found[one["Id"]] = int(client.inspect_container(one["Id"])["State"]["Pid"])
        client.close()
        return found

    def end_all(self) -> None:
        """End what still runs."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if left := self.containers():
            import docker

            client = docker.APIClient(self.place.address, version="auto")
            for container in left:
                with suppress(docker.errors.NotFound):
                    client.remove_container(container, force=True)
            client.close()
        for up in self.ups:
            up.process.wait()

    # --- looking ---

    def audit(self) -> Audit:
        return audit(self.files)

    def forgot(self, wrong: Wrong) -> bool:
        """Whether the store had confirmed a file that is missing, and was killed since."""
        return self.forgetful and wrong.missing and self.place.confirmed(self.uri, wrong.file)

    def changed(self) -> int:
        """How many files of a store in a folder changed since the last call; of one elsewhere, exchanges with it."""
        if self.place.proxy:
            looks = {"": self.place.exchanges()}
            count = looks[""] - self._looks.get("", looks[""])
        else:
            looks = dict(_times(self.folder / self.uri))
            count = sum(looks.get(k) != self._looks.get(k) for k in looks.keys() | self._looks.keys())
        self._looks = looks
        return count

    def started(self) -> dict[StageRun, list[str]]:
        """The attempts that the history says were started by the runs since the last call."""
        file = self.folder / ".runner" / "history.db"
        found: dict[StageRun, list[str]] = {}
        if not file.exists():
            return found
        with suppress(sqlite3.OperationalError):  # it is just being made
            db = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)
            sql = "SELECT run, uses, fingerprint, attempt FROM stages WHERE attempt != '' AND status != 'reused'"
            rows = [row for row in db.execute(sql) if row[0] > self.seen_runs]
            self.seen_runs = max(self.seen_runs, db.execute("SELECT max(id) FROM runs").fetchone()[0] or 0)
            db.close()
            for _, uses, fingerprint, attempt in rows:
                found.setdefault((uses, fingerprint), []).append(attempt)
        return found

    def claims(self) -> list[str]:
        """The claims that the history holds."""
        db = sqlite3.connect(f"file:{self.folder / '.runner/history.db'}?mode=ro", uri=True, timeout=30)
        rows = [" ".join(map(str, row)) for row in db.execute("SELECT key, attempt FROM claims")]
        db.close()
        return rows

    def training(self) -> list[Training]:
        """The attempts to train that began to train, in order."""
        found = []
        for file in (self.folder / ".runner" / "logs").glob("*/adapter*.events"):
            events = list(_events(file))
            if any(e["event"] in ("progress", "checkpoint") for e in events):
                found.append(Training.of(events))
        return sorted(found, key=lambda t: t.began)


@dataclass(frozen=True)
class Training:
    """One attempt to train: from which step it went on, which steps it saved, which one it reached."""

    began: float
    resumed: int
    saved: int
    reached: int

    @staticmethod
    def of(events: list[dict[str, Any]]) -> Training:
        marks = [e for e in events if e["event"] == "checkpoint"]
        resumed = max((e["step"] for e in marks if e.get("resumed")), default=0)
        reached = max((e["done"] for e in events if e["event"] == "progress"), default=resumed)
        return Training(events[0]["time"], resumed, max((e["step"] for e in marks), default=0), reached)


def _events(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            yield json.loads(line)


def _times(folder: Path) -> Iterator[tuple[str, int]]:
    """Every file and folder and when it changed."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            with suppress(OSError):
                yield entry.path, entry.stat(follow_symlinks=False).st_mtime_ns
            if entry.is_dir(follow_symlinks=False):
                yield from _times(Path(entry.path))
