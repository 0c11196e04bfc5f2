"""The watch over one Job: what becomes of its pods, until it is known how the attempt ended.

What a Job never tells by itself is looked for at its pods: an image that cannot be pulled, a pod that no node takes, an
exit code that is final although an old cluster would go on trying.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from microstages.errors import EXIT_OK, EXIT_USER, TemporaryError, UserError

from runner.executors import LOST, Attempt, LateError
from runner.executors.kubernetes import pods
from runner.executors.kubernetes.api import Cluster, MissingError, Object, happenings, interrupt
from runner.executors.kubernetes.pods import End
from runner.executors.kubernetes.words import Words
from runner.retry import exit_code

AWAY = 120.0  # seconds that a cluster may take to answer again
LOOK, LOOK_PENDING = 15.0, 2.0  # seconds between two looks at everything, while a pod runs and before
REFUSED = 5.0  # seconds after which it counts that the cluster refuses to make the pod
ON_ITS_WAY = ("TriggeredScaleUp", "Nominated")  # events that promise a node
QUIET = ("Created", "Started", "SuccessfulCreate", "Killing", "SuccessfulDelete", "Completed", "Suspended", "Resumed")


class Watch:
    """One Job under watch. `told`: 0, or how it was told to stop (1: with its grace, 2: at once)."""

    def __init__(self, attempt: Attempt, cluster: Cluster, job: str, words: Words, patience: float) -> None:
        self.attempt, self.cluster, self.job, self.words, self.patience = attempt, cluster, job, words, patience
        self.told = 0
        self.stopped = False
        self.pods: dict[str, Object] = {}  # by uid, the newest state, those that are gone too
        self.gone: set[str] = set()
        self._judged: set[str] = set()
        self._succeeded: set[int] = set()
        self._fails: list[End] = []
        self._last: End | None = None  # the end of a pod that counts only where no other follows
        self._since: dict[str, float] = {}  # since when a pod waits for something
        self._detail: dict[str, str] = {}
        self._version = ""
        self._over: float | None = None  # since when the Job has failed
        self._blind = False  # events may not be seen
        self._coming = False  # a node is on its way
        self._forced: set[str] = set()  # pods that were told to end at once
        self._response: Any = None
        self._nodes: list[Object] | None = None
        self._asked_nodes = False

    # --- the thread ---

    def outcome(self) -> End:
        """Watch to the end. Raises UserError for what will never end well by itself, TemporaryError where the cluster
        is away too long."""
        away = 0.0
        while not self.stopped:
            try:
                if end := self._look():
                    return end
                away = 0.0
                self._wait()
            except TemporaryError:
                away = away or time.monotonic()
                if time.monotonic() - away > AWAY:
                    raise
                time.sleep(1)
        return End(LOST)

    def _look(self) -> End | None:
        """Look at everything once; how it ended, where it has."""
        if self.words.fault:
            raise self.words.fault
        try:
            job: Object | None = self.cluster.get("jobs", self.job)
        except MissingError:
            job = None
        found = self.cluster.listed("pods", f"job-name={self.job}")
        self._version = found["metadata"]["resourceVersion"]
        for pod in sorted(found["items"], key=lambda p: str(p["metadata"]["creationTimestamp"])):
            self._saw(pod)
        self.gone |= set(self.pods) - {pods.uid(p) for p in found["items"]}
        if self.told and job is not None and not pods.deleted(job):
            self.end_it(self.told > 1)
        end = self._decide(job)
        if end is None and job is not None:
            self._pending(job)
        return end

    def _wait(self) -> None:
        """Follow what happens to the pods until something is to be looked at."""
        seconds = LOOK_PENDING if self._is_pending() or self._over else LOOK
        self._response = self.cluster.watch("pods", f"job-name={self.job}", self._version, seconds)
        for event in happenings(self._response):
            if self.stopped or event["type"] == "ERROR":
                return
            if event["type"] == "BOOKMARK":
                continue
            pod = event["object"]
            before = self._is_pending()
            self._saw(pod)
            if event["type"] == "DELETED":
                self.gone.add(pods.uid(pod))
            if event["type"] == "DELETED" or pods.ended(pod) or self._is_pending() or before:
                return

    def end_it(self, now: bool) -> None:
        """Delete the Job: its pods get SIGTERM and their grace; `now`: a second, and the second time nothing."""
        for pod in list(self.pods.values()) if now else ():
            if not pods.ended(pod) and pods.uid(pod) not in self.gone:
                self.cluster.delete("pods", pods.name(pod), grace=0 if pods.uid(pod) in self._forced else 1)
                self._forced.add(pods.uid(pod))
        self.cluster.delete("jobs", self.job, "Foreground")

    def stop(self) -> None:
        """Watch no more; what runs goes on."""
        self.stopped = True
        if self._response is not None:
            interrupt(self._response)

    # --- deciding ---

    def _saw(self, pod: Object) -> None:
        uid = pods.uid(pod)
        if uid not in self.pods:
            self._asked_nodes = False
        self.pods[uid] = pod
        over = self._over_with(uid, pod)
        for container, ended in pods.begun(pod).items():
            self.words.carry(pods.name(pod), uid, container, pods.index(pod), ended or over)

    def _is_pending(self) -> bool:
        live = [p for u, p in self.pods.items() if u not in self.gone and not pods.ended(p)]
        return not live or any(not pods.said(p) for p in live)

    def _decide(self, job: Object | None) -> End | None:
        for uid, pod in self.pods.items():
            if uid not in self._judged and self._over_with(uid, pod):
                self._judged.add(uid)
                if end := self._judge(pod):
                    return end
        alive = any(not self._over_with(u, p) for u, p in self.pods.items())
        if job is None:
            if alive and self.told < 2:
                return None  # they still have their grace
            return self._last if self.told and self._last else self._unseen()
        conditions = {c["type"]: c for c in job.get("status", {}).get("conditions") or [] if c["status"] == "True"}
        if "Complete" in conditions:
            return End(EXIT_OK)
        if "Failed" in conditions:
            self._over = self._over or time.monotonic()
            if not alive or time.monotonic() - self._over > self.attempt.grace + 30:
                return self._failed(conditions["Failed"])
        return None

    def _over_with(self, uid: str, pod: Object) -> bool:
        """Whether nothing more is to be expected of a pod. One that was told to stop may yet say how it did."""
        return uid in self.gone or (pods.clear(pod) if self.told else pods.ended(pod))

    def _judge(self, pod: Object) -> End | None:
        """What the end of a pod means for the attempt; None where another one follows."""
        if not pods.ended(pod):
            if not self.told:
                self.words.tell(f"the pod {pods.name(pod)} was deleted")
            return None
        end = pods.end_of(self.attempt, pod)
        if end.code == EXIT_OK:
            self._succeeded.add(pods.index(pod))
            return end if len(self._succeeded) >= self.attempt.resources.nodes else None
        if self.told:
            return end if pods.clear(pod) else None
        if pods.taken(pod) or (pods.deleted(pod) and end.why is None):
            self._last = end if pods.taken(pod) else None
            self.words.tell(f"the pod {pods.name(pod)} was taken away: {pods.taken(pod) or 'somebody deleted it'}")
            return None
        self._fails.append(end)
        retry, tries = self.attempt.retry, len(self._fails)
        if self.attempt.resources.nodes > 1 or end.why or not retry.wanted(end.code, False, tries - 1):
            return end
        code = exit_code(end.code)
        self.words.tell(f"try {tries} of {retry.attempts} ended with exit code {code}; the cluster tries again")
        self._last = end
        return None

    def _failed(self, condition: Object) -> End:
        reason = condition.get("reason", "")
        if reason == "DeadlineExceeded":
            return End(EXIT_USER, LateError(self.attempt.timeout or 0))
        return self._last or (self._fails[-1] if self._fails else self._unseen())

    def _unseen(self) -> End:
        """How it ended, where no pod says it."""
        return End(-9 if self.told > 1 else -15 if self.told else LOST)

    # --- before a pod runs ---

    def _pending(self, job: Object) -> None:
        """Tell why nothing runs yet. Raises UserError where nothing will."""
        live = [p for u, p in self.pods.items() if u not in self.gone and not pods.ended(p)]
        if not live:
            queue = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
            if job["spec"].get("suspend"):
                self.words.tell(f"waits in the queue {queue}" if queue else "the Job is suspended", once="suspended")
            else:
                self._refused(self._events(self.job))
            return
        for pod in live:
            if not pods.said(pod):
                self._events(pods.name(pod))
                self._stuck(pod)
                self._without_node(pod)

    def _refused(self, events: list[Object]) -> None:
        failed = [e for e in events if e.get("reason") == "FailedCreate"]
        if not failed:
            self._since.pop("refused", None)
            return
        text = str(failed[-1].get("message", ""))
        limit = self.patience if "exceeded quota" in text else REFUSED
        if self._lasted("refused", text) > limit:
            fix = "check the namespace's quota and policies, and `service_account` of the target"
            raise UserError(f"the cluster refuses to make its pod: {text}", where=self.attempt.stage, fix=fix)

    def _stuck(self, pod: Object) -> None:
        waiting = pods.state(pod).get("waiting") or {}
        reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
        group = "pull" if reason in pods.PULL else reason
        if reason == "ErrImagePull" or reason not in pods.PULL:
            self._detail[pods.uid(pod)] = message
        detail = self._detail.get(pods.uid(pod), message)
        if why := pods.stuck(self.attempt, pod, self._lasted(f"waiting {pods.uid(pod)}", group), detail):
            raise why

    def _without_node(self, pod: Object) -> None:
        message = pods.unschedulable(pod)
        if not message or self._coming or self._blind:
            self._since.pop(f"node {pods.uid(pod)}", None)
            return
        if self._lasted(f"node {pods.uid(pod)}", "") <= self.patience:
            return
        if not self._asked_nodes:
            self._asked_nodes = True
            with suppress(UserError):
                self._nodes = self.cluster.nodes()
        if pods.hopeless(pod, message, self._nodes):
            fix = "ask for less below `resources:`, check `node_selector` and `tolerations`, or raise `patience`"
            raise UserError(f"no node of the cluster can take it: {message}", where=self.attempt.stage, fix=fix)

    def _lasted(self, what: str, value: str) -> float:
        """For how many seconds something has been so."""
        key = f"{what}\0{value}"
        for other in [k for k in self._since if k.startswith(f"{what}\0") and k != key]:
            del self._since[other]
        return time.monotonic() - self._since.setdefault(key, time.monotonic())

    def _events(self, name: str) -> list[Object]:
        """The events of an object; those that say something are told."""
        try:
            found = self.cluster.listed("events", fields=f"involvedObject.name={name}")["items"]
        except TemporaryError:
            raise
        except UserError as error:
            self._blind = True
            self.words.tell(f"{error.what}: what it says of the pod is not seen", once="events")
            return []
        order: Callable[[Any], str] = lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or "")  # noqa: E731
        for event in sorted(found, key=order):
            reason = str(event.get("reason", ""))
            self._coming = self._coming or reason in ON_ITS_WAY
            if reason not in QUIET:
                message = str(event.get("message", ""))
                self.words.tell(f"{reason}: {message}", once=f"{name} {reason} {message}")
        return sorted(found, key=order)
