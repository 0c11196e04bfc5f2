"""`runner cancel`: stops a run, or one stage of it, from another terminal.

The runner of a run is told by a signal: SIGTERM stops it as Ctrl-C does; for one stage a row of the history says which,
and SIGUSR1 says that there is one. What a runner that was killed has left running is found by its claim, as the next
run would find it, and stopped.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from microstages.errors import UserError, nearest
from microstages.storage import local_path

from runner.executors import Attempt, Executor
from runner.executors.choice import make
from runner.executors.processes import alive, host, own_token
from runner.history import Claim, History, RunRecord
from runner.lease import Leases
from runner.spec import GRACE
from runner.store import Store
from runner.targets import Where

EVERY = 0.1  # seconds between two looks at a run that was told to stop
ENDED_BY = 5.0  # seconds that SIGKILL may take to be seen
GOING = ("pending", "waiting", "running")


class Canceller:
    """Cancels in one history. `graces`: seconds that each stage may take; `say` is told what is done."""

    def __init__(
        self, history: History, store: Store, pipeline: str, graces: Mapping[str, float], say: Callable[[str], object]
    ) -> None:
        self.history, self.store, self.pipeline = history, store, pipeline
        self.graces, self.say = graces, say

    def cancel(self, words: Sequence[str]) -> None:
        """Cancel what `[RUN] [STAGE]` means, and wait for its end. Raises UserError where there is no such thing, or it
        is not this machine's."""
        run, stage = self._meant(words)
        if run is None:
            self.say("nothing is running")
        elif run.status == "died":
            self._clear(run, stage)
        elif run.status != "running":
            self.say(f"run {run.id} is {run.status} already")
        else:
            self._tell(run, stage)

    def _meant(self, words: Sequence[str]) -> tuple[RunRecord | None, str]:
        numbers, names = [w for w in words if w.isdigit()], [w for w in words if not w.isdigit()]
        if len(numbers) > 1 or len(names) > 1:
            raise UserError("too many words", where="cancel", fix="runner cancel [RUN] [STAGE]")
        runs = self.history.runs()
        stage = names[0] if names else ""
        if numbers:
            run = next((r for r in runs if str(r.id) == numbers[0]), None)
            if run is None:
                raise UserError(f"there is no run {numbers[0]}", fix="see runner ps")
        else:
            own = [r for r in runs if r.pipeline == self.pipeline]
            run = next((r for r in own if r.status == "running"), None)
            run = run or next((r for r in own if r.status == "died" and self._left(r)), None)
        stages = [r.stage for r in self.history.stages(run.id)] if run else []
        if run and stage and stage not in stages:
            what = f"run {run.id} has no stage {stage!r}{nearest(stage, stages)}"
            raise UserError(what, fix=f"its stages: {', '.join(stages)}")
        return run, stage

    # --- a runner that lives ---

    def _tell(self, run: RunRecord, stage: str) -> None:
        token = self.history.runner(run.id)
        if host(token) != host(own_token()):
            raise UserError(f"run {run.id} runs on {host(token)}", fix="cancel it there")
        if stage and self._status(run, stage) not in GOING:
            self.say(f"{stage} of run {run.id} is {self._status(run, stage)} already")
            return
        if stage:
            self.history.ask_to_cancel(run.id, stage)
        try:
            if alive(token):
                os.kill(int(token.partition(":")[0]), signal.SIGUSR1 if stage else signal.SIGTERM)
        except ProcessLookupError:
            pass
        except PermissionError:
            raise UserError(f"run {run.id} belongs to another user", fix="ask whoever started it") from None
        what = f"{stage} of run {run.id}" if stage else f"run {run.id}"
        self.say(f"{what} is told to stop and may save what is worth keeping (cancel it again to end it at once)")
        while alive(token) and (self._status(run, stage) in GOING if stage else self._run(run).status == "running"):
            time.sleep(EVERY)
        self.say(f"{what} is {self._status(run, stage) if stage else self._run(run).status}")

    def _run(self, run: RunRecord) -> RunRecord:
        return next(r for r in self.history.runs() if r.id == run.id)

    def _status(self, run: RunRecord, stage: str) -> str:
        return next(r.status for r in self.history.stages(run.id) if r.stage == stage)

    # --- what a dead one left ---

    def _left(self, run: RunRecord) -> list[Claim]:
        return [claim for claim in self.history.claims(run.id) if claim.orphan]

    def _clear(self, run: RunRecord, stage: str) -> None:
        """Stop what a dead run left running, and remove what it left half-made."""
        found = [claim for claim in self._left(run) if stage in ("", claim.stage)]
        if not found:
            self.say(f"the runner of run {run.id} died, and nothing of it is left running")
        leases = Leases(self.store.uri, self.pipeline)
        try:
            for claim in found:
                name = claim.stage
                uses, _, fingerprint = claim.key.rpartition(" ")[2].partition("/")
                holder = leases.take(uses, fingerprint, name, claim.attempt)
                if holder or not self.history.adopt(claim):
                    self.say(f"{name} of run {run.id} was taken up by another run")
                    continue
                self._end(run, name, claim, uses, fingerprint)
        finally:
            leases.close()

    def _end(self, run: RunRecord, name: str, claim: Claim, uses: str, fingerprint: str) -> None:
        place = local_path(self.store.output_uri(uses, fingerprint, claim.attempt, "x"))
        writes = (place.parent, place.parent.parent / "state") if place else ()
        attempt = Attempt(
            claim.attempt, name, (), Path(), Path(claim.log), Path(claim.events),
            writes=tuple(folder for folder in writes if folder.is_dir()),
        )  # fmt: skip
        executor = make(Where(claim.executor, claim.executor))
        if executor.find(attempt, claim.token):
            self.say(f"{name} of run {run.id} still runs, though its runner died: it is told to stop")
            executor.cancel(attempt)
            if not _ended(executor, attempt, self.graces.get(name, GRACE)):
                executor.cancel(attempt, now=True)
                _ended(executor, attempt, ENDED_BY)
            executor.forget(attempt)
        if not self.store.finished_outputs(uses, fingerprint, claim.attempt):
            self.store.discard(uses, fingerprint, claim.attempt)
        record = next(r for r in self.history.stages(run.id) if r.stage == name)
        self.history.release(claim.key, replace(record, status="stopped", finished=time.time()))
        self.say(f"{name} of run {run.id} is stopped")


def _ended(executor: Executor, attempt: Attempt, seconds: float) -> bool:
    """Wait for the end of an attempt; whether it came within that time."""
    end, fd = time.monotonic() + seconds, executor.wake(attempt)
    poller = select.poll()
    if fd is not None:
        poller.register(fd, select.POLLIN)
    while executor.poll(attempt).running and (left := end - time.monotonic()) > 0:
        with suppress(InterruptedError):
            poller.poll(1000 * (left if fd is not None else min(left, EVERY)))
    return not executor.poll(attempt).running
