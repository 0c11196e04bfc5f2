"""Containers and what is odd around them: links, patterns, somebody else's hands, an engine that stays away."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from runner.executors import Attempt, docker
from runner.executors.secrets import Redactor


def test_an_output_with_a_link_that_leads_out_of_it_is_refused(boxed, tmp_path):
    key = tmp_path / "key"
    key.write_text("private")
    key.chmod(0o600)
    for link in ("x", "artifact.json", ".verified.json"):
        boxed.one(f'ln -s {key} "$out/{link}"; echo y > "$out/y"')
        for target in ("docker", "process"):
            done = boxed.run("up", "--target", target)
            if link == "x":
                assert done.code == 2
                assert "x is a link that leads out of the output" in done.out
            else:  # the manifest is the runner's: what lay in its place does not count
                assert done.code == 0, done.out
            assert key.read_text() == "private" and key.stat().st_mode & 0o777 == 0o600
    assert boxed.nothing_half_made()


def test_a_container_that_somebody_removes_is_made_again_not_taken_for_done(boxed, engine, eventually):
    boxed.one('echo half > "$out/x"; sleep 2; echo whole >> "$out/x"')
    up = boxed.start("up", "--json")
    first = eventually(boxed.container)["Id"]
    up.send_signal(signal.SIGSTOP)
    engine.client.remove_container(first, force=True)
    up.send_signal(signal.SIGCONT)
    out, err = up.communicate(timeout=60)
    assert up.returncode == 0, err
    assert json.loads(out)["stages"][0]["status"] == "done"
    assert (boxed.output("a") / "x").read_text() == "half\nwhole\n"
    assert boxed.containers() == []


@pytest.mark.parametrize("gone", [False, True], ids=["before this runner", "under this runner"])
def test_a_container_that_an_engine_left_half_started_is_lost(boxed, eventually, tmp_path, monkeypatch, gone):
    """The engine died in the middle of a start. What is lost is made again (the tests around this one)."""
    import docker as library

    boxed.one("true")
    attempt = Attempt(f"half-{os.getpid()}", "work", ("true",), tmp_path, tmp_path / "log", tmp_path / "log",
                      image=boxed.image, writes=(tmp_path / "out",), code_folders=(boxed.folder / "work",))  # fmt: skip
    monkeypatch.setenv("DOCKER_HOST", boxed.engine.address)
    executor, fates = docker.DockerExecutor(), [ConnectionError("away")] if gone else []
    text = "it is in an odd state" if gone else "failed to create task: task 0123: already exists"
    fates.append(library.errors.APIError("500 Server Error", explanation=text))

    def start(_):
        raise fates.pop(0)

    monkeypatch.setattr(executor.client, "start", start)
    executor.submit(attempt)
    status = eventually(lambda: (s := executor.poll(attempt)).code is not None and s)
    assert (status.code, status.why) == (docker.LOST, None) and fates == []
    executor.forget(attempt)
    assert boxed.containers() == []


def test_a_stage_that_is_lost_again_and_again_is_given_up(boxed, engine, eventually):
    boxed.one("sleep 600", ", retries: 0")
    up = boxed.start("up")
    before = ""
    for _ in range(2):
        found = eventually(lambda known=before: (c := boxed.container()) and c["Id"] != known and c)
        before = found["Id"]
        up.send_signal(signal.SIGSTOP)
        engine.client.remove_container(before, force=True)
        up.send_signal(signal.SIGCONT)
    out = up.communicate(timeout=60)[0]
    assert up.returncode == 70
    assert "it was lost 2 times" in out and "docker events" in out
    assert boxed.containers() == [] and boxed.nothing_half_made()


def test_a_run_that_takes_over_still_hides_the_secrets(boxed, eventually):
    boxed.stage("work", 'echo "token $TOKEN"; [ -e "$(dirname "$0")/go" ] || sleep 600; echo x > "$out/x"')
    boxed.pipeline("target: b\ntargets: {b: {type: docker, secrets: [TOKEN]}}\nstages:\n  a: {uses: ./work}\n")
    boxed.environment["TOKEN"] = "secret-of-the-first-run"
    up = boxed.start("up")
    eventually(boxed.container)
    eventually(lambda: "token ***" in boxed.run("logs", "a").out)
    up.kill()
    up.communicate()
    del boxed.environment["TOKEN"]
    done = boxed.run("up")
    assert "the secret TOKEN is not set" in done.out
    logs = [p.read_text() for p in (boxed.folder / ".runner").rglob("*.log")]
    assert any("token ***" in text for text in logs)
    assert "secret-of" not in "".join(logs) + done.out + done.err
    assert boxed.containers() == []


def test_the_program_is_the_images(boxed):
    boxed.one('import sys; print("never")', command=["python3", "./main.py"])
    (boxed.folder / "work/main.py").write_text(
        "import sys, pathlib\n"
        "out = next(a for a in sys.argv if a.startswith('--out=')).removeprefix('--out=')\n"
        "pathlib.Path(out, 'x').write_text(sys.executable)\n"
    )
    boxed.up()
    assert not (boxed.output("a") / "x").read_text().startswith(str(Path(os.sys.executable).parent))


def test_links_and_patterns_find_their_files_inside(boxed, tmp_path):
    """A folder of links, as a model hub's cache has it, and a pattern."""
    hub = tmp_path / "hub"
    (hub / "blobs").mkdir(parents=True)
    (hub / "snapshots/1").mkdir(parents=True)
    (hub / "blobs/abc").write_text("weights\n")
    (hub / "snapshots/1/model.bin").symlink_to("../../blobs/abc")
    for name in ("a b.txt", "c,d.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    boxed.stage("read", 'cat "$data"/* > "$out/x"', inputs={"data": ["files"]})
    boxed.stage("match", 'cat $data > "$out/x"', inputs={"data": ["files"]})
    boxed.pipeline(f"""\
        target: docker
        stages:
          hub: {{uses: ./read, inputs: {{data: {hub}/snapshots/1}}}}
          some: {{uses: ./match, inputs: {{data: "{tmp_path}/?,d.txt"}}}}
        """)
    boxed.up()
    assert (boxed.output("hub") / "x").read_text() == "weights\n"
    assert (boxed.output("some") / "x").read_text() == "c,d.txt\n"


def test_a_link_into_the_system_leads_to_the_images_own(boxed):
    """As in a virtual environment in the stage's folder: this machine's Python is not put over the image's."""
    boxed.one('readlink "$(dirname "$0")/python" > "$out/x"')
    (boxed.folder / "work/python").symlink_to("/usr/bin/env")
    boxed.up()
    assert (boxed.output("a") / "x").read_text() == "/usr/bin/env\n"
    here = boxed.folder
    attempt = Attempt("x", "work", (), here, here, here, code_folders=(here / "work",))
    assert [m["Target"] for m in docker.mounts(attempt, [], 1)] == [str(here / "work")]


def test_a_network_that_is_not_there_is_told(boxed):
    boxed.stage("work", 'echo x > "$out/x"')
    boxed.pipeline("target: b\ntargets: {b: {type: docker, network: nvidia-net}}\nstages:\n  a: {uses: ./work}\n")
    done = boxed.run("up")
    assert done.code == 2
    assert "nvidia-net not found" in done.out and "GPU" not in done.out
    assert boxed.containers() == [] and boxed.nothing_half_made()


def test_a_stage_that_says_nothing_has_an_empty_log(boxed):
    boxed.one('echo x > "$out/x"')
    boxed.stage("work", 'exec 2> /dev/null; echo x > "$out/x"')
    boxed.up()
    assert boxed.run("logs", "a").code == 0


def test_an_input_that_would_hide_the_image_is_refused(boxed):
    boxed.one("true", ", inputs: {data: /usr/bin}", inputs={"data": ["files"]})
    (boxed.folder / "work/interface.json").write_text(
        (boxed.folder / "work/interface.json").read_text().replace('["sh", ', '["/bin/sh", ')
    )
    boxed.pipeline("target: docker\nstages:\n  a: {uses: ./work, inputs: {data: /usr/local}}\n")
    done = boxed.run("up")
    assert done.code == 2
    assert "would hide the image's own files" in done.out


def test_a_container_of_a_dead_runner_does_not_stop_what_needs_no_engine(boxed, eventually):
    boxed.one("sleep 600")
    up = boxed.start("up")
    eventually(boxed.container)
    up.kill()
    up.communicate()
    boxed.stage("plain", 'echo x > "$out/x"', image="")
    boxed.pipeline("target: process\nstages:\n  b: {uses: ./plain}\n")
    done = boxed.run("up", environment={"DOCKER_HOST": "unix:///nonexistent/docker.sock"})
    assert done.code == 0, done.out + done.err
    assert "cannot be looked at" in done.out
    done = boxed.run("up", "--force")
    assert done.code == 0, done.out + done.err


def test_an_engine_that_stays_away_leaves_it_to_the_next_run(boxed, proxy, engine, eventually, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{proxy.path}")
    monkeypatch.setattr(docker, "GONE", 1.0)
    out = tmp_path / "out"
    attempt = Attempt(
        f"away-{os.getpid()}", "work", ("sh", "-c", "sleep 600"), tmp_path, tmp_path / "log", tmp_path / "log",
        writes=(out,), image=boxed.image, code_folders=(boxed.stage("work", "true"),),
    )  # fmt: skip
    executor = docker.DockerExecutor()
    executor.submit(attempt)
    eventually(boxed.container)
    proxy.down()
    status = eventually(lambda: (s := executor.poll(attempt)).running is False and s)
    assert status.left and status.code == 75
    assert "stopped answering" in str(status.why)
    executor.forget(attempt, leave=True)
    assert boxed.container(), "it goes on"
    monkeypatch.setenv("DOCKER_HOST", engine.address)
    again = docker.DockerExecutor()
    assert again.find(attempt, "")
    again.cancel(attempt, now=True)
    eventually(lambda: not again.poll(attempt).running)
    again.forget(attempt)
    assert boxed.containers() == []


SECRETS = ["pass word/1", 'line"one\nline two', "abc"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_secrets_are_hidden_however_the_stream_is_cut(size):
    said = "".join(
        f"{n}: {text}\n"
        for n, text in enumerate(
            [
                "pass word/1",
                "xpass word/1y",
                "pass%20word%2F1",
                json.dumps('line"one\nline two'),
                'line"one',
                "abc",
                "pass",
            ]
        )
    ).encode()
    redact = Redactor(SECRETS)
    cleaned = b"".join(redact.stream(said[i : i + size] for i in range(0, len(said), size))).decode()
    lines = cleaned.splitlines()
    assert lines.pop(3) in ('3: "***"', '3: "***\\n***"')  # in one piece, or line by line
    assert lines == ["0: ***", "1: x***y", "2: ***", "4: ***", "5: abc", "6: pass"]


def test_a_long_line_is_hidden_in_linear_time_and_short_lines_come_at_once():
    redact = Redactor(["a secret of some length"])
    chunk = b"x" * 65536
    began = time.process_time()
    assert sum(map(len, redact.stream(chunk for _ in range(400)))) == 400 * 65536
    assert time.process_time() - began < 20
    live = redact.stream(iter([b"one line\n", b"two"]))
    assert next(live) == b"one line\n"
