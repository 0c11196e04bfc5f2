"""The child that runs the result as its users will: ONNX Runtime GenAI alone, without torch.

It finds the tokenizer class under which the runtime gives the same ids as the tokenizer itself (a wrong one still
runs, and quietly gives other ids), loads the model, and measures it against the source model's answers.
"""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from microstages.errors import UserError

from microstages_build_onnx.child import progress, serve

# Tried in this order after the model's own class.
CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast", "GPT2Tokenizer", "LlamaTokenizer", "Qwen2Tokenizer")
# Texts in which tokenizers of different kinds differ.
PROBES = (
    "The quick brown fox, 3.14159 of 12,345 items; don't we'll I'LL",
    "  two leading spaces,\ttab,\r\nnew lines\n\n\nand trailing   ",
    "naïve café — “quotes” don’t… 日本語 한국어 עברית ﷽ 😀👩‍👩‍👧 e\u0301",
    "def f(x):\n    return x**2  # comment\n",
    "a",
    " ",
    "\n",
)


def settle(job: dict[str, Any]) -> dict[str, Any]:
    """Choose the tokenizer class, and look at the chat template. Raises UserError where the prompts are misread."""
    import onnxruntime_genai as og

    return {**_settle_tokenizer(og, job), "template": _check_template(og, job)}


def _settle_tokenizer(og: Any, job: dict[str, Any]) -> dict[str, Any]:
    from tokenizers import Tokenizer

    folder = Path(job["output"])
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    truth = Tokenizer.from_file(str(folder / "tokenizer.json"))
    truth.no_truncation()
    truth.no_padding()
    prompts = job["texts"]
    special = [t["content"] for t in json.loads((folder / "tokenizer.json").read_text()).get("added_tokens", [])]
    probes = [*PROBES, *(f"{a}\n word {a}{b}word" for a, b in pairwise(special[:21]))]
    wanted = {text: truth.encode(text, add_special_tokens=False).ids for text in [*prompts, *probes]}

    own = config.get("tokenizer_class")
    best: tuple[int, int, str, str] | None = None  # prompts and probes that differ, class, first text that does
    for name in dict.fromkeys([own or CLASSES[0], *CLASSES]):
        file.write_text(_json(config | {"tokenizer_class": name}))
        try:
            runtime = og.Tokenizer(str(folder))
            differ = [t for t, ids in wanted.items() if [int(i) for i in runtime.encode(t)] != ids]
        except Exception:  # the runtime raises RuntimeError, or whatever its bindings make of it
            continue
        mine = [t for t in differ if t in prompts]
        found = (len(mine), len(differ) - len(mine), name, (mine or differ or [""])[0])
        if best is None or found[:2] < best[:2]:
            best = found
        if not differ:
            break
    if best is None:
        raise UserError(
            "ONNX Runtime GenAI cannot read this tokenizer", where=job["where"],
            fix="use a model with a byte-level BPE or SentencePiece tokenizer.json",
        )  # fmt: skip
    file.write_text(_json(config | {"tokenizer_class": best[2]}))
    if best[0]:
        raise UserError(
            f"ONNX Runtime GenAI reads {best[0]} of {len(prompts)} prompts as other tokens than the model's tokenizer, "
            f"such as {best[3][:60]!r}",
            where=job["where"], fix="this tokenizer cannot be used with this version of ONNX Runtime GenAI",
        )  # fmt: skip
    return {"class": best[2], "own_class": own, "probes": len(probes), "probes_differ": best[1], "example": best[3]}


def _check_template(og: Any, job: dict[str, Any]) -> str:
    """What is wrong with the chat template in the runtime's own template engine; the empty string: nothing."""
    runtime = og.Tokenizer(job["output"])
    for messages, wanted in job["chats"]:
        try:
            got = runtime.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
        except Exception as error:
            return " ".join(str(error).split())[:200]
        if got != wanted:
            return f"it writes {got[:80]!r}, not {wanted[:80]!r}"
    return ""


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Load the model and continue `job["prompts"]` greedily by at most `job["tokens"]` tokens.

    Returns the answers (ids), speed in tokens/s, and seconds to load. The logits that chose each token, computed again
    token by token through the cache, go to `scratch`: `logits-<i>.npy`, shape (tokens of the answer, vocabulary).
    Raises UserError where the model cannot be loaded or run.
    """
    import numpy as np
    import onnxruntime_genai as og

    prompts = job["prompts"]
    began = time.perf_counter()
    try:
        config = og.Config(job["output"])
        # As many threads as the source model gets: only then do the speeds compare.
        options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": job["threads"]}}}}
        config.overlay(json.dumps(options))
        model = og.Model(config)
    except Exception as error:
        raise _broken("loaded", error, job) from None
    load_seconds = time.perf_counter() - began
    clock, answers = Clock(), []
    try:
        _generate(og, model, prompts[0], job["tokens"], Clock())  # the first run of all pays for set-up
        for i, prompt in enumerate(prompts):
            new = _generate(og, model, prompt, job["tokens"], clock)
            logits = _logits(og, model, prompt, new)
            np.save(Path(job["scratch"]) / f"logits-{i}.npy", logits)
            answers.append(new)
            if np.isnan(logits).any():
                raise RuntimeError("its logits are no numbers")
            progress("answers of the ONNX model", i + 1, len(prompts))
    except Exception as error:
        raise _broken("run", error, job) from None
    return {"answers": answers, "speed": clock.speed(), "load_seconds": load_seconds}


def _broken(verb: str, error: Exception, job: dict[str, Any]) -> UserError:
    text = " ".join(str(error).replace(f"{job['output']}/", "").split())
    return UserError(
        f"the result cannot be {verb} by ONNX Runtime GenAI: {text[:400]}", where=job["where"],
        fix="nothing was written; try another precision or other options",
    )  # fmt: skip


class Clock:
    """Tokens and seconds of prefill and decode."""

    def __init__(self) -> None:
        self.spent = {"prefill": 0.0, "decode": 0.0}
        self.counted = {"prefill": 0, "decode": 0}

    def add(self, phase: str, seconds: float, tokens: int) -> None:
        self.spent[phase] += seconds
        self.counted[phase] += tokens

    def speed(self) -> dict[str, float | None]:
        return {k: self.counted[k] / self.spent[k] if self.counted[k] else None for k in self.spent}


def _generator(og: Any, model: Any, length: int) -> Any:
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=length, do_sample=False, batch_size=1)
    return og.Generator(model, params)


def _generate(og: Any, model: Any, prompt: list[int], count: int, clock: Clock) -> list[int]:
    """The runtime's own greedy loop: at most `count` new tokens, fewer where a token ends the answer."""
    import numpy as np

    generator = _generator(og, model, len(prompt) + count)
    began = time.perf_counter()
    generator.append_tokens(np.array(prompt, np.int32))
    generator.generate_next_token()
    first = time.perf_counter()
    new = [int(generator.get_next_tokens()[0])]
    while not generator.is_done():
        generator.generate_next_token()
        new.append(int(generator.get_next_tokens()[0]))
    clock.add("prefill", first - began, len(prompt))
    clock.add("decode", time.perf_counter() - first, len(new) - 1)
    return new


def _logits(og: Any, model: Any, prompt: list[int], new: list[int]) -> Any:
    """The logits in front of each new token, shape (new tokens, vocabulary), float32."""
    import numpy as np

    generator = _generator(og, model, len(prompt) + len(new) + 1)
    rows = []
    for feed in (prompt, *([token] for token in new[:-1])):
        generator.append_tokens(np.array(feed, np.int32))
        rows.append(np.array(generator.get_logits(), np.float32).reshape(-1))
    return np.stack(rows)


if __name__ == "__main__":
    serve({"settle": settle, "answer": answer})
