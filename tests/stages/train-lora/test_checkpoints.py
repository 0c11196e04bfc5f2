"""`train-lora` with checkpoints, as a program: killed at random, told to stop, started again."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from microstages.artifact import open_artifact

EVERY = 5  # steps between two checkpoints

CODE = """
import os, sys
for number, name in (1, "events"), (2, "words"):
    os.dup2(os.open(os.path.join({folder!r}, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
sys.argv[1:] = {arguments!r}
from microstages_train_lora.cli import main
main()
"""


class Life:
    """The stage as a process of its own, forked from one that has its imports done: it starts in an instant."""

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["microstages_train_lora.cli", "torch", "transformers", "peft"])

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.folder = folder
        for name in ("events", "words"):
            (folder / name).unlink(missing_ok=True)
        code = CODE.format(folder=str(folder), arguments=arguments)
        self.process = self.context.Process(target=exec, args=(code, {}))
        self.process.start()

    def events(self, kind: str) -> list[dict]:
        file = self.folder / "events"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [e for e in map(json.loads, lines) if e["event"] == kind]

    def reached(self) -> int:
        """The step that it was seen at last."""
        seen = [int(e["done"]) for e in self.events("progress")] + [e["step"] for e in self.events("checkpoint")]
        return max(seen, default=0)

    def wait_for(self, step: int) -> None:
        while self.process.is_alive() and self.reached() < step:
            time.sleep(0.01)

    def end(self, number: int = 0) -> int:
        """Its exit code; first it gets the signal."""
        if number and self.process.is_alive():
            os.kill(self.process.pid, number)
        self.process.join(60)
        return self.process.exitcode

    @property
    def words(self) -> str:
        return (self.folder / "words").read_text()


@pytest.fixture
def begin(tones, tiny_model, tmp_path):
    """`begin("out", steps, …)`: the stage, started; checkpoints in `kept`."""

    def start(output: str, steps: int, *more: object, kept: str = "kept") -> Life:
        place = ["--checkpoints", tmp_path / kept, "--checkpoint-every", EVERY] if kept else []
        arguments = ["--dataset", tones.path, "--base-model", tiny_model, "--output", tmp_path / output, "--rank", 4,
                     "--alpha", 4, "--batch-tokens", 512, "--threads", 1, "--dropout", 0.1, "--steps", steps, *place,
                     *more]  # fmt: skip
        return Life(tmp_path, [str(a) for a in arguments])

    return start


def test_killed_ten_times_at_random_it_ends_with_the_same_digest(begin, tmp_path):
    undisturbed = begin("undisturbed", 300, kept="")
    assert undisturbed.end() == 0, undisturbed.words
    # when it is killed ten times, at a random moment each
    dice, resumed, reached, saved = random.Random(4), 0, 0, 0
    for _ in range(10):
        life = begin("out", 300)
        life.wait_for(min(200, reached) + dice.randint(1, 2 * EVERY))
        time.sleep(dice.random() / 20)
        assert life.end(signal.SIGKILL) == -signal.SIGKILL
        # then each time it went on from the newest checkpoint that was told of, or a newer one
        first = life.events("checkpoint")[:1]
        resumed = first[0]["step"] if first and first[0].get("resumed") else 0
        assert resumed >= saved
        # and lost no more than an interval
        assert reached - resumed <= EVERY
        reached = max(reached, life.reached())
        saved = max([e["step"] for e in life.events("checkpoint")], default=saved)
        assert not (tmp_path / "out").exists()
    # and its adapter is the same, with its losses and their curve
    last = begin("out", 300)
    assert last.end() == 0, last.words
    assert last.events("artifact")[0]["digest"] == open_artifact(str(tmp_path / "undisturbed"), ["adapter"]).digest
    assert open_artifact(str(tmp_path / "out"), ["adapter"]).manifest.metrics["resumed_from_step"] > EVERY
    # and its checkpoints, and what its killed selves left, are gone
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_a_checkpoint_and_goes_on_from_it(number, begin, tmp_path):
    life = begin("out", 40, "--checkpoint-every", 0)
    life.wait_for(1)
    assert life.end(number) == 143
    # the step ends, a checkpoint is saved
    saved = life.events("checkpoint")
    assert len(saved) == 1 and "resumed" not in saved[0]
    assert f"train-lora: stopped at step {saved[0]['step']} of 40; a checkpoint is saved\n" in life.words
    assert not (tmp_path / "out").exists() and os.listdir(tmp_path / "kept") == [Path(saved[0]["uri"]).name]
    # it goes on from there
    again = begin("out", 40)
    assert again.end() == 0
    assert again.events("checkpoint")[0]["step"] == saved[0]["step"] and again.events("checkpoint")[0]["resumed"]
    undisturbed = begin("undisturbed", 40, kept="")
    assert undisturbed.end() == 0
    digests = {open_artifact(str(tmp_path / name), ["adapter"]).digest for name in ("out", "undisturbed")}
    assert len(digests) == 1


def test_it_says_what_is_wrong_with_its_place_before_it_begins(run_stage, tones, tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    flags = ("--dataset", tones.path, "--base-model", tiny_model, "--output", tmp_path / "out")
    done = run_stage("train-lora", *flags, "--batch-tokens", 512, "--checkpoints", tmp_path / "file")
    assert done.code == 2 and f"{tmp_path}/file: it is a file; checkpoints need a folder" in done.stderr
    assert os.listdir(tmp_path) == ["file"]
