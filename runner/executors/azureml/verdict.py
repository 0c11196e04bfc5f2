"""What the end of a job means, as the runner's exit codes and words have it.

Azure ML says Completed, Failed or Canceled, and why in its own words. The exit code is the last line of the job's log;
where that is not there it is looked for in Azure ML's words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from microstages.errors import EXIT_BUG, EXIT_OK, EXIT_STOPPED, EXIT_TEMPORARY, EXIT_USER, TemporaryError, UserError

from runner.executors import Attempt, LateError

ENDED = ("Completed", "Failed", "Canceled")
BEGUN = ("Running", "Finalizing", "CancelRequested", "NotResponding", *ENDED)  # its program may have said something
STATES = {
    "NotStarted": "submitted", "Starting": "starting", "Provisioning": "waiting for a machine", "Queued": "queued",
    "Preparing": "preparing its image", "Running": "running", "Finalizing": "finishing",
    "CancelRequested": "being cancelled", "NotResponding": "silent", "Paused": "paused",
}  # fmt: skip
# Azure ML's codes for its own trouble, after which the same job may well run.
OWN_TROUBLE = ("ServiceError", "SystemError", "TransientError", "RequestThrottled", "AzureStorageError")
SIGNALS = (129, 130, 131, 134, 135, 136, 137, 139)  # 128 + the signal; 143 is the contract's own
_CODES = (
    re.compile(r"exit(?:ed)? with (?:status |exit |return )?code:? (\d+)", re.IGNORECASE),
    re.compile(r"exit[ _]codes?:? (\d+)", re.IGNORECASE),
    re.compile(r"SystemExit: (\d+)"),
)
_REMEDIES = (
    (r"quota|not enough cores|exceed", "ask for more quota, or give the target another `instance_type` or `compute`"),
    (r"pull|image|registry|manifest unknown", "check that the image is there (`registry`, `images`) and that the "
     "workspace's identity may pull it (the role AcrPull)"),
    (r"compute", "check `compute` and `instance_type` of the target"),
    (r"environment", "check the image that the target names"),
)  # fmt: skip


@dataclass(frozen=True)
class End:
    """A job that has ended. `details`: what run history says of it; `code`: what its log says; `ran`: its program
    began; `asked`: we told it to stop; `studio`: where a person sees it."""

    state: str
    details: Mapping[str, Any]
    code: int | None
    ran: bool
    asked: bool = False
    studio: str = ""

    @property
    def error(self) -> Mapping[str, Any]:
        return (self.details.get("error") or {}).get("error") or {}

    @property
    def seconds(self) -> float:
        """How long it ran."""
        with suppress(KeyError, TypeError, ValueError):
            began, ended = (datetime.fromisoformat(self.details[f"{k}TimeUtc"]) for k in ("start", "end"))
            return (ended - began).total_seconds()
        return 0.0


def verdict(end: End, attempt: Attempt) -> tuple[int, UserError | None]:
    """Exit code and why."""
    see = f"see {end.studio}" if end.studio else "see the job in Azure ML studio"
    if end.state == "Completed":
        return EXIT_OK, None
    if end.state == "Canceled":
        if not end.asked and attempt.timeout and end.seconds >= attempt.timeout:
            return EXIT_USER, LateError(attempt.timeout)
        return EXIT_STOPPED, None if end.asked else UserError("its job was cancelled in Azure ML", fix=see)
    message = message_of(end.error)
    ran = end.ran or bool(re.search(r"user (process|program)", message, re.IGNORECASE))
    code = code_in(message) if end.code is None and ran else end.code
    if code in (126, 127):
        program = attempt.command[0] if attempt.command else attempt.uses
        what = f"its image cannot start {program}"
        return EXIT_USER, UserError(what, fix="check which image the target names for this stage")
    if code in SIGNALS:
        return 128 - code, None
    if code:  # with 0 it was Azure ML that failed
        return code, None
    words = f"Azure ML: {message}" if message else "Azure ML says no more than that the job failed"
    if end.error.get("code") in OWN_TROUBLE:
        return EXIT_TEMPORARY, TemporaryError(words, fix=see)
    if ran:
        return EXIT_BUG, UserError(words, fix=see)
    remedy = next((fix for pattern, fix in _REMEDIES if re.search(pattern, message, re.IGNORECASE)), see)
    return EXIT_USER, UserError(f"it could not be started. {words}", fix=remedy)


def code_in(message: str) -> int | None:
    """The exit code that an error of Azure ML speaks of."""
    for pattern in _CODES:
        if found := pattern.search(message):
            return int(found.group(1))
    return None


def message_of(error: Mapping[str, Any]) -> str:
    """The words of a run's error, in one line; those of its parts where they say more."""
    texts = [str(error.get("message") or "")]
    texts += [str(part.get("message") or "") for part in error.get("details") or [] if isinstance(part, dict)]
    said = [" ".join(t.split()) for t in texts if t]
    return "; ".join(t for i, t in enumerate(said) if not any(t in other for other in said[:i]))[:800]
