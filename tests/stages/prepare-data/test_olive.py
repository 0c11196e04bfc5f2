"""The sequences and labels of Microsoft Olive, token by token, by an oracle and by what Olive itself was seen to make.

`olive_data/recorded.json` holds what its versions 0.6.2 and 0.13.0 made of the same cases; `record.py` there wrote it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from olive_data import oracle
from olive_data.cases import CASES, Case, rows

RECORDED = json.loads((Path(oracle.__file__).parent / "recorded.json").read_text())
Sequences = dict[str, list[oracle.Sequence]]


@pytest.fixture(scope="module")
def tokenizer_of() -> Callable[[Path], Any]:
    """`tokenizer_of(model)`: Hugging Face's tokenizer of a folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained


@pytest.fixture
def made_both_ways(prepare, another_model, tokenizer_of, examples, request) -> Callable[[Case], tuple[Any, Sequences]]:
    """`made_both_ways(case)`: the data set of the stage, and what the oracle makes."""

    def make(case: Case, data: list[dict[str, Any]] | None = None) -> tuple[Any, Sequences]:
        shared = request.getfixturevalue("shared") if case.data == "phrases" else None
        data = rows(case.data, examples, shared) if data is None else data
        model = another_model(tokenizer_config=case.tokenizer, config={"max_position_embeddings": 1 << 14})
        expected = oracle.sequences(data, tokenizer_of(model), case.generation, case.all_keys)
        of_splits = {"train": expected}
        if case.eval_size is not None:
            of_splits = oracle.split(expected, case.eval_size, 42)
        return prepare(data, model=model, **case.params()), of_splits

    return make


def trained(sequence: oracle.Sequence) -> tuple[list[int], list[int]]:
    """Tokens, and whether each is predicted: the first never is."""
    ids, labels = sequence
    assert all(label in (i, oracle.IGNORED) for i, label in zip(ids, labels, strict=True))
    return ids, [0, *(int(label != oracle.IGNORED) for label in labels[1:])][: len(ids)]


def digest(sequences: list[oracle.Sequence]) -> str:
    text = json.dumps([[ids, labels[1:]] for ids, labels in sequences])
    return hashlib.sha256(text.encode()).hexdigest()


def same(made: Any, expected: Sequences) -> None:
    for split in ("train", "test"):
        found = [(e.ids, e.trained) for e in made.examples(split)]
        assert found == [trained(s) for s in expected.get(split, [])]
        assert all(len(b) == 1 for b in made.bins(split))


@pytest.mark.parametrize("name", CASES)
def test_sequences_and_labels_are_those_of_olive(name, made_both_ways):
    made, expected = made_both_ways(CASES[name])
    assert expected["train"], "a case without sequences shows nothing"
    same(made, expected)


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_makes_what_olive_made(name, another_model, tokenizer_of, examples, request):
    case = CASES[name]
    data = rows(case.data, examples, request.getfixturevalue("shared") if case.data == "phrases" else None)
    found = oracle.sequences(data, tokenizer_of(another_model(tokenizer_config=case.tokenizer)), case.generation,
                             case.all_keys)  # fmt: skip
    of_splits = {"train": found} if case.eval_size is None else oracle.split(found, case.eval_size, 42)
    assert {s: {"sequences": len(v), "sha256": digest(v)} for s, v in of_splits.items()} == RECORDED[name]


PLAIN = {"text_cols": ["text"], "add_special_tokens": False, "use_attention_mask": False, "joiner": "\n"}
EXACT = [{"text": f"Row {n:02} of the lot"} for n in range(10, 34)]  # of one length each


@pytest.mark.parametrize("generation", "AB")
@pytest.mark.parametrize(("strategy", "stride"), [("join", None), ("join-sliding-window", 1)])
@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_corpus_of_about_so_many_blocks(generation, strategy, stride, blocks, over, made_both_ways, ids):
    """Exactly full, one token less, one more: the last full block is left out there."""
    tokens = sum(len(ids(r["text"])) + len(ids("\n")) for r in EXACT)
    length = tokens // blocks - over
    keys = {**PLAIN, "strategy": strategy, "max_len": length}
    if stride:
        keys["stride"] = length // 2
    case = Case(generation, "", keys)
    made, expected = made_both_ways(case, EXACT)
    if expected["train"]:
        same(made, expected)
        return
    assert made.code == 2
    assert f"all 24 rows together have {tokens:,} tokens, and a block needs {length:,}" in made.said
    assert ("--no-keep-last-full" in made.said) == (tokens >= length)


@pytest.mark.parametrize("blocks", [1, 2])
def test_our_own_blocks_keep_the_last_full_one(blocks, prepare, ids):
    tokens = sum(len(ids(r["text"])) for r in EXACT)
    assert tokens % blocks == 0
    made = prepare(EXACT, columns=["text"], strategy="join-sliding", end_token="none", stride=tokens // blocks,
                   max_length=tokens // blocks, test_fraction=0)  # fmt: skip
    assert len(made.examples()) == blocks


@pytest.mark.parametrize("strategy", ["join", "join-sliding-window", "line-by-line", "line-by-line-random"])
@pytest.mark.parametrize("generation", "AB")
@pytest.mark.parametrize("special", [False, True])
def test_tokenizers_that_begin_with_a_space(strategy, generation, special, spaced, prepare, tokenizer_of):
    config = spaced / "tokenizer_config.json"
    own = {"pad_token": "</s>", "unk_token": "<unk>", "extra_special_tokens": ["<|user|>", "<|end|>", "<|assistant|>"]}
    config.write_text(json.dumps({**json.loads(config.read_text()), **own}))
    keys = {"text_template": "<|user|>\n{a}<|end|>\n<|assistant|> {b}<|end|>", "strategy": strategy, "max_len": 30,
            "joiner": "\n\n", "add_special_tokens": special, "max_samples": 9, "random_seed": 2,
            "stride": 10}  # fmt: skip
    data = [{"a": f"The lamp went {n} out.", "b": "fear" if n % 2 else " joy "} for n in range(40)]
    if strategy != "join-sliding-window":
        del keys["stride"]
    case = Case(generation, "", keys)
    expected = oracle.sequences(data, tokenizer_of(spaced), generation, case.all_keys)
    assert len(expected) == 9
    same(prepare(data, model=spaced, **case.params()), {"train": expected})


def test_pairs_are_tokenized_apart_where_a_text_begins_with_a_space(spaced, prepare, tokenizer_of):
    config = spaced / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token": "</s>", "unk_token": "<unk>"}))
    data = [{"input": f"The tone {n} is:", "output": "fear"} for n in range(5)]
    case = Case("A", "", {"dataset_type": "pair", "max_len": 40, "target_max_len": 9})
    expected = oracle.sequences(data, tokenizer_of(spaced), "A", case.all_keys)
    same(prepare(data, model=spaced, **case.params()), {"train": expected})


@pytest.mark.parametrize("workers", [2, 3])
def test_sequences_do_not_depend_on_processes_or_windows(workers, prepare, examples, monkeypatch):
    from microstages_prepare_data import prepare as flow
    from microstages_prepare_data import sequences, sources, spool

    params = {"template": "{phrase} {tone}", "strategy": "join-sliding", "max_length": 60, "stride": 30,
              "test_sequences": 0.2, "group_rows": 50}  # fmt: skip
    whole = prepare(examples / "tones.jsonl", **params).bytes()
    for module, name, size in ((flow, "SMALL", 0), (sources, "CHUNK", 900), (spool, "WINDOW_ROWS", 30),
                               (sequences, "BATCH", 100)):  # fmt: skip
        monkeypatch.setattr(module, name, size)
    assert prepare(examples / "tones.jsonl", workers=workers, **params).bytes() == whole


def test_duplicates_and_dropped_rows_are_left_out_of_the_stream(prepare, ids):
    data = [{"text": t} for t in ("one two three", "one two three", "", "four", "five six", "four")]
    made = prepare(data, columns=["text"], strategy="join", max_length=2, max_sequences=99, empty_rows="drop",
                   end_token="none", test_fraction=0)  # fmt: skip
    stream = [i for t in ("one two three", "four", "five six") for i in ids(t)]
    assert [i for e in made.examples() for i in e.ids] == stream[: len(stream) // 2 * 2]
    assert made.report["rows"]["dropped_empty"] == 1
    assert made.report["rows"]["duplicate"] == 2


def test_sequences_that_are_whole_rows_are_held_out_with_their_text(prepare, text):
    data = [{"prompt": f"Number {n}:", "completion": f"it is {n}"} for n in range(20)]
    made = prepare(data, strategy="line", test_sequences=5, special_tokens_as_text=True, pad=True, max_length=24)
    assert made.metadata["train"]["rows"] == 15
    for row, example in zip(made.held_out, made.examples("test"), strict=True):
        whole = f"{row.prompt}{row.completion} <|endoftext|>"
        assert text.tokenizer.decode(example.ids, skip_special_tokens=False).startswith(whole)
        assert row.prompt.startswith("<s> Number")


def test_blocks_that_are_held_out_have_no_rows(prepare, examples):
    made = prepare(examples / "tones.jsonl", template="{phrase}", strategy="join", max_length=64, test_sequences=0.25)
    assert made.held_out == []
    assert made.metadata["test"]["rows"] == 0
    assert made.metadata["test"]["examples"] == len(made.examples("test")) > 0
    assert made.report["test"]["examples"] == len(made.examples("test"))


# What `datasets` 5.2.0 gave: Dataset.from_dict({"x": range(n)}).train_test_split(size, seed=s)["test"]["x"]
SPLITS = [
    (10, 0.3, 42, [5, 6, 0]),
    (7, 0.01, 0, [2]),
    (100, 5, 7, [88, 42, 26, 50, 54]),
    (3, 2, 2**63 - 1, [2, 1]),
]


@pytest.mark.parametrize(("count", "size", "seed", "held_out"), SPLITS)
def test_the_split_of_sequences_is_that_of_datasets(count, size, seed, held_out):
    from microstages_prepare_data.sequences import split

    train, test = split(count, size, seed)
    assert test.tolist() == held_out
    assert sorted([*train.tolist(), *held_out]) == list(range(count))


def test_the_split_of_sequences_is_that_of_datasets_now(need_datasets):
    from microstages_prepare_data.sequences import split

    for count, size, seed in [(n, s, k) for n in (2, 9, 131) for s in (0.1, 0.5, 0.99, 1) for k in (0, 42)]:
        if size == 0.99 and count < 100:
            continue
        parts = need_datasets.Dataset.from_dict({"x": list(range(count))}).train_test_split(size, seed=seed)
        train, test = split(count, size, seed)
        assert (train.tolist(), test.tolist()) == (list(parts["train"]["x"]), list(parts["test"]["x"]))
