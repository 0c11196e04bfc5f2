"""Attempts as Jobs of a Kubernetes cluster, one `batch/v1` Job for each.

A Job is found again by its label, so it outlives a runner that is killed. The secrets of the caller lie in a Secret
that the Job owns; it is made right after the Job, whose pod waits for it, and goes with the Job. A thread beside each
Job watches its pods, carries their words into the attempt's files, and deletes the Job when it has ended.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from microstages.errors import EXIT_BUG, EXIT_TEMPORARY, TemporaryError, UserError, from_os_error

from runner.credentials import passed_on
from runner.executors import LOST, Attempt, Status, secrets
from runner.executors.images import name_of
from runner.executors.kubernetes import manifests
from runner.executors.kubernetes.api import Cluster, LoginError, MissingError, Object, TakenError
from runner.executors.kubernetes.manifests import SECRETS, Given
from runner.executors.kubernetes.watch import Watch
from runner.executors.kubernetes.words import Words
from runner.executors.secrets import Redactor, Secret
from runner.executors.watched import Watched
from runner.retry import Retry
from runner.spec import Resources

SETTINGS = ("MICROSTAGES_CACHE_SIZE", "MICROSTAGES_PATIENCE")
PATIENCE = 60  # seconds
GONE = 30.0  # seconds in which a Job that ended is deleted, if the cluster is away


@dataclass(kw_only=True)
class _Job(Watched):
    """A Job under watch."""

    cluster: Cluster
    name: str
    watch: Watch


class KubernetesExecutor:
    """Runs attempts as Jobs. `options`: those of a target of type kubernetes; see `options.py`."""

    name = "kubernetes"
    elsewhere = True
    retries = True

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self._clusters: dict[tuple[str, str], Cluster] = {}
        self._jobs: dict[str, _Job] = {}
        self._pinned: dict[str, str] = {}
        self._unpinned: dict[str, str] = {}  # image -> why its digest is not known

    @property
    def cluster(self) -> Cluster:
        """The cluster that the options name. Raises UserError where there is none."""
        return self._cluster(str(self.options.get("context") or ""), str(self.options.get("namespace") or ""))

    def _cluster(self, context: str, namespace: str) -> Cluster:
        key = (context, namespace)
        if key not in self._clusters:
            self._clusters[key] = Cluster(context, namespace)
        return self._clusters[key]

    @property
    def address(self) -> str:
        return json.dumps(self.cluster.address, sort_keys=True)

    # --- the protocol ---

    def submit(self, attempt: Attempt) -> str:
        """Create the Job. Raises UserError where that cannot be."""
        cluster = self.cluster
        given = self.given(attempt)
        wanted = manifests.job(attempt, self.options, given)
        name = wanted["metadata"]["name"]
        there = False
        try:
            made = cluster.create("jobs", wanted)
        except TakenError:  # submitted already: an answer was lost
            made, there = cluster.get("jobs", name), True
        try:
            if given.secrets:
                self._create(cluster, "secrets", manifests.secret(made, {s.name: _content(s) for s in given.secrets}))
            if attempt.resources.nodes > 1:
                self._create(cluster, "services", manifests.service(name, {}, made))
            job = self._watch(attempt, cluster, name, [s.value for s in given.secrets], resume=there)
        except BaseException:
            with suppress(UserError):
                cluster.delete("jobs", name)
            raise
        if why := self._unpinned.pop(given.image, ""):
            job.watch.words.tell(f"{given.image} is used as it is, not by its digest: {why}")
        return json.dumps({**cluster.address, "name": name}, sort_keys=True)

    def find(self, attempt: Attempt, token: str) -> bool:
        where = json.loads(token or "{}")
        cluster = self._cluster(str(where.get("context", "")), str(where.get("namespace", "")))
        found = cluster.listed("jobs", manifests.selector(attempt.name))["items"]
        if not found:
            return False
        job, name = found[0], found[0]["metadata"]["name"]
        hidden: list[str] = []
        if (job["metadata"].get("annotations") or {}).get(SECRETS):
            try:
                hidden = manifests.revealed(cluster.get("secrets", name))
            except MissingError:  # its runner died before it could begin
                cluster.delete("jobs", name)
                return False
        made = self._watch(self._as_submitted(attempt, job), cluster, name, hidden, resume=True)
        over = {c["type"] for c in job.get("status", {}).get("conditions") or [] if c["status"] == "True"}
        if over & {"Complete", "Failed"}:
            made.join(GONE)
        return True

    def poll(self, attempt: Attempt) -> Status:
        return self._jobs[attempt.name].status

    def wake(self, attempt: Attempt) -> int | None:
        return self._jobs[attempt.name].woken

    def read(self, attempt: Attempt) -> str:
        return self._jobs[attempt.name].reader.read()

    def ran_in(self, attempt: Attempt) -> str:  # noqa: ARG002 - it says so itself
        return ""

    def cancel(self, attempt: Attempt, now: bool = False) -> None:
        job = self._jobs[attempt.name]
        job.watch.told = 2 if now else max(1, job.watch.told)
        if job.code is None:
            with suppress(UserError):  # the watch does it again
                job.watch.end_it(now)

    def forget(self, attempt: Attempt, leave: bool = False) -> None:
        job = self._jobs.pop(attempt.name)
        job.left = job.left or leave
        if job.code is None:
            job.watch.stop()
            job.join(GONE)
        job.close()

    # --- making ---

    def given(self, attempt: Attempt) -> Given:
        """What an attempt is given. Raises UserError for a secret that is not there."""
        wanted = self.options.get("secrets") or []
        own = secrets.read([w for w in wanted if isinstance(w, str)], attempt.folder)
        stored = manifests.stored(wanted)
        taken = {s.name for s in own} | {name for name, _, _ in stored}
        found, plain = passed_on(attempt.remote)
        values = [*own, *(s for s in found if s.name not in taken)]
        access = frozenset({*plain, *(s.name for s in found)} - taken)
        plain |= {name: os.environ[name] for name in SETTINGS if name in os.environ}
        given = Given(self._image(attempt), plain, values, stored, access=access)
        if attempt.carried is None:
            return given
        porter = replace(attempt, uses=attempt.carried.uses, code=attempt.carried.code, image="", resources=Resources())
        return replace(given, porter=self._image(porter))

    def _image(self, attempt: Attempt) -> str:
        """The image, by its digest where its registry tells it."""
        image = name_of(attempt, self.options)
        if image not in self._pinned:
            from runner.executors.kubernetes import registry

            try:
                self._pinned[image] = registry.pinned(image) if self.options.get("registry") else image
            except UserError as error:
                self._pinned[image], self._unpinned[image] = image, error.what
        return self._pinned[image]

    @staticmethod
    def _create(cluster: Cluster, kind: str, wanted: Object) -> None:
        with suppress(TakenError):  # its answer was lost
            cluster.create(kind, wanted)

    @staticmethod
    def _as_submitted(attempt: Attempt, job: Object) -> Attempt:
        """What a Job itself says of the attempt that it is, where a runner knows only its name."""
        spec = job["spec"]
        rules = (spec.get("podFailurePolicy") or {}).get("rules") or []
        codes = next((r["onExitCodes"]["values"] for r in rules if r["action"] == "FailJob"), None)
        on = frozenset(codes) if codes is not None else attempt.retry.on
        retry = Retry(attempts=int(spec.get("backoffLimit", 0)) + 1, on=on)
        resources = replace(attempt.resources, nodes=int(spec.get("completions") or 1))
        timeout = float(spec.get("activeDeadlineSeconds") or 0) or attempt.timeout
        return replace(attempt, retry=retry, resources=resources, timeout=timeout)

    # --- watching ---

    def _watch(self, attempt: Attempt, cluster: Cluster, name: str, hidden: list[str], resume: bool) -> _Job:
        try:
            words = Words(attempt, cluster, Redactor(hidden), resume)
        except OSError as error:
            raise from_os_error(error, attempt.log) or UserError(str(error), where=attempt.log) from None
        watch = Watch(attempt, cluster, name, words, float(self.options.get("patience", PATIENCE)))
        job = _Job(attempt=attempt, cluster=cluster, name=name, watch=watch)
        self._jobs[attempt.name] = job
        job.follow(self._follow)
        return job

    def _follow(self, job: _Job) -> None:
        """In the thread beside a Job: to its end and its removal."""
        code, why = LOST, None
        try:
            end = job.watch.outcome()
            code, why = end.code, end.why
            if not job.watch.stopped:
                job.watch.words.finish()
        except LoginError as error:
            job.left = True
            code, why = error.exit_code, error
        except TemporaryError as error:
            job.left = True
            fix = "when it answers, run again: what still runs in it is taken up"
            code, why = EXIT_TEMPORARY, TemporaryError(error.what, where=error.where, fix=fix)
        except UserError as error:
            code, why = error.exit_code, error
        except Exception as error:
            code, why = EXIT_BUG, UserError(f"its watch ended: {type(error).__name__}: {error}", where=job.name)
        finally:
            job.watch.words.stop()
            if not job.left:
                job.watch.words.drop()
                self._delete(job)
            job.ended(code, why)

    @staticmethod
    def _delete(job: _Job) -> None:
        """Delete a Job with its pods, its Secret and its Service."""
        end = time.monotonic() + GONE
        while True:
            try:
                job.cluster.delete("jobs", job.name)
                return
            except TemporaryError:
                if time.monotonic() > end:
                    return
                time.sleep(1)
            except UserError:
                return


def _content(secret: Secret) -> bytes:
    if secret.file is None:
        return secret.value.encode()
    try:
        return secret.file.read_bytes()
    except OSError as error:
        raise from_os_error(error, secret.file) or UserError(str(error), where=secret.file) from None
