"""How rows become sequences: pack, join and line."""

from __future__ import annotations

import numpy as np
import pytest
from microstages_prepare_data.packing import pack

EOS = 0


def best_fit_decreasing(lengths, capacity):
    """The textbook form, one row at a time: how full the bins are."""
    bins = []
    for length in sorted(lengths, reverse=True):
        fitting = [b for b in bins if capacity - sum(b) >= length]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            bins.append([length])
    return sorted(sum(b) for b in bins)


CASES = {
    "short": (lambda r: r.integers(1, 40, 500), 128),
    "of all lengths": (lambda r: r.integers(1, 129, 400), 128),
    "long": (lambda r: r.integers(60, 129, 300), 128),
    "few lengths": (lambda r: r.choice([3, 50, 64], 300), 128),
    "one": (lambda r: r.integers(5, 6, 1), 128),
    "full": (lambda r: r.integers(16, 17, 20), 16),
    "like text": (lambda r: np.clip(r.lognormal(3.3, 0.7, 600), 2, 256).astype(int), 256),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_packing_is_best_fit_decreasing(case, seed):
    make, capacity = CASES[case]
    lengths = make(np.random.default_rng(seed)).astype(np.int32)
    order, bins = pack(lengths, capacity)
    assert sorted(order.tolist()) == list(range(len(lengths)))  # every row once
    full = np.add.reduceat(lengths[order], np.cumsum(bins) - bins)
    assert full.max() <= capacity
    assert sorted(full.tolist()) == best_fit_decreasing(lengths.tolist(), capacity)
    members = np.split(order, np.cumsum(bins)[:-1])
    assert all((np.diff(m) > 0).all() for m in members)
    assert (np.diff([m[0] for m in members]) > 0).all()


def test_packing_nothing():
    order, bins = pack(np.zeros(0, np.int32), 10)
    assert len(order) == len(bins) == 0


def test_packed_sequences_hold_every_row_once(prepare, examples):
    packed = prepare(examples / "tones.jsonl", template="{phrase}: {tone}", completion="tone", max_length=128)
    lines = prepare(examples / "tones.jsonl", template="{phrase}: {tone}", completion="tone", strategy="line")
    for split in ("train", "test"):
        a = sorted((e.ids, e.trained) for e in packed.examples(split))
        assert a == sorted((e.ids, e.trained) for e in lines.examples(split))
        assert all(sum(len(e.ids) for e in b) <= 128 for b in packed.bins(split))
        assert all(len(b) == 1 for b in lines.bins(split))
    report = packed.report["train"]
    assert report["packing_efficiency"] == round(report["tokens"] / (128 * len(packed.bins())), 4)
    assert report["packing_efficiency"] > 0.95


def test_packing_goes_on_over_windows(prepare, examples, monkeypatch):
    from microstages_prepare_data import spool

    whole = prepare(examples / "tones.jsonl", template="{phrase}", strategy="pack", max_length=64)
    monkeypatch.setattr(spool, "WINDOW_ROWS", 100)
    monkeypatch.setattr(spool, "WINDOW_TOKENS", 1500)
    windows = prepare(examples / "tones.jsonl", template="{phrase}", strategy="pack", max_length=64)
    for split in ("train", "test"):
        assert sorted(e.ids for e in whole.examples(split)) == sorted(e.ids for e in windows.examples(split))
        assert all(sum(len(e.ids) for e in b) <= 64 for b in windows.bins(split))


def test_joined_blocks_are_exact(prepare, ids):
    rows = [{"text": f"Row {n} of some text, number {n * n}."} for n in range(40)]
    made = prepare(rows, strategy="join", max_length=32, joiner="\n\n", test_fraction=0)
    stream = [t for r in rows for t in [*ids(r["text"]), EOS, *ids("\n\n")]]
    blocks = len(stream) // 32
    assert [e.ids for e in made.examples()] == [stream[i * 32 : (i + 1) * 32] for i in range(blocks)]
    assert all(e.trained == [0] + [1] * 31 for e in made.examples())
    assert all(len(b) == 1 for b in made.bins())
    assert made.report["train"]["tokens_left_over"] == len(stream) - 32 * blocks
    assert made.report["rows"]["train"] == 40


def test_a_last_block_that_is_just_full_is_kept(prepare, ids):
    row = {"text": "a b c d e f"}
    size = len(ids(row["text"])) + 1
    made = prepare([row] * 4, deduplicate=False, strategy="join", max_length=2 * size, test_fraction=0)
    assert len(made.examples()) == 2
    assert made.report["train"]["tokens_left_over"] == 0


def test_joined_blocks_keep_the_mask_of_their_rows(prepare, ids):
    rows = [{"prompt": f"{n} and {n}:\n", "completion": f"two of {n}"} for n in range(30)]
    made = prepare(rows, strategy="join", max_length=20, joiner="\n", test_fraction=0)
    marks = [
        m
        for r in rows
        for m in [0] * len(ids(r["prompt"])) + [1] * (len(ids(r["completion"])) + 1) + [0] * len(ids("\n"))
    ]
    for n, e in enumerate(made.examples()):
        assert e.trained == [0, *marks[n * 20 + 1 : (n + 1) * 20]]


def test_joined_blocks_go_on_over_windows(prepare, examples, monkeypatch):
    from microstages_prepare_data import spool

    whole = prepare(examples / "tones.jsonl", template="{phrase}", strategy="join", max_length=50).bytes()
    monkeypatch.setattr(spool, "WINDOW_ROWS", 7)
    assert prepare(examples / "tones.jsonl", template="{phrase}", strategy="join", max_length=50).bytes() == whole


def test_the_length_is_the_models_where_none_is_given(prepare, another_model):
    made = prepare([{"text": "a b c"}], test_fraction=0)
    assert made.metadata["max_length"] == 256
    made = prepare([{"text": "a b c"}], test_fraction=0, model=another_model(config={"max_position_embeddings": 4096}))
    assert made.metadata["max_length"] == 1024
