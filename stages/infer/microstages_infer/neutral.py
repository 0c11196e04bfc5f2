"""Perplexity on a plain text that has nothing to do with the task: tuning that forgets language makes it rise.

The text's tokens are cut into windows, one after another. Each is read on its own, behind the bos token where the
tokenizer would put one; else its first token is not predicted.
"""

from __future__ import annotations

from microstages.artifact import Artifact
from microstages.errors import UserError
from microstages.reporting import Reporter

from microstages_infer.decoding import Engine
from microstages_infer.prompts import Wrap
from microstages_infer.teacher import Forced, Losses, read


def text_of(neutral: Artifact) -> str:
    """The text of all its files, in the order of their names. Raises UserError where one is no text, or all are
    empty."""
    parts = []
    for path in neutral.paths():
        try:
            parts.append(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"this is not UTF-8: {error.reason}", where=path, fix="give plain text files in UTF-8"
            ) from None
    if not "".join(parts).strip():
        raise UserError("there is no text in it", where=neutral.uri, fix="give a plain text that is not of the task")
    return "\n".join(parts)


def windows(wrap: Wrap, text: str, window: int, most: int) -> list[Forced]:
    """The first `most` tokens of a text in windows of `window` tokens; a last one of one token alone is left out."""
    ids = wrap.text.tokenizer.encode(text[: most * 64], add_special_tokens=False).ids[:most]
    bos = wrap.text.special("bos_token") if wrap.lacks_bos("") else None
    first = [] if bos is None else [i for i in [wrap.text.token_id(bos)] if i is not None]
    size = max(1, window - len(first))
    cut = [[*first, *ids[at : at + size]] for at in range(0, len(ids), size)]
    return [Forced(w, 1) for w in cut if len(w) > 1]


def measure(
    report: Reporter, engine: Engine, wrap: Wrap, neutral: Artifact, window: int, most: int, batch_size: int
) -> dict[str, float]:
    """`neutral_loss`, `neutral_perplexity`, and of how many tokens and windows they are."""
    window = min(window, engine.context or window)
    found = windows(wrap, text_of(neutral), window, most)
    if not found:
        raise UserError("the text has less than two tokens", where=neutral.uri, fix="give a longer one")
    losses = Losses(len(found))
    read(
        report, engine, found, batch_size, "reading neutral text",
        lambda i, logits: losses.add(i, logits, found[i].targets),
    )  # fmt: skip
    return {k.replace("loss_rows", "windows").replace("loss_tokens", "tokens"): v
            for k, v in losses.figures("neutral_").items()}  # fmt: skip
