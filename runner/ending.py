"""What becomes of an attempt that has ended: its stage is done, tried again, left to another run, or given up."""

from __future__ import annotations

import time
from contextlib import suppress

from microstages.errors import (
    EXIT_BUG,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_TEMPORARY,
    EXIT_USER,
    TemporaryError,
    UserError,
    from_os_error,
)
from microstages.manifest import Manifest
from microstages.storage import public

from runner.attempts import Active, drop_state, failure, full_disk, written
from runner.executors import LOST, LateError
from runner.lease import Leases
from runner.patience import Patience
from runner.progress import Progress
from runner.store import Result, Store

KILLED = (128 + 9, EXIT_STOPPED)


class Ending:
    """Settles the attempts of one run."""

    def __init__(self, store: Store, progress: Progress, leases: Leases, patience: Patience) -> None:
        self.store, self.progress, self.leases, self.patience = store, progress, leases, patience
        self.lost: dict[str, int] = {}  # attempts of a stage of which nobody knows how they ended

    def settle(self, active: Active, code: int, stopping: int) -> bool:
        """Settle an attempt; `stopping`: how many signals came. False where the store does not answer: the attempt is
        to be settled again at its `commit_at`."""
        name = active.stage.name
        active.timed_out = active.timed_out or isinstance(active.why, LateError)
        if active.left:  # it may still run, and its claim says where: the next run takes it up
            self.progress.fail(active.stage, failure(active, code), active, code)
        elif not self._settle(active, code, stopping):
            return False
        if name not in self.progress.later:  # between two tries a lease is kept
            self.leases.release(active.stage.interface.name, active.step.fingerprint)
        return True

    def _settle(self, active: Active, code: int, stopping: int) -> bool:
        if code == LOST and active.error and active.why is None:
            code = int(active.error.get("exit_code") or EXIT_BUG)
        name, stopped = active.stage.name, stopping > 0 or active.cancelled
        fault: UserError | None = None
        result: Result | None = None
        self.patience.ask(("commit", name))
        try:
            result = self._commit(active, code, at_once=stopping > 1)
        except UserError as error:
            fault = error
        except OSError as error:
            fault = from_os_error(error) or UserError(str(error))
        if isinstance(fault, TemporaryError):
            if stopping < 2 and (pause := self.patience.pause(("commit", name))) is not None:
                if self.patience.first(("commit", name)):
                    self.progress.view.note(f"{name}: its result cannot be stored now; it is tried again")
                active.ended, active.commit_at, active.finishing = code, time.monotonic() + pause, None
                return False
            self._set_aside(active, None if stopping > 1 else fault)
            return True
        self.patience.answered(("commit", name))
        if fault:
            self._refuse(active, fault, code)
        elif result:  # whatever happens from here on, it is committed
            self._done(active, result)
        elif _well(active, code):
            self._without_result(active, code, stopped)
        else:
            self._fail(active, code, stopped)
        return True

    def _commit(self, active: Active, code: int, at_once: bool) -> Result | None:
        """Commit what an attempt wrote that ended well, or was killed after all its outputs were whole: the result that
        counts now. None where there is nothing whole."""
        hashed = active.finishing and not active.finishing.running
        manifests = None
        if _well(active, code):
            if active.finishing and (hashed or not at_once):
                manifests = active.finishing.result()
            # what a plain command wrote is whole only where it is known to have ended well
            elif not (active.drafts and (at_once or code == LOST)):
                manifests = written(active, self.store, self.progress.facts)
        elif code < 0 or code in KILLED:
            manifests = self._finished(active)
        if manifests is None:
            return None
        name, fingerprint = active.stage.interface.name, active.step.fingerprint
        return self.store.commit(name, fingerprint, active.attempt.name, manifests, active.step.replace)

    def _done(self, active: Active, result: Result) -> None:
        stage, step, attempt = active.stage, active.step, active.attempt.name
        if result.attempt != attempt:
            self.store.discard(stage.interface.name, step.fingerprint, attempt)
        drop_state(stage, step.fingerprint, self.store)
        self.progress.done(active, result)

    def _set_aside(self, active: Active, error: UserError | None) -> None:
        """Its store does not answer. What it wrote stays, and its claim: the next run takes up what is whole."""
        self.leases.away = True
        if error:
            self.progress.fail(active.stage, error, active, error.exit_code)
        else:
            self.progress.code = self.progress.code or EXIT_STOPPED
            self.progress.end(active.stage, "stopped", "", active, EXIT_STOPPED)

    def _without_result(self, active: Active, code: int, stopped: bool) -> None:
        stage = active.stage
        if stopped and active.drafts:  # nobody waits for it to be hashed
            self._stop(active)
        elif code != LOST:
            what = f"it ended without an error, but did not write {' and '.join(stage.interface.outputs)}"
            error = UserError(what, fix="a stage writes every output that its interface names")
            self._give_up(active, error, EXIT_BUG)
        elif stopped:
            self._stop(active)
        elif self._overtaken(active):
            self._leave(active, code)
        else:
            lost = self.lost[stage.name] = self.lost.get(stage.name, 0) + 1
            if lost > max(1, stage.retry.attempts - 1):
                what = f"it was lost {lost} times: it ended, or was removed, and nobody knows how"
                fix = "see who ends it: docker events, or the kernel's log"
                self._give_up(active, UserError(what, fix=fix), EXIT_BUG)
            else:
                self._again(active, "it ended without a result, and nobody knows how", 0.0, code)

    def _fail(self, active: Active, code: int, stopped: bool) -> None:
        stage, retry = active.stage, active.stage.retry
        tries = self.progress.tries.get(stage.name, 0)
        if damaged := active.error.get("damaged"):
            self.damaged(damaged, f"{active.error.get('where')}: {active.error.get('what')}")
        if stopped:
            self._stop(active)
        elif self._overtaken(active):
            self._leave(active, code)
        elif retry.wanted(code, active.timed_out, tries) and (active.timed_out or not _tried_there(active)):
            why = failure(active, code).what
            if active.timed_out:
                why = _late(active)
            elif code == EXIT_TEMPORARY and not active.why and not active.error:
                why = "a temporary failure"
            self._again(active, f"{why}; try {tries + 2} of {retry.attempts}", retry.pause(tries + 1), code)
        elif active.timed_out:
            self._give_up(active, UserError(_late(active), fix="give it a longer `timeout`, or less to do"), EXIT_USER)
        elif code == EXIT_STOPPED:
            self._stop(active)
        elif full := full_disk(active):
            self._give_up(active, full, EXIT_USER)
        elif gone := self._vanished(active):
            self._give_up(active, gone, EXIT_USER)
        else:
            self._give_up(active, failure(active, code), code)

    def _finished(self, active: Active) -> dict[str, Manifest] | None:
        """What an attempt wrote that was killed after all its outputs were whole; None where they are not."""
        try:
            return None if active.drafts else written(active, self.store, self.progress.facts)
        except TemporaryError:
            raise
        except UserError:
            return None

    def damaged(self, uri: str, why: str) -> None:
        """An input was found damaged by who read it. Where it is another stage's result, that is made anew next."""
        for name, step in self.progress.steps.items():
            for output in step.result.outputs.values() if step.result else ():
                if step.result and public(output.uri) == public(uri):
                    uses = self.progress.pipeline.stages[name].interface.name
                    with suppress(UserError, OSError):
                        self.store.mark_damaged(uses, step.fingerprint, step.result.attempt, why)

    def _vanished(self, active: Active) -> UserError | None:
        """What to say of another stage's result that was whole when this stage was started, and is not any more."""
        where = str(active.error.get("where") or "")
        for name, step in self.progress.steps.items():
            if step.result and any(public(o.uri) in where for o in step.result.outputs.values()):
                with suppress(UserError, OSError):
                    uses = self.progress.pipeline.stages[name].interface.name
                    found = self.store.look_up(uses, step.fingerprint)
                    if not isinstance(found, Result):
                        why = found.why if found else "its commit is gone"
                        fix = "run the pipeline again and it is made anew"
                        return UserError(f"the result of {name} was removed or altered meanwhile: {why}", fix=fix)
        return None

    def _refuse(self, active: Active, error: UserError, code: int) -> None:
        """What was written cannot be the result; where another run took over it may have removed it."""
        if self._overtaken(active):
            self._leave(active, code)
        else:
            self._give_up(active, error, error.exit_code)

    def _overtaken(self, active: Active) -> bool:
        """Whether another run took this one for dead and makes the stage now."""
        return self.leases.lost(active.stage.interface.name, active.step.fingerprint)

    def _leave(self, active: Active, code: int) -> None:
        """Leave a stage to the run that took it over; its attempt too, where that has been taken over as well."""
        if self.progress.history.mine(active.key):
            self.store.discard(active.stage.interface.name, active.step.fingerprint, active.attempt.name)
        self.progress.again(active, "another run has taken it over", 0.1, code)

    def _again(self, active: Active, why: str, seconds: float, code: int) -> None:
        stage = active.stage
        self.progress.tries[stage.name] = self.progress.tries.get(stage.name, 0) + 1
        self.store.discard(stage.interface.name, active.step.fingerprint, active.attempt.name)
        self.progress.again(active, why, seconds, code)

    def _stop(self, active: Active) -> None:
        self.progress.code = self.progress.code or EXIT_STOPPED
        self._give_up(active, None, EXIT_STOPPED)

    def _give_up(self, active: Active, error: UserError | None, code: int) -> None:
        stage, step = active.stage, active.step
        self.store.discard(stage.interface.name, step.fingerprint, active.attempt.name)
        drop_state(stage, step.fingerprint, self.store, only_empty=True)
        self.progress.keep(self.progress.history.release, active.key)
        if error is None:
            self.progress.end(stage, "stopped", active.why.what if active.why else "", active, code)
        else:
            self.progress.fail(stage, error, active, code)


def _well(active: Active, code: int) -> bool:
    """Whether an attempt ended without an error, as far as is known."""
    return code == EXIT_OK or (code == LOST and not active.error)


def _tried_there(active: Active) -> bool:
    """Whether the place where it ran has tried it again by itself; a cluster does not where several nodes train."""
    return active.executor.retries and active.attempt.resources.nodes == 1


def _late(active: Active) -> str:
    return f"it took longer than its timeout of {active.stage.timeout or 0:g} s"
