"""The runner beside DVC, Snakemake and kfp's local runner: what a stage costs on top of its own work.

    python -m venv /tmp/dvc && /tmp/dvc/bin/pip install dvc==3.67.1
    python -m venv /tmp/snakemake && /tmp/snakemake/bin/pip install snakemake==9.27.1
    python -m venv /tmp/kfp && /tmp/kfp/bin/pip install kfp==2.17.0
    python benchmarks/runner.py --dvc /tmp/dvc --snakemake /tmp/snakemake --kfp /tmp/kfp

Five measurements, each of whole processes, from start to exit:

    help        `--help` (kfp has none: importing it), and an empty `python -c pass` of the same interpreter
    no-op 6     a chain of 6 stages of which nothing has changed
    no-op 50    the same with 50
    per stage   a chain of 20 stages, each copying a small file, from nothing; time / 20
    hand-over   one stage writes 16 files of 128 MiB, the next reads them all; the same two programs everywhere.
                The runner and DVC hash what was written, Snakemake and kfp pass the path on

Each system does the work in its own way: the runner, DVC and Snakemake run `cp` through a shell, kfp a Python
component, which is all that its process runner takes. What kfp reuses, its local cache reuses (off unless asked for).
The systems take turns, `--runs` times; medians count, and the best beside them. `ratio` is the runner's median over the
best other system's median: below 1 the runner is ahead.
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
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
WRITE = """\
import os, sys
block = os.urandom(1 << 20)
os.makedirs(sys.argv[1], exist_ok=True)
for n in range(16):
    with open(os.path.join(sys.argv[1], f"part-{n:02}.bin"), "wb", buffering=0) as f:
        for _ in range({mib}):
            f.write(block)
"""
READ = """\
import os, sys
buffer, total = bytearray(1 << 20), 0
for name in sorted(os.listdir(sys.argv[1])):
    if name.endswith(".bin"):
        with open(os.path.join(sys.argv[1], name), "rb", buffering=0) as f:
            while n := f.readinto(buffer):
                total += n
with open(sys.argv[2], "w") as f:
    f.write(str(total))
"""


class System(ABC):
    """One way to run a chain of stages. `prepare_*` write its files into an empty folder, `command` runs them."""

    name = ""

    def __init__(self, python: str) -> None:
        self.python = python
        self.environment = {**os.environ, "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def program(self, name: str) -> str:
        return str(Path(self.python).parent / name)

    def help(self) -> list[str]:
        return [self.program(self.name), "--help"]

    def version(self) -> str:
        code = f"from importlib.metadata import version; print(version({self.name!r}))"
        return subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    @abstractmethod
    def prepare_chain(self, folder: Path, stages: int) -> None: ...

    @abstractmethod
    def prepare_handover(self, folder: Path) -> None: ...

    @abstractmethod
    def command(self) -> list[str]: ...

    def run(self, folder: Path, command: Sequence[str] | None = None) -> float:
        """Seconds that a command takes."""
        began = time.perf_counter()
        done = subprocess.run(
            command or self.command(),
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            sys.exit(f"{self.name} failed in {folder}:\n{done.stdout}\n{done.stderr}")
        return seconds


class Runner(System):
    name = "runner"

    def help(self) -> list[str]:
        return [self.python, "-m", "runner.cli", "--help"]

    def version(self) -> str:
        code = "import runner; print(runner.__version__)"  # not in this folder, where this file has the name
        done = subprocess.run([self.python, "-c", code], cwd=HERE.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def _stage(self, folder: Path, name: str, script: str, inputs: Sequence[str], kind: str = "dataset") -> None:
        stage = folder / name
        stage.mkdir()
        interface = {
            "schema": 1, "name": name, "version": "1", "summary": name, "command": ["sh", "./run.sh"], "code": ["."],
            "manifest": "runner", "inputs": {i: {"flag": f"--{i}", "kinds": ["files"]} for i in inputs},
            "outputs": {"out": {"flag": "--out", "kind": kind}}, "params": {},
        }  # fmt: skip
        (stage / "interface.json").write_text(json.dumps(interface))
        (stage / "run.sh").write_text(script)

    def prepare_chain(self, folder: Path, stages: int) -> None:
        self._stage(folder, "first", 'cp "${1#--text=}" "${2#--out=}/text"\n', ["text"])
        self._stage(folder, "copy", 'cp "${1#--text=}/text" "${2#--out=}/text"\n', ["text"])
        lines = ["stages:", "  s0: {uses: ./first, inputs: {text: data.txt}}"]
        lines += [
            f"  s{n}: {{uses: ./copy, inputs: {{text: '${{{{ stages.s{n - 1}.out }}}}'}}}}" for n in range(1, stages)
        ]
        (folder / "pipeline.yaml").write_text("\n".join(lines) + "\n")

    def prepare_handover(self, folder: Path) -> None:
        self._stage(folder, "write", f'exec "{self.python}" "{folder}/write.py" "${{1#--out=}}"\n', [])
        read = f'exec "{self.python}" "{folder}/read.py" "${{1#--data=}}" "${{2#--out=}}/total"\n'
        self._stage(folder, "read", read, ["data"])
        (folder / "pipeline.yaml").write_text(
            "stages:\n  write: {uses: ./write}\n  read: {uses: ./read, inputs: {data: '${{ stages.write.out }}'}}\n"
        )

    def command(self) -> list[str]:
        return [self.python, "-m", "runner.cli", "up", "pipeline.yaml"]


class Dvc(System):
    name = "dvc"

    def _init(self, folder: Path, stages: dict[str, tuple[str, str, str]]) -> None:
        subprocess.run([self.program("dvc"), "init", "--no-scm", "-q"], cwd=folder, env=self.environment, check=True)
        subprocess.run(
            [self.program("dvc"), "config", "core.analytics", "false"], cwd=folder, env=self.environment, check=True
        )
        lines = ["stages:"]
        for name, (command, takes, makes) in stages.items():
            lines += [f"  {name}:", f"    cmd: {command}"]
            lines += ["    deps:", f"      - {takes}"] if takes else []
            lines += ["    outs:", f"      - {makes}"]
        (folder / "dvc.yaml").write_text("\n".join(lines) + "\n")

    def prepare_chain(self, folder: Path, stages: int) -> None:
        names = ["data.txt", *(f"out{n}.txt" for n in range(stages))]
        self._init(folder, {f"s{n}": (f"cp {names[n]} {names[n + 1]}", names[n], names[n + 1]) for n in range(stages)})

    def prepare_handover(self, folder: Path) -> None:
        write, read = f"{self.python} write.py data", f"{self.python} read.py data total"
        self._init(folder, {"write": (write, "", "data"), "read": (read, "data", "total")})

    def command(self) -> list[str]:
        return [self.program("dvc"), "repro"]


class Snakemake(System):
    name = "snakemake"

    def prepare_chain(self, folder: Path, stages: int) -> None:
        names = ["data.txt", *(f"out{n}.txt" for n in range(stages))]
        rules = [f'rule all:\n    input: "{names[-1]}"\n']
        rules += [
            f'rule s{n}:\n    input: "{names[n]}"\n    output: "{names[n + 1]}"\n    shell: "cp {{input}} {{output}}"\n'
            for n in range(stages)
        ]
        (folder / "Snakefile").write_text("\n".join(rules))

    def prepare_handover(self, folder: Path) -> None:
        (folder / "Snakefile").write_text(
            'rule read:\n    input: "data"\n    output: "total"\n'
            f'    shell: "{self.python} read.py {{input}} {{output}}"\n'
            'rule write:\n    output: directory("data")\n'
            f'    shell: "{self.python} write.py {{output}}"\n'
        )

    def command(self) -> list[str]:
        return [self.program("snakemake"), "--cores", "2", "--quiet"]


class Kfp(System):
    name = "kfp"
    head = """\
from kfp import dsl, local
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root="outputs", enable_caching=True)
"""

    def help(self) -> list[str]:
        return [self.python, "-c", "import kfp.dsl, kfp.local"]

    def prepare_chain(self, folder: Path, stages: int) -> None:
        (folder / "pipeline.py").write_text(
            self.head
            + f"""
@dsl.component
def first(path: str, out: dsl.Output[dsl.Dataset]):
    import shutil
    shutil.copyfile(path, out.path)

@dsl.component
def copy(text: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Dataset]):
    import shutil
    shutil.copyfile(text.path, out.path)

@dsl.pipeline
def chain():
    task = first(path="{folder}/data.txt")
    for _ in range({stages - 1}):
        task = copy(text=task.outputs["out"])

chain()
"""
        )

    def prepare_handover(self, folder: Path) -> None:
        (folder / "pipeline.py").write_text(
            self.head
            + f"""
@dsl.component
def write(out: dsl.Output[dsl.Dataset]):
    import subprocess, sys
    subprocess.run([sys.executable, "{folder}/write.py", out.path], check=True)

@dsl.component
def read(data: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Dataset]):
    import subprocess, sys
    subprocess.run([sys.executable, "{folder}/read.py", data.path, out.path], check=True)

@dsl.pipeline
def handover():
    read(data=write().outputs["out"])

handover()
"""
        )

    def command(self) -> list[str]:
        return [self.python, "pipeline.py"]


def in_turns(
    systems: Sequence[System], runs: int, label: str, measure: Callable[[System], float]
) -> dict[str, dict[str, float]]:
    """Median and best of each system; they take turns."""
    seconds: dict[str, list[float]] = {s.name: [] for s in systems}
    for _ in range(runs):
        for s in systems:
            seconds[s.name].append(measure(s))
    result = {k: {"median": round(statistics.median(v), 4), "best": round(min(v), 4)} for k, v in seconds.items()}
    print(f"{label:<10}" + "".join(f"  {k} {v['median']:.3f}" for k, v in result.items()), flush=True)
    return result


def fresh(folder: Path) -> Path:
    """An empty folder with the small data file and the two programs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text("a small file\n" * 10)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    for name in ("dvc", "snakemake", "kfp"):
        parser.add_argument(f"--{name}", metavar="VENV", help=f"an environment with {name}")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mib", type=int, default=128, help="size of each of the 16 files of the hand-over")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "runner-benchmark")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "runner.json")
    args = parser.parse_args()

    systems: list[System] = [Runner(sys.executable)]
    for name, kind in (("dvc", Dvc), ("snakemake", Snakemake), ("kfp", Kfp)):
        if venv := getattr(args, name):
            systems.append(kind(str(Path(venv).absolute() / "bin" / "python")))
        else:
            print(f"without {name}: give --{name} VENV")
    root = args.folder.absolute()
    results: dict[str, dict[str, dict[str, float]]] = {}

    class Empty(System):
        name = "python -c pass"

    everyone = [*systems, Empty(sys.executable)]
    results["help"] = in_turns(
        everyone, args.runs, "help",
        lambda s: s.run(Path.cwd(), [s.python, "-c", "pass"] if isinstance(s, Empty) else s.help()),
    )  # fmt: skip
    for stages in (6, 50):
        for s in systems:
            s.prepare_chain(fresh(root / f"{s.name}-{stages}"), stages)
            s.run(root / f"{s.name}-{stages}")
        results[f"no-op {stages}"] = in_turns(
            systems, args.runs, f"no-op {stages}", lambda s, n=stages: s.run(root / f"{s.name}-{n}")  # type: ignore[misc]
        )  # fmt: skip

    def chain(s: System) -> float:
        s.prepare_chain(fresh(root / f"{s.name}-chain"), 20)
        return s.run(root / f"{s.name}-chain") / 20

    results["per stage"] = in_turns(systems, args.runs, "per stage", chain)

    def handover(s: System) -> float:
        folder = fresh(root / f"{s.name}-handover")
        (folder / "write.py").write_text(WRITE.replace("{mib}", str(args.mib)))
        (folder / "read.py").write_text(READ)
        s.prepare_handover(folder)
        os.sync()
        seconds = s.run(folder)
        shutil.rmtree(folder)
        return seconds

    results["hand-over"] = in_turns(systems, max(3, args.runs // 2), "hand-over", handover)
    shutil.rmtree(root, ignore_errors=True)

    ratios = {}
    for what, figures in results.items():
        others = {k: v["median"] for k, v in figures.items() if k not in ("runner", "python -c pass")}
        if others:
            best = min(others, key=lambda k: others[k])
            ratios[what] = {"best other": best, "ratio": round(figures["runner"]["median"] / others[best], 3)}
    report = {
        "command": "python benchmarks/runner.py --dvc VENV --snakemake VENV --kfp VENV",
        "seconds": results,
        "runner over best other": ratios,
        "handed over bytes": 16 * args.mib << 20,
        "versions": {s.name: s.version() for s in systems} | {"python": platform.python_version()},
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    for what, r in ratios.items():
        print(f"{what}: {r['ratio']} of {r['best other']}")


if __name__ == "__main__":
    main()
