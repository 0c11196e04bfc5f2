"""Rounds of chaos: `kill -9` of the runner, a stage, the store's server and the engine, and a network that spoils.

    make images stores
    python tests/chaos/run.py --rounds 100 --seed 1 --json benchmarks/results/chaos.json

What a round is and what must hold stands in tests/chaos/campaign.py. A line a round, a table at the end; exit code 1
where anything did not hold. The folders of trials in which something did not hold are kept, and named.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from chaos.campaign import Campaign, Figures  # noqa: E402
from chaos.places import places  # noqa: E402
from chaos.trial import EVERY  # noqa: E402

SOCKET = "unix:///var/run/docker.sock"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of what dies where and when")
    parser.add_argument("--place", action="append", help="only places whose name begins so; may be repeated")
    parser.add_argument("--no-engine", action="store_true", help="start no second Docker engine to be killed")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    folder, began = Path(tempfile.mkdtemp(prefix="microstages-chaos-")), time.monotonic()
    campaign = Campaign(folder, args.seed, lambda line: print(line, flush=True))
    try:
        address = os.environ.get("DOCKER_HOST", SOCKET)
        with places(folder, address, not args.no_engine, args.place or ("",)) as (found, absent):
            for why in absent:
                print(f"     NOT THERE: {why}", flush=True)
            figures = campaign.run(found, args.rounds)
    finally:
        if campaign.figures.violations:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    report = summary(figures, absent, time.monotonic() - began, args)
    print(as_text(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if figures.violations else 0


def summary(figures: Figures, absent: list[str], seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """The figures as they are kept."""
    counts: dict[str, dict[str, int]] = {}
    for (place, victim), count in figures.rounds.items():
        counts.setdefault(place, {})[victim] = count
    return {
        "command": f"python tests/chaos/run.py --rounds {args.rounds} --seed {args.seed}",
        "rounds": sum(figures.rounds.values()),
        "violations": len(figures.violations),
        "violated": figures.violations,
        "by place and victim": counts,
        "not there": absent,
        "trials": figures.trials,
        "starts of the runner": figures.ups,
        "attempts of stages": figures.attempts,
        "training": {
            "steps between checkpoints": EVERY, "went on from a checkpoint": figures.continued,
            "most steps made again": dict(figures.most_lost), "more than an interval": figures.over_an_interval,
            "runs ended by what Azurite forgot": figures.ended_by_forgetting,
            "runs that left something for gc": figures.swept,
        },
        "results that Azurite forgot": figures.forgotten,
        "ends that Azurite forgot": figures.remade,
        "seconds": round(seconds, 1),
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
    }  # fmt: skip


def versions() -> dict[str, str]:
    package = ROOT / "tests/stores/azurite/node_modules/azurite/package.json"
    azurite = json.loads(package.read_text())["version"] if package.is_file() else "none"
    names = ("torch", "adlfs", "azure-storage-blob", "docker")
    return {
        "python": platform.python_version(),
        "azurite": azurite,
        **{n: importlib.metadata.version(n) for n in names},
    }


def as_text(report: dict[str, Any]) -> str:
    lines = [f"\n{'place':32}{'victim':20}rounds"]
    for place, victims in report["by place and victim"].items():
        lines += [f"{place:32}{victim:20}{count:6}" for victim, count in sorted(victims.items())]
    rest = ("rounds", "violations", "trials", "attempts of stages", "results that Azurite forgot", "seconds")
    lines += ["", ", ".join(f"{name}: {report[name]}" for name in rest), f"training: {report['training']}"]
    return "\n".join([*lines, *report["violated"]])


if __name__ == "__main__":
    sys.exit(main())
