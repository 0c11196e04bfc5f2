"""The card of a model: README.md as the Hugging Face hub reads it, metadata in YAML and words behind it.

Metadata as https://huggingface.co/docs/hub/model-cards describes it; `model-index` holds what was measured on held-out
rows (https://github.com/huggingface/hub-docs/blob/main/modelcard.md). `base_model` and `datasets` take names of the
hub only, so a base that was a folder somewhere is told in words instead. What other programs wrote is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from microstages import storage
from microstages.manifest import Manifest
from microstages.reporting import number_of, size

from runner.compare.columns import QUALITY, Column, number, percent, present, small, written
from runner.lineage import Node, ancestors
from runner.report.card_words import code, md, rows_of, usage

SHIPPED = ("adapter", "model", "onnx-model")
MARK = "# Written from the records of what made this model. Remove this line to keep what you change here."
LIBRARY = {"adapter": "peft", "model": "transformers", "onnx-model": "onnxruntime-genai"}
TRAINED = ("rank", "alpha", "dropout", "rslora", "dora", "quant_type", "learning_rate", "schedule", "warmup", "epochs",
           "steps", "batch_tokens", "batch_size", "accumulation", "weight_decay", "max_grad_norm", "precision",
           "seed")  # fmt: skip
UNITS = {"rows": ("row",), "tokens": ("token",), "trained_tokens": ("token that the loss is taken on",
                                                                   "tokens that the loss is taken on")}  # fmt: skip
LEFT_OUT = {"bad": "bad", "duplicate": "duplicate", "dropped_too_long": "too long", "dropped_nothing_to_train":
            "without anything to train on", "dropped_too_short": "too short", "dropped_empty": "empty"}  # fmt: skip
_HUB = re.compile(r"^hf://(?:models/)?([\w.-]+/[\w.-]+?)(?:@[^/]*)?/?$")
_HUB_DATA = re.compile(r"^hf://datasets/([\w.-]+/[\w.-]+?)(?:@[^/]*)?(?:/.*)?$")
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*$", re.S | re.M)
LONGEST_README = 1 << 20


@dataclass(frozen=True)
class Measured:
    """Predictions, and what their stage is called."""

    name: str
    manifest: Manifest

    def of(self, model: str, adapter: str = "") -> bool:
        """Whether they are answers of a model, or of a base with an adapter."""
        inputs = self.manifest.provenance.get("inputs") or {}
        given = {k: v.get("digest", "") for k, v in inputs.items() if isinstance(v, dict)}
        return bool(given.get("adapter") == adapter if adapter else
                    given.get("model") == model and not given.get("adapter"))  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """What an artifact was made of, as far as its lineage tells."""

    node: Node
    nodes: Sequence[Node]
    adapter: Node | None
    data: Node | None
    base: Node | None

    @staticmethod
    def of(node: Node) -> Parts:
        nodes = list(ancestors([node]))
        adapter = next((n for n in reversed(nodes) if n.kind == "adapter" and n.state == "made"), None)
        near = [n for n in (adapter, node, *reversed(nodes)) if n is not None]
        base = next((n.inputs[k] for n in near for k in ("base_model", "model") if k in n.inputs and n.kind in SHIPPED
                     ), None)  # fmt: skip
        data = adapter.inputs.get("dataset") if adapter else None
        return Parts(node, nodes, adapter, data, base)


def card(title: str, node: Node, measured: Sequence[Measured], rows: Mapping[str, Any] | None = None) -> str:
    """The card of a model (its lineage), with what was measured of it and of its base. `rows`: what became of the rows
    of its data, as the data's report tells."""
    parts = Parts.of(node)
    own = [m for m in measured if m.of(node.digest, node.digest if node.kind == "adapter" else "")]
    before = [m for m in measured if parts.base and m.of(parts.base.digest)]
    found = metadata(title, parts, own)
    import yaml

    front = yaml.safe_dump(found, allow_unicode=True, sort_keys=False, width=110)
    if parts.base and "base_model" not in found:
        front += "# base_model: owner/name   (the base was no model of the hub; name it here where it is one)\n"
    sections = [
        f"# {md(title)}", _introduction(parts), _results(parts, own, before), _quantization(node),
        usage(node, parts.data, found.get("base_model", "")), _training(parts),
        _data(parts.data, rows or {}), _made_of(parts),
    ]  # fmt: skip
    body = "\n\n".join(s for s in sections if s)
    return f"---\n{MARK}\n{front}---\n{body}\n"


# --- metadata ---


def metadata(title: str, parts: Parts, own: Sequence[Measured]) -> dict[str, Any]:
    """The YAML of the card, as a value."""
    node, base = parts.node, parts.base
    kept = _front(base)
    out: dict[str, Any] = {k: kept[k] for k in ("license", "license_name", "license_link") if k in kept}
    hub = _HUB.match(base.address) if base else None
    if hub:
        out["base_model"] = hub[1]
        low = str(node.metadata.get("precision")) in ("int4", "int8")
        out["base_model_relation"] = "adapter" if node.kind == "adapter" else "quantized" if low else "finetune"
    out["library_name"] = LIBRARY[node.kind]
    out["pipeline_tag"] = "text-generation"
    out["tags"] = _tags(parts)
    sources = {m[1] for n in parts.nodes if n.kind != "model" and (m := _HUB_DATA.match(n.address))}
    if sources:
        out["datasets"] = sorted(sources)
    results = [r for m in own if (r := _result(parts, m))]
    if results:
        out["metrics"] = list(dict.fromkeys(x["type"] for r in results for x in r["metrics"]))
        out["model-index"] = [{"name": title, "results": results}]
    return out


def _tags(parts: Parts) -> list[str]:
    meta, node = parts.node.metadata, parts.node
    tags = ["microstages"]
    if node.kind == "onnx-model":
        tags += ["onnx", "onnxruntime", str(meta.get("precision") or "")]
        tags.append(str(meta.get("architecture") or "").removesuffix("ForCausalLM").lower())
    if parts.adapter:
        tags.append(str(parts.adapter.metadata.get("method") or "lora"))
    return [t for t in dict.fromkeys(tags) if re.fullmatch(r"[\w.-]+", t)]


def _front(base: Node | None) -> dict[str, Any]:
    """The license as the base model's own card tells it, where it lies on this machine. Its languages are not those of
    the data that it was tuned on."""
    folder = storage.local_path(base.address) if base else None
    if folder is None or not folder.is_dir():
        return {}
    import yaml

    with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
        with (folder / "README.md").open(encoding="utf-8") as f:
            match = _FRONT.match(f.read(LONGEST_README))
        value = yaml.safe_load(match[1]) if match else None
        if isinstance(value, dict):
            return {k: v for k, v in value.items() if isinstance(v, str) and len(v) < 500}
    return {}


_METRICS = (("accuracy", "accuracy", "accuracy"), ("macro_f1", "f1", "macro F1"), ("loss", "loss", "loss"),
            ("perplexity", "perplexity", "perplexity"))  # fmt: skip


def _result(parts: Parts, measured: Measured) -> dict[str, Any] | None:
    """What was measured on held-out rows, as `model-index` has it."""
    m = measured.manifest
    metrics = [{"type": kind, "name": name, "value": m.metrics[key]} for key, kind, name in _METRICS
               if isinstance(m.metrics.get(key), (int, float)) and not isinstance(m.metrics[key], bool)]  # fmt: skip
    inputs = m.provenance.get("inputs") or {}
    if not metrics or "dataset" not in inputs:
        return None
    digest = str(inputs["dataset"].get("digest") or "")
    source = next(iter(_sources(parts.data)), None) if parts.data and parts.data.digest == digest else None
    hub = _HUB_DATA.match(source.address) if source else None
    name = _named(source) if source else "held-out rows"
    kind = hub[1] if hub else re.sub(r"[^\w.-]+", "-", name.rsplit(".", 1)[0]).strip("-") or "custom"
    labels = bool(m.metadata.get("labels"))
    return {
        "task": {"type": "text-classification" if labels else "text-generation"},
        "dataset": {"name": f"{name}, held-out rows" if source else name, "type": kind, "split": "test",
                    "args": {"rows": m.metadata.get("rows") or m.metrics.get("rows"), "digest": digest}},
        "metrics": metrics,
    }  # fmt: skip


# --- words ---


def _named(node: Node) -> str:
    """What something is called without saying where on a machine it lies."""
    if storage.local_path(node.address) is None:
        return node.address
    return node.address.rstrip("/").rsplit("/", 1)[-1] if node.state != "made" else node.stage


def _sources(data: Node | None) -> list[Node]:
    return [n for k, n in data.inputs.items() if k != "model"] if data else []


def _introduction(parts: Parts) -> str:
    node, meta = parts.node, parts.node.metadata
    base = f"{md(_named(parts.base))}" if parts.base else "a base model"
    sources = ", ".join(md(_named(n)) for n in _sources(parts.data))
    text = base[:1].upper() + base[1:] if not parts.base else base
    if parts.adapter:
        method = {"lora": "LoRA", "qlora": "QLoRA"}.get(str(parts.adapter.metadata.get("method")), "LoRA")
        text += f", fine-tuned by {method}" + (f" on {sources}" if sources else "")
    if node.kind == "onnx-model":
        provider = str(meta.get("execution_provider") or "").upper()
        text += f", built for ONNX Runtime GenAI in {md(meta.get('precision'))} for {md(provider)}"
    elif node.kind == "adapter":
        text += ": the adapter alone"
    return text + f". {size(node.size)}."


def _results(parts: Parts, own: Sequence[Measured], before: Sequence[Measured]) -> str:
    if not own:
        return ""
    forms: list[Any] = [{"name": name, "metrics": dict(m.manifest.metrics)}
             for name, ms in (("base", before[:1]), ("this model", own[:1])) for m in ms]  # fmt: skip
    columns: list[Column] = [c for c in present(forms, long=True) if c.of == QUALITY]
    lines = [[c.words, *(written(f, c) for f in forms)] for c in columns]
    counted = number({"metrics": {**own[0].manifest.metadata, **own[0].manifest.metrics}}, "rows")
    asked = own[0].manifest.provenance
    same = parts.data and ((asked.get("inputs") or {}).get("dataset") or {}).get("digest") == parts.data.digest
    words = number_of(round(counted), "row") if counted else "Rows"
    words += f" that {'was' if counted == 1 else 'were'} held out of the training data" if same else ""
    words += "; greedy answers" if (asked.get("params") or {}).get("temperature") == 0 else ""
    words += ". The accuracy's interval is Wilson's, of 95 %." if "accuracy_low" in own[0].manifest.metrics else "."
    return f"## Results\n\n{words}\n\n" + rows_of(["", *(f["name"] for f in forms)], lines)


def _quantization(node: Node) -> str:
    m = {k: v for k, v in node.metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if node.kind != "onnx-model" or not m:
        return ""
    lines = []
    if "size_bytes" in m:
        before = f"{size(m['source_size_bytes'])} → " if "source_size_bytes" in m else ""
        lines.append(["weights", before + size(m["size_bytes"])])
    if "mean_kl" in m:
        lines.append(["KL from the model that it was built from, nats a token", small(m["mean_kl"])])
    if "top1_agreement" in m:
        lines.append(["places where both find the same token likeliest", percent(m["top1_agreement"])])
    return "## What quantization cost\n\n" + rows_of(["", ""], lines) if lines else ""


def _training(parts: Parts) -> str:
    a = parts.adapter
    if a is None:
        return ""
    lines = [[k, code(a.params[k])] for k in TRAINED if a.params.get(k) not in (None, False)]
    modules = a.metadata.get("target_modules")
    lines += [["target modules", code(modules)]] if modules else []
    m = a.metrics
    for key, words in (("steps", "steps"), ("tokens", "tokens"), ("trained_tokens", "tokens that the loss is taken on"),
                       ("trainable_parameters", "trained parameters")):  # fmt: skip
        if isinstance(m.get(key), (int, float)):
            lines.append([words, f"{m[key]:,.0f}"])
    if isinstance(m.get("eval_loss"), (int, float)) and isinstance(m.get("eval_loss_before"), (int, float)):
        lines.append(["held-out loss, nats a token", f"{m['eval_loss_before']:.4f} → {m['eval_loss']:.4f}"])
    return "## Training\n\n" + rows_of(["", ""], lines)


def _data(data: Node | None, rows: Mapping[str, Any]) -> str:
    if data is None or data.state != "made":
        return ""
    lines = [[md(k), md(_named(n))] for k, n in data.inputs.items() if k != "model"]
    for split, words in (("train", "train"), ("test", "held out")):
        counts = data.metadata.get(split)
        if isinstance(counts, Mapping):
            known = {k: counts[k] for k in UNITS if isinstance(counts.get(k), int)}
            lines.append([words, ", ".join(number_of(v, *UNITS[k]) for k, v in known.items())])
    if out := _left_out(rows):
        lines.append(["left out", out])
    template = data.metadata.get("template")
    lines += [["how rows became text", code(json.dumps(template, ensure_ascii=False))]] if template else []
    return "## Data\n\n" + rows_of(["", ""], lines)


def _left_out(rows: Mapping[str, Any]) -> str:
    """`3 rows: 1 bad, 2 duplicate`: bad ones and duplicates also where there are none."""
    counts = {k: n for k in LEFT_OUT if isinstance(n := rows.get(k), int) and (n or k in ("bad", "duplicate"))}
    words = ", ".join(f"{n:,} {LEFT_OUT[k]}" for k, n in counts.items())
    return f"{number_of(sum(counts.values()), 'row')}: {words}" if counts else ""


def _made_of(parts: Parts) -> str:
    """Every artifact behind this one, with its whole digest."""
    lines = []
    for n in parts.nodes:
        what = "this model" if n is parts.node else n.kind or "files"
        by = f"{n.stage} {n.version}".strip() if n.state == "made" else _named(n)
        lines.append([md(what), md(by), code(n.digest), code(n.code) if n.code else ""])
    software: dict[str, str] = {}
    for n in parts.nodes:
        software |= {str(k): str(v) for k, v in n.software.items()}
    versions = ", ".join(f"{md(k)} {md(v)}" for k, v in sorted(software.items()))
    when = f"Made {md(parts.node.finished)}. " if parts.node.finished else ""
    return (
        "## What made it\n\nDigests are of the bytes: equal bytes, equal digest.\n\n"
        + rows_of(["", "by", "digest", "code"], lines)
        + f"\n\n{when}{versions}"
    ).rstrip()
