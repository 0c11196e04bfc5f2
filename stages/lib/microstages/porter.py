"""Carries for a plain command where no runner is beside it, as in a pod: brings what it reads before it starts, and
makes artifacts of what it wrote after it ended well.

    python -m microstages.porter fetch ORDERS
    python -m microstages.porter publish ORDERS

ORDERS is JSON: `stage`; `inputs`, each with `uri`, `kinds`, `digest` and the `path` at which the command finds it; a
list `code` of the same, with the names of the `programs` in it; `outputs`, each with `path`, `uri` and `kind`; `began`,
a file that says since when the command could start; the `provenance`. Both end with the exit codes of a stage.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from microstages import watch
from microstages.artifact import Artifact, Draft, open_artifact
from microstages.errors import EXIT_BUG, EXIT_OK, EXIT_STOPPED, EXIT_USER, Stopped, UserError, as_user_error
from microstages.provenance import hardware
from microstages.reporting import Reporter, Transfers, reporting
from microstages.storage import public

Orders = Mapping[str, Any]


def fetch(orders: Orders, report: Reporter) -> None:
    """Bring the inputs and the code, checked against their digests, and make the folders of the outputs."""
    for what in orders["inputs"].values():
        path = Path(what["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(_opened(what).path)
    for what in orders["code"]:
        _copy(_opened(what), Path(what["path"]), what["programs"])
    for what in orders["outputs"].values():
        Path(what["path"]).mkdir(parents=True, exist_ok=True)
    Path(orders["began"]).write_text(str(time.time()))
    report.event("progress", label="inputs are there")


def publish(orders: Orders, report: Reporter) -> None:
    """Make an artifact of each output."""
    image = {"image": os.environ["MICROSTAGES_IMAGE"]} if os.environ.get("MICROSTAGES_IMAGE") else {}
    provenance = {
        **orders["provenance"],
        "software": image,
        "hardware": hardware(),
        "started": _iso(float(Path(orders["began"]).read_text())),
        "finished": _iso(time.time()),
    }
    for name, what in orders["outputs"].items():
        with Draft(what["uri"], what["kind"]) as draft:
            for top, _, _ in os.walk(what["path"]):  # of a folder that nobody may write in nothing can be moved
                os.chmod(top, 0o755)
            for path in sorted(Path(what["path"]).iterdir()):
                shutil.move(path, draft.path / path.name)
            manifest = draft.commit(provenance)
        report.event("artifact", output=name, uri=public(what["uri"]), digest=manifest.digest, size=manifest.size)


def _opened(what: Mapping[str, Any]) -> Artifact:
    found = open_artifact(what["uri"], what["kinds"])
    if found.digest != what["digest"]:
        raise UserError("it changed since the run began", where=public(what["uri"]), fix="run again")
    return found


def _copy(found: Artifact, place: Path, programs: Sequence[str]) -> None:
    """Files of a command's code, which may be executed: what lies in a store has no modes."""
    files = {name: found.path / name for name in found.files} if found.path.is_dir() else {"": found.path}
    for name, source in files.items():
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if name in programs else 0o644)


def main(argv: Sequence[str]) -> int:
    """Do what the words say; the exit code."""
    known: dict[str, Callable[[Orders, Reporter], None]] = {"fetch": fetch, "publish": publish}
    if len(argv) != 2 or argv[0] not in known:
        print("usage: python -m microstages.porter fetch|publish ORDERS", file=sys.stderr)
        return EXIT_USER
    signal.signal(signal.SIGTERM, _stop)
    orders = json.loads(argv[1])
    with reporting(str(orders["stage"])) as report:
        watch.current = Transfers(report)
        try:
            known[argv[0]](orders, report)
            return EXIT_OK
        except Stopped:
            return EXIT_STOPPED
        except Exception as error:
            if found := as_user_error(error):
                return _failed(report, found)
            traceback.print_exc()
            report.event("error", message=f"{type(error).__name__}: {error}", exit_code=EXIT_BUG)
            return EXIT_BUG
        finally:
            watch.current = watch.SILENT


def _failed(report: Reporter, error: UserError) -> int:
    code = error.exit_code
    report.event("error", message=str(error), what=error.what, where=error.where, fix=error.fix, exit_code=code)
    report.say(f"error: {error}\n")
    return code


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Stopped()


def _iso(t: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(t))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
