"""Stages in containers: what the runner adds to `docker run`, beside kfp's local DockerRunner.

    make images
    python -m venv /tmp/kfp && /tmp/kfp/bin/pip install kfp==2.17.0 docker
    python benchmarks/docker.py --kfp /tmp/kfp

Measured, in seconds, the contenders in turns, all in the same image on the same engine:

    chain       six stages in a row, each copies a file of some bytes to its output. The runner hashes and commits every
                output and shuts its containers in. kfp's write a file each and pass nothing on (its local runner finds
                no outputs of containers), and are not shut in
    real stage  prepare-data on the example data, as `runner up` of a pipeline of this one stage
    docker run  the same commands by `docker run --rm` with the same limits, one after the other: what containers cost

`added` is the runner's time over that of `docker run`, for each stage.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGE, BASE = "microstages/prepare-data:latest", "microstages/base:0.1.0"  # BASE has no entry point
STAGES = 6
HARD = [
    "--read-only", "--tmpfs", "/tmp:rw,nosuid,nodev,exec,mode=1777", "--cap-drop", "ALL", "--init", "--network", "none",
    "--security-opt", "no-new-privileges:true", "--pids-limit", "4096", "--ipc", "private",
]  # fmt: skip
KFP = """\
from kfp import dsl, local
local.init(runner=local.DockerRunner(), pipeline_root="outputs")

@dsl.container_component
def work(out: dsl.Output[dsl.Dataset]):
    return dsl.ContainerSpec("{image}", ["sh", "-c", 'mkdir -p "$(dirname "$0")" && echo words > "$0"', out.path])

@dsl.pipeline
def chain():
    task = work()
    for _ in range({rest}):
        task = work().after(task)

chain()
"""
FLAGS = 'for a in "$@"; do k="${a%%=*}"; eval "${k#--}=\\${a#*=}"; done\n'


def timed(command: list[str], folder: Path) -> float:
    """Wall time of a command. Ends the program where it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - began


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o777)  # for the user in the containers of `docker run` and kfp
    return folder


def runner_chain(folder: Path) -> float:
    for name, script, inputs in (
        ("first", 'echo words > "$out/x"', {}),
        ("copy", 'cp "$text/x" "$out/x"', {"text": {"flag": "--text", "kinds": ["dataset"]}}),
    ):
        stage = folder / name
        stage.mkdir()
        interface = {
            "schema": 1, "name": name, "version": "1", "summary": "", "command": ["sh", "./run.sh"], "code": ["."],
            "manifest": "runner", "image": BASE, "inputs": inputs,
            "outputs": {"out": {"flag": "--out", "kind": "dataset"}},
            "params": {"n": {"flag": "--n", "type": "integer", "default": 0}},
        }  # fmt: skip
        (stage / "interface.json").write_text(json.dumps(interface))
        (stage / "run.sh").write_text(FLAGS + script)
    stages = {"s0": {"uses": "./first"}}
    for n in range(1, STAGES):
        inputs = {"text": f"${{{{ stages.s{n - 1}.out }}}}"}
        stages[f"s{n}"] = {"uses": "./copy", "inputs": inputs, "params": {"n": n}}
    (folder / "pipeline.yaml").write_text(json.dumps({"target": "docker", "stages": stages}))
    return timed([sys.executable, "-m", "runner.cli", "up", "--quiet"], folder)


def docker_chain(folder: Path) -> float:
    total = 0.0
    for n in range(STAGES):
        out = fresh(folder / str(n))
        script = f"echo words > {out}/x" if n == 0 else f"cp {folder}/{n - 1}/x {out}/x"
        mounts = ["-v", f"{out}:{out}"] + (["-v", f"{folder}/{n - 1}:{folder}/{n - 1}:ro"] if n else [])
        total += timed(["docker", "run", "--rm", *HARD, *mounts, BASE, "sh", "-c", script], folder)
    return total


def kfp_chain(python: Path) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        fresh(folder / "outputs")
        (folder / "pipeline.py").write_text(KFP.format(image=BASE, rest=STAGES - 1))
        # its containers have a user of their own, who may not write where kfp made the folders
        return timed(["sh", "-c", f"umask 0; exec {python} pipeline.py"], folder)

    return run


PARAMS = {"template": "{phrase}: {tone}", "completion": "tone", "max_length": 256}


def runner_real(folder: Path) -> float:
    inputs = {"source": str(ROOT / "examples/tones.jsonl"), "model": str(ROOT / "examples/tiny-phi3")}
    stages = {"data": {"uses": "prepare-data", "inputs": inputs, "params": PARAMS}}
    (folder / "pipeline.yaml").write_text(json.dumps({"target": "docker", "stages": stages}))
    return timed([sys.executable, "-m", "runner.cli", "up", "--quiet"], folder)


def docker_real(folder: Path) -> float:
    data, model = ROOT / "examples/tones.jsonl", ROOT / "examples/tiny-phi3"
    mounts = ["-v", f"{data}:{data}:ro", "-v", f"{model}:{model}:ro", "-v", f"{folder}:{folder}"]
    words = [f"--{k.replace('_', '-')}={v}" for k, v in PARAMS.items()]
    flags = [f"--source={data}", f"--model={model}", *words, f"--output={folder}/out/dataset"]
    return timed(["docker", "run", "--rm", *HARD, *mounts, IMAGE, *flags], folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kfp", type=Path, help="the virtual environment with kfp and docker")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/docker.json")
    args = parser.parse_args()
    contenders: dict[str, Callable[[Path], float]] = {
        "chain: runner": runner_chain, "chain: docker run": docker_chain,
        "real stage: runner": runner_real, "real stage: docker run": docker_real,
    }  # fmt: skip
    if args.kfp:
        contenders["chain: kfp"] = kfp_chain(args.kfp / "bin/python")
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)
        for _ in range(args.runs):
            for name, run in contenders.items():
                times[name].append(run(fresh(Path(top) / name.replace(": ", "-").replace(" ", "-"))))
                print(f"{name:24} {times[name][-1]:.2f} s", flush=True)
    median = {name: round(statistics.median(t), 3) for name, t in times.items()}
    report = {
        "command": "python benchmarks/docker.py --kfp VENV",
        "seconds": {
            n: {"median": median[n], "min": round(min(t), 3), "max": round(max(t), 3)} for n, t in times.items()
        },
        "added to docker run, seconds a stage": {
            "chain": round((median["chain: runner"] - median["chain: docker run"]) / STAGES, 3),
            "real stage": round(median["real stage: runner"] - median["real stage: docker run"], 3),
        },
        "stages": STAGES,
        "versions": {"engine": engine(), "python": platform.python_version()},
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
    }
    if args.kfp:
        report["runner over kfp"] = round(median["chain: runner"] / median["chain: kfp"], 3)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k not in ("versions", "hardware")}, indent=1))


def engine() -> str:
    """The engine's version."""
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
