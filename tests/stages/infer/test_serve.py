"""Given a served model, when OpenAI's own client asks it, then the answers are those that `infer` gives."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from microstages.artifact import Draft
from stages.infer.serving import WAIT, Program

README = Path(__file__).parents[3] / "stages/infer/README.md"
KEY = "k-0123456789abcdef"
FORM = "### Text: {phrase}\n### The tone is:\n"


@pytest.fixture(scope="module")
def served(onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The ONNX model, served."""
    program = Program(tmp_path_factory.mktemp("served"), "--model", onnx, "--threads", 1, "--max-concurrent", 4)
    yield program
    assert program.end() == 143


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory, read: Any) -> Iterator[tuple[Program, Path]]:
    """The base model with an adapter of LoftQ, served by torch with a key where others reach it; and the adapter."""
    folder = tmp_path_factory.mktemp("tuned")
    quantization = {"type": "nf4", "double_quant": True, "loftq": True, "modules": []}
    template = {"kind": "template", "template": FORM + "{tone}", "completion": "tone"}
    adapter = read.write_adapter(base, folder / "loftq", {"quantization": quantization, "template": template})
    (folder / "key").write_text(f"{KEY}\n")
    program = Program(
        folder, "--model", base, "--adapter", adapter, "--host", "0.0.0.0", "--api-key-file", folder / "key",
        "--threads", 1, "--served-name", "our/tones", "--system", "Be kind.", "--grace", WAIT,
    )  # fmt: skip
    yield program, adapter
    program.process.kill()
    program.process.wait()


@pytest.fixture(scope="module")
def client(served: Program) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=WAIT)


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def complete(client: openai.OpenAI, prompt: Any, **more: Any) -> Any:
    return client.completions.create(**{"model": "model", "prompt": prompt, "max_tokens": 16, **more})


def test_answers_are_those_of_infer(client: openai.OpenAI, infer: Any, onnx: Path) -> None:
    for chat in (False, True):
        flags = ("--as-chat",) if chat else ()
        ran = infer("--model", onnx, "--prompt", "She said", "--max-new-tokens", 16, *flags).said("answer")[0]
        made: Any = complete(client, "She said")
        if chat:
            made = client.chat.completions.create(model="model", messages=user("She said"), max_completion_tokens=16)
        (choice,) = made.choices
        assert (choice.message.content if chat else choice.text, made.usage.completion_tokens) == (ran["text"], 16)
        assert choice.finish_reason == ("stop" if ran["ended"] else "length") and choice.index == 0
        assert made.usage.total_tokens == made.usage.prompt_tokens + 16 and made.usage.prompt_tokens > 1


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_says_what_the_whole_says(client: openai.OpenAI, chat: bool) -> None:
    make: Any = client.chat.completions.create if chat else client.completions.create
    ask: dict[str, Any] = {"messages": user("Tell me.")} if chat else {"prompt": "When the king"}
    ask |= {"model": "model", "max_tokens": 24, "temperature": 0.8, "seed": 7}
    whole = make(**ask)
    *chunks, last = list(make(**ask, stream=True, stream_options={"include_usage": True}))
    assert last.choices == [] and last.usage == whole.usage and all(c.usage is None for c in chunks)
    assert {c.id for c in chunks} == {last.id} and last.id != whole.id and last.object == chunks[0].object
    choices = [c.choices[0] for c in chunks]
    if chat:
        assert choices[0].delta.role == "assistant"
        said, wanted = [c.delta.content or "" for c in choices], whole.choices[0].message.content
    else:
        said, wanted = [c.text for c in choices], whole.choices[0].text
    assert "".join(said) == wanted and sum(map(bool, said)) > 5
    assert [c.finish_reason for c in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    assert not any(c.usage for c in make(**ask, stream=True))


def test_stop_texts_also_across_tokens(client: openai.OpenAI) -> None:
    whole = complete(client, "When the king heard of it he").choices[0].text
    stops = [whole[at : at + 5] for at in (3, 11, 19)]  # parts of words: they begin and end inside tokens
    for stop in (*stops, stops, ["not there", stops[2]]):
        wanted = whole[: min(i for s in ([stop] if isinstance(stop, str) else stop) if (i := whole.find(s)) >= 0)]
        (choice,) = complete(client, "When the king heard of it he", stop=stop).choices
        assert (choice.text, choice.finish_reason) == (wanted, "stop")
        stream = complete(client, "When the king heard of it he", stop=stop, stream=True)
        assert "".join(c.choices[0].text for c in stream) == wanted


def test_draws_are_those_of_their_seed(client: openai.OpenAI) -> None:
    def say(**more: Any) -> str:
        return str(complete(client, "She", temperature=1.5, **more).choices[0].text)

    assert say(seed=1) == say(seed=1) and len({say(seed=n) for n in range(4)}) > 1
    assert len({say() for _ in range(4)}) > 1  # without a seed every request draws anew
    greedy = complete(client, "She").choices[0].text
    assert say(seed=1, top_p=0.0001) == greedy == say(seed=2, extra_body={"top_k": 1})


def test_prompts_are_texts_or_tokens_one_or_several(client: openai.OpenAI, onnx: Path) -> None:
    from microstages.tokens import ModelText

    ids = ModelText(onnx).tokenizer.encode("She said", add_special_tokens=False).ids
    one, other = (complete(client, p).choices[0].text for p in ("She said", "It was"))
    assert complete(client, ids).choices[0].text == one
    several = complete(client, ["She said", "It was"])
    assert [(c.index, c.text) for c in several.choices] == [(0, one), (1, other)]
    assert several.usage.completion_tokens == 32
    said = ["", ""]
    for chunk in complete(client, [ids, ids[:1]], stream=True):
        said[chunk.choices[0].index] += chunk.choices[0].text
    assert said[0] == one


def test_many_at_once_get_what_each_gets_alone(client: openai.OpenAI) -> None:
    """Given requests of all lengths that come and go, when they are answered side by side, then nobody notices."""
    asked = [(f"{words} " * n, 3 + 5 * n) for words in ("The old man", "She said", "It was") for n in (1, 2, 3, 4)]

    def say(prompt: str, tokens: int) -> str:
        return str(complete(client, prompt, max_tokens=tokens).choices[0].text)

    alone = [say(*a) for a in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(lambda a: say(*a), asked)) == alone


def test_a_conversation_of_every_kind_of_message(client: openai.OpenAI) -> None:
    talk: Any = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "are you?"}]},
        {"role": "assistant", "content": "I am he.", "tool_calls": None, "refusal": None},
        {"role": "user", "content": "Who?", "name": "eve"},
    ]
    plain = [{"role": "system", "content": "Be kind."}, *user("Who are you?"), talk[2], *user("Who?")]
    first, second = (client.chat.completions.create(model="model", messages=m, max_tokens=9) for m in (talk, plain))
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.usage == second.usage and first.usage is not None and first.usage.prompt_tokens > 20


def test_models_and_health(client: openai.OpenAI, served: Program) -> None:
    (model,) = client.models.list().data
    assert model.id == served.model == "model" and client.models.retrieve("model") == model
    assert model.model_dump()["context_length"] == 256
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")
    import urllib.request

    with urllib.request.urlopen(served.url.replace("/v1", "/health")) as response:
        assert json.load(response) == {"status": "ok", "running": 0, "waiting": 0}


WRONG: list[tuple[dict[str, Any], str | None, str]] = [
    ({"model": "gpt"}, "model", "the model 'gpt' is not served here; 'model' is"),
    ({"n": 2}, "n", "n is not supported here; n may be 1"),
    ({"logprobs": True}, "logprobs", "logprobs is not supported"),
    ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format", "is not supported"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "is not supported"),
    ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
    ({"temperature": 3}, "temperature", "is not a number of at least 0 and at most 2"),
    ({"temperature": "hot"}, "temperature", "is not a number"),
    ({"top_p": 0}, "top_p", "above 0 and at most 1"),
    ({"seed": 1.5}, "seed", "is not a whole number"),
    ({"seed": True}, "seed", "is not a whole number"),
    ({"max_tokens": 0}, "max_tokens", "is not a whole number of at least 1"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differ"),
    ({"max_tokens": 250}, "messages", "the model's context is 256 tokens"),
    ({"messages": [{"role": "user", "content": "the " * 300}]}, "messages", "the model's context is 256 tokens"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
    ({"stop": ""}, "stop", "none of them empty"),
    ({"stream": "yes"}, "stream", "stream is not true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "set stream to true"),
    ({"messages": []}, "messages", "is not a list of at least one message"),
    ({"messages": None, "prompt": "hi"}, "prompt", "the field 'prompt' is not known here"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "its role is none of"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "its content is not text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "reads text only"),
]


@pytest.mark.parametrize("change, param, words", WRONG, ids=[json.dumps(w[0])[:50] for w in WRONG])
def test_what_cannot_be_is_told(client: openai.OpenAI, change: dict[str, Any], param: str | None, words: str) -> None:
    body = {"model": "model", "messages": user("hi"), "max_tokens": 3, **change}
    with pytest.raises(openai.APIStatusError) as raised:
        client.post("/chat/completions", body={k: v for k, v in body.items() if v is not None}, cast_to=object)
    error = raised.value
    assert error.status_code == (404 if param == "model" else 400) and error.type == "invalid_request_error"
    assert error.param == param and words in error.message


def test_what_cannot_be_a_completion_is_told(client: openai.OpenAI) -> None:
    for prompt, words in (("", "the prompt is empty"), ([4096], "token ids of this model are 0 to 4095"),
                          ([], "1 to 32 prompts"), (["a"] * 33, "1 to 32 prompts"), ([["a"]], "no text")):  # fmt: skip
        with pytest.raises(openai.BadRequestError, match=words):
            complete(client, prompt)


def test_a_client_that_leaves_makes_room(served: Program, client: openai.OpenAI) -> None:
    """Given streams that nobody reads to their end, then the server is free again for others."""
    for _ in range(3):
        streams = [complete(client, "The old man", max_tokens=200, stream=True) for _ in range(8)]
        for stream in streams:
            next(iter(stream))
            stream.close()
    assert complete(client, "She said").choices[0].text
    while served.event("request")["status"] != 499:
        pass


# --- with torch, an adapter and a key; told to stop ---


def test_an_adapter_with_a_key_until_it_is_told_to_stop(tuned: tuple[Program, Path], base: Path, infer: Any) -> None:
    program, adapter = tuned
    url = f"http://127.0.0.1:{program.port}/v1"
    with pytest.raises(openai.AuthenticationError, match="this is not the key of this server"):
        openai.OpenAI(base_url=url, api_key="k-0123456789abcdee", max_retries=0).models.list()
    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=WAIT)
    assert client.models.retrieve("our/tones").id == "our/tones"
    # the answers of infer, side by side as well
    prompts = ("Who?", "What is it that he said?", "Where?")
    flags = ("--as-chat", "--system", "Be kind.", "--max-new-tokens", 8)
    wanted = [
        infer("--model", base, "--adapter", adapter, "--prompt", p, *flags).said("answer")[0]["text"] for p in prompts
    ]

    def say(prompt: str) -> Any:
        made = client.chat.completions.create(model="our/tones", messages=user(prompt), max_tokens=8)
        return made.choices[0].message.content

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(say, prompts)) == wanted
    # an adapter of LoftQ on the base as it is, and how it was tuned: each is said once
    assert program.stderr.count("warning") == 1 and program.stderr.count("(LoftQ)") == 1
    assert f"prompts of the form {FORM!r}" in program.stderr and "torch, side by side" in program.stderr
    # told to stop in the middle of an answer: that one ends, and the program
    stream = iter(complete(client, "The old man", model="our/tones", max_tokens=40, stream=True))
    first = next(stream)
    program.process.send_signal(signal.SIGTERM)
    rest = list(stream)
    assert rest[-1].choices[0].finish_reason == "length"
    assert first.id == rest[-1].id and program.process.wait(WAIT) == 143
    assert "stopping: 1 request may end" in program.stderr and "stopped" in program.stderr
    assert KEY not in program.stderr and KEY not in json.dumps(program.events)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


# --- flags ---


def test_a_model_without_a_chat_template_completes_only(onnx: Path, tmp_path: Path) -> None:
    with Draft(str(tmp_path / "artifact"), "onnx-model") as draft:
        for file in onnx.iterdir():
            if file.name != "chat_template.jinja":
                (draft.path / file.name).write_bytes(file.read_bytes())
        draft.metadata["template"] = {"kind": "template", "template": FORM + "{tone}", "completion": "tone"}
        draft.commit({})
    program = Program(tmp_path, "--model", tmp_path / "artifact", "--threads", 1, "--max-new-tokens", 5)
    try:
        until = time.monotonic() + 60  # it is told beside the event that says that it is ready
        while f"tuned on prompts of the form {FORM!r}" not in program.stderr:
            assert time.monotonic() < until, program.stderr
            time.sleep(0.05)
        client = openai.OpenAI(base_url=program.url, api_key="none", max_retries=0, timeout=WAIT)
        with pytest.raises(openai.BadRequestError, match="no chat template") as raised:
            client.chat.completions.create(model="artifact", messages=user("hi"))
        assert repr(FORM) in raised.value.message and raised.value.code == "no_chat_template"
        made = client.completions.create(model="artifact", prompt="She said")
        assert made.usage is not None and made.usage.completion_tokens == 5
        with pytest.raises(openai.BadRequestError, match="max_tokens may be at most 5 here"):
            complete(client, "She said", model="artifact")
    finally:
        assert program.end() == 143


def test_a_place_that_cannot_be_is_told_before_the_model_is_loaded(
    infer: Any, onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases = [
            (("--host", "0.0.0.0"), "others can reach this address", "MICROSTAGES_API_KEY"),
            (("--host", "::"), "others can reach this address", "MICROSTAGES_API_KEY"),
            (("--port", taken.getsockname()[1]), "cannot listen there: Address already in use", "--port 0 takes"),
            (("--host", "192.0.2.1", "--api-key-file", README.parent / "interface.json"), "this is not a key", "ASCII"),
            (("--api-key-file", tmp_path / "empty"), "this is not a key", "one line"),
            (("--api-key-file", tmp_path / "none"), "it cannot be read: No such file", "check the path"),
            (("--port", 65536), "at most 65535", "leave it out"),
            (("--output", tmp_path / "out"), "a server writes no predictions", "leave it out"),
            (("--as-chat",), "in its form already", "leave it out"),
            (("--chat",), "--chat and --serve are given", "give one of"),
        ]
        for flags, words, remedy in cases:
            result = infer("--model", onnx, "--serve", *flags)
            assert result.code == 2 and words in result.stderr and remedy in result.stderr, (flags, result.stderr)
            assert "Traceback" not in result.stderr and not result.said("ready")
    result = infer("--model", onnx, "--prompt", "hi", "--port", 80)
    assert result.code == 2 and "--port: nothing is served" in result.stderr
    monkeypatch.setenv("MICROSTAGES_API_KEY", KEY)
    result = infer("--model", onnx, "--serve", "--host", "192.0.2.1", "--port", 0)
    assert result.code == 2 and "cannot listen there" in result.stderr and KEY not in result.stderr


# --- the documented commands ---


def test_the_documented_commands_do_what_they_say(onnx: Path, tmp_path: Path) -> None:
    """Those of the README's section, with the model and the port of this test."""
    text = README.read_text().replace("\\\n", " ")
    (serve,) = re.findall(r"^infer (.*--serve.*?)(?: +#.*)?$", text, flags=re.M)
    program = Program(tmp_path, *serve.replace("out/onnx", str(onnx)).split())
    try:
        for command in (curls := re.findall(r"^curl .*$", text, flags=re.M)):
            here = command.replace("127.0.0.1:8080", f"127.0.0.1:{program.port}")
            done = subprocess.run(here, shell=True, executable="/bin/bash", capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert '"finish_reason": "' in done.stdout and '"error"' not in done.stdout, done.stdout
        assert len(curls) == 2
    finally:
        program.end()
