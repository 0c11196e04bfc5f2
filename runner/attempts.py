"""One attempt of a stage: how it is started, what it must have written, what its failure says.

A stage that writes its own manifests (`manifest: stage`) is given the addresses of its outputs. For a plain command
(`manifest: runner`) the runner holds the drafts: the command writes into their folders, and the runner hashes and
publishes them after it ended well.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microstages.artifact import Draft, open_artifact
from microstages.errors import UserError, from_os_error
from microstages.manifest import Manifest
from microstages.storage import join, local_path, public, remove

from runner import stages
from runner.events import number
from runner.executors import Attempt, Executor
from runner.facts import changed_since
from runner.history import Claim
from runner.pipeline import External, Stage
from runner.plan import Facts, Step
from runner.resources import Share
from runner.staging import staged
from runner.store import Store
from runner.translated import translated

if TYPE_CHECKING:
    from runner.ahead import Ahead
    from runner.executors.porter import Load

AHEAD_AFTER = 0.05  # seconds
FULL = 64 << 10  # bytes: a disk with less to spare is full


@dataclass
class Active:
    """An attempt under way."""

    stage: Stage
    step: Step
    attempt: Attempt
    key: str
    executor: Executor
    inputs: Mapping[str, str] = field(default_factory=dict)
    drafts: Mapping[str, Draft] = field(default_factory=dict)
    share: Share | None = None
    started: float = field(default_factory=time.time)
    deadline: float | None = None
    kill_at: float | None = None
    timed_out: bool = False
    cancelled: bool = False  # somebody wants this one stage to stop
    told: int = 0  # 1: to stop, 2: ended at once
    error: dict[str, Any] = field(default_factory=dict)  # its last `error` event
    metrics: dict[str, Any] = field(default_factory=dict)  # of its `metric` events, the last values
    why: UserError | None = None  # what the place where it ran says of its end
    left: bool = False  # the place cannot be reached: nobody knows whether it still runs
    finishing: Finishing | None = None
    ended: int | None = None  # its exit code, where the store has not taken its result yet
    commit_at: float = 0.0  # when the store is asked again
    since: float = field(default_factory=time.monotonic)
    ahead: Ahead | None = None
    published: dict[str, Manifest] = field(default_factory=dict)  # of the drafts

    @property
    def hash_ahead_at(self) -> float | None:
        """When to begin to hash what it writes: only what takes its time is worth it."""
        return self.since + AHEAD_AFTER if self.drafts and not self.ahead else None

    def drop(self) -> None:
        """Remove the drafts; those that were published stay."""
        if self.ahead:
            self.ahead.stop(wait=False)
        for draft in self.drafts.values():
            draft.__exit__(None, None, None)


class Finishing:
    """Work that may take long (hashing what was written), done beside the scheduler; `done` is called at its end."""

    def __init__(self, work: Callable[[], dict[str, Manifest] | None], done: Callable[[], object]) -> None:
        self._work, self._done = work, done
        self._result: dict[str, Manifest] | None = None
        self._error: BaseException | None = None
        self.running = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
        finally:
            self.running = False
            self._done()

    def result(self) -> dict[str, Manifest] | None:
        """What the work returned; raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result


def input_uris(stage: Stage, steps: Mapping[str, Step]) -> dict[str, str]:
    """The address of each input."""
    out = {}
    for name, value in stage.inputs.items():
        if isinstance(value, External):
            uri = value.uri
        else:
            result = steps[value.stage].result
            assert result is not None
            uri = result.outputs[value.output].uri
        out[name] = uri
    return out


def on_this_machine(stage: Stage, inputs: Mapping[str, str]) -> dict[str, str]:
    """The inputs of a plain command that runs here, as paths."""
    kinds = {name: stage.interface.inputs[name].kinds for name in inputs}
    return {n: u if local_path(u) else str(open_artifact(u, kinds[n]).path) for n, u in inputs.items()}


def state_uri(stage: Stage, fingerprint: str, store: Store) -> str:
    """Where a stage keeps what it continues from, such as checkpoints: beside its attempts, so that it outlives them.
    Empty for a stage that keeps nothing. A plain command can keep something in a local store only."""
    interface = stage.interface
    if interface.state is None or (interface.manifest == "runner" and store.path is None):
        return ""
    return join(store.uri, "artifacts", interface.name, fingerprint, "state")


def drop_state(stage: Stage, fingerprint: str, store: Store, only_empty: bool = False) -> None:
    """Remove what a stage would continue from: its result is committed. What cannot be removed now harms nobody."""
    if uri := state_uri(stage, fingerprint, store):
        with suppress(UserError, OSError):
            if not only_empty:
                remove(uri)
            elif folder := local_path(uri):
                folder.rmdir()


def prepare(
    stage: Stage, step: Step, claim: Claim, store: Store, steps: Mapping[str, Step], *, folder: Path,
    environment: Mapping[str, str], executor: Executor, share: Share, code: str, pipeline: str = "",
) -> Active:  # fmt: skip
    """An attempt ready to be submitted. Raises UserError where its outputs have no place."""
    interface = stage.interface
    names: Mapping[str, str] = input_uris(stage, steps)
    inputs = dict(names)
    plain = interface.manifest == "runner"
    if plain and not executor.elsewhere:
        inputs = on_this_machine(stage, inputs)
    if executor.elsewhere:
        inputs = {
            name: uri if (path := local_path(uri)) and stage.where.sees(path)
            else staged(store, uri, interface.inputs[name].kinds, step.inputs[name])
            for name, uri in inputs.items()
        }  # fmt: skip
    drafts: dict[str, Draft] = {}
    outputs = {}
    try:
        for name, spec in interface.outputs.items():
            outputs[name] = store.output_uri(interface.name, step.fingerprint, claim.attempt, name)
            if plain and not executor.elsewhere:
                drafts[name] = Draft(outputs[name], spec.kind)
                outputs[name] = str(drafts[name].path)
        Path(claim.log).parent.mkdir(parents=True, exist_ok=True)
        state = state_uri(stage, step.fingerprint, store)
        kept = local_path(state) if state else None
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
    except BaseException as error:
        for draft in drafts.values():
            draft.__exit__(None, None, None)
        if isinstance(error, OSError) and (known := from_os_error(error)):
            raise known from None
        raise
    load: Load | None = None
    if plain and executor.elsewhere:
        from runner.executors.porter import pack

        load = pack(stage, store, names, inputs, step.inputs, outputs, made_of(stage, step, names, code))
    words = stages.flags(interface, load.inputs if load else inputs, stage.params, load.outputs if load else outputs)
    own = interface.manifest == "stage"
    writes = [path.parent if own else path for uri in outputs.values() if (path := local_path(uri)) is not None]
    if state and interface.state:
        words.append(f"{interface.state.flag}={state}")
    writes += [kept] if kept else []
    found = stage.found
    attempt = Attempt(
        claim.attempt, stage.name, load.command if load else stage.command, folder, Path(claim.log), Path(claim.events),
        environment, share.gpus, arguments=tuple(words), reads=tuple(inputs.values()), resources=stage.resources,
        uses=interface.name, code=code, writes=tuple(dict.fromkeys(writes)), carried=load.carried if load else None,
        image=found.pulled if executor.elsewhere else found.image,
        remote=tuple(uri for uri in (*inputs.values(), *outputs.values(), state) if local_path(uri) is None),
        code_folders=(found.folder.absolute(), *found.code) if interface.image and not found.identity else (),
        pipeline=pipeline, retry=stage.retry, timeout=stage.timeout, grace=stage.grace,
    )  # fmt: skip
    deadline = time.monotonic() + stage.timeout if stage.timeout and not executor.elsewhere else None
    return Active(stage, step, attempt, claim.key, executor, names, drafts, share, deadline=deadline)


def written(active: Active, store: Store, facts: Facts) -> dict[str, Manifest] | None:
    """The manifests of what an attempt that ended well wrote, None where that is not all.

    Raises UserError where it is not what the stage promises, or was made of something else than was planned.
    """
    stage, step = active.stage, active.step
    if active.drafts:
        if active.ahead:
            active.ahead.stop()
        if changed := changed_since(stage, facts):
            what = f"{' and '.join(changed)} changed while it ran, so it is not known what it was made of"
            raise UserError(what, fix="run again")
        provenance = _provenance(active, facts)
        for name, draft in active.drafts.items():
            if name not in active.published:  # or it was, and then the store did not answer
                draft.metrics.update(active.metrics)
                active.published[name] = draft.commit(provenance)
        return active.published
    manifests = store.attempt_outputs(stage.interface, step.fingerprint, active.attempt.name)
    if manifests is not None and (why := foreign(stage, step, facts, manifests)):
        raise why
    if manifests is not None and stage.interface.manifest == "runner" and active.metrics:
        # who published it does not hear what the command says
        return store.measured(stage.interface.name, step.fingerprint, active.attempt.name, manifests, active.metrics)
    return manifests


def measured(event: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a `metric` event has: numbers, and groups of numbers."""
    out: dict[str, Any] = {}
    for name, value in event.items():
        if isinstance(value, Mapping):
            out |= {name: group} if (group := measured(value)) else {}
        elif number(value) is not None:
            out[name] = value
    return {name: value for name, value in out.items() if name not in ("time", "step")}


def foreign(stage: Stage, step: Step, facts: Facts, manifests: Mapping[str, Manifest]) -> UserError | None:
    """Why what was written is not what was asked for: the stage's own process saw other code, inputs or values."""
    for manifest in manifests.values():
        made = manifest.provenance
        if made.get("fingerprint") in (None, step.fingerprint):
            continue
        seen = made.get("inputs")
        for name, digest in step.inputs.items():
            if isinstance(seen, dict) and name in seen and seen[name].get("digest") != digest:
                return UserError(f"the input {name} changed while it ran", fix="run again")
        if made.get("code") != facts.code[stage.name]:
            what = f"the code that ran is not the code in {stage.found.folder}"
            return UserError(what, fix="if it was edited just now run again; otherwise install the stage again")
        what = "it ran with other parameters than the pipeline gives it"
        return UserError(what, fix="its interface.json is older than its code: print it anew with `describe`")
    return None


def made_of(stage: Stage, step: Step, inputs: Mapping[str, str], code: str) -> dict[str, Any]:
    """What the result of a plain command was made of, as its manifest says."""
    return {
        "stage": stage.interface.name,
        "version": stage.interface.version,
        "code": code,
        "fingerprint": step.fingerprint,
        "params": dict(stage.params),
        "inputs": {k: {"uri": public(inputs[k]), "digest": d} for k, d in step.inputs.items()},
    }


def _provenance(active: Active, facts: Facts) -> dict[str, Any]:
    image = active.executor.ran_in(active.attempt)
    return {
        **made_of(active.stage, active.step, active.inputs, facts.code[active.stage.name]),
        "software": {"image": image} if image else {},
        "hardware": {"machine": os.uname().machine, "cores": os.cpu_count()},
        "started": _iso(active.started),
        "finished": _iso(time.time()),
    }


def full_disk(active: Active) -> UserError | None:
    """Whether a plain command failed because its disk is full, which it cannot tell in a way that is understood."""
    for draft in active.drafts.values():
        with suppress(OSError):
            place = os.statvfs(draft.path)
            if place.f_bavail * place.f_frsize < FULL:
                return from_os_error(OSError(errno.ENOSPC, ""), draft.path)
    return None


def failure(active: Active, code: int) -> UserError:
    """What a failed attempt said, or the place where it ran, or what its exit code says."""
    if active.why:
        return active.why
    if active.error:
        e = active.error
        what = str(e.get("what") or e.get("message") or "it failed")
        error = UserError(what, where=e.get("where") or "", fix=str(e.get("fix") or ""))
        variant = active.stage.variant
        return translated(error, active.stage.interface, variant.base if variant else active.stage.name)
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        fix = "often there was not enough memory" if name == "SIGKILL" else ""
        return UserError(f"it was ended by {name}", fix=fix)
    return UserError(f"it ended with exit code {code}")


def _iso(t: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(t))
