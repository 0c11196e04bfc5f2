"""Olive's data components once more, as naively as can be: lists, one row at a time, Hugging Face's tokenizer.

An oracle for prepare-data, which does the same another way. A sequence is `(input_ids, labels)`, -100 where a label is
not trained. Texts are joined and cut as the two generations of Olive do it; see `cases`.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np

Sequence = tuple[list[int], list[int]]
IGNORED = -100


def sequences(rows: list[dict[str, Any]], tokenizer: Any, generation: str, keys: dict[str, Any]) -> list[Sequence]:
    """What Olive trains on."""
    if keys.get("dataset_type") == "pair":
        return pairs(rows, tokenizer, keys)
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [text_of({n: row.get(n) for n in names}, tokenizer, keys) for row in rows]
    if generation == "B":
        texts = [t for t in texts if t]
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = keys.get("padding_side", "right")
    if keys["strategy"].startswith("join"):
        return joined(texts, tokenizer, generation, keys)
    return lines(texts, tokenizer, generation, keys)


def text_of(row: dict[str, Any], tokenizer: Any, keys: dict[str, Any]) -> str:
    if chat := keys.get("chat_template"):
        own = chat if isinstance(chat, str) else None
        return tokenizer.apply_chat_template(
            row[keys.get("message_col", "messages")], tokenize=False, chat_template=own
        )
    if "text_template" in keys:
        text = keys["text_template"].format(**row)
    else:
        columns = keys.get("text_cols", ["text"])
        text = " ".join(row[c] for c in ([columns] if isinstance(columns, str) else columns))
    return f"{tokenizer.bos_token} {text} {tokenizer.eos_token}" if keys["add_special_tokens"] else text


def labelled(ids: list[int], attention: list[int], tokenizer: Any, generation: str, keys: dict[str, Any],
             context: int = 0) -> Sequence:  # fmt: skip
    """Labels are the tokens, but for the context and what is not attended to."""
    if generation == "A":  # there attention comes from the tokens, and counts only where it is asked for
        pad = tokenizer.pad_token_id
        attention = [1] * len(ids) if pad is None or not keys["use_attention_mask"] else [int(i != pad) for i in ids]
    labels = [IGNORED if n < context or not a else i for n, (i, a) in enumerate(zip(ids, attention, strict=True))]
    return ids, labels


def joined(texts: list[str], tokenizer: Any, generation: str, keys: dict[str, Any]) -> list[Sequence]:
    length, limit = keys["max_len"], keys.get("max_samples")
    joiner = tokenizer.encode(keys["joiner"], add_special_tokens=False) if keys["joiner"] else []
    rows = [tokenizer(t, add_special_tokens=False)["input_ids"] + joiner for t in texts]
    found: list[Sequence] = []
    if keys["strategy"] == "join-random":
        draw = random.Random(keys["random_seed"])
        for _ in range(limit):
            for _ in range(keys.get("random_retries", 10)):
                begin = draw.randint(0, len(rows) - 1)
                block = [i for row in rows[begin:] for i in row][:length]
                if len(block) == length:
                    found.append(labelled(block, [1] * length, tokenizer, generation, keys))
                    break
        return found
    sliding = keys["strategy"] == "join-sliding-window"
    step, context = (keys["stride"], length - keys["stride"]) if sliding else (length, 0)
    size = keys.get("processing_batch_size", 1024)
    rest: list[int] = []
    for first in range(0, len(rows), size):
        stream, behind = rest + [i for row in rows[first : first + size] for i in row], 0
        begin = 0
        while begin < len(stream) - length and (limit is None or len(found) < limit):
            behind = begin + length
            found.append(labelled(stream[begin:behind], [1] * length, tokenizer, generation, keys, context))
            begin += step
        rest = stream[behind:]
    return found


def lines(texts: list[str], tokenizer: Any, generation: str, keys: dict[str, Any]) -> list[Sequence]:
    length, limit, drop = keys["max_len"], keys.get("max_samples"), keys.get("drop_short_sequences", False)

    def one(text: str) -> Sequence:
        padding = "max_length" if keys.get("pad_to_max_len", True) else False
        made = tokenizer(text, max_length=length, truncation=True, padding=padding, add_special_tokens=False)
        return labelled(made["input_ids"], made["attention_mask"], tokenizer, generation, keys)

    if keys["strategy"] == "line-by-line":
        found = [s for s in map(one, texts) if not drop or len(s[0]) >= length]
        return found[:limit]
    draw, found = random.Random(keys["random_seed"]), []
    for _ in range(limit):
        for _ in range(keys.get("random_retries", 10)):
            sequence = one(texts[draw.randint(0, len(texts) - 1)])
            if not drop or len(sequence[0]) >= length:
                break
        found.append(sequence)  # the last one, long enough or not
    return found


def pairs(rows: list[dict[str, Any]], tokenizer: Any, keys: dict[str, Any]) -> list[Sequence]:
    """Generation A's prompts and answers, each cut to its own length."""
    longest, found = keys["max_len"] + keys["target_max_len"], []
    form = keys.get("pair_format", "default")
    names = {"default": ("input", "output"), "self_instruct": ("prompt", "completion")}
    for row in rows[: keys.get("max_samples")]:
        if "input_template" in keys:
            source, target = (keys[k].format(**row) for k in ("input_template", "output_template"))
        else:
            source, target = (row[n] for n in names.get(form) or (keys["input_col"], keys["output_col"]))
        if keys["add_special_tokens"]:
            source, target = f"{tokenizer.bos_token} {source}", f"{target} {tokenizer.eos_token}"
        before = tokenizer(source, add_special_tokens=False)["input_ids"][: keys["max_len"]]
        ids = before + tokenizer(target, add_special_tokens=False)["input_ids"][: keys["target_max_len"]]
        if keys.get("drop_short_sequences") and len(ids) < longest:
            continue
        if keys.get("pad_to_max_len", True):
            ids = ids + [tokenizer.pad_token_id] * (longest - len(ids))
        context = len(before) if keys.get("ignore_source_in_labels", True) else 0
        found.append(labelled(ids, [1] * len(ids), tokenizer, "A", keys, context))
    return found


def split(found: list[Sequence], size: float, seed: int) -> dict[str, list[Sequence]]:
    """`datasets`' train_test_split(size, shuffle=True, seed=seed)."""
    count = math.ceil(size * len(found)) if size < 1 else int(size)
    order = np.random.default_rng(seed).permutation(len(found)).tolist()
    return {"train": [found[i] for i in order[count:]], "test": [found[i] for i in order[:count]]}
