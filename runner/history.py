"""What ran when: a SQLite file beside the store.

It explains and attaches; it decides nothing that is in the store. Losing it loses the history, no result. `claims` are
the attempts under way: one for each stage run, so that two runners do not make the same thing, and so that a runner
that was killed leaves a trace by which the next one finds its processes again.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from microstages.errors import UserError, from_os_error

from runner.executors.processes import alive, host, own_token

SCHEMA = 2
_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
  id INTEGER PRIMARY KEY, pipeline TEXT, file TEXT, runner TEXT, started REAL, finished REAL, status TEXT,
  code INTEGER);
CREATE TABLE IF NOT EXISTS stages (
  run INTEGER, stage TEXT, uses TEXT, status TEXT, reason TEXT, fingerprint TEXT, attempt TEXT, code TEXT, params TEXT,
  inputs TEXT, outputs TEXT, metrics TEXT, started REAL, finished REAL, exit_code INTEGER, error TEXT, log TEXT,
  PRIMARY KEY (run, stage));
CREATE INDEX IF NOT EXISTS stages_by_attempt ON stages (attempt);
CREATE TABLE IF NOT EXISTS claims (
  key TEXT PRIMARY KEY, attempt TEXT, runner TEXT, executor TEXT, token TEXT, started REAL, log TEXT, events TEXT);
CREATE TABLE IF NOT EXISTS cancels (run INTEGER, stage TEXT);
"""


@dataclass(frozen=True)
class Record:
    """What is known of one stage of one run. Times are seconds since 1970."""

    run: int
    stage: str
    uses: str
    status: str
    reason: str = ""
    fingerprint: str = ""
    attempt: str = ""
    code: str = ""
    params: Mapping[str, Any] | None = None
    inputs: Mapping[str, str] | None = None
    outputs: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None
    started: float | None = None
    finished: float | None = None
    exit_code: int | None = None
    error: str = ""
    log: str = ""


@dataclass(frozen=True)
class RunRecord:
    """One run of a pipeline. `status`: running, done, failed, stopped, or died (its runner was killed)."""

    id: int
    pipeline: str
    file: str
    started: float
    finished: float | None
    status: str
    code: int | None


@dataclass(frozen=True)
class Claim:
    """An attempt under way: whose it is, and by which token its executor finds it."""

    key: str
    attempt: str
    runner: str
    executor: str
    token: str
    log: str
    events: str

    @property
    def stage(self) -> str:
        """The name of its stage, by its log: the runner may have died before it noted more."""
        return Path(self.log).name.partition(".")[0]

    @property
    def orphan(self) -> bool:
        """Whether the runner that made it is gone. Of another machine's runner that cannot be told."""
        return host(self.runner) == host(own_token()) and not alive(self.runner)


class History:
    """The history in one folder. Every call is one transaction."""

    def __init__(self, folder: Path, create: bool = True) -> None:
        self.folder, self.file = folder, folder / "history.db"
        self.me = own_token()
        self.fresh = not self.file.exists()
        try:
            if create:
                folder.mkdir(parents=True, exist_ok=True)
            self._open(":memory:" if self.fresh and not create else str(self.file))
        except OSError as error:
            raise from_os_error(error, folder) or UserError(str(error), where=folder) from None
        except sqlite3.OperationalError as error:
            raise self._explained(error, "opened", "check its mode") from None
        except sqlite3.DatabaseError:
            self.db.close()
            aside = self.file.with_name(f"history.damaged-{int(time.time())}.db")
            os.replace(self.file, aside)
            self._open(str(self.file))

    def _open(self, name: str) -> None:
        self.db = sqlite3.connect(name, timeout=30, isolation_level=None)
        # A lost history costs little; waiting for the disk at every stage costs more.
        self.db.execute("PRAGMA synchronous=OFF")
        if self.db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
            # at once, so that nobody who reads meanwhile takes it for the history of another version
            self.db.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version={SCHEMA};COMMIT")

    def _explained(self, error: sqlite3.DatabaseError, verb: str, fix: str) -> UserError:
        """SQLite's error as the operating system's where it stands for one, so that both are told in the same words."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the bits of the extended code
        number = {sqlite3.SQLITE_FULL: errno.ENOSPC}.get(code, 0)
        if code == sqlite3.SQLITE_READONLY:
            read_only = os.statvfs(self.folder).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
        known = from_os_error(OSError(number, ""), self.file)
        return known or UserError(f"the history cannot be {verb}: {error}", where=self.file, fix=fix)

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:  # locked for long, disk full, read-only, damaged
            fix = "check the disk and the file's mode, and that no other program holds it"
            raise self._explained(error, "written", fix) from None

    # --- runs ---

    def start_run(self, pipeline: str, file: str) -> int:
        """The number of a new run."""
        with self._transaction() as db:
            values = (pipeline, file, self.me, time.time())
            sql = "INSERT INTO runs (pipeline, file, runner, started, status) VALUES (?, ?, ?, ?, 'running')"
            return int(db.execute(sql, values).lastrowid or 0)

    def finish_run(self, run: int, status: str, code: int) -> None:
        with self._transaction() as db:
            db.execute("UPDATE runs SET finished=?, status=?, code=? WHERE id=?", (time.time(), status, code, run))

    def write(self, *records: Record) -> None:
        """Put down what is known of stages now, over what was known of them before."""
        with self._transaction():
            for record in records:
                self._put(record)

    def _put(self, record: Record) -> None:
        fields = record.__dict__
        values = [json.dumps(v) if isinstance(v, Mapping) else v for v in fields.values()]
        names, marks = ", ".join(fields), ", ".join("?" * len(values))
        update = ", ".join(f"{k}=excluded.{k}" for k in fields if k not in ("run", "stage"))
        sql = f"INSERT INTO stages ({names}) VALUES ({marks}) ON CONFLICT (run, stage) DO UPDATE SET {update}"
        self.db.execute(sql, values)

    def runs(self, last: int = 0) -> list[RunRecord]:
        """The runs, newest first; `last` of them, or all."""
        sql = "SELECT id, pipeline, file, started, finished, status, code, runner FROM runs ORDER BY id DESC"
        out = []
        for *values, runner in self.db.execute(sql + (f" LIMIT {last}" if last else "")):
            record = RunRecord(*values)
            if record.status == "running" and host(runner) == host(self.me) and not alive(runner):
                record = replace(record, status="died")
            out.append(record)
        return out

    def heard(self, run: RunRecord) -> float | None:
        """When a run that died gave its last sign of life: by its stages, and by the logs of those that it left running
        (they may be written on; by the next run at the latest). None where it gave none."""
        later = next(self.db.execute("SELECT min(started) FROM runs WHERE id > ?", (run.id,)))[0]
        signs = []
        for r in self.stages(run.id):
            signs += [t for t in (r.started, r.finished) if t is not None]
            if r.status == "running" and r.log:
                with suppress(OSError):
                    written = os.stat(r.log).st_mtime
                    signs.append(written if later is None else min(written, later))
        return max(signs, default=None)

    def runner(self, run: int) -> str:
        """The token of the runner of a run."""
        return str(self.db.execute("SELECT runner FROM runs WHERE id=?", (run,)).fetchone()[0])

    def stages(self, run: int) -> list[Record]:
        """The stages of a run, in the order in which they were put down."""
        return self._records("WHERE run=? ORDER BY rowid", (run,))

    def runs_of(self, file: Path) -> list[RunRecord]:
        """The runs of a pipeline file, newest first; those of all pipelines where it has none."""
        runs = self.runs()
        return [r for r in runs if r.file == str(file.resolve())] or runs

    def productive(self) -> set[int]:
        """The runs that made something: in the others all was reused, or nothing came to an end."""
        return {n for (n,) in self.db.execute("SELECT DISTINCT run FROM stages WHERE status='done'")}

    def like(self, run: int) -> int | None:
        """The run that a run is compared with where nobody names one: of those of the same pipeline file before it that
        are done, the one that came to a result of the most of its stages; of several the newest, of those that made
        something if any did. None where there is none."""
        runs = self.runs()
        file = next((r.file for r in runs if r.id == run), None)
        before = [r.id for r in runs if r.id < run and r.file == file and r.status == "done"]
        asked: set[str] = set()
        reached: dict[int, set[str]] = {n: set() for n in before}
        for number, stage, status in self.db.execute("SELECT run, stage, status FROM stages WHERE run <= ?", (run,)):
            if number == run and status != "not run":
                asked.add(stage)
            elif number in reached and status in ("done", "reused"):
                reached[number].add(stage)
        made = self.productive()
        best = max(before, key=lambda n: (len(reached[n] & asked), n in made, n), default=None)
        return best if best is not None and reached[best] & asked else None

    def last(self, pipeline: str) -> dict[str, Record]:
        """The newest finished record of each stage of a pipeline."""
        sql = (
            "WHERE rowid IN (SELECT max(s.rowid) FROM stages s JOIN runs r ON r.id = s.run"
            " WHERE r.pipeline=? AND s.status IN ('done', 'reused') GROUP BY s.stage)"
        )
        return {r.stage: r for r in self._records(sql, (pipeline,))}

    def made(self, attempt: str) -> Record | None:
        """The record of the run that made an attempt."""
        found = self._records("WHERE attempt=? AND status != 'reused' ORDER BY run LIMIT 1", (attempt,))
        return found[0] if found else None

    def _records(self, where: str, values: tuple[Any, ...]) -> list[Record]:
        names = list(Record.__dataclass_fields__)
        out = []
        for row in self.db.execute(f"SELECT {', '.join(names)} FROM stages {where}", values):
            fields = dict(zip(names, row, strict=True))
            for k in ("params", "inputs", "outputs", "metrics"):
                fields[k] = json.loads(fields[k]) if fields[k] else None
            out.append(Record(**fields))
        return out

    # --- claims ---

    def claim(self, claim: Claim) -> Claim | None:
        """Take a stage run for this runner: None where it is ours now, otherwise the claim that stands."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT key, attempt, runner, executor, token, log, events FROM claims WHERE key=?", (claim.key,)
            ).fetchone()
            if row is not None:
                return Claim(*row)
            db.execute(
                "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (claim.key, claim.attempt, self.me, claim.executor, claim.token, time.time(), claim.log, claim.events),
            )
            return None

    def mine(self, key: str) -> bool:
        """Whether a claim is still this runner's."""
        return bool(self.db.execute("SELECT 1 FROM claims WHERE key=? AND runner=?", (key, self.me)).fetchone())

    def claims(self, run: int) -> list[Claim]:
        """The claims that the runner of a run holds, or held when it died."""
        sql = (
            "SELECT key, attempt, runner, executor, token, log, events FROM claims"
            " WHERE runner=(SELECT runner FROM runs WHERE id=?) ORDER BY rowid"
        )
        return [Claim(*row) for row in self.db.execute(sql, (run,))]

    def orphans(self) -> list[Claim]:
        """The claims whose runner is gone."""
        sql = "SELECT key, attempt, runner, executor, token, log, events FROM claims"
        return [claim for row in self.db.execute(sql) if (claim := Claim(*row)).orphan]

    def adopt(self, claim: Claim) -> bool:
        """Take over a dead runner's claim; False where another runner was faster."""
        with self._transaction() as db:
            sql = "UPDATE claims SET runner=? WHERE key=? AND runner=?"
            return db.execute(sql, (self.me, claim.key, claim.runner)).rowcount == 1

    def submitted(self, key: str, token: str, record: Record) -> None:
        """Note how the executor finds a claimed attempt again, and that it runs."""
        with self._transaction() as db:
            db.execute("UPDATE claims SET token=? WHERE key=?", (token, key))
            self._put(record)

    def ask_to_cancel(self, run: int, stage: str) -> None:
        """Ask the runner of a run to stop one stage; it looks when SIGUSR1 tells it to."""
        with self._transaction() as db:
            db.execute("INSERT INTO cancels VALUES (?, ?)", (run, stage))

    def take_cancels(self, run: int) -> list[str]:
        """The stages of a run that somebody asked to stop since the last time."""
        with self._transaction() as db:
            names = [str(row[0]) for row in db.execute("SELECT stage FROM cancels WHERE run=?", (run,))]
            db.execute("DELETE FROM cancels WHERE run=?", (run,))
            return names

    def release(self, key: str, record: Record | None = None) -> None:
        """The attempt is over."""
        with self._transaction() as db:
            db.execute("DELETE FROM claims WHERE key=? AND runner=?", (key, self.me))
            if record:
                self._put(record)
