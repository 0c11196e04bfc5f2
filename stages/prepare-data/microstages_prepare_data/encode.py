"""A chunk of rows becomes token ids with the mask of what is trained. What the workers do.

**The prompt's tokens are those of the prompt alone**, because that is what inference gives the model. A tokenizer that
merges letters across the border of prompt and answer would otherwise train on prompts that never occur. So parts are
tokenized one by one and put together. Some tokenizers (SentencePiece's) begin every text with a space; there a part
that goes on gets its tokens from the whole text, as long as the tokens of what came before stay as they are.

**The end token is put behind the answer as an id**: it is one token, trained, and lost only where a row is cut off.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from microstages.errors import UserError

from microstages_prepare_data.chat import Chat
from microstages_prepare_data.plan import Plan
from microstages_prepare_data.recipe import BadRowError, Parts, parts_of
from microstages_prepare_data.sources import Chunk, parse

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What is known of an encoded row. `key` names its text; `full` is its length before it was cut to `tokens`.
ROW = np.dtype([("key", "<u8", 2), ("tokens", "<i4"), ("full", "<i4"), ("label", "<i4"), ("flags", "<i4")])
CUT, TOO_LONG, NOTHING_TRAINED, ENDS, END_INSIDE, MOVED_BORDER, TOO_SHORT = 1, 2, 4, 8, 16, 32, 64
DROPPED = TOO_LONG | NOTHING_TRAINED | TOO_SHORT
LABELS = 50  # distinct answers that are counted at most
SPLITS = ("train", "test")


@dataclass
class EncodedSplit:
    """The rows of a chunk that go to one split: their ROW records, their tokens one after another, and their text.

    `labels`: the distinct answers that `label` points to; None where there are more than LABELS of them.
    `texts`: lines of `test.jsonl`, one a row; empty for train.
    """

    rows: NDArray[Any]
    ids: NDArray[Any]
    trained: NDArray[Any]
    labels: list[str] | None
    texts: list[bytes]


@dataclass
class Encoded:
    """What became of a chunk. `bad`: place (file, number) and reason of each row that cannot be used."""

    read: int  # bytes of the file that are read so far
    file: int
    count: int  # rows, the bad ones too
    bad: list[tuple[int, int, str]] = field(default_factory=list)
    empty: int = 0  # rows left out because their text is empty
    splits: dict[str, EncodedSplit] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoder:
    """Encodes chunks by a plan. Calling it is pure: equal chunks, equal results, in any process."""

    plan: Plan
    test_from: int | None = None  # files from this number on are held out whole

    def __call__(self, chunk: Chunk) -> Encoded:
        numbers, rows = parse(chunk)
        out = Encoded(chunk.read, chunk.file, len(rows))
        groups: dict[str, list[tuple[Parts, bytes]]] = {s: [] for s in SPLITS}
        for number, row in zip(numbers, rows, strict=True):
            try:
                if isinstance(row, str):
                    raise BadRowError(row)
                parts = self._parts(row)
                if self.plan.settings.empty_rows == "drop" and not any(parts):
                    out.empty += 1
                    continue
                split, key = self._split_and_key(parts, chunk.file)
                groups[split].append((parts, key))
            except BadRowError as reason:
                out.bad.append((chunk.file, number, str(reason)))
        for split, group in groups.items():
            if group:
                out.splits[split] = self._encode(split, [p for p, _ in group], [k for _, k in group])
        return out

    def _parts(self, row: dict[str, Any]) -> Parts:
        parts = parts_of(row, self.plan.recipe, self.plan.settings)
        if self.plan.around is not None:
            before, behind = self.plan.around
            first = 0 if self.plan.recipe.answer else 1
            parts[first] = before + parts[first]
            parts[-1] += behind
        if self.plan.bos is not None and not (parts[0] or parts[1]).startswith(self.plan.bos):
            parts[0] = self.plan.bos + parts[0]
        return parts

    def _split_and_key(self, parts: Parts, file: int) -> tuple[str, bytes]:
        """Which split the row goes to, and its key. Its file decides where the data comes split, else its prompt alone
        (its text where none is known)."""
        settings = self.plan.settings
        try:
            prompt, answer = "".join(parts[:-1]).encode(), parts[-1].encode()
        except UnicodeEncodeError:
            raise BadRowError("it holds half of a surrogate pair (such as \\ud800), which is no text") from None
        key = blake2b(prompt, digest_size=16, salt=len(prompt).to_bytes(8, "little"))
        key.update(answer)
        if self.test_from is not None:
            return ("test" if file >= self.test_from else "train"), key.digest()
        if not settings.test_fraction:
            return "train", key.digest()
        by = blake2b(prompt if self.plan.recipe.answer else answer, digest_size=8, key=str(settings.seed).encode())
        held_out = int.from_bytes(by.digest(), "little") < settings.test_fraction * 2**64
        return ("test" if held_out else "train"), key.digest()

    def _encode(self, split: str, texts: list[Parts], keys: list[bytes]) -> EncodedSplit:
        plan, n = self.plan, len(texts)
        if isinstance(plan.recipe, Chat) and plan.recipe.end is not None:
            end = plan.recipe.end  # the template's own end token of the last turn comes back as an id, or not at all
            texts = [[*p[:-1], p[-1].removesuffix(end)] for p in texts]
        tokens, moved = self._tokenize(texts)
        cut = self._cut_apart(tokens)
        everything = plan.loss == "all"
        # Each row is a run of segments: its parts, the end token, the joiner.
        behind: list[tuple[Sequence[int], bool]] = []
        if plan.end_id is not None and plan.appended:
            behind.append(([plan.end_id], True))
        if plan.joiner_ids:
            behind.append((plan.joiner_ids, everything))
        extra, extra_trained = [s for s, _ in behind], [t for _, t in behind]
        segments: list[Sequence[int]] = []
        marks: list[bool] = []
        counts = []
        for parts in tokens:
            segments += parts
            segments += extra
            counts.append(sum(map(len, parts)) + sum(map(len, extra)))
            marks += [everything, True] * (len(parts) // 2)
            marks += extra_trained
        sizes = np.fromiter(map(len, segments), np.int64, len(segments))
        ids = np.fromiter(chain.from_iterable(segments), np.int32, int(sizes.sum()))
        trained = np.repeat(np.array(marks, np.uint8), sizes)
        if plan.untrained_id is not None:
            trained[ids == plan.untrained_id] = 0
        if len(ids) and int(ids.max()) >= plan.vocab_size:
            word = plan.text.tokenizer.id_to_token(int(ids.max()))
            raise UserError(
                f"the token {word!r} has the id {ids.max()}, and the model's embedding only {plan.vocab_size} rows",
                where=plan.text.folder,
                fix="tokenizer and model do not belong together: use the model's own tokenizer",
            )
        lengths = np.array(counts, np.int64)
        rows = np.zeros(n, ROW)
        rows["key"] = np.frombuffer(b"".join(keys), "<u8").reshape(n, 2)
        rows["full"] = np.minimum(lengths, 2**31 - 1)
        rows["flags"][moved] |= MOVED_BORDER
        rows["flags"][cut] |= CUT
        self._mark_end_inside(rows, ids, trained, lengths)
        if not plan.settings.joins:
            ids, trained, lengths = self._cut(rows, ids, trained, lengths)
        rows["tokens"] = lengths
        rows["label"], labels = self._labels(texts)
        lines = [self._line(p) for p in texts] if split == "test" or plan.settings.keeps_texts else []
        small = np.uint16 if plan.vocab_size <= 1 << 16 else np.int32
        return EncodedSplit(rows, ids.astype(small), trained, labels, lines)

    def _tokenize(self, texts: list[Parts]) -> tuple[list[list[list[int]]], list[int]]:
        """The ids of each part of each text; and which texts have a border that their tokens do not keep."""
        if self.plan.settings.prompt_max_length is not None or self._parts_stand_alone:
            answers = dict.fromkeys(chain.from_iterable(p[1::2] for p in texts)) if self.plan.recipe.answer else {}
            once = dict(zip(["", *answers], self._ids(["", *answers]), strict=True))  # answers often are few
            ids = iter(self._ids([p for parts in texts for p in parts if p not in once]))
            return [[once[p] if p in once else next(ids) for p in parts] for parts in texts], []
        begun = [["".join(parts[: i + 1]) for i in range(len(parts))] for parts in texts]
        ids = iter(self._ids(list(chain.from_iterable(begun))))
        tokens, moved = [], []
        for n, parts in enumerate(texts):
            so_far = [next(ids) for _ in parts]
            pieces = [so_far[0]]
            for before, now in pairwise(so_far):
                if now[: len(before)] != before:
                    moved.append(n)
                    pieces = self._ids(parts)
                    break
                pieces.append(now[len(before) :])
            tokens.append(pieces)
        return tokens, moved

    def _cut_apart(self, tokens: list[list[list[int]]]) -> list[int]:
        """Cut prompt and answer each to its own length, where they have one; returns which rows were longer."""
        first = self.plan.settings.prompt_max_length
        cut: list[int] = []
        if first is None:
            return cut
        for n, parts in enumerate(tokens):
            limits = (first, self.plan.max_length - first)
            if any(len(p) > limit for p, limit in zip(parts, limits, strict=True)):
                parts[:] = [p[:limit] for p, limit in zip(parts, limits, strict=True)]
                cut.append(n)
        return cut

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encodings = self.plan.text.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [e.ids for e in encodings]

    @cached_property
    def _parts_stand_alone(self) -> bool:
        """Whether a text that goes on is tokenized as one that begins. Not where a space is put before every text."""
        probes = ["a", "Yes", "\n", "\na", "\nYes"]
        a, yes, newline, newline_a, newline_yes = self._ids(probes)
        return newline + a == newline_a and newline + yes == newline_yes

    def _mark_end_inside(
        self, rows: NDArray[Any], ids: NDArray[Any], trained: NDArray[Any], lengths: NDArray[Any]
    ) -> None:
        """Flags rows of text that train the end token within them: they would teach the model to stop too early."""
        if self.plan.end_id is None or isinstance(self.plan.recipe, Chat):
            return
        taught = (ids == self.plan.end_id) & (trained != 0)
        per_row = np.bincount(np.repeat(np.arange(len(rows)), lengths)[taught], minlength=len(rows))
        expected = 1 + self.plan.joiner_ids.count(self.plan.end_id)
        rows["flags"][per_row > expected] |= END_INSIDE

    def _cut(
        self, rows: NDArray[Any], ids: NDArray[Any], trained: NDArray[Any], lengths: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Cut rows to the sequence length, and drop those with nothing left to train. Sets flags.

        The end of a row goes, and the end token with it: a text that stops in its middle must not teach to end there.
        """
        plan = self.plan
        long = lengths > plan.max_length
        if long.any():
            drop = plan.settings.overlong == "drop"
            rows["flags"][long] |= TOO_LONG if drop else CUT
            kept = np.where(long, 0 if drop else plan.max_length, lengths)
            position = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            stays = position < np.repeat(kept, lengths)
            ids, trained, lengths = ids[stays], trained[stays], kept
        starts = np.cumsum(lengths) - lengths
        trained[starts[lengths > 0]] = 0  # nothing stands before it, so it is never predicted
        if plan.settings.short_rows == "drop" and plan.settings.strategy == "line":
            rows["flags"][(lengths < plan.max_length) & (rows["flags"] & TOO_LONG == 0)] |= TOO_SHORT
        if plan.settings.empty_rows != "bad":
            return self._ended(rows, ids, trained, lengths)
        sums = np.concatenate(([0], np.cumsum(trained, dtype=np.int64)))
        nothing = (sums[starts + lengths] == sums[starts]) & (rows["flags"] & TOO_LONG == 0)
        if nothing.any():
            rows["flags"][nothing] |= NOTHING_TRAINED
            rows["flags"][nothing] &= ~CUT
            stays = np.repeat(~nothing, lengths)
            ids, trained, lengths = ids[stays], trained[stays], np.where(nothing, 0, lengths)
        return self._ended(rows, ids, trained, lengths)

    def _ended(
        self, rows: NDArray[Any], ids: NDArray[Any], trained: NDArray[Any], lengths: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Flags rows whose end token is trained; returns what it is given."""
        plan = self.plan
        if plan.end_id is not None and len(ids):
            last = np.maximum(np.cumsum(lengths) - 1, 0)
            ends = (lengths > 0) & (ids[last] == plan.end_id) & (trained[last] == 1)
            rows["flags"][ends] |= ENDS
        return ids, trained, lengths

    def _labels(self, texts: list[Parts]) -> tuple[NDArray[Any] | int, list[str] | None]:
        """Which of the distinct answers each row has, as long as these are few."""
        if not self.plan.recipe.answer:
            return -1, None
        known: dict[str, int] = {}
        codes = []
        for parts in texts:
            codes.append(known.setdefault(parts[-1].strip(), len(known)))
            if len(known) > LABELS:
                return -1, None
        return np.array(codes, np.int32), list(known)

    def _line(self, parts: Parts) -> bytes:
        """A line of `test.jsonl`, without what is written behind a text to end it."""
        if self.plan.around is not None:
            parts = [*parts[:-1], parts[-1].removesuffix(self.plan.around[1])]
        text = "".join(parts)
        known = self.plan.recipe.answer
        value = {
            "prompt": "".join(parts[:-1]) if known else None,
            "completion": parts[-1] if known else None,
            "text": text,
        }
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
