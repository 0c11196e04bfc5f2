"""Attempts as command jobs of an Azure Machine Learning workspace, by Azure Resource Manager's REST interface.

A job's name comes from the attempt's, so it is submitted once, whoever dies meanwhile, and is found again by anybody
who may read the workspace. A thread beside each attempt submits it, looks how it stands, carries its words into the
attempt's files, and cancels it. What may pass is asked again for two minutes; after that the job is left where it is,
and the next run takes it up. Nothing is deleted: jobs stay in the workspace's history.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microstages.arm import KEYS, RefusedError, Rest, Token, Workspace, checked, scope_of
from microstages.errors import EXIT_BUG, EXIT_STOPPED, EXIT_TEMPORARY, TemporaryError, UserError

from runner.credentials import passed_on
from runner.executors import LOST, Attempt, Status
from runner.executors.azureml import body
from runner.executors.azureml.verdict import BEGUN, ENDED, STATES, End, verdict
from runner.executors.azureml.words import Lines, Log
from runner.executors.images import name_of
from runner.executors.secrets import Redactor
from runner.executors.watched import Watched

GONE = 120.0  # seconds that Azure may take to answer again
ASKED = 20.0  # the same, while the scheduler waits
LOOKS = (0.5, 10.0)  # seconds between two looks, at first and at most
LATE = 15.0  # seconds after a job's end in which its last words may still come
LET_GO = 10.0  # seconds that a thread may take to end


@dataclass(kw_only=True)
class _Job(Watched):
    """A job under watch."""

    workspace: Workspace
    token: Token
    lines: Lines
    request: tuple[str, dict[str, Any], dict[str, Any]] | None = None  # image, environment and job, if not submitted
    state: str = ""
    said: str = ""  # the state that was told last
    asked: int = 0  # how often it was told to stop
    told: int = 0  # how often Azure ML was
    gone: bool = False  # nobody looks at it any more
    poke: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rest = Rest(self.token, GONE, self._wait)

    def _wait(self, seconds: float) -> None:
        """Between two tries: until somebody wants something else."""
        self.poke.wait(seconds)
        self.poke.clear()
        if self.gone or self.asked > 1:
            raise TemporaryError("it does not answer, and it is not waited for any longer", fix="run again")

    @property
    def name(self) -> str:
        return body.job_name(self.attempt.name)


class AzureMLExecutor:
    """Runs attempts as jobs. `options`: those of a target of type azureml; `folder`: where the pipeline lies."""

    name = "azureml"
    elsewhere = True
    retries = False  # Azure ML makes a job again that lost its machine, but none that failed

    def __init__(self, options: Mapping[str, Any] | None = None, folder: Path | None = None) -> None:
        self.options = dict(options or {})
        self.folder = folder or Path()
        self._workspace: Workspace | None = None
        self._tokens: dict[str, Token] = {}
        self._history: dict[str, str] = {}
        self._jobs: dict[str, _Job] = {}

    @property
    def workspace(self) -> Workspace:
        """The target's workspace. Raises UserError where it is not known which."""
        if self._workspace is None:
            self._workspace = Workspace.find(self.folder, self.options)
        return self._workspace

    @property
    def address(self) -> str:
        return _named(self.workspace)

    # --- the protocol ---

    def submit(self, attempt: Attempt) -> str:
        """Say what is to run; it is sent beside the caller. Raises UserError where that cannot be."""
        image = name_of(attempt, self.options)
        name, version = body.environment_name(attempt.uses, image)
        path = f"environments/{name}/versions/{version}"
        made = body.job(attempt, self.options, self.workspace, image, f"{self.workspace.id}/{path}")
        request = path, body.environment(attempt.uses, image), made
        self._watch(attempt, self.workspace, request)
        return _named(self.workspace, body.job_name(attempt.name))

    def find(self, attempt: Attempt, token: str) -> bool:
        workspace = _from(token) or self.workspace
        rest = Rest(self._token(workspace), ASKED)
        try:
            state = _state(rest.ask("GET", _job_url(workspace, attempt)).json)
        except RefusedError as error:
            if error.status == 404:
                return False
            raise
        finally:
            rest.close()
        job = self._watch(attempt, workspace, None)
        if state in ENDED:
            job.join()
        return True

    def poll(self, attempt: Attempt) -> Status:
        return self._jobs[attempt.name].status

    def wake(self, attempt: Attempt) -> int | None:
        return self._jobs[attempt.name].woken

    def read(self, attempt: Attempt) -> str:
        job = self._jobs[attempt.name]
        before, job.said = job.said, job.state
        told = ""
        if job.said not in (before, "Running", *ENDED):
            label = f"Azure ML: {STATES.get(job.said, job.said)}"
            told = json.dumps({"event": "progress", "label": label}) + "\n"
        return told + job.reader.read()

    def ran_in(self, attempt: Attempt) -> str:  # noqa: ARG002 - it says so itself
        return ""

    def cancel(self, attempt: Attempt, now: bool = False) -> None:
        """Azure ML has one way to stop a job: its program gets SIGTERM and some seconds. `now`: nobody waits for it."""
        job = self._jobs[attempt.name]
        job.asked = max(job.asked, 2 if now else 1)
        job.poke.set()

    def forget(self, attempt: Attempt, leave: bool = False) -> None:
        job = self._jobs.pop(attempt.name)
        if job.code is None and not leave:
            job.asked = 2
        job.gone = True
        job.poke.set()
        job.join(LET_GO)
        job.close()

    # --- beside the caller ---

    def _watch(
        self, attempt: Attempt, workspace: Workspace, request: tuple[str, dict[str, Any], dict[str, Any]] | None
    ) -> _Job:
        lines = Lines(attempt, Redactor(s.value for s in passed_on(attempt.remote)[0]))
        token = self._token(workspace)
        job = _Job(attempt=attempt, workspace=workspace, token=token, lines=lines, request=request)
        self._jobs[attempt.name] = job
        job.follow(self._follow)
        return job

    def _token(self, workspace: Workspace) -> Token:
        if workspace.endpoint not in self._tokens:
            self._tokens[workspace.endpoint] = Token(scope_of(workspace.endpoint))
        return self._tokens[workspace.endpoint]

    def _follow(self, job: _Job) -> None:
        """In the thread beside a job: from its submission to its end."""
        code, why = LOST, None
        try:
            if job.request is None or self._submit(job):
                code, why = self._outcome(job)
            else:
                code = EXIT_STOPPED
        except TemporaryError as error:
            job.left = True
            what = f"Azure ML stopped answering: {error.what}"
            fix = "run again when it does: a job that still runs there is taken up"
            code, why = EXIT_TEMPORARY, TemporaryError(what, where=error.where, fix=fix)
        except UserError as error:
            job.left = job.request is None  # it was submitted, and may go on
            code, why = error.exit_code, error
        except Exception as error:
            job.left = job.request is None
            code, why = EXIT_BUG, UserError(f"its job cannot be followed: {type(error).__name__}: {error}")
        finally:
            job.lines.close()
            job.rest.close()
            job.ended(code, why)

    def _submit(self, job: _Job) -> bool:
        """Make the environment and the job; what is there already is as good. False where it need not begin."""
        assert job.request is not None
        path, environment, made = job.request
        _put(job, job.workspace.url(path), environment)
        if job.asked or job.gone:
            return False
        try:
            _put(job, _job_url(job.workspace, job.attempt), made)
        except TemporaryError:
            job.request = None  # it may have been heard
            raise
        job.request = None
        return True

    def _outcome(self, job: _Job) -> tuple[int, UserError | None]:
        log = Log(job.rest, job.lines)
        pause, longest = LOOKS
        ran, late = False, 0.0
        while True:
            if job.asked > job.told:
                job.told = job.asked
                self._cancel(job)
                if job.told > 1:
                    return EXIT_STOPPED, None
            if job.gone:
                return LOST, None
            found = job.rest.ask("GET", _job_url(job.workspace, job.attempt)).json
            state, before = _state(found), job.state
            job.state = state
            news, details = state != before, {}
            if state in BEGUN:
                details = self._details(job)
                files = details.get("logFiles") or {}
                ran = ran or state == "Running" or bool(log.there(files))
                news = log.read(files) or news
            if news:
                pause = LOOKS[0]
            if state in ENDED:
                late = late or time.monotonic() + (0.0 if job.asked and not ran else LATE)
                if job.lines.exit_code is not None or time.monotonic() >= late:
                    job.lines.end()
                    asked = job.asked > 0
                    end = End(state, details, job.lines.exit_code, ran=ran, asked=asked, studio=_studio(found))
                    return verdict(end, job.attempt)
                pause = LOOKS[0]
            job.poke.wait(pause)
            job.poke.clear()
            pause = min(longest, pause * 1.3)

    def _cancel(self, job: _Job) -> None:
        """Ask Azure ML to cancel a job; one that has ended meanwhile refuses."""
        try:
            job.rest.ask("POST", job.workspace.url(f"jobs/{job.name}/cancel"))
        except RefusedError as error:
            if error.status in (401, 403):
                raise

    def _details(self, job: _Job) -> dict[str, Any]:
        """What run history has of a job: where its words lie, and its error."""
        url = f"{self._history_of(job)}/history/v1.0{job.workspace.id}/runs/{job.name}/details"
        try:
            return dict(job.rest.ask("GET", url).json or {})
        except RefusedError as error:
            if error.status == 404:  # not there yet
                return {}
            raise

    def _history_of(self, job: _Job) -> str:
        """Where the workspace's run history answers: a place of its own in each region."""
        key = job.workspace.id
        if key not in self._history:
            found = job.rest.ask("GET", job.workspace.url()).json["properties"]["discoveryUrl"]
            places = job.rest.ask("GET", found, signed=True).json
            self._history[key] = checked(str(places["api"]).rstrip("/"), "the workspace's discoveryUrl")
        return self._history[key]


def _put(job: _Job, url: str, made: dict[str, Any]) -> None:
    """Make something; what is there already is as good."""
    try:
        job.rest.ask("PUT", url, made)
    except RefusedError as error:
        if error.status != 409:
            raise


def _job_url(workspace: Workspace, attempt: Attempt) -> str:
    return workspace.url(f"jobs/{body.job_name(attempt.name)}")


def _state(found: Any) -> str:
    return str((found.get("properties") or {}).get("status") or "Unknown")


def _studio(found: Any) -> str:
    services = (found.get("properties") or {}).get("services") or {}
    return str((services.get("Studio") or {}).get("endpoint") or "")


def _named(workspace: Workspace, job: str = "") -> str:
    parts = {"endpoint": workspace.endpoint, "subscription_id": workspace.subscription_id}
    parts |= {"resource_group": workspace.resource_group, "workspace": workspace.name}
    return json.dumps(parts | ({"job": job} if job else {}), sort_keys=True)


def _from(token: str) -> Workspace | None:
    """The workspace of a token, whatever the pipeline says by now."""
    with suppress(ValueError, KeyError, TypeError):
        found = json.loads(token)
        subscription, group, name = (str(found[key]) for key in KEYS)
        return Workspace(subscription, group, name, checked(str(found["endpoint"]), "the token"))
    return None
