"""A place to run the whole thing for real: the committed pipeline and examples, a store of the test's own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Project:
    """A folder with pipeline.yaml and examples, as a user has it."""

    folder: Path

    def runner(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runner.cli", *arguments]
        streams = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, **options}
        # one fork of the tests keeps the cores: stages take what is there
        return subprocess.run(command, cwd=self.folder, env=os.environ, check=False, **streams)

    def plan(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """`runner plan --json`, by stage."""
        done = self.runner("plan", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Every committed artifact of the store: path below it -> manifest."""
        found = {}
        for commit in (self.folder / ".runner/store/artifacts").glob("*/*/commit.json"):
            attempt = commit.parent / json.loads(commit.read_text())["attempt"]
            for manifest in attempt.glob("*/artifact.json"):
                found[str(manifest.parent.relative_to(self.folder))] = json.loads(manifest.read_text())
        return found


def new_project(folder: Path) -> Project:
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "pipeline.yaml", folder)
    shutil.copytree(ROOT / "examples", folder / "examples")
    return Project(folder)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The committed pipeline, run once, also where several processes run tests: each has a copy of it."""
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent
    made, done = common / "system-project", common / "system-project-done"
    with open(common / "system-project-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(made, ignore_errors=True)
            ran = new_project(made).runner("up")
            assert ran.returncode == 0, ran.stdout + ran.stderr
            (made / "first-run.txt").write_text(ran.stdout + ran.stderr)
            done.touch()
    folder = tmp_path_factory.mktemp("system") / "project"
    shutil.copytree(made, folder)
    return Project(folder)
