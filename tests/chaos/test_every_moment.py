"""The runner dies before each of its writes in turn: whatever it was about to do, one more `up` ends well."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from chaos.audit import Audit, Folder, audit

DYING = Path(__file__).parent / "dying.py"
INTERFACE = {
    "schema": 1, "name": "work", "version": "1", "summary": "A plain command.", "command": ["sh", "./run.sh"],
    "code": ["."], "manifest": "runner", "inputs": {}, "params": {},
    "outputs": {"out": {"flag": "--out", "kind": "dataset"}},
}  # fmt: skip


class Project:
    """A pipeline of one plain command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "work").mkdir(parents=True)
        (folder / "work" / "interface.json").write_text(json.dumps(INTERFACE))
        (folder / "work" / "run.sh").write_text('echo word > "${1#--out=}/x"\n')
        (folder / "pipeline.yaml").write_text("name: demo\nstages:\n  one: {uses: ./work}\n")
        self.environment = {**os.environ, "MICROSTAGES_CACHE": str(folder.parent / "cache")}

    def up(self, dying_at: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(DYING), str(dying_at), str(self.folder), "up", "--json"]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def gc(self) -> None:
        """Remove what a killed runner left beside results and could not be known to `up`."""
        command = [sys.executable, "-m", "runner.cli", "gc", "--older-than", "0s", "--yes"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def audit(self) -> Audit:
        return audit(Folder(self.folder / ".runner" / "store"))

    def claims(self) -> list[tuple[str]]:
        db = sqlite3.connect(self.folder / ".runner" / "history.db")
        found = db.execute("SELECT key FROM claims").fetchall()
        db.close()
        return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, str]]:
    """How many writes an undisturbed run makes, and the digests that it ends with."""
    project = Project(tmp_path_factory.mktemp("undisturbed") / "project")
    done = project.up()
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]), project.audit().digests


def test_one_more_up_ends_with_the_same_bytes_and_gc_leaves_nothing_else(
    undisturbed: tuple[int, dict[str, str]], tmp_path: Path
):
    writes, digests = undisturbed
    assert writes > 30
    wrong = {}
    for n in range(1, writes + 1):
        project = Project(tmp_path / "project")
        assert project.up(dying_at=n).returncode == -9, n
        killed = project.audit()
        again = project.up()
        found = project.audit()
        assert again.returncode == 0, (n, again.stderr)
        assert killed.wrong == found.wrong == [], n
        assert found.digests == digests, n
        (stage,) = json.loads(again.stdout)["stages"]
        assert not killed.commits or stage["status"] == "reused", (n, "it was finished, and was made again")
        claims = project.claims()
        project.gc()
        swept = project.audit()
        assert swept.digests == digests and swept.wrong == [], n
        if left := [*swept.left, *claims]:
            wrong[n] = left
        shutil.rmtree(project.folder)
    assert wrong == {}, "left over, by the write before which the runner died"
