"""Given one prompt or a conversation, when the model answers, then the words come as they are made."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from microstages.artifact import Draft

LONG = "Tell me a story of the sea, of ships and of the men who sailed them, and do not leave anything out."


@pytest.mark.parametrize("form", ["base", "onnx"])
def test_one_prompt_streams(form: str, request: pytest.FixtureRequest, infer: Any, tmp_path: Path, read: Any) -> None:
    model = request.getfixturevalue(form)
    ask = ("--model", model, "--prompt", "The old man", "--max-new-tokens", 10)
    result = infer(*ask, "--output", tmp_path / "out")
    assert result.code == 0, result.stderr
    pieces = [e["text"] for e in result.said("text")]
    (answer,) = result.said("answer")
    assert len(pieces) > 3 and "".join(pieces) == answer["text"]
    assert answer["text"] in result.stderr and answer["tokens"] == 10 and answer["ended"] is False
    # and the same is written where an output is asked for
    (row,) = read.predictions(tmp_path / "out")
    assert (row["prompt"], row["prediction"]) == ("The old man", answer["text"])
    assert read.manifest(tmp_path / "out")["metrics"]["decode_tokens_per_s"] > 0


def test_a_prompt_in_the_chat_template(onnx: Path, infer: Any) -> None:
    wrapped = infer("--model", onnx, "--prompt", "Who?", "--as-chat", "--system", "Be kind.", "--max-new-tokens", 10)
    by_hand = "<|system|>\nBe kind.<|end|>\n<|user|>\nWho?<|end|>\n<|assistant|>\n"
    plain = infer("--model", onnx, "--prompt", by_hand, "--max-new-tokens", 10)
    assert wrapped.said("answer")[0]["text"] == plain.said("answer")[0]["text"]


def test_a_prompt_that_is_not_as_those_of_the_tuning_is_told(
    onnx: Path, infer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Draft(str(tmp_path / "tuned"), "onnx-model") as draft:
        shutil.copytree(onnx, draft.path, dirs_exist_ok=True)
        draft.metadata["template"] = {"kind": "template", "template": "Text: {a}\nTone: {b}", "completion": "b"}
        draft.commit({})
    ask = ("--model", tmp_path / "tuned", "--max-new-tokens", 2)
    said = r"it was tuned on prompts of the form 'Text: {a}\nTone:', and this prompt is not"
    for prompt, told in (("Text: rain\nTone:", 0), ("rain", 1)):
        result = infer(*ask, "--prompt", prompt)
        assert result.code == 0 and result.stderr.count(said) == told, result.stderr
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"rain\n")))
    chat = infer(*ask, "--chat")
    assert chat.code == 0 and "and a chat is not: its answers may be worse" in chat.stderr


CHAT = "<|user|>\n{message}<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize(("form", "bare", "chat"), [
    (CHAT, "this prompt is not: --as-chat makes that of it", ""),
    (CHAT.removesuffix("\n"), "this prompt is not: its answers may be worse", "may be worse"),
    ("{message}\n", "", "may be worse"),  # of this form is whatever ends in a line break
])  # fmt: skip
def test_a_chat_with_a_model_that_was_tuned_on_chats_is_of_the_right_form(
    onnx: Path, infer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, bare: str, chat: str
) -> None:
    with Draft(str(tmp_path / "tuned"), "onnx-model") as draft:
        shutil.copytree(onnx, draft.path, dirs_exist_ok=True)
        draft.metadata["template"] = {"kind": "template", "template": form + "{answer}", "completion": "answer"}
        draft.commit({})
    ask = ("--model", tmp_path / "tuned", "--max-new-tokens", 2)
    for words, said in ((("--prompt", "rain\n"), bare), (("--prompt", "rain", "--as-chat"), chat), (("--chat",), chat)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"rain\n")))
        result = infer(*ask, *words)
        assert result.code == 0 and ("it was tuned on" in result.stderr) == bool(said), result.stderr
        assert said in result.stderr


@pytest.mark.parametrize(
    ("template", "form", "fitting", "others"),
    [  # what `completion` names begins the answer where it stands last, and the spaces before belong to the answer
        ({"kind": "template", "template": "{b} or {a}? {b}", "completion": "b"}, "{b} or {a}?", ["x or y?", " or ?"],
         ["x or y? ", "x y?", "x or y", "or?"]),
        ({"kind": "template", "template": '{{"t": "{a:>8}"}}\n{b}!', "completion": "b"}, '{{"t": "{a:>8}"}}\n',
         ['{"t": "x"}\n'], ['{{"t": "x"}}\n', '{"t": "x"}']),
        ({"kind": "templates", "prompt_template": "Q: {a} ", "completion_template": "{b}"}, "Q: {a} ", ["Q: x "],
         ["Q: x", "Q:"]),
        ({"kind": "template", "template": "All: {a}", "completion": None}, "All: {a}", ["All: x"], ["x"]),
        ({"kind": "template", "template": "Go. {a}", "completion": "a"}, "Go.", ["Go."], ["Go. ", "Go"]),
        ({"kind": "fields", "prompt_field": "a", "completion_field": "b"}, None, [], []),
        ({"kind": "template", "template": 3}, None, [], []),
        ("?", None, [], []),
    ],
)  # fmt: skip
def test_the_form_of_prompts(template: Any, form: str | None, fitting: list[str], others: list[str]) -> None:
    from microstages_infer.prompts import follows, form_of

    assert form_of({"template": template}) == form
    assert [p for p in fitting + others if follows(form or "", p)] == fitting


def test_nothing_half_is_streamed_of_characters_and_stop_texts() -> None:
    """Given tokens that are parts of characters and of a stop text, the pieces never have to be taken back."""
    from microstages_infer.decoding import Limits, answer
    from microstages_infer.sampling import Sampling

    pieces: list[str] = []
    engine: Any = Scripted("né 100 €! ST. STO" + "P and more")
    (made,) = answer(engine, [[1]], Limits(99, ("STOP",)), Sampling(), said=pieces.append)
    assert made.text == "né 100 €! ST. " and made.ended
    assert "".join(pieces) == made.text and not any("\ufffd" in p for p in pieces)
    pieces.clear()
    (made,) = answer(engine, [[1]], Limits(5, ("STOP",)), Sampling(), said=pieces.append)
    assert made.text == "né 1" and not made.ended and "".join(pieces) == made.text


class Scripted:
    """An engine that says the bytes of a text, each of them a token."""

    context = None
    stop_ids: frozenset[int] = frozenset()

    def __init__(self, script: str) -> None:
        from types import SimpleNamespace

        self.script = script.encode()
        decode = lambda ids, skip_special_tokens: bytes(ids).decode(errors="replace")  # noqa: ARG005, E731
        self.text = SimpleNamespace(tokenizer=SimpleNamespace(decode=decode))

    def generate(self, prompts: Any, room: int, choose: Any, took: Callable[[list[int]], bool], keep: bool) -> None:  # noqa: ARG002
        for token in self.script[:room]:
            if not took([token]):
                return


@pytest.mark.parametrize("form", ["base", "onnx"])
def test_a_conversation_over_stdin_keeps_its_history(
    form: str, request: pytest.FixtureRequest, tmp_path: Path, infer: Any, read: Any
) -> None:
    """What was read before is not computed again; the answers are those of the whole text from the beginning."""
    model = request.getfixturevalue(form)
    lines = ["Who are you?", "", "And who is he?", "Where?", "/reset", "Who are you?", "/what", "/exit", "Never said"]
    command = [sys.executable, "-m", "microstages_infer.cli", "--model", str(model), "--chat", "--max-new-tokens", "12"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = [e for e in map(json.loads, done.stdout.splitlines()) if e["event"] == "answer"]
    assert [a["prompt"] for a in answers] == ["Who are you?", "And who is he?", "Where?", "Who are you?"]
    assert answers[3]["text"] == answers[0]["text"] and "/reset forgets" in done.stderr
    talk: list[dict[str, str]] = []
    rows = []
    for a in answers[:3]:
        talk = [*talk, {"role": "user", "content": a["prompt"]}]
        rows.append(json.dumps({"messages": talk}))
        talk = [*talk, {"role": "assistant", "content": a["text"]}]
    (tmp_path / "talk.jsonl").write_text("\n".join(rows))
    ask = ("--prompts", tmp_path / "talk.jsonl", "--max-new-tokens", 12, "--batch-size", 1)
    assert infer("--model", model, *ask, "--output", tmp_path / "out").code == 0
    assert [r["prediction"] for r in read.predictions(tmp_path / "out")] == [a["text"] for a in answers[:3]]


def test_a_conversation_longer_than_the_context_forgets_its_beginning(onnx: Path) -> None:
    lines = [f"{LONG} {i}" for i in range(12)] + ["the " * 400, "Who?"]
    command = [sys.executable, "-m", "microstages_infer.cli", "--model", str(onnx), "--chat", "--max-new-tokens", "30"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = [e for e in map(json.loads, done.stdout.splitlines()) if e["event"] == "answer"]
    assert len(answers) == 13 and all(a["tokens"] > 0 for a in answers)
    assert "no longer fit" in done.stderr and "this message is too long" in done.stderr


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *command: object) -> None:
        self.master, slave = pty.openpty()
        take = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", take, *map(str, command)], stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, wanted: str, again: str = "") -> str:
        """What was shown up to `wanted`; fails after a minute. Types `again` while nothing comes, as a person would."""
        end = time.monotonic() + 60
        while wanted not in self.text:
            assert time.monotonic() < end, f"{wanted!r} did not come: {self.text!r}"
            if not select.select([self.master], [], [], 1.0)[0]:
                self.type(again)
            else:
                try:
                    self.text += os.read(self.master, 4096).decode(errors="replace")
                except OSError:
                    break
        shown, _, self.text = self.text.partition(wanted)
        return shown


@pytest.fixture
def terminal(onnx: Path) -> Iterator[Terminal]:
    program = Terminal(
        sys.executable, "-m", "microstages_infer.cli", "--model", onnx, "--chat", "--max-new-tokens", 200
    )
    yield program
    program.process.kill()
    program.process.wait()
    os.close(program.master)


def test_a_chat_on_a_terminal(terminal: Terminal) -> None:
    assert "Ctrl-D leaves" in terminal.until("> ")
    terminal.type("Who are you?\n")
    first = terminal.until("> ")
    assert "tokens" in first and '{"event"' not in first
    terminal.type("/reset\n")
    assert "forgotten" in terminal.until("> ")
    terminal.type("\x03")
    assert "Ctrl-D leaves" in terminal.until("> ", again="\x03")
    terminal.type("\x04")
    assert terminal.process.wait(10) == 0


def test_ctrl_c_stops_an_answer_and_not_the_chat(base: Path) -> None:
    program = Terminal(sys.executable, "-m", "microstages_infer.cli", "--model", base, "--chat")
    try:
        program.until("> ")
        program.type("Tell me a story.\n")
        program.until("story.\r\n")
        program.until(" ")  # it has begun to speak
        program.type("\x03")
        assert "not ended" in program.until("> ")
        program.type("/exit\n")
        assert program.process.wait(10) == 0
    finally:
        program.process.kill()
        program.process.wait()
        os.close(program.master)
