"""The source model's opinion of the ONNX model's answers. Runs in the builder's child, with transformers.

The source is computed in fp32, whatever type its weights have, on a GPU where there is one. It reads each prompt with
the ONNX model's greedy answer in one pass, so that both give logits at the same places: in front of every token of
the answer. Where the argmax is the same everywhere, the source would have answered the same.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from microstages.errors import UserError

from microstages_build_onnx.child import progress

SPEED_SECONDS = 2.0  # how long the speed of the source model is measured at most


def compare(job: dict[str, Any]) -> dict[str, Any]:
    """Figures of `Sums` over `job["prompts"]` and `job["answers"]`, and the source model's speed in tokens/s.

    `logits-<i>.npy` in the scratch folder hold the ONNX model's logits, shape (tokens of the answer, vocabulary).
    Raises UserError where the folder lacks weights, which transformers would fill with random numbers.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        job["view"], dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    model, report = loaded
    if missing := sorted(report.get("missing_keys", ())):
        raise UserError(
            f"{len(missing)} weights are missing, such as {missing[0]}", where=job["where"],
            fix="get or make the model again",
        )  # fmt: skip
    torch.set_num_threads(job["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()
    sums = Sums()
    with torch.inference_mode():
        for i, (prompt, answer) in enumerate(zip(job["prompts"], job["answers"], strict=True)):
            ids = torch.tensor([prompt + answer[:-1]], device=device)
            wanted = model(ids, use_cache=False, logits_to_keep=len(answer)).logits[0].cpu().numpy()
            sums.add(wanted, np.load(Path(job["scratch"]) / f"logits-{i}.npy", mmap_mode="r"), answer, job["where"])
            progress("comparing with the source model", i + 1, len(job["prompts"]))
        speed = _speed(model, job["prompts"], job["answers"], device)
    return {**sums.figures(), "speed": speed, "device": device}


def _speed(model: Any, prompts: list[list[int]], answers: list[list[int]], device: str) -> dict[str, float | None]:
    """Tokens/s of prefill and decode, as long as `SPEED_SECONDS` last but over one answer at least."""
    import torch

    spent, counted = {"prefill": 0.0, "decode": 0.0}, {"prefill": 0, "decode": 0}
    for prompt, answer in zip(prompts, answers, strict=True):
        feed, cache, phase = prompt, None, "prefill"
        for token in answer:
            began = time.perf_counter()
            ids = torch.tensor([feed], device=device)
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            out.logits.argmax().item()
            spent[phase] += time.perf_counter() - began
            counted[phase] += len(feed)
            if sum(spent.values()) > SPEED_SECONDS and counted["decode"]:
                break
            feed, cache, phase = [token], out.past_key_values, "decode"
        if sum(spent.values()) > SPEED_SECONDS:
            break
    return {k: counted[k] / spent[k] if spent[k] else None for k in spent}


class Sums:
    """Differences of logits: the largest, the mean KL divergence KL(source ‖ ONNX) in nats, agreement of the argmax."""

    def __init__(self) -> None:
        self.positions = self.agree = self.equal = 0
        self.kl = self.largest = self.worst_kl = 0.0

    def add(self, wanted: Any, got: Any, answer: list[int], where: str) -> None:
        """One answer. `wanted`, `got`: logits of source and ONNX model, shape (len(answer), vocabulary)."""
        import numpy as np

        if got.shape != wanted.shape:
            raise UserError(
                f"the result has {got.shape[1]} logits, the model {wanted.shape[1]}", where=where,
                fix="nothing was written; this model cannot be built with this version of ONNX Runtime GenAI",
            )  # fmt: skip
        agree = 0
        for w, g, token in zip(wanted, got, answer, strict=True):
            p, q = (_log_softmax(np.asarray(x, np.float64)) for x in (w, g))
            kl = float((np.exp(p) * (p - q)).sum())
            self.kl += kl
            self.worst_kl = max(self.worst_kl, kl)
            self.largest = max(self.largest, float(np.abs(w - g).max()))
            agree += int(w.argmax()) == token
        self.positions += len(answer)
        self.agree += agree
        self.equal += agree == len(answer)

    def figures(self) -> dict[str, float]:
        n = self.positions
        return {
            "positions": n,
            "max_logit_difference": self.largest,
            "mean_kl": max(0.0, self.kl / n),
            "max_kl": self.worst_kl,
            "top1_agreement": self.agree / n,
            "equal_answers": self.equal,
        }


def _log_softmax(x: Any) -> Any:
    import numpy as np

    x = x - x.max()
    return x - np.log(np.exp(x).sum())
