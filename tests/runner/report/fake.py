"""What the stages of a pipeline write, made up: `tool.py --<input>=… --<output>=… --<parameter>=…`."""

import json
import os
import sys
import time
from pathlib import Path

from microstages.artifact import Draft, open_artifact

STAGE = Path(__file__).parent.name
KINDS = ("dataset", "adapter", "model", "onnx-model", "predictions")
LENGTHS = [3, 3, 4, 9]
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
words = flags.pop("words", "plain")
output = {"prepare": "dataset", "train": "adapter", "merge": "model", "build": "model", "answer": "predictions"}[STAGE]
uri = flags.pop("out")
taken = {k: v for k, v in flags.items() if k in ("source", "dataset", "base_model", "adapter", "model")}


def say(**event):
    print(json.dumps({"stage": STAGE, "time": time.time(), **event}), flush=True)


def tensors(lengths):
    data = b"".join(n.to_bytes(4, "little") for n in lengths)
    header = json.dumps({"input_ids": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
                         "example_lengths": {"dtype": "I32", "shape": [len(lengths)],
                                             "data_offsets": [0, len(data)]}}).encode()  # fmt: skip
    return len(header).to_bytes(8, "little") + header + data


def prepare(draft):
    report = {
        "rows": {"read": 9, "bad": 1, "duplicate": 2, "dropped_too_long": 0, "train": 4, "held_out": 2},
        "how": {"kind": "template", "template": words},
        "train": {"rows": 4, "tokens": 19, "trained_tokens": 4, "trained_share": 0.2, "packing_efficiency": 0.9,
                  "lengths": {"min": 3, "p50": 3, "p95": 9, "max": 9}, "answers": {words: 3, "joy": 1}},
        "test": {"rows": 2, "tokens": 8, "lengths": {"min": 4, "p50": 4, "p95": 4, "max": 4}, "answers": {"joy": 2}},
        "warnings": [f"a warning of {words}"], "notes": [],
        "examples": [{"tokens": 3, "text": "before ⟦after<|end|>⟧"}, {"tokens": 4, "text": f"{words} x"}],
    }  # fmt: skip
    (draft.path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (draft.path / "train.safetensors").write_bytes(tensors(LENGTHS))
    (draft.path / "test.safetensors").write_bytes(tensors([4, 4]))
    template = {"kind": "template", "completion": "c", "template": f"Say {{a}} {words}: {{c}}"}
    draft.metadata.update({"max_length": 16, "train": {"rows": 4, "tokens": 19}, "test": {"rows": 2, "tokens": 8},
                           "template": template})  # fmt: skip


def train(draft):
    steps = [{"step": i, "epoch": 0.1, "loss": round(5 / i, 4), "learning_rate": 0.001, "gradient_norm": 1.0}
             for i in range(1, 9)]  # fmt: skip
    for point in steps[:4]:
        say(event="metric", **point)
    say(event="metric", step=4, eval_loss=4.5)
    say(event="progress", label="training", done=4, total=8, unit="steps", loss="1.25")
    print(f"\x1b[31mloss\x1b[0m is falling, HF_TOKEN=hf_{'a' * 12}", file=sys.stderr, flush=True)
    if os.environ.get("ACT") == "fail":
        say(event="error", what=f"no memory left for {words}", exit_code=70)
        sys.exit(70)
    while os.environ.get("ACT") == "wait" and not Path(os.environ["TRACE"] + ".go").exists():
        time.sleep(0.02)
    (draft.path / "adapter_config.json").write_text("{}")
    (draft.path / "adapter_model.safetensors").write_bytes(tensors([1]))
    log = {"steps": steps, "evaluations": [{"step": 0, "loss": 6.0}, {"step": 8, "loss": 0.75}]}
    (draft.path / "training.json").write_text(json.dumps(log))
    draft.metadata.update({"method": "qlora", "rank": 8, "target_modules": [words]})
    draft.metrics.update({"eval_loss_before": 6.0, "eval_loss": 0.75, "steps": 8, "tokens": 152, "epochs": 2.0})


def merge(draft):
    (draft.path / "config.json").write_text("{}")
    (draft.path / "tokenizer.json").write_text("{}")
    (draft.path / "model.safetensors").write_bytes(tensors([2]))


def build(draft):
    (draft.path / "genai_config.json").write_text("{}")
    (draft.path / "model.onnx").write_bytes(b"onnx")
    draft.metadata.update({"precision": "int4", "execution_provider": "cpu", "algorithm": "rtn", "verified": True,
                           "architecture": "Phi3ForCausalLM", "source_digest": inputs["model"]["digest"]})  # fmt: skip
    draft.metrics.update({"size_bytes": 3_000_000, "source_size_bytes": 10_000_000, "mean_kl": 0.0123, "max_kl": 0.5,
                          "top1_agreement": 0.97, "software": {"onnx": "1.2.3"}})  # fmt: skip


def answer(draft):
    right = {"onnx-model": 1, "model": 2}[kinds["model"]] if "provenance" in manifests["model"] else 0
    said = [words if i < right else "?" for i in range(2)]
    rows = [{"prompt": f"{words} {i}", "completion": words, "prediction": s, "ended": True, "tokens": 1,
             "correct": s == words} for i, s in enumerate(said)]  # fmt: skip
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (draft.path / "predictions.jsonl").write_text(text)
    labels = {words: {"rows": 2, "precision": 1, "recall": 1, "f1": 1}}
    draft.metadata.update({"form": {"onnx-model": "onnx", "model": "model"}[kinds["model"]], "rows": 2,
                           "rows_digest": "sha256:1", "labels": labels,
                           "confusion": {"classes": [words], "counts": [[right, 2 - right]]}})  # fmt: skip
    draft.metrics.update({"accuracy": right / 2, "loss": 1.5, "disk_bytes": 3_000_000})


found = {k: open_artifact(v, ("files",) if k == "source" else KINDS) for k, v in taken.items()}
inputs = {k: {"uri": taken[k], "digest": a.digest} for k, a in found.items()}
kinds = {k: a.kind for k, a in found.items()}
manifests = {k: {"provenance": a.manifest.provenance} if a.manifest else {} for k, a in found.items()}
with Draft(uri, "onnx-model" if STAGE == "build" else output) as draft:
    globals()[STAGE](draft)
    draft.commit({
        "stage": STAGE, "version": "0.1", "code": "sha256:" + "c" * 64, "inputs": inputs, "params": {"rank": 8},
        "software": {"python": "3.11", "numpy": words}, "started": "2026-01-02T03:04:05Z",
        "finished": "2026-01-02T03:05:05Z", "hardware": {"cores": 2, "memory_bytes": 2_000_000_000, "processor": words},
    })  # fmt: skip
