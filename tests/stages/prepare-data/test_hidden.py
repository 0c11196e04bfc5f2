"""Pad tokens that training hides from attention: when the data set says so, and that it is another data set then."""

import pytest
from microstages.artifact import open_artifact

ROWS = [{"text": t} for t in ("The lamp went out", "no one came", "the rain began again", "we laughed")] * 3
JOINED = {"columns": ["text"], "special_tokens_as_text": True, "strategy": "join", "max_length": 16,
          "deduplicate": False, "test_fraction": 0, "loss_on_pad": False}  # fmt: skip
HIDDEN = "<|endoftext|> is hidden from attention: training takes padded rows, slower"
NOTHING = "no pad token stands before a trained one, so hiding them changes nothing"


def digest(made) -> str:
    return open_artifact(str(made.path), ["dataset"]).digest


def test_the_data_set_names_the_token_and_is_another_one(prepare, text):
    seen, hidden = prepare(ROWS, **JOINED), prepare(ROWS, **JOINED, hide_pad=True)
    assert hidden.metadata == {**seen.metadata, "hidden_token_id": text.token_id("<|endoftext|>")}
    assert "hidden_token_id" not in seen.metadata and "hidden_token_id" not in seen.report
    assert hidden.report["hidden_token_id"] == hidden.metadata["hidden_token_id"]
    assert hidden.bytes()["train.safetensors"] == seen.bytes()["train.safetensors"]
    assert digest(hidden) != digest(seen)  # so nothing that was trained without is taken for it
    assert HIDDEN in hidden.said and HIDDEN in hidden.report["notes"]


@pytest.mark.parametrize("change", [{"strategy": "line"}, {"strategy": "line", "pad": True}])
def test_behind_all_that_is_trained_there_is_nothing_to_hide(change, prepare):
    made = prepare(ROWS, **{**JOINED, **change}, hide_pad=True)
    assert "hidden_token_id" not in made.metadata and "hidden_token_id" not in made.report
    assert NOTHING in made.said


def test_a_held_out_block_counts_too(prepare, tmp_path):
    """Only the held-out row has the pad token within its text."""
    held = tmp_path / "held.jsonl"
    held.write_text('{"text": "one <|endoftext|> two three"}\n')
    made = prepare(ROWS, columns=["text"], strategy="line", end_token="none", loss_on_pad=False, hide_pad=True,
                   test_source=held)  # fmt: skip
    assert HIDDEN in made.said and "hidden_token_id" in made.metadata


def test_the_first_token_of_an_example_and_the_end_of_the_one_before(prepare):
    """A pad token at the very end of an example is behind all of it, whatever follows; one at its start is not."""
    ends = [{"text": "one two <|endoftext|>"}, {"text": "three four"}]
    begins = [{"text": "one two"}, {"text": "<|endoftext|>three four"}]
    for rows, there in ((ends, False), (begins, True)):
        made = prepare(rows, columns=["text"], strategy="line", end_token="none", loss_on_pad=False, hide_pad=True,
                       test_fraction=0)  # fmt: skip
        assert ("hidden_token_id" in made.metadata) is there


def test_many_examples_are_looked_at_piece_by_piece(prepare, monkeypatch):
    monkeypatch.setattr("microstages_prepare_data.hidden.EXAMPLES", 2)
    rows = [*({"text": f"row {n}"} for n in range(9)), {"text": "one <|endoftext|> two"}]
    common = {"columns": ["text"], "strategy": "line", "end_token": "none", "loss_on_pad": False, "test_fraction": 0}
    assert "hidden_token_id" in prepare(rows, **common, hide_pad=True).metadata
    assert "hidden_token_id" not in prepare(rows[:-1], **common, hide_pad=True).metadata


def test_without_a_pad_token_none_is_hidden(prepare, another_model):
    model = another_model(tokenizer_config={"pad_token": None})
    made = prepare(ROWS, **JOINED, hide_pad=True, model=model)
    assert "hidden_token_id" not in made.metadata
    assert "the tokenizer names no pad_token, so none is hidden" in made.said


def test_what_is_hidden_is_not_trained(prepare):
    made = prepare(ROWS, **{**JOINED, "loss_on_pad": True}, hide_pad=True)
    assert made.code == 2
    assert "--hide-pad: a pad token that is hidden is not trained either" in made.said
    assert "give --no-loss-on-pad too" in made.said
