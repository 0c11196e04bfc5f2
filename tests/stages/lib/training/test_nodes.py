"""`train-lora` on two nodes, as two programs on this machine: what they make together, and how they end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from microstages.artifact import open_artifact
from safetensors.numpy import load_file


class Node:
    """One node's stage program, with all that it starts."""

    def __init__(self, folder: Path, rank: int, environment: dict[str, str], arguments: list[str]) -> None:
        self.rank, self.port, self.mark = rank, environment["MASTER_PORT"], f"TEST_OF_NODES={time.time_ns()}"
        self.out, self.words_file = folder / f"events-{rank}", folder / f"words-{rank}"
        name, value = self.mark.split("=")
        with self.out.open("w") as out, self.words_file.open("w") as words:
            self.program = subprocess.Popen(
                [sys.executable, "-m", "microstages_train_lora.cli", *arguments], stdout=out, stderr=words,
                env={**os.environ, **environment, "MICROSTAGES_NODE_RANK": str(rank), name: value},
            )  # fmt: skip

    def events(self, kind: str = "") -> list[dict]:
        lines = self.out.read_text().split("\n")[:-1]
        return [e for e in map(json.loads, lines) if kind in ("", e["event"])]

    @property
    def words(self) -> str:
        return self.words_file.read_text()

    def wait_for_training(self) -> None:
        while self.program.poll() is None and not [e for e in self.events("progress") if e["done"] >= 1]:
            time.sleep(0.05)
        assert self.program.poll() is None, self.words

    def code(self) -> int:
        return self.program.wait(240)

    def processes(self) -> list[int]:
        """The program and all processes that came of it."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(int(pid))
            except OSError:
                continue
        return found

    def die(self) -> None:
        """As a machine dies: everything at once."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def left(self) -> list[int]:
        """The processes that are still there when they should have ended."""
        until = time.monotonic() + 60
        while (pids := self.processes()) and time.monotonic() < until:
            time.sleep(0.1)
        return pids


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def begin(tones, tiny_model, tmp_path):
    """`begin("out", …)`: two nodes, started. What is still there at the end is killed."""
    started = []

    def start(output: str, *more: object, of: int = 2, ranks=(1, 0), **environment: str) -> list[Node]:
        arguments = ["--dataset", tones.path, "--base-model", tiny_model, "--output", tmp_path / output, "--rank", 4,
                     "--alpha", 4, "--batch-tokens", 300, "--accumulation", 2, "--threads", 1, "--precision", "fp32",
                     "--learning-rate", 1e-2, *more]  # fmt: skip
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "MICROSTAGES_NODES": str(of)}
        nodes = {r: Node(tmp_path, r, {**where, **environment}, [str(a) for a in arguments]) for r in ranks}
        started.extend(nodes.values())
        return [nodes[r] for r in sorted(nodes)]

    yield start
    for node in started:
        node.die()
        node.program.wait()


def ended(nodes: list[Node]) -> list[int]:
    return [node.code() for node in nodes]


@pytest.mark.parametrize("more", [(), ("--shard", "on")], ids=["whole", "shared out"])
def test_two_nodes_learn_what_one_does(more, begin, run_stage, tones, tiny_model, tmp_path):
    nodes = begin("two", "--steps", 6, *more)
    assert ended(nodes) == [0, 0], nodes[0].words + nodes[1].words
    flags = ("--dataset", tones.path, "--base-model", tiny_model, "--output", tmp_path / "one", "--rank", 4)
    flags += ("--alpha", 4, "--batch-tokens", 300, "--accumulation", 2, "--threads", 1, "--precision", "fp32")
    assert run_stage("train-lora", *flags, "--learning-rate", 1e-2, "--steps", 6).code == 0
    # then the adapter and its losses are those of one, within rounding
    two, one = (open_artifact(str(tmp_path / n), ["adapter"]) for n in ("two", "one"))
    ours, theirs = (load_file(a.path / "adapter_model.safetensors") for a in (two, one))
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=0, atol=2e-3 * np.abs(theirs[name]).max() + 1e-6)
    np.testing.assert_allclose(two.manifest.metrics["eval_loss"], one.manifest.metrics["eval_loss"], rtol=1e-3)
    assert two.manifest.metrics["processes"] == 2
    # and node 0 alone spoke and wrote
    assert len(nodes[0].events("artifact")) == 1 and nodes[1].events() == []
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["one", "two"]


def test_told_to_stop_both_stop_and_go_on_with_the_same_bytes(begin, tmp_path):
    undisturbed = begin("undisturbed", "--steps", 40, "--dropout", 0.1)
    assert ended(undisturbed) == [0, 0], undisturbed[0].words
    # when the node that writes nothing is told to stop
    place = ("--steps", 40, "--dropout", 0.1, "--checkpoints", tmp_path / "kept")
    nodes = begin("out", *place)
    nodes[0].wait_for_training()
    nodes[1].program.send_signal(signal.SIGTERM)
    # then both stop, and node 0 has saved where they were
    assert ended(nodes) == [143, 143], nodes[0].words + nodes[1].words
    saved = nodes[0].events("checkpoint")
    assert len(saved) == 1 and not (tmp_path / "out").exists()
    assert f"stopped at step {saved[0]['step']} of 40; a checkpoint is saved" in nodes[0].words
    # and started again they go on from there
    again = begin("out", *place)
    assert ended(again) == [0, 0], again[0].words + again[1].words
    assert again[0].events("checkpoint")[0]["step"] == saved[0]["step"]
    digests = {open_artifact(str(tmp_path / name), ["adapter"]).digest for name in ("out", "undisturbed")}
    assert len(digests) == 1 and not (tmp_path / "kept").exists()


@pytest.mark.parametrize("dies", [0, 1])
def test_where_one_dies_the_other_ends_to_be_started_again(dies, begin, tmp_path):
    nodes = begin("out", "--steps", 100_000)
    nodes[0].wait_for_training()
    nodes[dies].die()
    other = nodes[1 - dies]
    assert other.code() == 75, other.words
    assert f"node {dies}: this node is lost" in other.words and "Traceback" not in other.words.split("error: ")[-1]
    assert other.left() == [] and not (tmp_path / "out").exists()


def test_a_mistake_ends_all_nodes_with_its_words(begin, tmp_path):
    # the output is node 0's alone to open
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "something").write_text("")
    nodes = begin("out", "--steps", 6)
    assert ended(nodes) == [2, 2]
    assert all("something lies there already" in node.words for node in nodes)
    # and what only a node that helps can see is told by node 0, too
    nodes = begin("other", "--steps", 6, ranks=(0,))
    second = begin("other", "--steps", 7, ranks=(1,), MASTER_PORT=nodes[0].port)
    assert ended([*nodes, *second]) == [2, 2]
    assert all("runs something else than node 0" in node.words for node in (*nodes, *second))
