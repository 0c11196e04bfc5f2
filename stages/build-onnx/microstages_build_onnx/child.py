"""Work in a process of its own: what is noisy, slow to import, or may crash in native code.

A child serves jobs until it is closed: each is one JSON line in, and one JSON line out on a pipe of its own, with
lines of progress between. What it prints is kept in a file, and the last lines of it shown only if it fails. It never
outlives the stage, however the stage ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from microstages.errors import UserError
from microstages.machine import peak_memory
from microstages.provenance import software

LAST_LINES = 15
PR_SET_PDEATHSIG = 1
# The libraries whose versions a child reports: the stage itself does not load them.
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "onnx", "onnxruntime", "onnxruntime_genai")
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The builder writes the commit of whatever git checkout its environment lies in into the model.
    "GIT_DIR": os.devnull,
}

Say = Callable[[str, float, float], None]


class Child:
    """`with Child("package.module", "the builder", say) as child: result = child.ask(job)`.

    The module calls `serve`. `say(label, done, total)` hears its progress.
    """

    def __init__(self, module: str, name: str, say: Say) -> None:
        self.name, self._say = name, say
        self._printed = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (closed in __exit__)
        ours, theirs = os.pipe()
        # -P: no module of the current folder may stand in for one of ours or the builder's.
        command = [sys.executable, "-P", "-m", module, str(theirs), str(os.getpid())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._printed, stderr=self._printed, pass_fds=[theirs],
            text=True, env={**os.environ, **QUIET}, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._answers = os.fdopen(ours, encoding="utf-8")

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # it has nothing to tidy; torch takes a second for that
        self._process.wait()
        self._answers.close()
        self._printed.close()
        if self._process.stdin:
            self._process.stdin.close()

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """The child's answer to a job. Raises UserError where it reports one or was killed, RuntimeError for a bug."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died(job["where"]) from None
        for line in self._answers:
            kind, value = json.loads(line)
            if kind == "progress":
                self._say(*value)
            elif kind == "error":
                raise UserError(value["what"], where=value["where"], fix=value["fix"])
            else:
                return dict(value)
        raise self._died(job["where"])

    def _died(self, where: str) -> Exception:
        code = self._process.wait()
        self._printed.seek(0)
        lines = [x for x in (line.rstrip().rpartition("\r")[2] for line in self._printed) if x][-LAST_LINES:]
        if code == -signal.SIGKILL:
            fix = "use a machine with more memory, or a smaller model"
            return UserError(f"{self.name} was killed, most likely for want of memory", where=where, fix=fix)
        if code < 0:
            how = signal.Signals(-code).name
            return UserError(
                f"{self.name} crashed ({how}){': ' + lines[-1] if lines else ''}",
                where=where, fix="nothing was written; try another precision or other options",
            )  # fmt: skip
        return RuntimeError("\n".join([f"{self.name} ended with exit code {code}:", *lines]))


_answers: TextIO | None = None


def _answer(kind: str, value: Any) -> None:
    assert _answers is not None
    _answers.write(json.dumps([kind, value]) + "\n")
    _answers.flush()


def progress(label: str, done: float, total: float) -> None:
    """In a child: say how far it is."""
    _answer("progress", [label, done, total])


def serve(works: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """In a child: do jobs by their `do` until there are no more. Any exception but UserError ends it."""
    global _answers  # noqa: PLW0603  (one pipe in a process of its own)
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    if sys.platform == "linux":  # die with the stage, even if that is killed at once
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)
    _answers = os.fdopen(descriptor, "w", encoding="utf-8")
    for line in sys.stdin:
        job = json.loads(line)
        try:
            result = works[job["do"]](job)
        except UserError as error:
            _answer("error", {"what": error.what, "where": error.where, "fix": error.fix})
            continue
        versions = {k: v for k, v in software().items() if k in LIBRARIES}
        _answer("result", {**result, **peak_memory(), "software": versions})
