"""Data configurations of Microsoft Olive, each with what it says here. Shared by the tests and by `record.py`.

Generation A is v0.5.0–v0.6.2, B is v0.7.0 and later; v0.7 still keeps empty texts, as A does. `params` is what a
translation of such a configuration does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEMPLATE = "### Text: {phrase}\n### The tone is:\n{tone}"
DEFAULTS: dict[str, dict[str, Any]] = {
    "A": {"strategy": "line-by-line", "joiner": None, "add_special_tokens": True, "use_attention_mask": True},
    "B": {
        "strategy": "join",
        "joiner": "\n\n",
        "add_special_tokens": True,
        "use_attention_mask": True,
        "max_len": 1024,
    },
}
STRATEGIES = {
    "join": "join",
    "join-random": "join-random",
    "join-sliding-window": "join-sliding",
    "line-by-line": "line",
    "line-by-line-random": "line-random",
}


@dataclass(frozen=True)
class Case:
    """`keys` are Olive's, but `max_len`, which is source_max_len in A and max_seq_len in B. `data`: see `rows`."""

    generation: str
    data: str
    keys: dict[str, Any]
    tokenizer: dict[str, Any] = field(default_factory=dict)  # what is other in tokenizer_config.json
    eval_size: float | None = None

    @property
    def all_keys(self) -> dict[str, Any]:
        """With the defaults of the generation."""
        return {**DEFAULTS[self.generation], **self.keys}

    def olive(self) -> dict[str, Any]:
        """The keys as that generation writes them."""
        out = dict(self.keys)
        out["source_max_len" if self.generation == "A" else "max_seq_len"] = out.pop("max_len")
        if self.generation == "A" and "strategy" in out:
            out["corpus_strategy"] = out.pop("strategy")
        return out

    def params(self) -> dict[str, Any]:
        """The same in parameters of prepare-data."""
        k = self.all_keys
        pad_to_max = k.get("pad_to_max_len", True)
        masked = self.generation == "A" and k["use_attention_mask"]
        out: dict[str, Any] = {
            "values": "python", "deduplicate": False, "test_fraction": 0, "end_token": "none",
            "max_length": k["max_len"], "empty_rows": "keep" if self.generation == "A" else "drop",
            "loss_on_pad": not masked, "hide_pad": masked,
        }  # fmt: skip
        if k["add_special_tokens"] and not k.get("chat_template"):
            out["special_tokens_as_text"] = True
            del out["end_token"]
        if self.eval_size is not None:
            out["test_sequences"] = self.eval_size
        if k.get("dataset_type") == "pair":
            out |= self._pair(k, pad_to_max)
            return out
        out |= self._text(k)
        strategy = k["strategy"]
        out["strategy"] = STRATEGIES[strategy]
        if strategy.startswith("join"):
            out["joiner"] = k["joiner"] or ""
        else:
            out |= {"pad": pad_to_max, "short_rows": "drop" if k.get("drop_short_sequences") else "keep"}
        if strategy in ("join", "join-sliding-window"):
            out["keep_last_full"] = False
        if strategy == "join-sliding-window":
            out |= {"stride": k["stride"], "group_rows": k.get("processing_batch_size", 1024)}
        if k.get("max_samples") is not None:
            out["max_sequences"] = k["max_samples"]
        if "random" in strategy:
            out |= {"draw_seed": k["random_seed"], "draws": k.get("random_retries", 10)}
        return out

    @staticmethod
    def _text(k: dict[str, Any]) -> dict[str, Any]:
        if chat := k.get("chat_template"):
            own = {} if chat is True else {"chat_template": chat}
            return {"messages_field": k.get("message_col", "messages"), "conversation": "text", **own}
        if "text_template" in k:
            return {"template": k["text_template"]}
        columns = k.get("text_cols", ["text"])
        return {"columns": [columns] if isinstance(columns, str) else columns}

    @staticmethod
    def _pair(k: dict[str, Any], pad: bool) -> dict[str, Any]:
        source = k["max_len"]
        out: dict[str, Any] = {
            "strategy": "line", "pad": pad, "prompt_max_length": source, "max_length": source + k["target_max_len"],
            "loss": "completion" if k.get("ignore_source_in_labels", True) else "all",
            "short_rows": "drop" if k.get("drop_short_sequences") else "keep",
        }  # fmt: skip
        if k.get("max_samples") is not None:
            out["max_rows"] = k["max_samples"]
        form = k.get("pair_format", "default")
        if form == "custom" and "input_template" in k:
            return out | {"prompt_template": k["input_template"], "completion_template": k["output_template"]}
        names = {"default": ("input", "output"), "self_instruct": ("prompt", "completion")}
        prompt, completion = names.get(form) or (k["input_col"], k["output_col"])
        return out | {"prompt_field": prompt, "completion_field": completion}


def rows(data: str, examples: Path, shared: Path | None) -> list[dict[str, Any]]:
    """The rows of a kind of data: `tones` (646), `phrases` (1,464), `some` of them with empty and long ones, …"""
    if data == "phrases":
        assert shared is not None
        return _lines(shared / "data" / "dataset-classification.json")
    tones = _lines(examples / "tones.jsonl")
    if data == "tones":
        return tones
    if data == "pairs":
        some = [{"input": f"Tone of: {r['phrase']}", "output": r["tone"], "prompt": r["phrase"],
                 "completion": f"It is {r['tone']}."} for r in tones[:60]]  # fmt: skip
        return [*some, {"input": "long " * 80, "output": "word " * 30, "prompt": "", "completion": "none"}]
    if data == "chats":
        return [{"messages": [{"role": "user", "content": r["phrase"]}, {"role": "assistant", "content": r["tone"]}]}
                for r in tones[:50]]  # fmt: skip
    if data == "odd":
        some = [{"text": r["phrase"], "a name": r["tone"], "number": n, "half": n / 2, "flag": n % 2 == 0,
                 "nothing": None if n % 3 else "x"} for n, r in enumerate(tones[:80])]  # fmt: skip
        for n, text in ((0, ""), (7, " "), (20, ""), (31, "word " * 120), (32, "<|endoftext|> in the text"), (79, "")):
            some[n]["text"] = text
        return some
    raise ValueError(data)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


OTHER_PAD = {"pad_token": "<|end|>"}
NO_PAD = {"pad_token": None}
CUSTOM_CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
ODD = "{a name}|{number:>3}|{half}|{flag}|{nothing!r}: {text}"


def _cases() -> dict[str, Case]:
    out: dict[str, Case] = {}

    def add(name: str, generation: str, data: str, tokenizer: dict[str, Any] | None = None,
            eval_size: float | None = None, **keys: Any) -> None:  # fmt: skip
        out[f"{generation} {name}"] = Case(generation, data, keys, tokenizer or {}, eval_size)

    for g in "AB":
        for data in ("tones", "phrases"):
            add(f"join, {data}", g, data, text_template=TEMPLATE, strategy="join", max_len=256,
                pad_to_max_len=False, use_attention_mask=False)  # fmt: skip
            add(f"sliding, {data}", g, data, text_template=TEMPLATE, strategy="join-sliding-window", max_len=128,
                stride=48)  # fmt: skip
        add("the pages' configuration", g, "tones", text_cols=["phrase", "tone"], text_template=TEMPLATE,
            strategy="join", max_len=128, pad_to_max_len=False, use_attention_mask=False, eval_size=0.3)  # fmt: skip
        add("columns", g, "tones", text_cols=["phrase", "tone"], strategy="join", max_len=64, joiner="\n\n",
            add_special_tokens=False, use_attention_mask=False, eval_size=17)  # fmt: skip
        add("join, masked pad", g, "tones", text_template=TEMPLATE, strategy="join", max_len=64)
        add("join, another pad", g, "tones", OTHER_PAD, text_template=TEMPLATE, strategy="join", max_len=64)
        add("join, without pad", g, "tones", NO_PAD, text_template=TEMPLATE, strategy="join", max_len=64)
        add("join, limited", g, "tones", text_template=TEMPLATE, strategy="join", max_len=100, max_samples=13)
        add("sliding, small groups", g, "tones", text_template="{phrase}", strategy="join-sliding-window", max_len=60,
            stride=20, processing_batch_size=7, add_special_tokens=False)  # fmt: skip
        add("sliding, limited", g, "tones", text_template="{phrase}", strategy="join-sliding-window", max_len=60,
            stride=60, processing_batch_size=100, max_samples=31)  # fmt: skip
        add("join, odd rows", g, "odd", text_cols="text", strategy="join", max_len=50, add_special_tokens=False,
            joiner="\n", use_attention_mask=False)  # fmt: skip
        add("join, odd values", g, "odd", text_template=ODD, strategy="join", max_len=77)
        add("drawn blocks", g, "tones", text_template=TEMPLATE, strategy="join-random", max_len=128, max_samples=40,
            random_seed=3)  # fmt: skip
        add("drawn blocks, few retries", g, "tones", text_template=TEMPLATE, strategy="join-random", max_len=8000,
            max_samples=60, random_seed=5, random_retries=2)  # fmt: skip
        add("drawn blocks, odd rows", g, "odd", text_cols=["text"], strategy="join-random", max_len=200,
            max_samples=25, random_seed=42, add_special_tokens=False, use_attention_mask=False)  # fmt: skip
        for name, tokenizer in (("pad is eos", {}), ("another pad", OTHER_PAD)):
            add(f"lines, {name}", g, "tones", tokenizer, text_template=TEMPLATE, strategy="line-by-line", max_len=36)
            add(f"drawn lines, {name}", g, "tones", tokenizer, text_template=TEMPLATE, strategy="line-by-line-random",
                max_len=40, max_samples=30, random_seed=11)  # fmt: skip
        add("lines as they are", g, "tones", text_template=TEMPLATE, strategy="line-by-line", max_len=36,
            pad_to_max_len=False, use_attention_mask=False, add_special_tokens=False, eval_size=0.1)  # fmt: skip
        add("lines, short dropped", g, "tones", text_template=TEMPLATE, strategy="line-by-line", max_len=36,
            pad_to_max_len=False, drop_short_sequences=True)  # fmt: skip
        add("lines, short dropped, limited", g, "tones", text_template=TEMPLATE, strategy="line-by-line", max_len=36,
            pad_to_max_len=False, drop_short_sequences=True, max_samples=20)  # fmt: skip
        add("lines, limited", g, "tones", text_template=TEMPLATE, strategy="line-by-line", max_len=50, max_samples=12)
        add("drawn lines, short dropped", g, "tones", text_template=TEMPLATE, strategy="line-by-line-random",
            max_len=44, max_samples=50, random_seed=1, random_retries=2, pad_to_max_len=False,
            drop_short_sequences=True)  # fmt: skip
        add("lines, odd rows", g, "odd", text_cols=["text"], strategy="line-by-line", max_len=40,
            add_special_tokens=False)  # fmt: skip
        add("lines, odd values", g, "odd", text_template=ODD, strategy="line-by-line", max_len=40)
        add("without bos", g, "tones", {"bos_token": None}, text_template=TEMPLATE, strategy="line-by-line", max_len=40)
    add("pair", "A", "pairs", dataset_type="pair", max_len=24, target_max_len=8, eval_size=0.25)
    add("pair, limited", "A", "pairs", dataset_type="pair", max_len=24, target_max_len=8, max_samples=20)
    add("pair, all trained", "A", "pairs", OTHER_PAD, dataset_type="pair", max_len=24, target_max_len=8,
        pad_to_max_len=False, ignore_source_in_labels=False)  # fmt: skip
    add("pair, short dropped", "A", "pairs", dataset_type="pair", max_len=20, target_max_len=3, pad_to_max_len=False,
        drop_short_sequences=True, use_attention_mask=False, add_special_tokens=True)  # fmt: skip
    add("pair, self instruct", "A", "pairs", dataset_type="pair", pair_format="self_instruct", max_len=16,
        target_max_len=6, add_special_tokens=False)  # fmt: skip
    add("pair, columns", "A", "pairs", OTHER_PAD, dataset_type="pair", pair_format="custom", input_col="prompt",
        output_col="output", max_len=16, target_max_len=6)  # fmt: skip
    add("pair, templates", "A", "pairs", OTHER_PAD, dataset_type="pair", pair_format="custom", max_len=40,
        input_template="Q: {input}\n{prompt}\nA: ", output_template="{output}", target_max_len=6)  # fmt: skip
    add("chat", "B", "chats", chat_template=True, strategy="line-by-line", max_len=40)
    add("chat, joined", "B", "chats", OTHER_PAD, chat_template=True, strategy="join", max_len=100)
    add("chat, another template", "B", "chats", chat_template=CUSTOM_CHAT, strategy="join", max_len=100)
    add("defaults", "B", "odd", text_template="{text} {a name}", max_len=256)
    return out


CASES = _cases()
