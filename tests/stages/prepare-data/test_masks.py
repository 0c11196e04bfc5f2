"""Which tokens a row becomes, and which of them are trained: computed by hand from the tokenizer."""

from __future__ import annotations

import shutil

from tokenizers import Tokenizer

EOS = 0  # <|endoftext|>
ROW = {"phrase": "The lamp went out.", "tone": "fear"}
TEMPLATE = "### Text: {phrase}\n### The tone is:\n{tone}"
PROMPT = "### Text: The lamp went out.\n### The tone is:\n"


def only(made):
    assert made.code == 0, made.said
    (example,) = made.examples()
    return example.ids, example.trained


def test_with_a_completion_only_the_answer_and_its_end_are_trained(prepare, ids):
    tokens, trained = only(prepare([ROW], template=TEMPLATE, completion="tone", test_fraction=0))
    assert tokens == [*ids(PROMPT), *ids("fear"), EOS]
    assert trained == [0] * len(ids(PROMPT)) + [1] * len(ids("fear")) + [1]


def test_without_a_completion_everything_is_trained_but_the_first_token(prepare, ids):
    tokens, trained = only(prepare([ROW], template=TEMPLATE, test_fraction=0))
    assert tokens == [*ids(PROMPT + "fear"), EOS]
    assert trained == [0] + [1] * (len(tokens) - 1)


def test_loss_on_all_keeps_the_prompts_tokens(prepare, ids):
    tokens, trained = only(prepare([ROW], template=TEMPLATE, completion="tone", loss="all", test_fraction=0))
    assert tokens == [*ids(PROMPT), *ids("fear"), EOS]
    assert trained == [0] + [1] * (len(tokens) - 1)


def test_the_last_place_of_the_completion_begins_the_answer(prepare, ids):
    tokens, trained = only(
        prepare([ROW], template="{tone}? {phrase} Yes:\n{tone}!\n", completion="tone", test_fraction=0)
    )
    prompt, answer = ids("fear? The lamp went out. Yes:\n"), ids("fear!\n")
    assert tokens == [*prompt, *answer, EOS]
    assert trained == [0] * len(prompt) + [1] * (len(answer) + 1)


def test_a_space_before_the_answer_belongs_to_it(prepare, ids):
    """` fear` is one token: a prompt that ended in the space would end in a token never seen there."""
    made = prepare([ROW], template="Tone of {phrase} is: {tone}", completion="tone", test_fraction=0)
    tokens, trained = only(made)
    prompt = ids("Tone of The lamp went out. is:")
    assert tokens == [*prompt, *ids(" fear"), EOS]
    assert trained == [0] * len(prompt) + [1] * (len(ids(" fear")) + 1)


def test_fields(prepare, ids):
    tokens, trained = only(
        prepare([ROW], prompt_field="phrase", completion_field="tone", end_token="<|end|>", test_fraction=0)
    )
    assert tokens == [*ids("The lamp went out."), *ids("fear"), 5]
    assert trained == [0] * len(ids("The lamp went out.")) + [1] * (len(ids("fear")) + 1)


def test_the_prompts_tokens_are_those_of_the_prompt_alone(prepare, ids):
    """`surp` and `rise` merge over the border; at inference the prompt has no such merge, so neither has training."""
    assert ids("surprise") != ids("surp") + ids("rise")
    tokens, _ = only(prepare([{"prompt": "surp", "completion": "rise"}], test_fraction=0))
    assert tokens == [*ids("surp"), *ids("rise"), EOS]


def test_braces_and_names_with_spaces(prepare, ids):
    tokens, _ = only(prepare([{"Best Answer": "x", "a.b": 1}], template="{{{Best Answer}}} {a.b}", test_fraction=0))
    assert tokens == [*ids("{x} 1"), EOS]


def test_no_end_token(prepare, ids):
    made = prepare([ROW], template=TEMPLATE, end_token="none", test_fraction=0)
    assert only(made)[0] == ids(PROMPT + "fear")
    assert made.metadata["end_token_id"] is None
    assert "not taught to stop" in made.said


def test_a_row_that_is_too_long_is_cut_and_loses_its_end_token(prepare, ids):
    long = {"phrase": "A short one.", "tone": "I am afraid that this answer goes on for very long"}
    made = prepare([ROW, long], template="{phrase} {tone}", completion="tone", max_length=12, test_fraction=0)
    short, cut = sorted(made.examples(), key=lambda e: len(e.ids))
    whole = ids("A short one.") + ids(" " + long["tone"])
    assert cut.ids == whole[:12]
    assert cut.trained == [0] * len(ids("A short one.")) + [1] * (12 - len(ids("A short one.")))
    assert short.ids[-1] == EOS
    assert EOS not in cut.ids
    assert made.report["rows"]["truncated"] == 1
    assert made.report["train"]["examples_with_trained_end_token"] == 1
    assert "cut, without an end token" in made.said


def test_overlong_rows_can_be_dropped(prepare):
    long = {"phrase": "word " * 50, "tone": "joy"}
    made = prepare([ROW, long], template=TEMPLATE, completion="tone", max_length=40, overlong="drop", test_fraction=0)
    assert len(made.examples()) == 1
    assert made.report["rows"]["dropped_too_long"] == 1


def test_a_row_without_room_for_its_answer_is_dropped(prepare):
    long = {"phrase": "word " * 50, "tone": "joy"}
    made = prepare([ROW, long], template=TEMPLATE, completion="tone", max_length=40, test_fraction=0)
    assert len(made.examples()) == 1
    assert made.report["rows"] | {"dropped_nothing_to_train": 1, "truncated": 0} == made.report["rows"]


def test_bos_is_added_once(prepare, ids):
    rows = [{"prompt": "a b", "completion": "c"}, {"prompt": "<s>d e", "completion": "f"}]
    made = prepare(rows, add_bos=True, test_fraction=0, strategy="line")
    assert [e.ids[:2] for e in made.examples()] == [[1, ids("a b")[0]], [1, ids("d e")[0]]]
    assert [e.trained[0] for e in made.examples()] == [0, 0]


def test_bos_is_part_of_the_held_out_prompt(prepare):
    rows = [{"prompt": f"{n} b", "completion": "c"} for n in range(50)]
    made = prepare(rows, add_bos=True, test_fraction=0.5)
    assert made.held_out
    assert all(h.prompt.startswith("<s>") and h.text == h.prompt + h.completion for h in made.held_out)


def test_small_vocabularies_are_stored_in_16_bits_and_large_ones_in_32(prepare, another_model):
    import safetensors.numpy

    big = another_model(config={"vocab_size": 70_000})
    for folder, wanted in ((None, "uint16"), (big, "int32")):
        made = prepare([ROW], template=TEMPLATE, test_fraction=0, **({"model": folder} if folder else {}))
        tensors = safetensors.numpy.load_file(made.path / "train.safetensors")
        assert tensors["input_ids"].dtype == wanted
        assert {k: str(v.dtype) for k, v in tensors.items() if k != "input_ids"} == {
            "trained": "uint8", "example_lengths": "int32", "bin_lengths": "int32"}  # fmt: skip


def test_a_tokenizer_that_begins_texts_with_a_space_adds_none_in_the_middle(prepare, spaced):
    tokenizer = Tokenizer.from_file(str(spaced / "tokenizer.json"))
    prompt = tokenizer.encode(PROMPT).ids
    whole = tokenizer.encode(PROMPT + "fear").ids
    assert tokenizer.encode("fear").tokens[0].startswith("▁")
    assert whole[: len(prompt)] == prompt
    tokens, trained = only(prepare([ROW], template=TEMPLATE, completion="tone", test_fraction=0, model=spaced))
    assert tokens == [*whole, tokenizer.token_to_id("</s>")]
    assert trained == [0] * len(prompt) + [1] * (len(whole) - len(prompt) + 1)


def test_where_its_tokens_run_over_the_border_the_answer_stands_alone(prepare, spaced):
    tokenizer = Tokenizer.from_file(str(spaced / "tokenizer.json"))
    a, b = "The la", "mp went out."
    prompt = tokenizer.encode(a).ids
    assert tokenizer.encode(a + b).ids[: len(prompt)] != prompt
    made = prepare([{"prompt": a, "completion": b}], test_fraction=0, model=spaced)
    assert only(made)[0] == [*prompt, *tokenizer.encode(b).ids, tokenizer.token_to_id("</s>")]
    assert "run over from prompt into answer" in made.said


def test_chat_with_such_a_tokenizer(prepare, spaced):
    """Every border of a conversation keeps the tokens of what came before, as inference will see them."""
    tokenizer = Tokenizer.from_file(str(spaced / "tokenizer.json"))
    user, answer = {"role": "user", "content": "The lamp?"}, {"role": "assistant", "content": "joy"}
    made = prepare([{"messages": [user, answer, user, answer]}], test_fraction=0, model=spaced)
    head, turn = "<|user|>\nThe lamp?<|end|>\n<|assistant|>\n", "joy<|end|>"
    borders = [head, head + turn, head + turn + "\n" + head]
    tokens, trained = only(made)
    assert tokens == tokenizer.encode(borders[2] + turn).ids
    a, b, c = (len(tokenizer.encode(t).ids) for t in borders)
    assert trained == [0] * a + [1] * (b - a) + [0] * (c - b) + [1] * (len(tokens) - c)


def test_the_model_folder_is_only_read(prepare, model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    before = {p.name: p.stat().st_mtime_ns for p in copy.iterdir()}
    only(prepare([ROW], template=TEMPLATE, test_fraction=0, model=copy))
    after = {p.name: p.stat().st_mtime_ns for p in copy.iterdir() if not p.name.startswith(".")}
    assert after == before


def test_an_end_token_is_taught_where_it_is_trained(prepare):
    """`<|end|>` closes the user's turn too, which is read and not trained."""
    chat = {"prompt_field": "phrase", "completion_field": "tone", "end_token": "<|end|>", "test_fraction": 0}
    asked = prepare([{**ROW, "phrase": "The lamp went out.<|end|>"}], **chat)
    assert asked.code == 0 and "taught to stop" not in asked.said
    answered = prepare([{**ROW, "tone": "fear<|end|>fear"}], **chat)
    assert "the model is taught to stop there" in answered.said
