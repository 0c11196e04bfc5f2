"""A served model beside a plain loop: tokens a second for one client, and for several at once.

    python benchmarks/serve.py [--runs 3] [--requests 16] [--prompt 32] [--tokens 64] [--folder /tmp/serve-benchmark]

Makes a Phi-3-shaped model of 63 million random parameters and its int4 build for CPUs. For each form (int4 by ONNX
Runtime, fp32 by torch) these take turns, `--runs` times, each with `--requests` requests of `--prompt` tokens that are
answered with `--tokens` tokens, greedily; the best of each counts:

    loop         the library's own loop in a program of its own, one prompt after another, loading not counted:
                 ONNX Runtime GenAI's generator, transformers' generate
    1 client     `infer --serve`, asked over HTTP, one request after the other
    4, 8 clients the same with that many at once

`tokens_per_s` are generated tokens of all clients over the time from the first request to the last answer, reading the
prompts included; `tokens_per_cpu_s` the same over the processor time of the loop or the server (the clients are not in
it), which says more where others use the machine too. `first_token_ms` is the median time until a stream's first token,
in a round of its own.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "tiny-phi3"
CLIENTS = (1, 4, 8)
SHAPE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12,
         "num_key_value_heads": 12}  # fmt: skip
MAKE = """
import json, sys, torch
from transformers import Phi3Config, Phi3ForCausalLM
torch.manual_seed(0)
config = Phi3Config(vocab_size=4096, max_position_embeddings=1024, original_max_position_embeddings=1024,
    sliding_window=None, bos_token_id=1, eos_token_id=0, pad_token_id=0, **json.loads(sys.argv[2]))
model = Phi3ForCausalLM(config)
model.save_pretrained(sys.argv[1])
print(sum(p.numel() for p in model.parameters()))
"""
BUILD = """
import sys
from onnxruntime_genai.models.builder import create_model, parse_extra_options
source, target, cache = sys.argv[1:]
options = parse_extra_options("", source, target, "int4", "cpu", cache, [])
create_model("", source, target, "int4", "cpu", cache, **options)
"""
LOOP = {
    "int4": """
import json, sys, time
import numpy as np, onnxruntime_genai as og
model, threads, tokens, prompts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
config = og.Config(model)
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
model = og.Model(config)
def say(ids):
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + tokens, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(ids, dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return generator.token_count() - len(ids)
say(prompts[0])
began, cpu = time.perf_counter(), time.process_time()
said = sum(say(p) for p in prompts)
print(said / (time.perf_counter() - began), said / (time.process_time() - cpu))
""",
    "fp32": """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM
model, threads, tokens, prompts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
def say(ids):
    ids = torch.tensor([ids])
    with torch.inference_mode():
        said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        return said.shape[1] - ids.shape[1]
say(prompts[0])
began, cpu = time.perf_counter(), time.process_time()
said = sum(say(p) for p in prompts)
print(said / (time.perf_counter() - began), said / (time.process_time() - cpu))
""",
}


class Served:
    """`infer --serve`."""

    def __init__(self, model: Path, threads: int) -> None:
        command = [sys.executable, "-m", "microstages_infer.cli", "--model", str(model), "--serve", "--port", "0",
                   "--threads", str(threads)]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        ready = next(e for e in map(json.loads, self.process.stdout) if e["event"] == "ready")
        self.port: int = ready["port"]
        # its events must be taken, or it would wait for somebody to do so
        self._reader = ThreadPoolExecutor(1)
        self._reader.submit(lambda out: [None for _ in out], self.process.stdout)

    def ask(self, connection: http.client.HTTPConnection, body: dict[str, Any]) -> http.client.HTTPResponse:
        connection.request("POST", "/v1/completions", json.dumps(body))
        response = connection.getresponse()
        if response.status != 200:
            sys.exit(f"{response.status}: {response.read()!r}")
        return response

    def cpu(self) -> float:
        """Seconds of processors that it used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def tokens_per_s(self, clients: int, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        """All prompts, shared among that many clients."""

        def client(mine: list[list[int]]) -> int:
            connection, said = http.client.HTTPConnection("127.0.0.1", self.port), 0
            for prompt in mine:
                answer = json.loads(self.ask(connection, {"prompt": prompt, "max_tokens": tokens}).read())
                said += answer["usage"]["completion_tokens"]
            connection.close()
            return said

        with ThreadPoolExecutor(clients) as pool:
            began, cpu = time.perf_counter(), self.cpu()
            said = sum(pool.map(client, [prompts[i::clients] for i in range(clients)]))
            return speeds(said / (time.perf_counter() - began), said / (self.cpu() - cpu))

    def first_token_ms(self, clients: int, prompts: list[list[int]]) -> float:
        """Until the first token of a stream, the median."""

        def client(prompt: list[int]) -> float:
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
            began = time.perf_counter()
            response = self.ask(connection, {"prompt": prompt, "max_tokens": 16, "stream": True})
            response.readline()
            took = time.perf_counter() - began
            response.read()
            connection.close()
            return took

        with ThreadPoolExecutor(clients) as pool:
            return 1000 * statistics.median(pool.map(client, prompts))

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._reader.shutdown()


def speeds(wall: float, cpu: float) -> dict[str, float]:
    """Both rates, rounded."""
    return {"tokens_per_s": round(wall, 1), "tokens_per_cpu_s": round(cpu, 1)}


def make(folder: Path) -> tuple[dict[str, Path], int]:
    """The model and its int4 build; how many parameters."""
    folder.mkdir(parents=True)
    models = {"int4": folder / "int4", "fp32": folder / "model"}
    made = subprocess.run(
        [sys.executable, "-c", MAKE, str(models["fp32"]), json.dumps(SHAPE)], check=True, capture_output=True, text=True
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, models["fp32"])
    command = [sys.executable, "-c", BUILD, str(models["fp32"]), str(models["int4"]), str(folder / "cache")]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return models, int(made.stdout.split()[-1])


def race(form: str, model: Path, args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """What each contender does, in turns."""
    random = np.random.default_rng(0)
    prompts = [random.integers(6, 4096, args.prompt).tolist() for _ in range(args.requests)]
    loop = [sys.executable, "-c", LOOP[form], str(model), str(args.threads), str(args.tokens), json.dumps(prompts)]
    runs: dict[str, list[dict[str, float]]] = {"loop": []}
    served = Served(model, args.threads)
    try:
        served.tokens_per_s(max(CLIENTS), prompts, 2)
        for _ in range(args.runs):
            done = subprocess.run(loop, check=True, capture_output=True, text=True)
            runs["loop"].append(speeds(*map(float, done.stdout.split()[-2:])))
            for clients in CLIENTS:
                found = served.tokens_per_s(clients, prompts, args.tokens)
                found["first_token_ms"] = round(served.first_token_ms(clients, prompts), 1)
                runs.setdefault(f"{clients} client{'s' if clients > 1 else ''}", []).append(found)
            print(form, {name: found[-1] for name, found in runs.items()}, flush=True)
    finally:
        served.end()
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=Path("/tmp/serve-benchmark"))
    parser.add_argument("--result", type=Path, default=HERE / "results" / "serve.json")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    try:
        models, parameters = make(args.folder)
        runs = {form: race(form, model, args) for form, model in models.items()}
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    best = {
        form: {
            name: {k: (min if k == "first_token_ms" else max)(r[k] for r in found) for k in found[0]}
            for name, found in contenders.items()
        }
        for form, contenders in runs.items()
    }
    result = {
        "command": f"python benchmarks/serve.py --runs {args.runs} --requests {args.requests} --prompt {args.prompt} "
        f"--tokens {args.tokens} --threads {args.threads}",
        "parameters": parameters,
        "best": best,
        "ratios": {
            f"{form}: {name} / loop, {what}": round(v[what] / b["loop"][what], 2)
            for form, b in best.items()
            for what in ("tokens_per_s", "tokens_per_cpu_s")
            for name, v in b.items()
            if name != "loop"
        },
        "runs": runs,
        "versions": versions(),
        "hardware": hardware(),
    }
    args.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result[k] for k in ("best", "ratios")}, indent=1))


def versions() -> dict[str, str]:
    names = ("onnxruntime", "onnxruntime-genai", "torch", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def hardware() -> dict[str, object]:
    with open("/proc/cpuinfo") as f:
        model = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "memory_gb": round(memory / 1e9, 1)}


if __name__ == "__main__":
    main()
