"""Acts on a plan: starts what can start, waits for what runs, commits what ended well.

One scheduler for any executor:

1. A stage whose inputs are all there is decided anew (`plan.decide`): its result may be there by now.
2. What must run is leased, so that no other runner makes the same (`launch`, `lease`).
3. An attempt writes into a folder of its own. Only after it ended well, and wrote what its stage promises, is it
   committed. Anything else leaves nothing behind.
4. What is tried again is the stage's to say (`retry`). A failure stops what depends on it, nothing else.
5. Told to stop, it starts nothing more, passes SIGTERM on and waits; told again, it ends everything at once. One stage
   alone is stopped where a row of the history asks for it; SIGUSR1 says that there is one (`cancel`).
6. A store or an engine that does not answer for a moment is asked again, for some minutes. After a second signal
   nothing waits for it.

It sleeps until something happens: the end of a process, a signal, a time.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from microstages.errors import EXIT_BUG, EXIT_OK, EXIT_STOPPED, DamagedError, TemporaryError, UserError, from_os_error

from runner.attempts import Active, Finishing, written
from runner.ending import Ending
from runner.executors import LOST
from runner.history import History, Record
from runner.launch import GRACE_NOW, Launcher
from runner.patience import Patience
from runner.pipeline import Pipeline, Stage
from runner.plan import Choice, Facts, Step, decide
from runner.progress import Progress
from runner.resources import Pool, Share, elsewhere
from runner.store import Result, Store
from runner.targets import ELSEWHERE
from runner.view import View

UNWATCHED = 0.05  # seconds between two looks at an executor that has nothing to wait on
LONGEST_GRACE = 60.0  # seconds that stages have to stop when a run breaks off
FRESH = 0.5  # seconds for which code that was looked at counts as unchanged


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code, and the result of each stage that has one."""

    code: int
    status: str
    results: Mapping[str, Result]
    states: Mapping[str, str]


class Execution:
    """One run of a pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        store: Store,
        history: History,
        *,
        facts: Facts,
        choice: Choice,
        view: View,
        jobs: int = 0,
    ) -> None:
        self.pipeline, self.store, self.history = pipeline, store, history
        self.choice, self.view = choice, view
        self.pool = Pool(jobs)
        self.progress = Progress(pipeline, history, view, facts)
        self.launcher = Launcher(pipeline, store, choice, self.progress, self.pool)
        self.leases, self.patience = self.launcher.leases, Patience()
        self.ending = Ending(store, self.progress, self.leases, self.patience)
        self.run_id = self.progress.run_id
        self.began = time.monotonic()
        self.stopping = self.announced = 0  # how many signals came, and of how many was told
        self.asked = False  # SIGUSR1 came: the history names stages to stop
        self.woken = self.wake = -1  # a pipe: its reading end is readable when something happened
        self.depth: dict[str, int] = dict.fromkeys(pipeline.stages, 1)  # stages on the longest way from here to an end
        for stage in reversed(list(pipeline.stages.values())):
            for up in stage.upstream:
                self.depth[up] = max(self.depth[up], self.depth[stage.name] + 1)

    def run(self) -> Outcome:
        """Run to the end. Every process that was started has ended, or is known to the history, afterwards."""
        status = "failed"
        before = self._take_signals()
        try:
            pending = [self.progress.record(s, "pending") for s in self.pipeline.stages.values()]
            self.progress.keep(self.history.write, *pending)
            self.launcher.sweep()
            while self._advance():
                self._wait()
                self._collect()
            if self.stopping:
                self.progress.code = EXIT_STOPPED
            status = {EXIT_OK: "done", EXIT_STOPPED: "stopped"}.get(self.progress.code, "failed")
        except BaseException:
            self.progress.code = self.progress.code or EXIT_BUG
            self._abandon()
            raise
        finally:
            self.leases.close()
            self.progress.keep(self.history.finish_run, self.run_id, status, self.progress.code)
            self._give_signals(before)
        results = {name: step.result for name, step in self.progress.steps.items() if step.result is not None}
        return Outcome(self.progress.code, status, results, self.progress.states)

    def _take_signals(self) -> list[Any]:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self.stopping += 1
            if self.stopping > 1:  # a storage call that waits ends now; where none was made there is nothing to tell
                getattr(sys.modules.get("microstages.remote"), "give_up", bool)()

        def ask(_number: int, _frame: FrameType | None) -> None:
            self.asked = True

        self.woken, self.wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before: list[Any] = [(n, signal.signal(n, stop)) for n in numbers]
        signal.signal(signal.SIGUSR1, ask)
        return [*before, signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)]

    def _give_signals(self, before: list[Any]) -> None:
        signal.set_wakeup_fd(before.pop())
        for number, handler in before:
            signal.signal(number, handler)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # one that comes late ends nobody
        if not any(a.finishing and a.finishing.running for a in self.progress.active.values()):
            os.close(self.woken)
            os.close(self.wake)

    # --- deciding ---

    def _advance(self) -> bool:
        """Start what can start; whether anything is left to wait for."""
        while True:
            before = len(self.progress.states)
            if self.asked:
                self._stop_some()
            self._block()
            if self.stopping:
                self._pass_on()
                return bool(self.progress.active)
            ready = self._ready()
            for place, (stage, step) in enumerate(ready):
                if not self.stopping:
                    self._try_launch(stage, step, len(ready) - place)
            if self.stopping:
                continue
            # A stage that ended at once (reused, or it could not start) may have made others ready.
            if len(self.progress.states) == before or len(self.progress.states) == len(self.pipeline.stages):
                return bool(self.progress.active or self.progress.later)

    def _block(self) -> None:
        """End the stages that can never start: what they need did not end well."""
        for name, stage in self.pipeline.stages.items():
            blocked = [up for up in stage.upstream if self.progress.states.get(up) not in (None, "done", "reused")]
            if blocked and name not in self.progress.states:
                self.leases.drop(name)
                self.progress.end(stage, "not run", f"{' and '.join(blocked)} did not end well")

    def _ready(self) -> list[tuple[Stage, Step]]:
        """The stages that could start now, those with the longest way behind them first."""
        ready: list[tuple[Stage, Step]] = []
        reused: list[Record] = []
        now = time.monotonic()
        for name, stage in self.pipeline.stages.items():
            if name in self.progress.states or name in self.progress.active or now < self.progress.later.get(name, 0.0):
                continue
            if self.stopping:
                break
            self.progress.later.pop(name, None)  # its time has come; where all places are taken, an end wakes us
            if all(self.progress.states.get(up) in ("done", "reused") for up in stage.upstream):
                self.patience.ask(("look", name))
                try:
                    step = decide(stage, self.progress.facts, self.choice, self.progress.steps)
                except TemporaryError as error:
                    self._later("look", stage, error)
                    continue
                except (UserError, OSError) as error:
                    self._fail(stage, error)
                    continue
                self.patience.answered(("look", name))
                if step.action == "reuse":
                    self.leases.drop(name)
                    reused.append(self.progress.reused(stage, step))
                elif step.action == "skip":
                    self.progress.fail(stage, UserError(f"it is not done: {step.reason}", fix="run it first"))
                else:
                    ready.append((stage, step))
        if reused:
            self.progress.keep(self.history.write, *reused)
        ready.sort(key=lambda item: -self.depth[item[0].name])
        return ready

    def _pass_on(self) -> None:
        """Tell everything that runs to stop."""
        if self.announced < self.stopping:
            self.announced = self.stopping
            self.view.stopping(self.stopping)
        self.progress.later.clear()
        for active in self.progress.active.values():
            self._tell_to_stop(active)

    def _stop_some(self) -> None:
        """Stop the stages that the history names, those that run and those that have not begun."""
        self.asked = False
        for name in self.history.take_cancels(self.run_id):
            if active := self.progress.active.get(name):
                self._tell_to_stop(active, now=active.cancelled)
                active.cancelled = True
            elif name in self.pipeline.stages and name not in self.progress.states:
                self.progress.code = self.progress.code or EXIT_STOPPED
                self.progress.later.pop(name, None)
                self.leases.drop(name)
                self.progress.end(self.pipeline.stages[name], "stopped", "")

    def _later(self, what: str, stage: Stage, error: TemporaryError) -> None:
        """A store or an engine does not answer: it is asked again, or, after too long, the stage is given up."""
        pause = self.patience.pause((what, stage.name))
        if pause is None:
            self._fail(stage, error)
            return
        self.progress.later[stage.name] = time.monotonic() + pause
        if self.patience.first((what, stage.name)):
            self.view.note(f"{stage.name}: {error.where or 'it'} does not answer; it is asked again")

    def _fail(self, stage: Stage, error: UserError | OSError) -> None:
        """A stage that cannot be looked up or started fails; what else runs goes on."""
        self.leases.drop(stage.name)
        known = error if isinstance(error, UserError) else from_os_error(error) or UserError(str(error))
        self.progress.fail(stage, known)

    # --- starting ---

    def _try_launch(self, stage: Stage, step: Step, others: int) -> None:
        if self.launcher.where(stage).kind in ELSEWHERE:
            share: Share | None = elsewhere(stage.resources)
        else:
            idle = not any(a.share and a.share.slots for a in self.progress.active.values())
            share = self.pool.take(stage.resources, others, idle)
        if share is None:
            return
        self.patience.ask(("start", stage.name))
        try:
            if self._edited(stage):
                self.pool.give(share)
                self.progress.later[stage.name] = time.monotonic()
            elif not self.launcher.launch(stage, step, share):
                self.pool.give(share)
            self.patience.answered(("start", stage.name))
        except TemporaryError as error:
            self.pool.give(share)
            self._later("start", stage, error)
        except (UserError, OSError) as error:
            self.pool.give(share)
            if isinstance(error, DamagedError):
                self.ending.damaged(error.artifact, f"{error.where}: {error.what}")
            self._fail(stage, error)

    def _edited(self, stage: Stage) -> bool:
        """Whether a stage's code was edited while the stages before it ran: then it is decided anew."""
        if time.monotonic() - self.began < FRESH:
            return False
        code = stage.found.code_identity()
        if code == self.progress.facts.code[stage.name]:
            return False
        self.progress.facts = replace(self.progress.facts, code={**self.progress.facts.code, stage.name: code})
        return True

    # --- waiting ---

    def _wait(self) -> None:
        """Sleep until a process ends, a signal comes, or something is due."""
        poller = select.poll()
        poller.register(self.woken, select.POLLIN)
        now = time.monotonic()
        due = [now + self.view.every, *self.progress.later.values()]
        for active in self.progress.active.values():
            if active.finishing or active.ended is not None:
                due += [active.commit_at] if active.ended is not None else []
                continue
            fd = active.executor.wake(active.attempt)
            if fd is None:
                due.append(now + UNWATCHED)
            else:
                poller.register(fd, select.POLLIN)
            due += [t for t in (active.deadline, active.kill_at, active.hash_ahead_at) if t is not None]
        poller.poll(max(0.0, min(due) - now) * 1000 + 0.5)
        with suppress(BlockingIOError):
            os.read(self.woken, 4096)

    def _collect(self) -> None:
        """Look at every attempt: what it said, whether it ended, whether its time is up."""
        now = time.monotonic()
        for active in list(self.progress.active.values()):
            if active.ended is not None:
                if now >= active.commit_at or self.stopping > 1:
                    self._end(active, active.ended)
                continue
            if active.finishing:
                if not active.finishing.running or self.stopping > 1:
                    self._finish(active, EXIT_OK)
                continue
            status = active.executor.poll(active.attempt)
            self.progress.listen(active, active.executor.read(active.attempt))
            if not status.running:
                code = LOST if status.code is None else status.code
                active.why, active.left = status.why, status.left
                self._end(active, code)
                continue
            if active.hash_ahead_at is not None and now >= active.hash_ahead_at:
                from runner.ahead import Ahead

                active.ahead = Ahead(active.drafts.values())
            if active.kill_at is not None and now >= active.kill_at:
                active.executor.cancel(active.attempt, now=True)
                active.kill_at = now + GRACE_NOW
            elif active.deadline is not None and now >= active.deadline:
                active.timed_out, active.deadline = True, None
                self._tell_to_stop(active)
        self.view.tick()

    def _end(self, active: Active, code: int) -> None:
        """An attempt has ended. What a plain command wrote is hashed beside the scheduler."""
        active.ended = None
        if code == EXIT_OK and active.drafts and self.stopping < 2:
            active.finishing = Finishing(
                lambda: written(active, self.store, self.progress.facts), lambda: os.write(self.wake, b".")
            )
        else:
            self._finish(active, code)

    def _tell_to_stop(self, active: Active, now: bool = False) -> None:
        """Once to stop, with the time that it may take; after a second signal, or `now`, at once."""
        if active.finishing or active.ended is not None:
            return
        if (now or self.stopping > 1) and active.told < 2:
            active.told = 2
            active.executor.cancel(active.attempt, now=True)
        elif not active.told:
            active.told = 1
            active.executor.cancel(active.attempt)
            active.kill_at = time.monotonic() + active.stage.grace

    # --- ending ---

    def _abandon(self) -> None:
        """The run cannot go on. What runs may save what is worth keeping, and is ended. The claims stay: the next run
        takes up what is whole and removes the rest."""
        left = list(self.progress.active.values())
        for active in left:
            with suppress(UserError, OSError):
                self._tell_to_stop(active)
        end = time.monotonic() + min(LONGEST_GRACE, max((a.stage.grace for a in left), default=0.0))
        while self.stopping < 2 and time.monotonic() < end:
            if not any(a.executor.poll(a.attempt).running for a in left):
                break
            time.sleep(UNWATCHED)
        for active in left:
            with suppress(UserError, OSError):
                active.executor.cancel(active.attempt, now=True)
                active.drop()
                active.executor.forget(active.attempt)

    def _finish(self, active: Active, code: int) -> None:
        """An attempt is over: its stage is done, tried again or given up."""
        kept = False
        try:
            kept = not self.ending.settle(active, code, self.stopping)
        finally:
            if not kept:
                del self.progress.active[active.stage.name]
                if active.share:
                    self.pool.give(active.share)
                active.drop()
                active.executor.forget(active.attempt, leave=active.left)
