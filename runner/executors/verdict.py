"""What the end of a container means, as the runner's exit codes and words have it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from microstages.errors import EXIT_USER, UserError

from runner.executors import Attempt
from runner.executors.engine import explained


def verdict(attempt: Attempt, state: Mapping[str, Any]) -> tuple[int, UserError | None]:
    """What the end of a container means."""
    code, limit = int(state["ExitCode"]), attempt.resources.memory
    if state.get("Error") and code in (125, 126, 127, 128):
        return EXIT_USER, explained(RuntimeError(state["Error"]), attempt.stage)
    if code in (126, 127) and "[FATAL tini" in _tail(attempt.log):
        what = f"its image cannot start {attempt.command[0] if attempt.command else 'its program'}"
        return EXIT_USER, UserError(what, fix="check the `command` of its interface.json against what the image holds")
    if state.get("OOMKilled") and code:
        if limit:
            what = f"out of memory: it needed more than its limit of {_size(limit)}"
            return EXIT_USER, UserError(what, fix=f"raise `memory` below `resources:` of {attempt.stage}")
        return EXIT_USER, UserError("out of memory: the machine has no more", fix="use a smaller model or batch")
    if code in (129, 130, 131, 134, 135, 136, 137, 139):  # ended by a signal; 143 is the contract's own
        return 128 - code, None
    return code, None


def _tail(file: Path) -> str:
    with suppress(OSError), file.open("rb") as f:
        f.seek(max(0, f.seek(0, os.SEEK_END) - 4096))
        return f.read(4096).decode(errors="replace")
    return ""


def _size(count: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count} bytes"
