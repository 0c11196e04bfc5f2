"""The report: every row accounted for, every figure recomputed from the data."""

from __future__ import annotations

import json

import numpy as np
import pytest

ROWS = [{"q": f"What is {n % 90}?", "a": ["one", "two words", "no"][n % 3]} for n in range(200)]


@pytest.mark.parametrize("strategy", ["pack", "join", "line"])
@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_every_row_is_accounted_for(strategy, overlong, prepare, tmp_path):
    source = tmp_path / "rows"
    rows = [*ROWS, {"q": "long " * 40, "a": "no"}, {"q": "fits but not its answer", "a": "word " * 40}]
    source.write_text("".join(json.dumps(r) + "\n" for r in rows) + "broken\n")
    made = prepare(source, template="{q}\n{a}", completion="a", strategy=strategy, overlong=overlong, max_length=16,
                   bad_rows="skip")  # fmt: skip
    r = made.report["rows"]
    assert r["read"] == 203
    parts = ("bad", "duplicate", "dropped_too_long", "dropped_nothing_to_train", "train", "held_out")
    assert r["read"] == sum(r[p] for p in parts)
    assert r["bad"] == 1
    assert r["duplicate"] == 110
    assert r["held_out"] == len(made.held_out)
    if strategy == "join":
        assert r["dropped_too_long"] == r["dropped_nothing_to_train"] == r["truncated"] == 0
    elif overlong == "drop":
        assert r["dropped_too_long"] == 2
    else:
        assert (r["dropped_nothing_to_train"], r["truncated"]) == (1, 1)


def test_figures(prepare):
    made = prepare(ROWS, template="{q}\n{a}", completion="a", deduplicate=False)
    for split in ("train", "test"):
        examples, report = made.examples(split), made.report[split]
        lengths = np.sort([len(e.ids) for e in examples])
        assert report["examples"] == report["rows"] == len(examples)
        assert report["bins"] == len(made.bins(split))
        assert report["tokens"] == lengths.sum()
        assert report["trained_tokens"] == sum(sum(e.trained) for e in examples)
        assert report["trained_share"] == round(report["trained_tokens"] / report["tokens"], 4)
        assert report["lengths"] == {
            "min": lengths[0], "max": lengths[-1], "mean": round(float(lengths.mean()), 2),
            "p50": np.quantile(lengths, 0.5, method="inverted_cdf"),
            "p95": np.quantile(lengths, 0.95, method="inverted_cdf"),
        }  # fmt: skip
        assert report["examples_with_trained_end_token"] == len(examples)
        assert made.metadata[split] == {
            k: report[k] for k in ("rows", "examples", "bins", "tokens", "trained_tokens")}  # fmt: skip
    held_out = [h.completion for h in made.held_out]
    assert made.report["test"]["answers"] == {a: held_out.count(a) for a in set(held_out)}
    total = {a: sum(made.report[s]["answers"][a] for s in ("train", "test")) for a in ("one", "two words", "no")}
    assert total == {a: [r["a"] for r in ROWS].count(a) for a in total}


def test_many_distinct_answers_are_not_listed(prepare):
    rows = [{"prompt": f"{n}?", "completion": f"answer {n}"} for n in range(200)]
    assert "answers" not in prepare(rows).report["train"]


def test_examples_are_shown_with_their_mask(prepare):
    made = prepare(ROWS, template="{q}\n{a}", completion="a", test_fraction=0)
    assert made.report["examples"][0] == {
        "tokens": len(made.examples()[0].ids),
        "text": "What is 0?\n⟦one<|endoftext|>⟧",
    }
    assert len(made.report["examples"]) == 3
    assert "What is 0?\n⟦one<|endoftext|>⟧" in (made.path / "report.md").read_text()
    assert '"What is 0?\\n⟦one<|endoftext|>⟧"' in made.said


def test_a_summary_is_said(prepare):
    said = prepare(ROWS, template="{q}\n{a}", completion="a", test_fraction=0).said
    assert "200 rows: 90 train, 0 held out, 110 duplicate" in said
    assert "sequences of at most 256 tokens" in said


def test_the_same_data_gives_the_same_bytes_wherever_it_lies(prepare, tmp_path):
    made = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS) + "broken\n")
        made.append(prepare(tmp_path / name, template="{q}\n{a}", bad_rows="skip").bytes())
    assert made[0] == made[1]
    assert b"a.jsonl:201" in made[0]["report.json"]
    assert str(tmp_path).encode() not in b"".join(made[0].values())


# --- the end-of-sequence trap, and others that cost users their training ---


def test_generation_stops_at_the_end_token_too(prepare, another_model):
    model = another_model(generation_config={"eos_token_id": 0})
    made = prepare([{"prompt": "a", "completion": "b"}], end_token="<|end|>", test_fraction=0, model=model)
    assert made.metadata["stop_token_ids"] == [0, 5]
    assert made.metadata["end_token_id"] == 5
    assert "generation stops at <|end|> too" in made.said
    assert "the tokenizer's eos token is <|endoftext|>" in made.said


def test_a_pad_token_that_is_the_end_token_is_trained_all_the_same(prepare, model):
    config = json.loads((model / "tokenizer_config.json").read_bytes())
    assert config["pad_token"] == config["eos_token"] == "<|endoftext|>"
    (example,) = prepare([{"prompt": "a", "completion": "b"}], test_fraction=0).examples()
    assert (example.ids[-1], example.trained[-1]) == (0, 1)


def test_the_end_token_within_a_text_is_warned_of(prepare):
    made = prepare([{"text": "one<|endoftext|>two"}, {"text": "three"}], test_fraction=0)
    assert "1 row holds <|endoftext|> within the text" in made.said


def test_a_shells_backslash_is_warned_of(prepare):
    assert "no line break" in prepare([{"a": "b"}], template="{a}\\n", test_fraction=0).said


def test_a_tokenizer_that_would_add_bos_is_noted(prepare, another_model, model):
    tokenizer = json.loads((model / "tokenizer.json").read_bytes())
    tokenizer["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<s>", "type_id": 0}})
    tokenizer["post_processor"]["special_tokens"] = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    other = another_model(tokenizer=tokenizer)
    made = prepare([{"text": "a b"}], test_fraction=0, model=other)
    assert "would begin a text with <s>" in made.said
    assert made.examples()[0].ids[0] != 1
    made = prepare([{"text": "a b"}], test_fraction=0, add_bos=True, model=other)
    assert made.examples()[0].ids[:2].count(1) == 1


def test_no_row_held_out_is_warned_of(prepare):
    made = prepare([{"text": "a"}], test_fraction=0.000001)
    assert "no row was held out" in made.said
    assert not (made.path / "test.jsonl").exists()
    assert made.metadata["test"]["rows"] == 0


def test_held_out_rows_that_fill_no_block_stay_as_text(prepare):
    rows = [{"text": f"row {n} of some words"} for n in range(200)]
    made = prepare(rows, strategy="join", max_length=100, test_fraction=0.02)
    assert made.held_out
    assert made.bins("test") == []
    assert "fill no block" in made.said
