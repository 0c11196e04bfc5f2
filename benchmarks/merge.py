"""Merge a 2 GB model: this stage beside a plain copy of the same files and beside PEFT, and its peak memory.

    python benchmarks/merge.py [--gb 2] [--rank 64] [--runs 3] [--folder /tmp/merge-benchmark]

Makes a Phi-3-shaped model of random bf16 weights (never whole in memory) and a LoRA adapter on all linear layers, then
measures programs, not functions: every time is that of a whole process, from its start to its exit, and every peak is
that process's own (`ru_maxrss`). `seconds` ends where the program ends, `on_disk` where the disk has what it wrote
(`sync`). The contenders take turns, in the order below, `--runs` times; the best of each counts. Before each, memory
is touched and given back: a virtual machine has to ask its host for pages that were free for long, which takes longer
than anything that is measured here, and whoever comes first would pay for it.

    copy         cp of the model's files: what any program that writes such a model has to do at least
    copy, hashed the same and sha256sum over the copy: what handing over an artifact has to do at least
    merge        the stage, as the runner starts it: verify the inputs, merge, hash, write, commit. The inputs' hashes
                 are known from before, as in a pipeline, whose earlier stage has read the same base
    merge, first the same with nothing known: it also reads and hashes all inputs
    peft         from_pretrained, merge_and_unload, save_pretrained

Afterwards every tensor of the merged model is compared with PEFT's, bit by bit. Needs torch, transformers and peft
beside the stage, some 8 × `--gb` GB of disk and 3 × as much memory (PEFT's).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
STAGE = [sys.executable, "-m", "microstages_merge.cli"]
PEFT = """
import sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
base, adapter, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, low_cpu_mem_usage=True)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output)
"""
TOUCH = "import sys; b = bytearray(int(sys.argv[1])); b[::4096] = bytes(len(b[::4096]))"
SHAPE = {"hidden_size": 2048, "intermediate_size": 5632, "vocab_size": 32064, "num_attention_heads": 16}


def layer_shapes() -> dict[str, tuple[int, int]]:
    """The linear layers of a block, (out, in)."""
    h, i = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    return {
        "self_attn.qkv_proj": (3 * h, h),
        "self_attn.o_proj": (h, h),
        "mlp.gate_up_proj": (2 * i, h),
        "mlp.down_proj": (h, i),
    }


def write_tensors(file: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], scale: float, seed: int) -> None:
    """A safetensors file of normal numbers, written tensor by tensor."""
    from microstages.tensors import header

    random = np.random.default_rng(seed)
    with file.open("wb") as out:
        out.write(header([(n, d, s) for n, (d, s) in tensors.items()], {"format": "pt"}))
        for dtype, shape in tensors.values():
            left = math.prod(shape)
            while left:
                n = min(left, 1 << 22)
                x = random.standard_normal(n, dtype=np.float32) * np.float32(scale)
                out.write(
                    (x.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else x
                )  # rounding is no matter
                left -= n


def make_inputs(folder: Path, gb: float, rank: int) -> tuple[Path, Path, int]:
    """The model and the adapter; returns their folders and the number of parameters."""
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir(parents=True)
    adapter.mkdir()
    h, vocab = SHAPE["hidden_size"], SHAPE["vocab_size"]
    per_layer = sum(math.prod(s) for s in layer_shapes().values()) + 2 * h
    layers = max(1, round((gb * 1e9 / 2 - 2 * vocab * h) / per_layer))
    tensors = {"lm_head.weight": ("BF16", (vocab, h)), "model.embed_tokens.weight": ("BF16", (vocab, h))}
    factors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for i in range(layers):
        at = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = ("BF16", (h,))
        for name, (out, into) in layer_shapes().items():
            tensors[f"{at}.{name}.weight"] = ("BF16", (out, into))
            factors[f"base_model.model.{at}.{name}.lora_A.weight"] = ("F32", (rank, into))
            factors[f"base_model.model.{at}.{name}.lora_B.weight"] = ("F32", (out, rank))
    tensors["model.norm.weight"] = ("BF16", (h,))
    write_tensors(base / "model.safetensors", tensors, 0.02, 0)
    write_tensors(adapter / "adapter_model.safetensors", factors, 0.02, 1)
    config = SHAPE | {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "num_hidden_layers": layers,
        "num_key_value_heads": SHAPE["num_attention_heads"],
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    }
    (base / "config.json").write_text(json.dumps(config, indent=2))
    lora = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "task_type": "CAUSAL_LM", "target_modules":
            [n.split(".")[1] for n in layer_shapes()], "base_model_name_or_path": None}  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(lora, indent=2))
    return base, adapter, sum(math.prod(s) for _, s in tensors.values())


def measure(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Wall time, CPU time and peak memory of one process. Ends the program where it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    words = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    os.sync()
    on_disk = time.perf_counter() - began
    if status:
        sys.exit(f"{command[:3]} failed:\n{words}")
    return {
        "seconds": round(seconds, 2),
        "on_disk": round(on_disk, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss * 1024 / 1e6, 1),
    }


def compare(one: Path, other: Path) -> dict[str, int]:
    """Tensors in both models and elements that differ in any bit."""
    from microstages.tensors import Weights, model_files

    counts = {"tensors": 0, "elements": 0, "different": 0}
    with Weights(model_files(one)) as a, Weights(model_files(other)) as b:
        if set(a.tensors) != set(b.tensors):
            sys.exit(f"different tensors: {sorted(set(a.tensors) ^ set(b.tensors))[:5]}")
        for name, t in a.tensors.items():
            counts["tensors"] += 1
            counts["elements"] += t.count
            for i in range(0, t.nbytes, 1 << 26):
                x, y = (w.read_bytes(w.tensors[name], i, min(i + (1 << 26), t.nbytes)) for w in (a, b))
                counts["different"] += int((np.frombuffer(x, np.uint16) != np.frombuffer(y, np.uint16)).sum())
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/merge-benchmark"))
    parser.add_argument("--result", type=Path, default=HERE / "results" / "merge.json")
    parser.add_argument("--no-peft", action="store_true", help="leave PEFT and the comparison away")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    try:
        base, adapter, parameters = make_inputs(args.folder, args.gb, args.rank)
        result = race(args, base, adapter, parameters)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    args.result.parent.mkdir(exist_ok=True)
    args.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def race(args: argparse.Namespace, base: Path, adapter: Path, parameters: int) -> dict[str, object]:
    folder: Path = args.folder
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "MICROSTAGES_CACHE": str(folder / "cache")}
    outputs = {n: folder / n for n in ("copied", "hashed", "first", "merged", "peft")}

    def stage(output: str) -> list[str]:
        return [*STAGE, "--base-model", str(base), "--adapter", str(adapter), "--output", str(outputs[output])]

    programs = {
        "copy": ["cp", "-r", "--reflink=never", str(base), str(outputs["copied"])],
        "copy, hashed": [
            "sh",
            "-c",
            'cp -r --reflink=never "$1" "$2" && sha256sum "$2"/*',
            "sh",
            str(base),
            str(outputs["hashed"]),
        ],
        "merge, first": stage("first"),
        "merge": stage("merged"),
        "peft": [sys.executable, "-c", PEFT, str(base), str(adapter), str(outputs["peft"])],
    }
    if args.no_peft:
        del programs["peft"]
    base_bytes = sum(f.stat().st_size for f in base.iterdir())
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    kept = {"merge": outputs["merged"], "peft": outputs["peft"]}
    for turn in range(args.runs):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for name, command in programs.items():
            # Each finds the same: the inputs in the page cache, nothing waiting to be written, memory at hand.
            os.sync()
            subprocess.run([sys.executable, "-c", TOUCH, str(3 * base_bytes)], check=True)
            runs[name].append(measure(command, environment))
            print(f"{name:14} {runs[name][-1]}", flush=True)
            for output in outputs.values():
                if turn < args.runs - 1 or output not in kept.values():
                    shutil.rmtree(output, ignore_errors=True)
    best = {name: {k: min(r[k] for r in found) for k in found[0]} for name, found in runs.items()}
    manifest = json.loads((outputs["merged"] / "artifact.json").read_text())
    result: dict[str, object] = {
        "command": f"python benchmarks/merge.py --gb {args.gb:g} --rank {args.rank} --runs {args.runs}",
        "model": {
            "parameters": parameters,
            "bytes": base_bytes,
            "adapter_bytes": sum(f.stat().st_size for f in adapter.iterdir()),
            "rank": args.rank,
        },
        "best": best,
        "ratios": {
            f"{name} / {copy}, {what}": round(best[name][what] / best[copy][what], 2)
            for name in ("merge", "merge, first")
            for copy in ("copy", "copy, hashed")
            for what in ("seconds", "on_disk")
        },
        "copy_megabytes_per_second": round(base_bytes / 1e6 / best["copy"]["seconds"]),
        "split_of_merge": {k: v for k, v in manifest["metrics"].items() if k.endswith("seconds")},
        "runs": runs,
    }
    if "peft" in best:
        result["ratios"] |= {  # type: ignore[operator]
            "peft / merge": round(best["peft"]["seconds"] / best["merge"]["seconds"], 2),
            "peft / merge, memory": round(best["peft"]["peak_mb"] / best["merge"]["peak_mb"], 1),
        }
        result["compared_with_peft"] = compare(outputs["merged"], outputs["peft"])
    return result | {"versions": versions(), "hardware": hardware()}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("numpy", "ml_dtypes", "torch", "transformers", "peft"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def hardware() -> dict[str, object]:
    with open("/proc/cpuinfo") as f:
        model = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "memory_gb": round(memory / 1e9, 1)}


if __name__ == "__main__":
    main()
