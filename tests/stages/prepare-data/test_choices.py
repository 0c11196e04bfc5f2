"""Parameters that say how text and sequences are made: what contradicts another is told, and what may be meant too."""

from __future__ import annotations

import pytest

ROW = {"phrase": "The lamp went out.", "tone": "fear", "none": None, "list": ["x", "y"], "yes": True, "n": 1.0}
PAIR = {"prompt_field": "phrase", "completion_field": "tone"}
CHAT = [{"messages": [{"role": "user", "content": "a b c"}, {"role": "assistant", "content": "d e f"}]}]
CONTRADICTIONS = {
    "two ways to a text": ({"columns": ["phrase"], "template": "{tone}"}, ["--template and --columns exclude"]),
    "half a pair of templates": ({"prompt_template": "{tone}"}, ["--completion-template: prompt and completion go"]),
    "an answer in Python's template": ({"template": "{phrase}{tone}", "completion": "tone", "values": "python"},
                                       ["--completion: where an answer begins is not known"]),
    "both tokens twice": ({"columns": ["phrase"], "special_tokens_as_text": True, "add_bos": True},
                          ["--add-bos: --special-tokens-as-text writes both"]),
    "an end token twice": ({"columns": ["phrase"], "special_tokens_as_text": True, "end_token": "<|end|>"},
                           ["--end-token: --special-tokens-as-text writes both"]),
    "a stride without windows": ({"columns": ["phrase"], "stride": 4}, ["--stride: only the windows"]),
    "windows without a stride": ({"columns": ["phrase"], "strategy": "join-sliding"}, ["--stride: --strategy join-sl"]),
    "a stride that leaves tokens out": ({"columns": ["phrase"], "strategy": "join-sliding", "stride": 9,
                                         "max_length": 8}, ["--stride: 9 tokens are more than"]),
    "draws without a number": ({"columns": ["phrase"], "strategy": "line-random"}, ["--max-sequences: --strategy li"]),
    "groups without windows": ({"columns": ["phrase"], "group_rows": 4}, ["--group-rows: it is for"]),
    "a limit of packed sequences": ({"columns": ["phrase"], "max_sequences": 4}, ["--max-sequences: packed"]),
    "packed sequences held out": ({"columns": ["phrase"], "test_sequences": 0.5}, ["--test-sequences: packed"]),
    "neither share nor number": ({"columns": ["phrase"], "strategy": "line", "test_sequences": 2.5},
                                 ["--test-sequences: 2.5 is neither"]),
    "more held out than there is": ([{"columns": ["phrase"], "strategy": "line", "test_sequences": 1}],
                                    ["--test-sequences: 1 of 1 sequences to hold out leave none to train on"]),
    "two splits": ({"columns": ["phrase"], "strategy": "line", "test_sequences": 1, "test_split": "train"},
                   ["--test-sequences: a part is held out already"]),
    "padding of blocks": ({"columns": ["phrase"], "strategy": "join", "pad": True}, ["--pad: only rows"]),
    "short blocks": ({"columns": ["phrase"], "strategy": "join", "short_rows": "drop"}, ["--short-rows drop: it is"]),
    "short rows that are filled": ({"columns": ["phrase"], "strategy": "line", "pad": True, "short_rows": "drop"},
                                   ["--short-rows drop: with --pad"]),
    "a last block of rows": ({"columns": ["phrase"], "strategy": "line", "keep_last_full": False},
                             ["--no-keep-last-full: it is for"]),
    "a part of no length": ({**PAIR, "prompt_max_length": 4}, ["--prompt-max-length: it is a part of --max-length"]),
    "a part that is all": ({**PAIR, "prompt_max_length": 8, "max_length": 8}, ["--prompt-max-length: 8 tokens of 8"]),
    "a part of joined rows": ({**PAIR, "prompt_max_length": 4, "max_length": 8, "strategy": "join"},
                              ["--prompt-max-length: joined rows"]),
    "a part of a text": ({"columns": ["phrase"], "prompt_max_length": 4, "max_length": 8},
                         ["--prompt-max-length: it needs a prompt"]),
    "a chat template without messages": ({"columns": ["phrase"], "chat_template": "x"}, ["--chat-template: it is for"]),
    "a template of numbers": ({"template": "{0} {tone}", "values": "python"}, ["--template: {} names no field"]),
    "a template without a field": ({"template": "text", "values": "python"}, ["--template: it names no field"]),
    "a template that is broken": ({"template": "{tone", "values": "python"}, ["--template: this template cannot"]),
    "a field that is not there": ({"columns": ["phrase", "tune"]}, ["--columns: the data has no field 'tune'",
                                                                   "'tone'"]),
    "a field of the answer": ({"prompt_template": "{phrase}", "completion_template": "{tune}"},
                              ["--completion-template: the data has no field 'tune'"]),
    "a template that does not fit": ({"template": "{tone[x]}", "values": "python"}, [":1: the template does not fit"]),
    "no row that is long enough": ({"columns": ["phrase"], "strategy": "line", "short_rows": "drop"},
                                   ["--short-rows drop: no row has 256 tokens; the longest has 6"]),
    "a join of null": ({"columns": ["phrase", "none"]}, [":1: the field 'none' holds null"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions(case, prepare):
    params, wanted = CONTRADICTIONS[case]
    params = params[0] if isinstance(params, list) else {"test_fraction": 0, **params}
    made = prepare([ROW], **params)
    assert made.code == 2, made.said
    assert "Traceback" not in made.said
    assert all(w in made.said for w in wanted), made.said


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{none}", "None"), ("{yes}", "True"), ("{n}", "1.0"), ("{list[1]}", "y"), ("{list}", "['x', 'y']"),
        ("{tone:>6}!", "  fear!"), ("{tone!r}", "'fear'"), ("{{{tone}}}", "{fear}"), ("{missing_here}", "None"),
    ],
)  # fmt: skip
def test_values_as_python_writes_them(template, expected, prepare, text):
    made = prepare([ROW, {"missing_here": 1}], template=template, values="python", end_token="none", test_fraction=0,
                   empty_rows="keep", strategy="line", max_rows=1)  # fmt: skip
    assert [text.tokenizer.decode(e.ids) for e in made.examples()] == [expected]
    assert made.metadata["template"]["values"] == "python"


def test_special_tokens_as_text(prepare, ids):
    made = prepare([ROW], columns=["phrase", "tone"], special_tokens_as_text=True, test_fraction=0)
    (example,) = made.examples()
    assert example.ids == ids("<s> The lamp went out. fear <|endoftext|>")
    assert example.trained == [0] + [1] * (len(example.ids) - 1)
    assert made.metadata["end_token"] == "<|endoftext|>"
    assert made.metadata["end_token_id"] == example.ids[-1]
    assert made.metadata["template"]["special_tokens_as_text"] is True


def test_an_end_token_that_is_the_pad_token_is_not_trained_where_pads_are_not(prepare):
    made = prepare([ROW], columns=["phrase"], special_tokens_as_text=True, loss_on_pad=False, test_fraction=0)
    (example,) = made.examples()
    assert example.trained == [0] + [1] * (len(example.ids) - 2) + [0]
    assert "<|endoftext|> is the pad token too and not trained: the model is not taught to stop" in made.said


def test_a_token_that_the_tokenizer_lacks_is_a_word(prepare, another_model, ids):
    model = another_model(tokenizer_config={"bos_token": None})
    made = prepare([ROW], columns=["tone"], special_tokens_as_text=True, test_fraction=0, model=model)
    assert made.examples()[0].ids == ids("None fear <|endoftext|>")
    assert "names no bos_token, so the word None stands in its place" in made.said


def test_a_chat_template_of_ones_own_with_turns(prepare, ids):
    own = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>\n{% endfor %}" \
          "{% if add_generation_prompt %}assistant: {% endif %}"  # fmt: skip
    made = prepare(CHAT, chat_template=own, test_fraction=0)
    (example,) = made.examples()
    prompt = ids("user: a b c<|end|>\nassistant: ")
    assert example.ids[: len(prompt)] == prompt
    assert example.trained == [0] * len(prompt) + [1] * (len(example.ids) - len(prompt))


def test_a_conversation_as_one_text(prepare, text):
    made = prepare(CHAT, conversation="text", test_fraction=0)
    (example,) = made.examples()
    assert text.tokenizer.decode(example.ids, skip_special_tokens=False) == text.render(CHAT[0]["messages"])
    assert sum(example.trained) == len(example.ids) - 1
    assert made.metadata["end_token"] == "<|end|>"  # where generation stops; nothing is put behind the text


def test_rows_without_text(prepare):
    data = [{"text": t} for t in ("a b c", "", " ", "d e f")]
    assert prepare(data, test_fraction=0).code == 2
    for choice, lengths in (("drop", [3, 3, 1]), ("keep", [3, 3, 1])):
        made = prepare(data, test_fraction=0, end_token="none", empty_rows=choice, strategy="line")
        assert sorted((len(e.ids) for e in made.examples()), reverse=True) == lengths
        assert made.report["rows"].get("dropped_empty", 0) == (choice == "drop")


def test_only_rows_without_text(prepare):
    for choice, strategy in (("drop", "line"), ("keep", "line"), ("keep", "join-sliding")):
        stride = {"stride": 8} if strategy == "join-sliding" else {}
        made = prepare([{"text": ""}] * 3, test_fraction=0, end_token="none", empty_rows=choice, strategy=strategy,
                       deduplicate=False, **stride)  # fmt: skip
        assert made.code == 2
        assert f"--empty-rows {choice}: all 3 rows are empty" in made.said
