"""The history, opened so that it cannot be changed: no tables are made, no damaged file is moved aside."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from microstages.errors import UserError

from runner.executors.processes import own_token
from runner.history import SCHEMA, History, Record, RunRecord
from runner.records import stages_of

MADE_AGAIN = "the next `runner up` makes a new one"


class MissingError(UserError):
    """There is no such run, stage, artifact or file."""


class Reading(History):
    """The history of one folder, for one thread. Where there is none yet it has no runs.

    Raises UserError where the folder is gone, or the file is none that this version reads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "history.db"
        self.me = own_token()
        self.fresh = not self.file.exists()
        try:
            if self.fresh:
                self._open(":memory:")
                return
            # `rw`, so that what a writer that was killed left half-done is undone first; it makes no file
            self.db = sqlite3.connect(f"{self.file.absolute().as_uri()}?mode=rw", uri=True, timeout=10)
            self.db.execute("PRAGMA query_only=ON")
            found = self.db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise UserError(f"the history cannot be read: {error}", where=self.file, fix=MADE_AGAIN) from None
        if found == 0 and self.db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
            self.db.close()  # its writer is about to make the tables
            self._open(":memory:")
        elif found != SCHEMA:
            self.db.close()
            what = f"the history has schema {found}, and this version reads {SCHEMA}"
            raise UserError(what, where=self.file, fix="use the version that wrote it, or run `runner up` once")

    def made_by(self, record: Record) -> Record:
        """The record of the run in which a stage's result was made: this one, or for a reused stage an earlier one."""
        if record.status == "reused" and record.attempt:
            return self.made(record.attempt) or record
        return record

    def tries(self, record: Record) -> list[Record]:
        """The records of all runs so far that tried to make the same, the oldest first; this one is the last."""
        if not record.fingerprint:
            return [record]
        where = "WHERE uses=? AND fingerprint=? AND run<? AND status != 'reused' ORDER BY run, rowid"
        return [*self._records(where, (record.uses, record.fingerprint, record.run)), record]


@contextmanager
def reading(folder: Path) -> Iterator[Reading]:
    """The history for a moment. Raises UserError where it cannot be read."""
    history = Reading(folder)
    try:
        yield history
    except sqlite3.DatabaseError as error:
        raise UserError(f"the history cannot be read: {error}", where=history.file, fix=MADE_AGAIN) from None
    finally:
        history.close()


@dataclass(frozen=True)
class Seen:
    """One run as it stands: its stages, and for each the record of where it was made; the run before it to compare it
    with."""

    run: RunRecord
    stages: tuple[Record, ...]
    made: dict[str, Record]
    before: int | None

    @property
    def going(self) -> bool:
        return self.run.status == "running"

    def stage(self, name: str) -> Record | None:
        return next((r for r in self.stages if r.stage == name), None)


def seen(history: Reading, number: int) -> Seen | None:
    """A run with its stages, None where there is no such run."""
    runs = history.runs()
    run = next((r for r in runs if r.id == number), None)
    if run is None:
        return None
    stages = tuple(stages_of(history, run))
    return Seen(run, stages, {r.stage: history.made_by(r) for r in stages}, history.like(number))
