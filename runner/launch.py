"""Starts what a stage must make, and sees that it is made once.

Whoever makes it holds its claim in the history. A claim of another run that lives is waited for. A claim whose runner
died is taken over, and its process with it: one that still runs is watched to its end, what one has finished is used,
what one left half-made is removed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from microstages.errors import UserError
from microstages.storage import local_path

from runner.attempts import Active, foreign, prepare
from runner.executors import Attempt, Executor
from runner.executors.choice import make, settle
from runner.executors.processes import host
from runner.history import Claim
from runner.pipeline import Pipeline, Stage
from runner.plan import Choice, Step
from runner.progress import Progress
from runner.resources import Pool, Share
from runner.spec import Resources
from runner.store import Result, Store, new_attempt
from runner.targets import Where

ELSEWHERE = 0.1  # seconds between two looks at what another runner makes
GRACE_NOW = 5.0  # seconds that SIGKILL may take to be seen


class Launcher:
    """Starts the stages of one run; the attempts that run stand in `progress.active`."""

    def __init__(self, pipeline: Pipeline, store: Store, choice: Choice, progress: Progress, pool: Pool) -> None:
        self.pipeline, self.store, self.choice = pipeline, store, choice
        self.progress, self.pool = progress, pool
        self.history, self.view = progress.history, progress.view
        self.waited_for: set[str] = set()
        self.executors: dict[str, Executor] = {}
        self.settled: dict[str, Where] = {}
        self.place = store.uri if store.path is None else os.path.realpath(store.path)
        self.logs = self.history.folder / "logs" / str(progress.run_id)

    def sweep(self) -> None:
        """Remove what dead runners' dead attempts left half-made; tell of those whose processes still run."""
        for claim in self.history.orphans():
            place, _, name = claim.key.rpartition(" ")
            stage, _, fingerprint = name.partition("/")
            if place != self.place:
                continue
            attempt = self._submitted(claim, stage, fingerprint)
            try:
                executor = self._executor(Where(claim.executor, claim.executor))
                found = executor.find(attempt, claim.token)
            except UserError as error:  # it is looked for again when its stage must run
                self.view.note(f"{stage}: what a runner that died has left cannot be looked at: {error.what}")
                continue
            if found:
                running = executor.poll(attempt).running
                executor.forget(attempt, leave=running)
                if running:
                    self.view.note(f"{stage}: still running for a run whose runner died")
                    continue
            if not self.store.finished_outputs(stage, fingerprint, claim.attempt) and self.history.adopt(claim):
                self.store.discard(stage, fingerprint, claim.attempt)
                self.history.release(claim.key)

    def launch(self, stage: Stage, step: Step, share: Share) -> bool:
        """Start a stage; False where it is not running afterwards (it is reused, or made elsewhere)."""
        key = f"{self.place} {stage.interface.name}/{step.fingerprint}"
        tries = self.progress.tries.get(stage.name, 0)
        log = self.logs / (f"{stage.name}.log" if not tries else f"{stage.name}.{tries + 1}.log")
        events = log if stage.interface.manifest == "runner" else log.with_suffix(".events")
        executor = self._executor(self._where(stage))
        claim = Claim(key, new_attempt(), self.history.me, executor.name, "", str(log), str(events))
        standing = self.history.claim(claim)
        if standing is not None:
            return self._meet(stage, step, standing, share)
        try:
            if stage.name not in self.choice.forced:
                found = self.store.look_up(stage.interface.name, step.fingerprint)
                if isinstance(found, Result):
                    done = Step(stage.name, "reuse", "made meanwhile", step.fingerprint, step.inputs, found)
                    self.history.release(
                        key, self.progress.reused(stage, done, "reused, another run made it meanwhile")
                    )
                    return False
            active = prepare(
                stage, step, claim, self.store, self.progress.steps, folder=self.pipeline.folder, share=share,
                environment=self.pool.environment(share), executor=executor, code=self.progress.facts.code[stage.name],
            )  # fmt: skip
            try:
                token = active.executor.submit(active.attempt)
            except BaseException:
                active.drop()
                raise
        except BaseException:
            self.history.release(key)
            self.store.discard(stage.interface.name, step.fingerprint, claim.attempt)
            raise
        self.progress.active[stage.name] = active
        self.history.submitted(key, token, self.progress.record(stage, "running", step, claim.attempt, active))
        self.view.started(stage.name, "again" if tries else step.reason)
        return True

    def _meet(self, stage: Stage, step: Step, claim: Claim, share: Share) -> bool:
        """Somebody else has claimed this stage run: wait for him, or take over from him if he is dead."""
        self.progress.later[stage.name] = time.monotonic() + ELSEWHERE
        if not claim.orphan:
            if stage.name not in self.waited_for and claim.runner != self.history.me:
                self.waited_for.add(stage.name)
                self.view.note(f"{stage.name}: another run is making it on {host(claim.runner)}; waiting for it")
            return False
        if not self.history.adopt(claim):
            return False
        self.progress.later[stage.name] = time.monotonic()
        same = stage.where.kind == claim.executor
        executor = self._executor(stage.where if same else Where(claim.executor, claim.executor))
        attempt = self._submitted(claim, stage.interface.name, step.fingerprint, stage)
        active = Active(stage, step, attempt, claim.key, executor, share=share)
        name = stage.interface.name
        if executor.find(attempt, claim.token):
            if stage.interface.manifest == "stage":
                del self.progress.later[stage.name]
                active.deadline = time.monotonic() + stage.timeout if stage.timeout else None
                self.progress.active[stage.name] = active
                self.history.write(self.progress.record(stage, "running", step, claim.attempt, active))
                self.view.started(stage.name, "still running from before; its runner had died")
                return True
            # How a plain command ends, only the process that started it can know.
            executor.cancel(attempt, now=True)
            end = time.monotonic() + GRACE_NOW
            while executor.poll(attempt).running and time.monotonic() < end:
                time.sleep(0.01)
            executor.forget(attempt)
        manifests = self.store.attempt_outputs(stage.interface, step.fingerprint, claim.attempt)
        if manifests is not None and not foreign(stage, step, self.progress.facts, manifests):
            result = self.store.commit(name, step.fingerprint, claim.attempt, manifests, replace=step.replace)
            done = Step(stage.name, "reuse", "finished after its runner died", step.fingerprint, step.inputs, result)
            self.history.release(
                claim.key, self.progress.reused(stage, done, "reused, it ended after its runner had died")
            )
            return False
        self.store.discard(name, step.fingerprint, claim.attempt)
        self.history.release(claim.key)
        return False

    def _submitted(self, claim: Claim, uses: str, fingerprint: str, stage: Stage | None = None) -> Attempt:
        """An attempt that another runner submitted, as far as it is known from its claim."""
        place = local_path(self.store.output_uri(uses, fingerprint, claim.attempt, "x"))
        return Attempt(
            claim.attempt, stage.name if stage else uses, (), self.pipeline.folder, Path(claim.log), Path(claim.events),
            writes=(place.parent,) if place else (), resources=stage.resources if stage else Resources(),
        )  # fmt: skip

    def _where(self, stage: Stage) -> Where:
        """Where a stage runs. `auto` is settled when the first stage must run, for all of them."""
        if stage.where.kind != "auto":
            return stage.where
        if not self.settled:
            self.settled = settle(self.pipeline, self.progress.facts.code, self.view.note)
        return self.settled[stage.name]

    def _executor(self, where: Where) -> Executor:
        key = f"{where.name} {sorted(where.options.items())}"
        if key not in self.executors:
            self.executors[key] = make(where)
        return self.executors[key]
