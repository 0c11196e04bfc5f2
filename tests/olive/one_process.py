"""Runs command lines of stages in one process, so that torch is imported once: `python one_process.py JOBS RESULTS`.

JOBS is a JSON list of `{"stage", "args", "key"}`; RESULTS is written as `{key: exit code}`. After a failure it ends.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def run(stage: str, args: list[str]) -> int:
    """The exit code of a stage's program."""
    main = importlib.import_module(f"microstages_{stage.replace('-', '_')}.cli").main
    try:
        return int(main.main(args) or 0)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1


if __name__ == "__main__":
    jobs, results = Path(sys.argv[1]), Path(sys.argv[2])
    codes: dict[str, int] = {}
    for job in json.loads(jobs.read_text()):
        print(f"== {job['key']}: {job['stage']} {' '.join(job['args'])}", file=sys.stderr, flush=True)
        codes[job["key"]] = run(job["stage"], job["args"])
        results.write_text(json.dumps(codes))
        if codes[job["key"]]:
            break
