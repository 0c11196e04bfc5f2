"""The stage contract: flags, describe, events, exit codes. A small stage of the test's own, run as a program."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from microstages.identity import code_identity, fingerprint
from microstages.interface import Interface

CODE = '''
import os, sys, time
from typing import Annotated, Literal
from microstages.artifact import Artifact, Draft
from microstages.errors import TemporaryError, UserError
from microstages.stage import Input, Output, Param, Run, State, stage
from microstages.state import Place


@stage("demo", package="microstages_demo")
def main(
    run: Run,
    source: Annotated[Artifact, Input("files", help="what to read")],
    output: Annotated[Draft, Output("dataset", name="dataset")],
    model: Annotated[Artifact | None, Input("model", "adapter")] = None,
    state: Annotated[Place | None, State("where an unfinished run is kept")] = None,
    rank: Annotated[int, Param("the rank", min=1, max=99)] = 8,
    rate: Annotated[float, Param("the rate", above=0, unit="per step")] = 1e-3,
    words: Annotated[list[str] | None, Param("some words")] = None,
    fold: Annotated[bool, Param("fold it")] = True,
    how: Annotated[
        Literal["plain", "bug", "user", "temporary", "full", "print", "wait", "nothing"], Param("what to do")
    ] = "plain",
    note: Annotated[str | None, Param("a note")] = None,
    threads: Annotated[int, Param("threads", min=0, affects_result=False)] = 0,
) -> None:
    """Copy the source.

    More words about it.
    """
    (output.path / "copy.txt").write_bytes(source.paths()[0].read_bytes())
    if state is not None:
        found = state.newest(run.warn)
        step = found.metadata["step"] + 1 if found else 1
        run.report.event("checkpoint", step=step)
        with state.draft(step) as draft:
            (draft.path / "step.txt").write_text(str(step))
            draft.commit({})
    if how == "bug":
        raise ValueError("oops")
    if how == "user":
        raise UserError("the soup is cold", where="kitchen:3", fix="warm it")
    if how == "temporary":
        raise TemporaryError("the store does not answer")
    if how == "full":
        with open("/dev/full", "w") as f:
            f.write("x" * 100000)
    if how == "print":
        print("a library prints")
        os.system("echo a child prints")
    if how == "wait":
        run.log("waiting")
        time.sleep(60)
    if how == "nothing":
        (output.path / "copy.txt").unlink()
    with run.report.progress("rows", 3, "rows") as bar:
        for _ in range(3):
            bar.advance(loss=1.5)
    run.report.metric(loss=1.5)
    output.metadata["rank"] = rank
    output.metrics["seconds"] = 0.1


if __name__ == "__main__":
    main()
'''


@pytest.fixture
def demo(tmp_path: Path):
    package = tmp_path / "packages" / "microstages_demo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (package / "cli.py").write_text(CODE)
    (tmp_path / "in.txt").write_text("words")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), *filter(None, sys.path)])}

    def run(*arguments: str, **options):
        command = [sys.executable, "-m", "microstages_demo.cli", *arguments]
        streams = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path, **options}
        return subprocess.run(command, check=False, **streams)

    run.command = [sys.executable, "-m", "microstages_demo.cli"]
    run.environment, run.folder = environment, tmp_path
    return run


def visible(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_run_writes_an_artifact_that_says_what_made_it(demo):
    done = demo("--source", "in.txt", "--output", "out", "--rank=3", "--words", "a", "--words", "b", "--no-fold")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((demo.folder / "out/artifact.json").read_text())
    provenance = manifest["provenance"]
    assert manifest["kind"] == "dataset"
    assert manifest["metadata"] == {"rank": 3}
    assert manifest["metrics"] == {"seconds": 0.1}
    assert provenance["params"] == {
        "rank": 3, "rate": 0.001, "words": ["a", "b"], "fold": False, "how": "plain", "note": None, "threads": 0,
    }  # fmt: skip
    assert provenance["stage"] == "demo" and provenance["version"] == "1.2.3"
    assert set(provenance["inputs"]) == {"source"}
    assert provenance["software"]["python"] and provenance["hardware"]["cores"]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", provenance["finished"])


def test_the_fingerprint_is_that_of_the_runner(demo):
    demo("--source", "in.txt", "--output", "out")
    provenance = json.loads((demo.folder / "out/artifact.json").read_text())["provenance"]
    import microstages

    interface = Interface.parse(demo("describe").stdout, "describe")
    code = code_identity([demo.folder / "packages/microstages_demo", Path(microstages.__file__).parent])
    params = interface.identity_params(interface.resolve({}))
    inputs = {"source": provenance["inputs"]["source"]["digest"]}
    assert "threads" not in params
    assert provenance["code"] == code
    assert provenance["fingerprint"] == fingerprint("demo", code, params, inputs)


def test_stdout_carries_events_and_nothing_else(demo):
    done = demo("--source", "in.txt", "--output", "out", "--how", "print")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {e["event"] for e in events} == {"progress", "metric", "artifact", "log"}
    assert events[-2]["event"] == "artifact" and events[-2]["output"] == "dataset"
    assert all(e["stage"] == "demo" for e in events)
    last = [e for e in events if e["event"] == "progress"][-1]
    assert (last["done"], last["total"], last["loss"]) == (3, 3, 1.5)
    assert "a library prints" in done.stderr and "a child prints" in done.stderr


def test_its_version(demo):
    done = demo("--version")
    assert done.returncode == 0 and re.fullmatch(r"demo \S+\n", done.stdout)


def test_describe_says_what_the_signature_says(demo):
    interface = Interface.parse(demo("describe").stdout, "describe")
    assert interface.inputs["source"].kinds == ("files",) and interface.inputs["source"].required
    assert interface.inputs["model"].kinds == ("model", "adapter") and not interface.inputs["model"].required
    assert interface.outputs["dataset"].flag == "--output"
    p = interface.params
    assert (p["rank"].type, p["rank"].default, p["rank"].min, p["rank"].max) == ("integer", 8, 1, 99)
    assert (p["rate"].type, p["rate"].exclusive_min, p["rate"].unit) == ("number", True, "per step")
    assert (p["words"].type, p["words"].nullable) == ("list", True)
    assert p["fold"].type == "boolean" and "bug" in p["how"].choices
    assert not p["threads"].affects_result
    assert interface.to_json() == demo("describe").stdout


def test_what_an_unfinished_run_kept_is_found_again_and_removed_when_it_is_done(demo):
    flags = ("--source", "in.txt", "--output", "out", "--state", "kept")
    interface = Interface.parse(demo("describe").stdout, "describe")
    assert interface.state is not None and interface.state.flag == "--state" and interface.state.help
    assert "state" not in interface.params and "state" not in interface.inputs

    def step(done):
        return [e["step"] for e in map(json.loads, done.stdout.splitlines()) if e["event"] == "checkpoint"]

    # a run that fails keeps its state, and the same run goes on from it
    assert [step(demo(*flags, "--note", "x", "--how", "bug")) for _ in range(3)] == [[1], [2], [3]]
    # another run does not
    other = demo(*flags, "--how", "plain")
    assert step(other) == [1] and "is the checkpoint of another run" in other.stderr
    # what is done removes what is its own, whatever the other's state is
    assert [p.name[:8] for p in sorted((demo.folder / "kept").iterdir())] == ["00000001", "00000002", "00000003"]
    (demo.folder / "kept/notes.txt").write_text("mine")
    (demo.folder / "out").rename(demo.folder / "done")
    fingerprints = [json.loads((p / "artifact.json").read_text()) for p in (demo.folder / "kept").glob("0*")]
    assert len({m["metadata"]["fingerprint"] for m in fingerprints}) == 1
    # a place that holds nothing else is removed itself
    assert demo("--source", "in.txt", "--output", "out", "--state", "alone").returncode == 0
    assert not (demo.folder / "alone").exists() and (demo.folder / "kept/notes.txt").exists()
    # where the state lies is no part of what a run is
    provenance = [json.loads((demo.folder / p / "artifact.json").read_text())["provenance"] for p in ("out", "done")]
    assert provenance[0]["fingerprint"] == provenance[1]["fingerprint"]


def test_a_stage_without_state_says_nothing_of_it(examples):
    merge = Interface.load(examples.parent / "stages/merge/interface.json")
    assert merge.state is None and '"state"' not in merge.to_json()


def test_help_is_for_people(demo):
    text = demo("--help").stdout
    assert "Copy the source." in text and "--rank" in text and "at least 1 and at most 99" in text
    assert "describe" in text


@pytest.mark.parametrize(
    "arguments, phrase",
    [
        (["--source", "in.txt"], "--output"),
        (["--source", "in.txt", "--output", "out", "--rank", "x"], "--rank"),
        (["--source", "in.txt", "--output", "out", "--rank", "0"], "--rank: must be a whole number at least 1"),
        (["--source", "in.txt", "--output", "out", "--rank", "100"], "at most 99"),
        (["--source", "in.txt", "--output", "out", "--rate", "0"], "above 0"),
        (["--source", "in.txt", "--output", "out", "--rate", "nan"], "--rate"),
        (["--source", "in.txt", "--output", "out", "--how", "usre"], "did you mean 'user'"),
        (["--source", "in.txt", "--output", "out", "--rnak", "1"], "--rnak"),
        (["--source", "in.txt", "--output", "out", "extra"], "extra"),
        (["--source", "ni.txt", "--output", "out"], "did you mean 'in.txt'"),
        (["--source", "in.txt", "--output", "out", "--model", "in.txt"], "--model in.txt: it is a file"),
        (["--source", "in.txt", "--output", "in.txt"], "already"),
        (["--source", "in.txt", "--output", "in.txt/out"], "in.txt"),
        (["--source", "in.txt", "--output", "/dev/full/out"], "/dev/full"),
        (["--source", "in.txt", "--output", "out", "--how", "user"], "kitchen:3: the soup is cold\n  warm it"),
        (["--source", "in.txt", "--output", "out", "--how", "full"], "the disk is full"),
        (["--source", "in.txt", "--output", "out", "--how", "nothing"], "wrote nothing"),
    ],
)
def test_a_mistake_of_the_caller(demo, arguments, phrase):
    before = visible(demo.folder)
    done = demo(*arguments)
    assert done.returncode == 2
    assert phrase in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("demo: error: ") and len(done.stderr.splitlines()) <= 2
    assert visible(demo.folder) == before


def test_a_temporary_failure_is_75_and_a_bug_is_70(demo):
    before = visible(demo.folder)
    assert demo("--source", "in.txt", "--output", "out", "--how", "temporary").returncode == 75
    done = demo("--source", "in.txt", "--output", "out", "--how", "bug")
    assert done.returncode == 70 and "ValueError: oops" in done.stderr and "bug of ours" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["exit_code"] == 70
    assert visible(demo.folder) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_stage_exits_143_and_leaves_nothing(demo, number):
    before = visible(demo.folder)
    command = [*demo.command, "--source", "in.txt", "--output", "out", "--how", "wait"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=demo.environment, cwd=demo.folder, text=True
    )
    assert "waiting" in process.stderr.readline()
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert visible(demo.folder) == before


def test_a_killed_stage_leaves_nothing_that_looks_like_an_artifact(demo):
    command = [*demo.command, "--source", "in.txt", "--output", "out", "--how", "wait"]
    places = {"env": demo.environment, "cwd": demo.folder}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, **places)
    process.stderr.readline()
    process.kill()
    process.wait()
    assert not (demo.folder / "out").exists()
    assert not list(demo.folder.rglob("artifact.json"))
    assert demo("--source", "in.txt", "--output", "out").returncode == 0


def test_a_progress_line_redraws_itself_on_a_terminal(demo):
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    command = [*demo.command, "--source", "in.txt", "--output", "out"]
    process = subprocess.Popen(command, stdout=follower, stderr=follower, env=demo.environment, cwd=demo.folder)
    os.close(follower)
    seen = b""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            seen += os.read(leader, 4096)
        except OSError:
            break
    process.wait()
    text = seen.decode()
    assert "\r" in text and "━" in text and "rows" in text
    assert '"event"' not in text, "events are not for people"
    assert "wrote out" in text


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_nobody_has_to_listen(demo, stream):
    reading, writing = os.pipe()
    os.close(reading)
    other = "stderr" if stream == "stdout" else "stdout"
    places = {"env": demo.environment, "cwd": demo.folder, stream: writing, other: subprocess.DEVNULL}
    process = subprocess.Popen([*demo.command, "--source", "in.txt", "--output", "out"], **places)
    os.close(writing)
    process.wait(timeout=30)
    assert (demo.folder / "out/artifact.json").is_file()
