"""prepare-data beside `datasets.map`: rows/s, tokens/s and peak memory on a million rows.

    python -m venv peers && peers/bin/pip install datasets==5.2.0 transformers==5.23.0
    python benchmarks/prepare.py --peer-python peers/bin/python

Both read the same JSON Lines (the GoEmotions rows, repeated), make prompt and answer of each row by the same template,
tokenize both parts with the same tokenizer, add the end token and the mask of what is trained, and write the result.
The peer is batched, with as many processes as prepare-data has workers, and saves to disk. prepare-data besides holds
out a tenth by hash, packs all rows into sequences and writes its report; duplicates stay, since nearly all rows are.
Each is a process of its own, imports included, one after the other.

Memory is the largest sum over the process tree: `pss` counts a page shared by n processes 1/n to each; `anonymous` is
the part of it that no file stands behind, which is what a container's limit is about.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("MICROSTAGES_SHARED") or ROOT.parent / "shared")
MODEL = ROOT / "examples" / "tiny-phi3"
END_ID = 0  # <|endoftext|>
PROMPT, ANSWER = "### Text: {phrase}\n### The tone is:\n", "{tone}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=1, help="runs of each, in turn; the fastest counts")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has datasets and transformers")
    parser.add_argument("--source", type=Path, default=SHARED / "data" / "goemotions-train.jsonl")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "prepare.json")
    parser.add_argument("--run-peer", nargs=3, metavar=("SOURCE", "OUTPUT", "WORKERS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run_peer:
        peer(*args.run_peer)
        return
    if not args.source.is_file():
        sys.exit(f"{args.source} is not there: set MICROSTAGES_SHARED, or give --source")
    with tempfile.TemporaryDirectory() as folder:
        result = compare(args, Path(folder))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both on the same file, in turn; the fastest run of each counts."""
    source = folder / "rows.jsonl"
    repeat(args.source, source, args.rows)
    ours, theirs = folder / "ours", folder / "theirs"
    commands = {
        "prepare-data": [
            sys.executable, "-m", "microstages_prepare_data.cli", "--source", source, "--model", MODEL,
            "--output", ours, "--template", PROMPT + ANSWER, "--completion", "tone", "--no-deduplicate",
            "--workers", args.workers,
        ],
        "datasets.map": [args.peer_python, __file__, "--run-peer", source, theirs, args.workers],
    }  # fmt: skip
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    tokens = 0
    for n in range(args.repeat):
        for name, command in commands.items():
            shutil.rmtree(ours, ignore_errors=True)
            shutil.rmtree(theirs, ignore_errors=True)
            print(f"{name}, run {n + 1} of {args.repeat}", file=sys.stderr)
            runs[name].append(measured([str(c) for c in command], folder))
            if name == "prepare-data":
                report = json.loads((ours / "report.json").read_bytes())
                tokens = sum(report[split]["tokens"] for split in ("train", "test"))
            else:
                theirs_tokens = json.loads((theirs / "tokens.json").read_bytes())
    if theirs_tokens != tokens:
        sys.exit(f"not the same work: {tokens} tokens here, {theirs_tokens} there")
    best = {name: min(found, key=lambda r: r["seconds"]) for name, found in runs.items()}
    for r in best.values():
        r["rows_per_second"] = round(args.rows / r["seconds"])
        r["tokens_per_second"] = round(tokens / r["seconds"])
    for name, found in runs.items():
        best[name]["seconds_of_each_run"] = [r["seconds"] for r in found]  # type: ignore[assignment]
    a, b = best["prepare-data"], best["datasets.map"]
    return {
        "what": f"{args.rows} rows, {tokens} tokens, {source_size(source)} MB of JSON Lines, {args.workers} workers",
        "runs": best,
        "ratios": {
            "speed": round(b["seconds"] / a["seconds"], 2),
            "cpu": round(b["cpu_seconds"] / a["cpu_seconds"], 2),
            "peak_anonymous": round(b["peak_anonymous_mb"] / a["peak_anonymous_mb"], 2),
            "peak_pss": round(b["peak_pss_mb"] / a["peak_pss_mb"], 2),
        },
        "versions": versions(args.peer_python),
        "hardware": {"cores": os.cpu_count(), "machine": platform.machine()},
        "command": "python benchmarks/prepare.py " + " ".join(
            f"--{k} {v}" for k, v in (("rows", args.rows), ("workers", args.workers), ("repeat", args.repeat))
        ),
    }  # fmt: skip


def peer(source: str, output: str, workers: str) -> None:
    """The same work by `datasets.map`, as a training script does it."""
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"))

    def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        prompts = [PROMPT.format(phrase=p) for p in rows["phrase"]]
        given = tokenizer(prompts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        said = tokenizer(rows["tone"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {
            "input_ids": [[*a, *b, END_ID] for a, b in zip(given, said, strict=True)],
            "completion_mask": [[0] * len(a) + [1] * (len(b) + 1) for a, b in zip(given, said, strict=True)],
        }

    data = load_dataset("json", data_files=source, split="train")
    data = data.map(tokenize, batched=True, num_proc=int(workers), remove_columns=data.column_names)
    data.save_to_disk(output)
    import pyarrow.compute as pc

    lengths = [pc.list_value_length(chunk).sum() for chunk in data.data["input_ids"].chunks]
    (Path(output) / "tokens.json").write_text(str(pc.sum(lengths) if not lengths else sum(v.as_py() for v in lengths)))


def measured(command: list[str], folder: Path) -> dict[str, float]:
    """Run a command: seconds, CPU seconds, and the peak memory of its process tree in MB."""
    cache = folder / "cache"
    environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    before = os.times()
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = {"pss": 0.0, "anonymous": 0.0}
    watcher = threading.Thread(target=watch, args=(process, peak))
    watcher.start()
    assert process.stderr is not None
    said = process.stderr.read()
    code = process.wait()
    seconds = time.monotonic() - began
    watcher.join()
    shutil.rmtree(cache, ignore_errors=True)
    if code:
        sys.exit(f"{command[0]} failed:\n{said[-2000:]}")
    after = os.times()
    cpu = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_pss_mb": round(peak["pss"], 1),
        "peak_anonymous_mb": round(peak["anonymous"], 1),
    }


def watch(process: subprocess.Popen[str], peak: dict[str, float]) -> None:
    """Five times a second the memory of the process and all below it."""
    while process.poll() is None:
        pss = anonymous = 0.0
        for pid in tree(process.pid):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n")
            except OSError:
                continue
            values = {k: float(v.split()[0]) / 1e3 for k, _, v in (line.partition(":") for line in lines[1:]) if v}
            pss += values.get("Pss", 0)
            anonymous += values.get("Pss_Anon", values.get("Anonymous", 0))
        peak["pss"] = max(peak["pss"], pss)
        peak["anonymous"] = max(peak["anonymous"], anonymous)
        time.sleep(0.2)


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    out = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            out += tree(int(child))
    return out


def repeat(source: Path, target: Path, rows: int) -> None:
    lines = source.read_bytes().splitlines(keepends=True)
    with target.open("wb") as f:
        for left in range(rows, 0, -len(lines)):
            f.writelines(lines[:left])


def source_size(source: Path) -> int:
    return round(source.stat().st_size / 1e6)


def versions(peer_python: str) -> dict[str, str]:
    code = "import json, platform; from importlib.metadata import version as v; print(json.dumps({'python': "
    code += "platform.python_version(), **{n: v(n) for n in %r}}))"
    peers = subprocess.run(
        [peer_python, "-c", code % (["datasets", "transformers", "tokenizers", "pyarrow"],)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    from importlib.metadata import version

    ours = {f"prepare-data: {n}": version(n) for n in ("tokenizers", "numpy")}
    return {**json.loads(peers.stdout), **ours}


if __name__ == "__main__":
    main()
