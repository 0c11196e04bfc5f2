"""Starts what a stage must make, and sees that it is made once.

Whoever makes it holds its lease in the store (`lease`), which all runners see, and a claim in the history of this
machine, by which its process is found again. A lease of another run that lives is waited for. Who gets the lease of one
that died takes over its claim, and its process with it: one that still runs is watched to its end, what one has
finished is used, what one left half-made is removed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from microstages.errors import TemporaryError, UserError
from microstages.storage import local_path

from runner.attempts import Active, drop_state, foreign, prepare, state_uri
from runner.executors import Attempt, Executor
from runner.executors.choice import make, settle
from runner.history import Claim
from runner.lease import Holder, Leases
from runner.pipeline import Pipeline, Stage
from runner.plan import Choice, Step
from runner.progress import Progress
from runner.resources import Pool, Share
from runner.spec import Resources
from runner.store import Result, Store, new_attempt
from runner.targets import Where

# Seconds between two looks at what another runner makes, the first and later ones: in a local store, and elsewhere.
LOOKS = ((0.1, 1.0), (1.0, 5.0))
GRACE_NOW = 5.0  # seconds that SIGKILL may take to be seen


class Launcher:
    """Starts the stages of one run; the attempts that run stand in `progress.active`."""

    def __init__(self, pipeline: Pipeline, store: Store, choice: Choice, progress: Progress, pool: Pool) -> None:
        self.pipeline, self.store, self.choice = pipeline, store, choice
        self.progress, self.pool = progress, pool
        self.history, self.view = progress.history, progress.view
        self.leases = Leases(store.uri, pipeline.name)
        self.waiting: dict[str, float] = {}  # stages that another run makes, and since when
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
            try:
                if self.leases.take(stage, fingerprint, "", claim.attempt):
                    continue  # a run that lives has taken it over, or will
                self._sweep(claim, stage, fingerprint)
            except TemporaryError:
                continue
            finally:
                self.leases.release(stage, fingerprint)

    def _sweep(self, claim: Claim, stage: str, fingerprint: str) -> None:
        attempt = self._submitted(claim, stage, fingerprint)
        try:
            executor = self._executor(Where(claim.executor, claim.executor))
            found = executor.find(attempt, claim.token)
        except UserError as error:  # it is looked for again when its stage must run
            self.view.note(f"{stage}: what a runner that died has left cannot be looked at: {error.what}")
            return
        if found:
            running = executor.poll(attempt).running
            executor.forget(attempt, leave=running)
            if running:
                self.view.note(f"{stage}: still running for a run whose runner died")
                return
        if self.store.committed(stage, fingerprint) == claim.attempt:
            if self.history.adopt(claim):  # its runner died between the commit and the end of its claim
                self.history.release(claim.key)
        elif not self.store.finished_outputs(stage, fingerprint, claim.attempt) and self.history.adopt(claim):
            self.store.discard(stage, fingerprint, claim.attempt)
            self.history.release(claim.key)

    def launch(self, stage: Stage, step: Step, share: Share) -> bool:
        """Start a stage; False where it is not running afterwards (it is reused, or made elsewhere)."""
        key = f"{self.place} {stage.interface.name}/{step.fingerprint}"
        tries = self.progress.tries.get(stage.name, 0)
        log = self.logs / (f"{stage.name}.log" if not tries else f"{stage.name}.{tries + 1}.log")
        events = log if stage.interface.manifest == "runner" else log.with_suffix(".events")
        executor = self._executor(self.where(stage))
        name = stage.interface.name
        claim = Claim(key, new_attempt(), self.history.me, executor.name, executor.address, str(log), str(events))
        if holder := self.leases.take(name, step.fingerprint, stage.name, claim.attempt):
            self._wait_for(stage, holder)
            return False
        try:
            standing = self.history.claim(claim)
            if standing is not None:
                return self._adopt(stage, step, standing, share)
            return self._start(stage, step, claim, share, executor)
        finally:
            if stage.name not in self.progress.active:
                self.leases.release(name, step.fingerprint)

    def _start(self, stage: Stage, step: Step, claim: Claim, share: Share, executor: Executor) -> bool:
        key, tries = claim.key, self.progress.tries.get(stage.name, 0)
        try:
            if stage.name not in self.choice.forced:
                found = self.store.look_up(stage.interface.name, step.fingerprint)
                if isinstance(found, Result):
                    done = Step(stage.name, "reuse", "made meanwhile", step.fingerprint, step.inputs, found)
                    record = self.progress.reused(stage, done, "reused, another run made it meanwhile")
                    self.progress.keep(self.history.release, key, record)
                    return False
            active = prepare(
                stage, step, claim, self.store, self.progress.steps, folder=self.pipeline.folder, share=share,
                environment=self.pool.environment(share), executor=executor, code=self.progress.facts.code[stage.name],
                pipeline=self.pipeline.name,
            )  # fmt: skip
            try:
                token = active.executor.submit(active.attempt)
            except BaseException:
                active.drop()
                raise
        except BaseException:
            self.progress.keep(self.history.release, key)
            self.store.discard(stage.interface.name, step.fingerprint, claim.attempt)
            raise
        self.progress.active[stage.name] = active
        record = self.progress.record(stage, "running", step, claim.attempt, active)
        self.progress.keep(self.history.submitted, key, token, record)  # without its token it is found by its name
        self.view.started(stage.name, "again" if tries else step.reason)
        return True

    def _wait_for(self, stage: Stage, holder: Holder) -> None:
        """Somebody else makes this stage run: it is looked at again later."""
        now = time.monotonic()
        first, most = LOOKS[self.store.path is None]
        since = self.waiting.get(stage.name, now)
        other = holder.runner != self.history.me  # two stages of a pipeline can be the same stage run
        self.progress.later[stage.name] = now + (min(most, max(first, (now - since) / 10)) if other else LOOKS[0][0])
        if stage.name not in self.waiting and other:
            self.view.note(f"{stage.name}: {holder}; waiting for it")
        self.waiting[stage.name] = since

    def _adopt(self, stage: Stage, step: Step, claim: Claim, share: Share) -> bool:
        """Take over what a run began that has lost its lease: it died, was stopped, or left it behind."""
        self.progress.later[stage.name] = time.monotonic() + LOOKS[0][0]
        if not self.history.adopt(claim):
            return False
        self.leases.take(stage.interface.name, step.fingerprint, stage.name, claim.attempt)
        self.progress.later[stage.name] = time.monotonic()
        same = stage.where.kind == claim.executor
        executor = self._executor(stage.where if same else Where(claim.executor, claim.executor))
        attempt = self._submitted(claim, stage.interface.name, step.fingerprint, stage)
        active = Active(stage, step, attempt, claim.key, executor, share=share)
        name = stage.interface.name
        if executor.find(attempt, claim.token):
            if stage.interface.manifest == "stage" or executor.elsewhere:
                del self.progress.later[stage.name]
                if stage.timeout and not executor.elsewhere:
                    active.deadline = time.monotonic() + stage.timeout
                self.progress.active[stage.name] = active
                record = self.progress.record(stage, "running", step, claim.attempt, active)
                self.progress.keep(self.history.write, record)
                self.view.started(stage.name, "still running from before; its runner had died")
                return True
            # How a plain command ends here, only the process that started it can know.
            executor.cancel(attempt, now=True)
            end = time.monotonic() + GRACE_NOW
            while executor.poll(attempt).running and time.monotonic() < end:
                time.sleep(0.01)
            executor.forget(attempt)
        manifests = self.store.attempt_outputs(stage.interface, step.fingerprint, claim.attempt)
        whole = manifests is not None and self.store.whole(name, step.fingerprint, claim.attempt, manifests)
        if manifests is not None and whole and not foreign(stage, step, self.progress.facts, manifests):
            result = self.store.commit(name, step.fingerprint, claim.attempt, manifests, replace=step.replace)
            if result.attempt != claim.attempt:
                self.store.discard(name, step.fingerprint, claim.attempt)
            drop_state(stage, step.fingerprint, self.store)
            done = Step(stage.name, "reuse", "finished after its runner died", step.fingerprint, step.inputs, result)
            record = self.progress.reused(stage, done, "reused, it ended after its runner had died")
            self.progress.keep(self.history.release, claim.key, record)
            return False
        self.store.discard(name, step.fingerprint, claim.attempt)
        self.history.release(claim.key)
        return False

    def _submitted(self, claim: Claim, uses: str, fingerprint: str, stage: Stage | None = None) -> Attempt:
        """An attempt that another runner submitted, as far as it is known from its claim."""
        place = local_path(self.store.output_uri(uses, fingerprint, claim.attempt, "x"))
        kept = local_path(state) if stage and (state := state_uri(stage, fingerprint, self.store)) else None
        writes = tuple(path for path in (place.parent if place else None, kept) if path)
        return Attempt(
            claim.attempt, stage.name if stage else uses, (), self.pipeline.folder, Path(claim.log), Path(claim.events),
            writes=writes, resources=stage.resources if stage else Resources(),
        )  # fmt: skip

    def where(self, stage: Stage) -> Where:
        """Where a stage runs. `auto` is settled when the first stage must run, for all of them."""
        if stage.where.kind != "auto":
            return stage.where
        if not self.settled:
            self.settled = settle(self.pipeline, self.progress.facts.code, self.view.note)
        return self.settled[stage.name]

    def _executor(self, where: Where) -> Executor:
        key = f"{where.name} {sorted(where.options.items())}"
        if key not in self.executors:
            self.executors[key] = make(where, self.pipeline.folder)
        return self.executors[key]
