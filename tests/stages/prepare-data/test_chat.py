"""Chat messages: the model's own template makes the text, and only what the assistant says is trained."""

from __future__ import annotations

import pytest

USER = {"role": "user", "content": "How do you feel?"}
GOOD = {"role": "assistant", "content": "Very well."}
BAD = {"role": "assistant", "content": "Not so well."}
SYSTEM = {"role": "system", "content": "Be brief."}
HEAD = "<|user|>\nHow do you feel?<|end|>\n<|assistant|>\n"
END = 5  # <|end|>
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def only(made):
    (example,) = made.examples()
    return example.ids, example.trained


def test_the_answer_and_its_end_of_turn_are_trained(prepare, ids):
    """The template goes on with a line break and eos; generation has stopped by then, so they are left out."""
    made = prepare([{"messages": [USER, GOOD]}], test_fraction=0)
    tokens, trained = only(made)
    assert tokens == [*ids(HEAD), *ids("Very well."), END]
    assert trained == [0] * len(ids(HEAD)) + [1] * (len(ids("Very well.")) + 1)
    assert made.metadata["end_token"] == "<|end|>"
    assert made.metadata["template"] == {"kind": "chat", "messages_field": "messages", "add_bos": False}


def test_every_answer_of_a_conversation_is_trained(prepare, ids):
    tokens, trained = only(prepare([{"messages": [SYSTEM, USER, GOOD, USER, BAD]}], test_fraction=0))
    runs = [
        ("<|system|>\nBe brief.<|end|>\n" + HEAD, 0),
        ("Very well.<|end|>", 1),
        ("\n" + HEAD, 0),
        ("Not so well.<|end|>", 1),
    ]
    assert tokens == [t for text, _ in runs for t in ids(text)]
    assert trained == [mark for text, mark in runs for _ in ids(text)]


def test_what_follows_the_last_answer_is_left_out(prepare):
    a, b = (only(prepare([{"messages": m}], test_fraction=0)) for m in ([USER, GOOD], [USER, GOOD, USER]))
    assert a == b


def test_loss_on_all(prepare):
    tokens, trained = only(prepare([{"messages": [USER, GOOD]}], loss="all", test_fraction=0))
    assert trained == [0] + [1] * (len(tokens) - 1)


def test_without_an_end_token_only_the_words_are_trained(prepare, ids):
    tokens, trained = only(prepare([{"messages": [USER, GOOD, USER, BAD]}], end_token="none", test_fraction=0))
    runs = [(HEAD, 0), ("Very well.", 1), ("<|end|>\n" + HEAD, 0), ("Not so well.", 1)]
    assert tokens == [t for text, _ in runs for t in ids(text)]
    assert trained == [mark for text, mark in runs for _ in ids(text)]


def test_held_out_prompt_is_what_inference_renders(prepare, text):
    rows = [{"messages": [{"role": "user", "content": f"How is {n}?"}, GOOD, USER, BAD]} for n in range(40)]
    made = prepare(rows, test_fraction=0.5)
    prompts = {text.render(r["messages"][:3], add_generation_prompt=True) for r in rows}
    assert 5 < len(made.held_out) < 35
    for h in made.held_out:
        assert h.prompt in prompts
        assert h.completion == "Not so well."
        assert h.text == h.prompt + h.completion


@pytest.mark.parametrize(
    "messages",
    [
        [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": GOOD["content"]}],
        [{"role": "user", "content": [{"type": "text", "text": USER["content"]}]}, GOOD],
    ],
    ids=["ShareGPT", "content in parts"],
)
def test_other_spellings_of_messages(messages, prepare):
    usual = only(prepare([{"messages": [USER, GOOD]}], test_fraction=0))
    assert only(prepare([{"conversations": messages}], test_fraction=0)) == usual


def test_a_field_of_another_name(prepare):
    assert prepare([{"talk": [USER, GOOD]}], messages_field="talk", test_fraction=0).code == 0


def test_an_indented_file_of_conversations_is_rows_of_conversations(prepare, tmp_path):
    """The list in `messages` belongs to a row: it is no list of rows."""
    import json

    source = tmp_path / "talks"
    source.write_text("\n".join(json.dumps({"messages": [USER, a]}, indent=2) for a in (GOOD, BAD)))
    assert len(prepare(source, test_fraction=0).examples()) == 2


def test_a_template_that_begins_with_bos_gets_no_second_one(prepare, another_model, text):
    model = another_model(chat_template="{{ bos_token }}" + CHATML)
    tokens, _ = only(prepare([{"messages": [USER, GOOD]}], add_bos=True, test_fraction=0, model=model))
    assert tokens.count(text.token_id("<s>")) == 1
    assert tokens[0] == text.token_id("<s>")


def test_a_template_that_rewrites_earlier_turns_trains_the_last_one(prepare, another_model, ids):
    """As reasoning models do: an answer loses its thoughts once another question follows."""
    cut = CHATML.replace(
        "{{ m.content }}", "{{ m.content if loop.last or m.role != 'assistant' else m.content.split()[0] }}"
    )
    forgets = "{% if messages|length > 2 and not add_generation_prompt %}<|system|>again{% endif %}"
    model = another_model(chat_template=cut)
    _, trained = only(prepare([{"messages": [USER, GOOD, USER, BAD]}], test_fraction=0, model=model))
    assert sum(trained) == len(ids("Very<|end|>")) + len(ids("Not so well.<|end|>"))
    model = another_model(chat_template="{% if messages|length > 2 %}<|system|>long{% endif %}" + CHATML)
    made = prepare([{"messages": [USER, GOOD, USER, BAD]}], test_fraction=0, model=model)
    _, trained = only(made)
    assert sum(trained) == len(ids("Not so well.<|end|>"))
    assert "only the last answer of a row is trained" in made.said
    made = prepare([{"messages": [USER, GOOD]}], model=another_model(chat_template=forgets + CHATML))
    assert made.code == 2
    assert "the chat template changes earlier text" in made.said


def test_a_template_without_an_end_of_turn_gets_the_end_token_behind_the_last_answer(prepare, another_model, ids):
    plain = (
        "{% for m in messages %}{{ '# ' + m.role + '\n' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '# assistant\n' }}{% endif %}"
    )
    made = prepare([{"messages": [USER, GOOD]}], test_fraction=0, model=another_model(chat_template=plain))
    tokens, trained = only(made)
    head = "# user\nHow do you feel?\n# assistant\n"
    assert tokens == [*ids(head), *ids("Very well."), 0]
    assert trained == [0] * len(ids(head)) + [1] * (len(ids("Very well.")) + 1)
    assert "writes no token behind an answer" in made.said


def test_a_template_may_trim_the_answer(prepare, another_model, ids):
    model = another_model(chat_template=CHATML.replace("m.content", "m.content | trim"))
    made = prepare([{"messages": [USER, {**GOOD, "content": " Very well. \n"}]}], test_fraction=0, model=model)
    assert only(made)[0] == ids("<|user|>How do you feel?<|end|><|assistant|>Very well.<|end|>")


def test_an_answer_that_holds_the_end_token_goes_on_behind_it(prepare, ids):
    answer = "It ends with <|end|> here."
    tokens, trained = only(prepare([{"messages": [USER, {**GOOD, "content": answer}]}], test_fraction=0))
    assert tokens == [*ids(HEAD), *ids(answer), END]
    assert sum(trained) == len(ids(answer)) + 1


BAD_ROWS = {
    "no answer": ({"messages": [USER]}, "no assistant message"),
    "no question": ({"messages": [GOOD]}, "begins with an assistant message"),
    "an empty answer": ({"messages": [USER, {**GOOD, "content": " "}]}, "the last assistant message is empty"),
    "no messages": ({"messages": []}, "holds no messages"),
    "text": ({"messages": "How?"}, "holds text, not messages"),
    "a message that is text": ({"messages": ["How?"]}, "message 1 is text"),
    "no role": ({"messages": [{"content": "a"}, GOOD]}, "message 1 has no role"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, GOOD]}, "message 1 has no text"),
    "no content": ({"messages": [USER, {"role": "assistant", "content": None}]}, "message 2 has no text"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_messages_are_told_by_line(case, prepare):
    row, wanted = BAD_ROWS[case]
    made = prepare([{"messages": [USER, GOOD]}, row], test_fraction=0)
    assert made.code == 2
    assert wanted in made.said
    assert ".jsonl:2: " in made.said
    made = prepare([{"messages": [USER, GOOD]}, row], test_fraction=0, bad_rows="skip")
    assert made.report["rows"] | {"bad": 1, "train": 1} == made.report["rows"]


def test_what_the_template_refuses_is_a_bad_row(prepare, another_model):
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}" + CHATML
    made = prepare([{"messages": [SYSTEM, USER, GOOD]}], model=another_model(chat_template=refuses))
    assert made.code == 2
    assert "no system messages" in made.said


@pytest.mark.parametrize("params", [
    {"template": "{q}\n{a}", "completion": "a"},
    {"template": " {q} {a}", "completion": "a"},
    {"prompt_field": "q", "completion_field": "a"},
    {"prompt_template": "{q} ", "completion_template": "{a}"},
], ids=str)  # fmt: skip
def test_prompts_and_answers_as_a_chat_are_the_chat(prepare, params):
    """The same tokens as of the messages themselves, and infer is told how the prompts were written."""
    from microstages_infer.prompts import follows, form_of

    rows = [{"q": f"How do you feel on day {n}?", "a": f"Very {n}."} for n in range(40)]
    said = [(("user", r["q"]), ("assistant", r["a"])) for r in rows]
    chats = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in said]
    made, same = prepare(rows, as_chat=True, test_fraction=0.3, **params), prepare(chats, test_fraction=0.3)
    assert made.examples() == same.examples() and made.held_out == same.held_out
    assert made.metadata["template"]["as_chat"] is True and made.metadata["end_token"] == "<|end|>"
    form = form_of(made.metadata)
    assert form == "<|user|>\n{q}<|end|>\n<|assistant|>\n"
    assert all(follows(form, h.prompt) for h in made.held_out)


def test_what_a_chat_cannot_be_made_of(prepare):
    row = [{"q": "How?", "a": "So.", "text": "All."}]
    for params, where in (
        ({"template": "{q} {a}"}, "--as-chat: it needs a prompt and an answer"),
        ({"columns": ["q", "a"]}, "--as-chat: it needs a prompt and an answer"),
        ({}, "--as-chat: it needs a prompt and an answer"),
        ({"messages_field": "q"}, "--as-chat: these rows are chats already"),
        ({"prompt_field": "q", "completion_field": "a", "special_tokens_as_text": True}, "--as-chat: --special"),
        ({"prompt_field": "q", "completion_field": "a", "empty_rows": "drop"}, "--as-chat: --empty-rows drop is not"),
    ):
        made = prepare(row, as_chat=True, test_fraction=0, **params)
        assert made.code == 2 and where in made.said, made.said
    made = prepare([{"messages": [USER, GOOD]}], as_chat=True, test_fraction=0)
    assert made.code == 2 and "--as-chat: the rows are chats already, in 'messages'" in made.said
    made = prepare([{"q": " ", "a": "So."}], as_chat=True, test_fraction=0, template="{q}{a}", completion="a")
    assert made.code == 2 and "the field 'q', the prompt, is empty" in made.said
