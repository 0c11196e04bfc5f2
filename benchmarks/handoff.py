"""Handing an artifact over: through an object store, beside adlfs's own `put` and `get`, and on a disk, beside DVC.

    python -m venv /tmp/dvc && /tmp/dvc/bin/pip install dvc==3.67.1
    make stores
    python benchmarks/handoff.py --dvc /tmp/dvc

Two artifacts of the same weight to move: one file of `--gb` gigabytes, and `--files` files of 4 KiB.

    put     a folder's files become an artifact in Azurite: hashed, sent, its manifest last. adlfs: `put` of the folder,
            as it is and with `max_concurrency=4`; nothing is hashed
    get     the artifact is opened on a machine that has none of it: fetched, checked. adlfs: `get` of the folder
    local   a stage of a pipeline writes the files, the next one reads them all: `runner up`, and `dvc repro`

Each is a process of its own; the systems take turns, `--runs` times, and medians count. Azurite is one process that
shares the cores of this machine with who measures it, so compare ratios. `ratio` is our median over the best other
one's: below 1 we are ahead. `peak_mb` is the most that a process had in memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SYSTEMS = ("ours", "adlfs", "adlfs, max_concurrency=4")
SMALL = """\
import os, sys
os.makedirs(sys.argv[1], exist_ok=True)
for n in range({files}):
    with open(os.path.join(sys.argv[1], f"{{n:05}}.bin"), "wb") as f:
        f.write(os.urandom(4096))
"""
LARGE = """\
import os, sys
block = os.urandom(1 << 20)
os.makedirs(sys.argv[1], exist_ok=True)
with open(os.path.join(sys.argv[1], "model.bin"), "wb", buffering=0) as f:
    for _ in range({mb}):
        f.write(block)
"""


def put(system: str, folder: Path, uri: str) -> None:
    """In a child: send a folder."""
    if system == "ours":
        from microstages.artifact import Draft

        with Draft(uri, "model") as draft:
            for file in folder.iterdir():
                os.link(file, draft.path / file.name)
            draft.commit({})
        return
    import fsspec

    fs, path = fsspec.core.url_to_fs(uri)
    more = {"max_concurrency": 4} if "=" in system else {}
    fs.put(f"{folder}/", f"{path}/", recursive=True, **more)


def get(system: str, folder: Path, uri: str) -> None:
    """In a child: fetch into a place that has nothing of it."""
    if system == "ours":
        from microstages.artifact import open_artifact

        open_artifact(uri, ["model"])
        return
    import fsspec

    fs, path = fsspec.core.url_to_fs(uri)
    more = {"max_concurrency": 4} if "=" in system else {}
    fs.get(f"{path}/", f"{folder}/", recursive=True, **more)


def child(what: str, system: str, folder: str, uri: str) -> None:
    began = time.perf_counter()
    (put if what == "put" else get)(system, Path(folder), uri)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


def measured(environment: dict[str, str], *arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{arguments}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def through_a_store(work: Path, source: Path, runs: int) -> dict[str, Any]:
    """Put and get by each system, in turns, through an Azurite of its own."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from stores.servers import azurite

    (work / "azurite").mkdir()
    store = azurite(work / "azurite")
    seen: dict[str, dict[str, list[dict[str, float]]]] = {s: {"put": [], "get": []} for s in SYSTEMS}
    try:
        for run in range(runs):
            for system in SYSTEMS[run % 3 :] + SYSTEMS[: run % 3]:
                uri = store.uri("handoff")
                for what in ("put", "get"):
                    to = work / "to"
                    environment = {**store.environment, "MICROSTAGES_CACHE": str(work / what)}
                    place = source if what == "put" else to
                    to.mkdir()
                    seen[system][what].append(measured(environment, what, system, str(place), uri))
                    for folder in (to, work / what):
                        shutil.rmtree(folder, ignore_errors=True)
                    os.sync()
                    print(f"  {system} {what}: {seen[system][what][-1]}", file=sys.stderr)
    finally:
        store.server.stop()
        shutil.rmtree(work / "azurite")
    size = sum(f.stat().st_size for f in source.iterdir())
    out: dict[str, Any] = {}
    for system in SYSTEMS:
        out[system] = {}
        for what in ("put", "get"):
            seconds = statistics.median(m["seconds"] for m in seen[system][what])
            peak = max(m["peak_mb"] for m in seen[system][what])
            out[system][what] = {
                "seconds": round(seconds, 2), "mb_per_second": round(size / 1e6 / seconds, 1), "peak_mb": round(peak)
            }  # fmt: skip
    for what in ("put", "get"):
        best = min(out[s][what]["seconds"] for s in SYSTEMS[1:])
        out[f"ratio {what}"] = round(out["ours"][what]["seconds"] / best, 2)
    return out


def on_a_disk(work: Path, write: str, dvc: Path, runs: int) -> dict[str, Any]:
    """Two stages of a pipeline, by the runner and by DVC."""
    spec = importlib.util.spec_from_file_location("benchmark_of_the_runner", HERE / "runner.py")
    assert spec is not None and spec.loader is not None
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    systems = {"ours": peers.Runner(sys.executable), "dvc": peers.Dvc(str(dvc / "bin" / "python"))}
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(runs):
        for name, system in systems.items():
            folder = work / "project"
            folder.mkdir()
            (folder / "write.py").write_text(write)
            (folder / "read.py").write_text(peers.READ)
            system.prepare_handover(folder)
            seconds[name].append(system.run(folder))
            print(f"  {name} local: {seconds[name][-1]:.2f}", file=sys.stderr)
            shutil.rmtree(folder)
            os.sync()
    out: dict[str, Any] = {name: {"seconds": round(statistics.median(s), 2)} for name, s in seconds.items()}
    out["ratio"] = round(out["ours"]["seconds"] / out["dvc"]["seconds"], 2)
    return out


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0, help="of the large file; 0: none")
    parser.add_argument("--files", type=int, default=10_000, help="small files; 0: none")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dvc", type=Path, help="an environment that has DVC; without one only the store is measured")
    parser.add_argument("--folder", type=Path, help="where to work: about four times --gb are needed")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "handoff.json")
    args = parser.parse_args()
    scripts = {}
    if args.gb:
        scripts[f"1 file of {args.gb:g} GB"] = LARGE.format(mb=int(args.gb * 1e9 / 2**20))
    if args.files:
        scripts[f"{args.files:,} files of 4 KiB"] = SMALL.format(files=args.files)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="handoff-") as name:
        work = Path(name)
        for title, write in scripts.items():
            print(title, file=sys.stderr)
            subprocess.run([sys.executable, "-c", write, str(work / "source")], check=True)
            results[title] = {"store": through_a_store(work, work / "source", args.runs)}
            shutil.rmtree(work / "source")
            if args.dvc:
                results[title]["local"] = on_a_disk(work, write, args.dvc, args.runs)
    out = {
        "command": f"python benchmarks/handoff.py --gb {args.gb:g} --files {args.files} --runs {args.runs}"
        + (" --dvc VENV" if args.dvc else ""),
        "versions": {p: version(p) for p in ("adlfs", "azure-storage-blob", "fsspec")}
        | {"python": platform.python_version()},
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "results": results,
    }
    args.json.write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
