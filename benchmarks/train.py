"""Train a LoRA adapter: this stage beside TRL's SFTTrainer, in trained tokens per second.

    python benchmarks/train.py [--peer-python PYTHON] [--threads 1] [--epochs 2] [--runs 3]

The same model (examples/tiny-phi3), data (examples/tones.jsonl, the same token ids), LoRA (rank 64 on all linear
layers), tokens per optimizer step (about 1,024) and epochs, bf16 base with fp32 adapter and autocast, fused AdamW, no
gradient checkpointing, no evaluation. Both count the loop alone, not imports, loading or tokenizing. Twice: with the
loss on all tokens, and on the completion only. The contenders take turns, `--runs` times; the best of each counts.

    ours                the stage, as a program
    trl rows            one example a row, padded to the longest of its batch
    trl by length       the same, rows of similar length together (not a random order)
    trl packed, sdpa    examples packed into sequences of 256 tokens (best fit)
    trl packed, eager   the same with the other attention that a CPU has

PYTHON is an interpreter that has `trl==1.16.0` and `datasets==5.2.0` with the stage's own torch, transformers and peft.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MODEL, DATA = ROOT / "examples" / "tiny-phi3", ROOT / "examples" / "tones.jsonl"
TEMPLATE = "### Text: {phrase}\n### The tone is:\n{tone}"
LENGTH, STEP_TOKENS = 256, 1024
LORA = {"rank": 64, "alpha": 64, "learning_rate": 1e-3}
PEERS = {
    "trl rows": {},
    "trl by length": {"train_sampling_strategy": "group_by_length"},
    "trl packed, sdpa": {"packing": True},
    "trl packed, eager": {"packing": True, "attn_implementation": "eager"},
}


def program(module: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{module} failed:\n{done.stderr}")


def ours(dataset: Path, output: Path, args: argparse.Namespace) -> dict[str, float]:
    """One run of the stage: seconds of its loop, steps, mean loss over the steps."""
    program(
        "microstages_train_lora.cli", "--dataset", dataset, "--base-model", MODEL, "--output", output,
        *(x for k, v in LORA.items() for x in (f"--{k.replace('_', '-')}", v)), "--schedule", "linear", "--warmup", 0,
        "--epochs", args.epochs, "--batch-tokens", STEP_TOKENS, "--precision", "bf16", "--threads", args.threads,
        "--eval-every", 0,
    )  # fmt: skip
    metrics = json.loads((output / "artifact.json").read_text())["metrics"]
    losses = [point["loss"] for point in json.loads((output / "training.json").read_text())["steps"]]
    return {"seconds": metrics["training_seconds"], "steps": metrics["steps"], "mean_loss": sum(losses) / len(losses)}


def peer(dataset: Path, options: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """One run of TRL in an interpreter of its own."""
    job = {"dataset": str(dataset), "options": options, "epochs": args.epochs, "threads": args.threads}
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [args.peer_python, __file__, "--peer-job", json.dumps(job)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"TRL failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_peer(job: dict[str, Any]) -> dict[str, float]:
    """What the peer's interpreter runs: SFTTrainer on the token ids of our data set."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(job["threads"])
    split = load_file(Path(job["dataset"]) / "train.safetensors")
    rows, at = [], 0
    for length in split["example_lengths"].tolist():
        ids, trained = (split[k][at : at + length].tolist() for k in ("input_ids", "trained"))
        rows.append({"input_ids": ids, "completion_mask": trained})
        at += length
    options = dict(job["options"])
    attention = options.pop("attn_implementation", "sdpa")
    packed = options.get("packing", False)
    batch = STEP_TOKENS // LENGTH if packed else round(STEP_TOKENS * len(rows) / at)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16, attn_implementation=attention)
    lora = LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=batch, num_train_epochs=job["epochs"], bf16=True,
            learning_rate=LORA["learning_rate"], lr_scheduler_type="linear", max_length=LENGTH, report_to="none",
            save_strategy="no", logging_strategy="no", use_cpu=True, gradient_checkpointing=False,
            completion_only_loss=True, optim="adamw_torch_fused", disable_tqdm=True, **options,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(MODEL)
        trainer = SFTTrainer(
            model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora
        )
        metrics = trainer.train().metrics
    return {"seconds": metrics["train_runtime"], "steps": trainer.state.global_step, "mean_loss": metrics["train_loss"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer-job", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "train.json")
    args = parser.parse_args()
    if args.peer_job:
        print(json.dumps(run_peer(json.loads(args.peer_job))))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for loss in ("all", "completion"):
            dataset = Path(folder) / loss
            program(
                "microstages_prepare_data.cli", "--source", DATA, "--model", MODEL, "--output", dataset, "--template",
                TEMPLATE, "--completion", "tone", "--loss", loss, "--max-length", LENGTH, "--test-fraction", 0,
            )  # fmt: skip
            counts = json.loads((dataset / "artifact.json").read_text())["metadata"]["train"]
            best: dict[str, dict[str, float]] = {}
            for run in range(args.runs):
                for name in ("ours", *PEERS):
                    if name == "ours":
                        got = ours(dataset, Path(folder) / f"{loss}-{run}", args)
                    else:
                        got = peer(dataset, PEERS[name], args)
                    if name not in best or got["seconds"] < best[name]["seconds"]:
                        best[name] = got
                    print(f"loss on {loss}, run {run + 1}: {name:18} {got['seconds']:6.1f} s", flush=True)
            trained = counts["trained_tokens"] * args.epochs
            for got in best.values():
                got["mean_loss"] = round(got["mean_loss"], 3)
                got["seconds"] = round(got["seconds"], 2)
                got["trained_tokens_per_second"] = round(trained / got["seconds"], 1)
                got["times_as_slow_as_ours"] = round(got["seconds"] / best["ours"]["seconds"], 2)
            found[f"loss on {loss}"] = {"trained_tokens": trained, "tokens": counts["tokens"] * args.epochs, **best}
    names = ("torch", "transformers", "peft", "trl", "datasets")
    script = "import json,sys,importlib.metadata as m;print(json.dumps({n:m.version(n) for n in sys.argv[1:]}))"
    versions = subprocess.run([args.peer_python, "-c", script, *names], capture_output=True, text=True, check=True)
    value = {
        "command": f"python benchmarks/train.py --threads {args.threads} --epochs {args.epochs} --runs {args.runs}",
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)},
        "versions": {"python": platform.python_version(), **{n: version(n) for n in names[:3]}},
        "peer_versions": json.loads(versions.stdout),
        "results": found,
    }
    args.results.parent.mkdir(exist_ok=True)
    args.results.write_text(json.dumps(value, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
