"""The parts of the page that are tables and words. Each returns nothing where there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from microstages.reporting import duration, number_of, size

from runner.compare.columns import loss, percent, small
from runner.compare.html import short, text
from runner.plan import shown
from runner.report.pictures import badge
from runner.report.words import LONGEST, plot, table
from runner.summary import count, share

Data = Mapping[str, Any]
MOST_ANSWERS = 400  # of the rows on which forms disagree: so a page stays small, however many forms there are

# --- the head ---


def tiles(data: Data) -> str:
    """The few figures that matter most."""
    found: list[tuple[str, str, str]] = []
    compared = data["compare"]
    measured = [(f["name"], f["metrics"]["accuracy"]) for f in (compared or {}).get("forms", ())
                if isinstance(f["metrics"].get("accuracy"), (int, float))]  # fmt: skip
    if measured:
        name, last = shipped(data, measured)
        rows = f", {number_of(compared['rows'], 'row')}" if compared["rows"] is not None else ""
        frequent = {f["metrics"].get("majority_share") for f in compared["forms"]} - {None}
        rows += "".join(f"; always the most frequent answer: {share(m)}" for m in frequent if len(frequent) == 1)
        said = " · ".join(f"{short(n, 24)} {share(a)}" for n, a in measured[:6])
        found.append((f"held-out accuracy of {short(name, 24)}", share(last), said + rows))
    for q in data["quantization"][:2]:
        m = q["metrics"]
        if _numbers(m, "size_bytes", "source_size_bytes"):
            less = f"{m['size_bytes'] / m['source_size_bytes']:.0%} of {size(m['source_size_bytes'])}"
            found.append((f"weights of {short(q['artifact'], 24)}", size(m["size_bytes"]), less))
        if _numbers(m, "mean_kl"):
            found.append(
                (f"KL of {short(q['artifact'], 24)} from its origin", small(m["mean_kl"]), "nats a token, mean")
            )
    for t in data["training"][:2]:
        held = t["curve"]["held_out"]
        if held:
            steps = number_of(held[-1][0], "step")
            first = f"{loss(held[0][1])} at first; {steps}" if len(held) > 1 else "nats a token"
            best_loss = t["metrics"].get("eval_loss", held[-1][1])
            found.append((f"held-out loss of {short(t['stage'], 24)}", loss(best_loss), first))
    if not found:
        return ""
    cards = "".join(f"<div><dt>{text(name)}</dt><dd><b>{text(v)}</b> <span>{text(more)}</span></dd></div>"
                    for name, v, more in found)  # fmt: skip
    return f'<dl class="tiles">{cards}</dl>'


def shipped(data: Data, measured: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """The last form whose model the run made, which is what ships; the last one where all are from outside."""
    made = {s["name"] for s in data["stages"] for i in s["inputs"]
            if i["name"] in ("model", "adapter") and i["artifact"]}  # fmt: skip
    return next((m for m in reversed(measured) if m[0].partition(".")[0] in made), measured[-1])


def _numbers(m: Data, *names: str) -> bool:
    return all(isinstance(m.get(n), (int, float)) and not isinstance(m[n], bool) and m[n] > 0 for n in names)


def failures(data: Data) -> str:
    """Each stage that failed: what it said, and the end of its log."""
    told = {"stopped": "It was told to stop.", "died": "Nobody knows how it ended: its runner was killed."}
    out = []
    for i, s in enumerate(data["stages"]):
        if s["status"] not in ("failed", "died", "stopped"):
            continue
        code = f" · exit code {s['exit_code']}" if s["exit_code"] not in (None, 0) else ""
        log = f'<pre tabindex="0" aria-label="end of the log">{text(chr(10).join(s["log"]))}</pre>' if s["log"] else ""
        out.append(
            f'<div class="card failure"><h3><a href="#stage-{i}">{text(s["name"])}</a> {badge(s["status"])}'
            f'<span class="soft">{text(code)}</span></h3>'
            f"<p>{text(short(s['error'] or told.get(s['status'], ''), LONGEST))}</p>{log}</div>"
        )
    return "".join(out)


# --- what was measured ---


def evaluation(data: Data) -> str:
    """The forms side by side: the tables and matrices of `runner compare`."""
    from runner.compare.page import answers, figures

    compared = data["compare"]
    if compared is None:
        return ""
    forms = len(compared["forms"])
    found = compared["disagreement"]
    compared = {**compared, "disagreement": {**found, "rows": found["rows"][: max(5, MOST_ANSWERS // forms)]}}
    same = "" if forms == 1 else "the same "
    rows = f" on {same}{number_of(compared['rows'], 'row')}" if compared["rows"] is not None else ""
    words = f"{number_of(forms, 'form')} of a model{rows}."
    notes = [f'<p class="note">{text(n)}</p>' for n in compared["notes"]]
    return "\n".join([f'<p class="soft">{words}</p>', *notes, *figures(compared, 3), *answers(compared, 3)])


def quantization(data: Data) -> str:
    """What building each ONNX model cost: a column for each, beside the model that it was built from."""
    columns = [_cost(q) for q in data["quantization"]]
    if not columns:
        return ""
    rows = [[text(name), *(text(c[name]) for c in columns)] for name in columns[0] if any(c[name] for c in columns)]
    words = (
        "Measured when it was built. Before an arrow stands the model that it was built from, which read the same "
        "tokens in fp32. KL is in nats a token; accuracy is of the held-out rows."
    )
    names = [text(short(q["artifact"], 40)) for q in data["quantization"]]
    return f'<p class="soft">{words}</p><div class="narrow">{table(("", *names), rows)}</div>'


def _cost(q: Data) -> dict[str, str]:
    """The figures of one ONNX model in words, empty where they are not known."""
    m = {k: v for k, v in q["metrics"].items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    before, after = q["source_accuracy"], q["accuracy"]
    drop = f"{share(before)} → {share(after)} ({after - before:+.3f})" if None not in (before, after) else ""
    why = f"no: {q['not_verified_because'] or 'not told'}"
    equal = f"{m['equal_answers']:g} of {m.get('prompts', 0):g}" if "equal_answers" in m else ""
    return {
        "built from": q["source"],
        "as": ", ".join(str(x) for x in (q["precision"], q["algorithm"], q["execution_provider"]) if x),
        "weights": _pair(m, "size_bytes", size),
        "accuracy": drop,
        "KL, mean": small(m["mean_kl"]) if "mean_kl" in m else "",
        "KL, largest": small(m["max_kl"]) if "max_kl" in m else "",
        "same likeliest token": percent(m["top1_agreement"]) if "top1_agreement" in m else "",
        "same answers": equal,
        "prompt tokens/s": _pair(m, "prefill_tokens_per_second", count),
        "answer tokens/s": _pair(m, "decode_tokens_per_second", count),
        "loaded and run": "yes" if q["verified"] else why,
    }


def _pair(m: Data, name: str, write: Callable[[float], str]) -> str:
    before, after = m.get(f"source_{name}"), m.get(name)
    if after is None:
        return ""
    return write(after) if before is None else f"{write(before)} → {write(after)}"


def training(data: Data) -> str:
    """Places for the plots of the curves, and what was measured."""
    out = []
    for i, t in enumerate(data["training"]):
        c, m = t["curve"], t["metrics"]
        words = []
        if c["loss"]:
            words.append(f"loss {loss(c['loss'][0])} at step {c['step'][0]:,}, {loss(c['loss'][-1])} at step "
                         f"{c['step'][-1]:,}")  # fmt: skip
        if c["held_out"]:
            words.append(f"on held-out rows {loss(c['held_out'][0][1])}, then {loss(c['held_out'][-1][1])}")
        said = "; ".join(words)
        state = "" if t["finished"] else " <span class='soft'>so far</span>"
        facts = [("epochs", "epochs", shown), ("trained_tokens", "trained tokens", count),
                 ("tokens_per_second", "tokens/s", count), ("training_seconds", "time", duration),
                 ("trainable_parameters", "parameters trained", count), ("peak_memory_bytes", "peak memory", size),
                 ("peak_gpu_memory_bytes", "peak GPU memory", size)]  # fmt: skip
        more = " · ".join(f"{write(m[k])} {words}" for k, words, write in facts if _numbers(m, k))
        out.append(
            f'<h3>{text(t["stage"])}{state}</h3><p class="soft">{text(said)}.{" " + text(more) if more else ""}</p>'
            '<div class="grid">'
            + plot(f"loss-{i}", "Loss", "nats a token; the thick line is a mean of the points around", said)
            + plot(f"rate-{i}", "Learning rate", "and the gradients' norm, of each step")
            + "</div>"
        )
    note = '<noscript><p class="note">The curves need scripts, which are off here.</p></noscript>'
    return note + "\n".join(out) if out else ""
