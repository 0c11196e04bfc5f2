"""Stages in containers of a real Docker engine: shut in, told apart, found again, and removed."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

SHELL = "microstages/prepare-data:latest"  # the smallest image that `make images` makes; its shell is all that is used
STUCK = 'trap "exit 143" TERM; echo begun; while :; do sleep 0.1; done'


@pytest.fixture
def boxed(project: Any, engine: Any) -> Iterator[Any]:
    """A project whose stages run in containers; what a failed test left there is removed."""
    project.environment["DOCKER_HOST"] = engine.address
    plain = project.stage

    def stage(name: str, script: str, **more: Any) -> Path:
        return plain(name, script, **{"image": SHELL, **more})

    project.stage = stage
    before = {c["Id"] for c in engine.client.containers(all=True)}
    yield project
    for container in engine.client.containers(all=True):
        if container["Id"] not in before:
            engine.client.remove_container(container["Id"], force=True)


def ours(engine: Any, project: Any) -> list[dict[str, Any]]:
    """The containers whose mounts lie in a project's folder."""
    found = engine.client.containers(all=True)
    return [c for c in found if any(m["Source"].startswith(str(project.folder)) for m in c["Mounts"])]


def running(engine: Any, project: Any) -> dict[str, Any] | None:
    """The one that runs, inspected."""
    found = [c for c in ours(engine, project) if c["State"] == "running"]
    return engine.client.inspect_container(found[0]["Id"]) if found else None


def one(project: Any, script: str, rest: str = "", **more: Any) -> None:
    """A pipeline of one stage that runs in a container."""
    project.stage("work", script, **more)
    project.pipeline(f"target: docker\nstages:\n  a: {{uses: ./work{rest}}}\n")


# --- the same results ---


def test_what_a_process_made_is_reused_by_a_container_and_the_other_way_round(boxed):
    boxed.stage("first", 'echo "$n" > "$out/x"', params={"n": {"type": "integer", "default": 0}})
    boxed.stage("second", 'cat "$x/x" "$x/x" > "$out/x"', inputs={"x": ["dataset"]})
    boxed.pipeline("""\
        params: {n: 1}
        stages:
          a: {uses: ./first, params: {n: "${{ params.n }}"}}
          b: {uses: ./second, inputs: {x: "${{ stages.a.out }}"}}
        """)
    one_way = boxed.up("--target", "process"), boxed.up("--target", "docker")
    assert [set(states.values()) for states in one_way] == [{"done"}, {"reused"}]
    set_ = ("--set", "params.n=2")
    other = boxed.up("--target", "docker", *set_), boxed.up("--target", "process", *set_)
    assert [set(states.values()) for states in other] == [{"done"}, {"reused"}]
    assert boxed.nothing_half_made()


def test_what_it_writes_belongs_to_the_caller_and_is_not_hashed_again(boxed):
    one(boxed, 'mkdir "$out/deep"; head -c 9000000 /dev/zero > "$out/deep/x"; echo y > "$out/y"')
    boxed.up()
    output = boxed.output("a")
    for path in (output, *output.rglob("*")):
        assert (path.stat().st_uid, path.stat().st_gid) == (os.geteuid(), os.getegid()), path
    remembered = json.loads((output / ".verified.json").read_text())
    status = (output / "deep/x").stat()
    assert remembered["deep/x"][2] == status.st_ctime_ns < remembered["deep/x"][4]


def test_logs_hold_every_line_of_both_streams(boxed):
    one(boxed, 'i=0; while [ $i -lt 500 ]; do echo "out $i"; echo "err $i" >&2; i=$((i+1)); done; echo x > "$out/x"')
    boxed.up()
    lines = boxed.run("logs", "a").out.splitlines()
    for stream in ("out", "err"):
        assert [x for x in lines if x.startswith(stream)] == [f"{stream} {i}" for i in range(500)]


# --- shut in ---


def test_a_running_container_is_hardened(boxed, engine, eventually):
    one(boxed, STUCK, ", resources: {memory: 256MiB, cpus: 1, shm: 32MiB}")
    up = boxed.start("up")
    found = eventually(lambda: running(engine, boxed))
    host, config = found["HostConfig"], found["Config"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"] and host["Privileged"] is False
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["NetworkMode"] == "none" and host["IpcMode"] == "private"
    assert 0 < host["PidsLimit"] <= 4096
    assert host["Memory"] == host["MemorySwap"] == 256 << 20
    assert host["NanoCpus"] == 10**9 and host["ShmSize"] == 32 << 20
    assert host["AutoRemove"] is False and host["Init"] is True
    assert config["User"].partition(":")[0] not in ("", "0", "root")
    mounts = {m["Destination"]: m["RW"] for m in found["Mounts"]}
    assert [m for m, writable in mounts.items() if writable and "/artifacts/work/" not in m] == []
    assert mounts[str(boxed.folder / "work")] is False
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=60)
    assert up.returncode == 143
    assert ours(engine, boxed) == []
    assert boxed.nothing_half_made()


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        ("touch /etc/x", "Read-only file system"),
        ('touch "$data/x"', "Read-only file system"),
        ('touch "$(dirname "$0")/x"', "Read-only file system"),
        (
            "python3 -c \"import socket, sys; sys.tracebacklimit = 0; socket.create_connection(('172.17.0.1', 80))\"",
            "Network is unreachable",
        ),
        ('python3 -c "import os, sys; sys.tracebacklimit = 0; os.setuid(0)"', "Operation not permitted"),
        ("chown 0 /tmp", "Operation not permitted"),
        ("mount -t tmpfs x /mnt", "Operation not permitted|permission denied|only root|must be superuser"),
    ],
)
def test_it_cannot_leave_its_box(boxed, attempt, refusal):
    one(boxed, f'{attempt} && echo escaped; echo x > "$out/x"', ", inputs: {data: in}", inputs={"data": ["files"]})
    (boxed.folder / "in").mkdir()
    (boxed.folder / "in" / "data.txt").write_text("data")
    boxed.up()
    said = boxed.run("logs", "a").out
    assert "escaped" not in said
    assert any(word in said for word in refusal.split("|")), said
    assert [p.name for p in (boxed.folder / "in").iterdir()] == ["data.txt"]


def test_the_network_is_opened_where_a_target_says_so(boxed):
    boxed.stage("work", 'ls /sys/class/net > "$out/x"')
    boxed.pipeline("""\
        target: open
        targets: {open: {type: docker, network: bridge}}
        stages:
          a: {uses: ./work}
        """)
    boxed.up()
    assert (boxed.output("a") / "x").read_text().split() == ["eth0", "lo"]


def test_secrets_arrive_and_are_seen_nowhere_else(boxed, engine, eventually):
    boxed.stage(
        "work", 'echo "token $TOKEN $(cat /run/secrets/KEY)"; printf "%s" "$TOKEN" | wc -c > "$out/x"; ' + STUCK
    )
    boxed.pipeline("""\
        target: box
        targets: {box: {type: docker, secrets: [TOKEN, {name: KEY, file: key.txt}]}}
        stages:
          a: {uses: ./work, grace: 5s}
        """)
    (boxed.folder / "key.txt").write_text("file-secret-1\n")
    (boxed.folder / "key.txt").chmod(0o644)
    boxed.environment["TOKEN"] = "environment-secret-1"
    up = boxed.start("up")
    found = eventually(lambda: running(engine, boxed))
    eventually(lambda: "begun" in boxed.run("logs", "a").out)
    assert "token *** ***" in boxed.run("logs", "a").out
    everywhere = json.dumps([found["Args"], found["Config"]["Labels"], found["Config"]["Cmd"], found["Path"]])
    up.send_signal(signal.SIGINT)
    everywhere += "".join(up.communicate(timeout=60))
    for file in (boxed.folder / ".runner").rglob("*"):
        everywhere += file.read_bytes().decode(errors="replace") if file.is_file() else ""
    assert "secret-1" not in everywhere


def test_a_secret_that_is_not_set_is_told(boxed):
    boxed.stage("work", 'echo x > "$out/x"')
    boxed.pipeline("target: b\ntargets: {b: {type: docker, secrets: [NO_SUCH]}}\nstages:\n  a: {uses: ./work}\n")
    done = boxed.run("up")
    assert done.code == 2
    assert "the secret NO_SUCH is not set" in done.out and "export NO_SUCH=" in done.out


# --- what goes wrong ---


def test_out_of_memory_names_the_limit_and_the_key(boxed, engine):
    script = "python3 -c \"x = bytearray(300 << 20); x[::4096] = b'x' * len(x[::4096])\"; exit $?"
    one(boxed, script, ", resources: {memory: 64MiB}")
    done = boxed.run("up")
    assert done.code == 2
    assert "out of memory: it needed more than its limit of 64 MiB" in done.out
    assert "raise `memory` below `resources:` of a" in done.out
    assert ours(engine, boxed) == [] and boxed.nothing_half_made()


def test_a_timeout_ends_the_container(boxed, engine):
    one(boxed, "sleep 600", ", timeout: 1s, grace: 1s")
    done = boxed.run("up")
    assert done.code == 2
    assert "it took longer than its timeout of 1 s" in done.out
    assert ours(engine, boxed) == [] and boxed.nothing_half_made()


def test_a_missing_image_is_told(boxed):
    one(boxed, "true", image="microstages/no-such:1")
    done = boxed.run("up")
    assert done.code == 2
    assert "the image microstages/no-such:1 is not there" in done.out and "docker pull" in done.out


def test_a_program_that_the_image_does_not_hold_is_told(boxed):
    one(boxed, "true", command=["/usr/bin/env", "no-such-program"])
    done = boxed.run("up")
    assert done.code != 0
    assert "no-such-program" in done.out


def test_exit_codes_of_the_contract_pass_through(boxed):
    for code, text in ((2, "exit code 2"), (75, "try 2 of 2"), (143, "stopped"), (9, "exit code 9")):
        one(boxed, f"exit {code}", ", retries: 1")
        done = boxed.run("up")
        assert done.code == {9: 70}.get(code, code), done.out
        assert text in done.out, (code, done.out)


def test_without_an_engine_it_says_so(boxed):
    one(boxed, "true")
    done = boxed.run("up", environment={"DOCKER_HOST": "unix:///nonexistent/docker.sock"})
    assert done.code == 2
    assert "no Docker engine answers" in done.out and "--target process" in done.out


def test_gpus_without_their_runtime_are_told(boxed, engine, tmp_path):
    from runner.executors import Attempt
    from runner.executors.docker import DockerExecutor

    if "nvidia" in engine.client.info()["Runtimes"]:
        pytest.skip("this engine has an NVIDIA runtime")
    os.environ["DOCKER_HOST"], before = engine.address, os.environ["DOCKER_HOST"]
    try:
        attempt = Attempt(
            "gpu-test", "train", ("true",), tmp_path, tmp_path / "log", tmp_path / "log", gpus=(0, 1),
            writes=(tmp_path / "out",), image=SHELL, code_folder=tmp_path,
        )  # fmt: skip
        executor = DockerExecutor()
        requests = executor._limits(attempt)["device_requests"]
        assert requests[0]["DeviceIDs"] == ["0", "1"] and requests[0]["Capabilities"] == [["gpu"]]
        executor.submit(attempt)
        executor._containers["gpu-test"].thread.join(30)
        status = executor.poll(attempt)
        assert (status.running, status.code) == (False, 2)
        assert "cannot give GPUs" in str(status.why) and "NVIDIA Container Toolkit" in str(status.why)
        executor.forget(attempt)
    finally:
        os.environ["DOCKER_HOST"] = before
    assert ours(engine, boxed) == []


class Proxy:
    """A socket in front of the engine's that can go away and come back."""

    def __init__(self, path: Path, engine: str) -> None:
        self.path, self.engine = path, engine.removeprefix("unix://")
        self.open: list[socket.socket] = []
        self.up()

    def up(self) -> None:
        self.path.unlink(missing_ok=True)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(self.path))
        self.server.listen()
        threading.Thread(target=self._accept, args=(self.server,), daemon=True).start()

    def down(self) -> None:
        for s in (self.server, *self.open):
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()
        self.open.clear()
        self.path.unlink(missing_ok=True)

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near = server.accept()[0]
                far = socket.socket(socket.AF_UNIX)
                far.connect(self.engine)
                self.open += [near, far]
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    @staticmethod
    def _pump(a: socket.socket, b: socket.socket) -> None:
        with suppress(OSError):
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)


def test_an_engine_that_goes_away_for_a_moment_costs_nothing(boxed, engine, eventually, tmp_path):
    if not engine.address.startswith("unix://"):
        pytest.skip("this engine is not behind a socket of this machine")
    proxy = Proxy(tmp_path / "docker.sock", engine.address)
    boxed.environment["DOCKER_HOST"] = f"unix://{proxy.path}"
    one(
        boxed, 'echo begun; i=0; while [ $i -lt 40 ]; do echo "line $i"; i=$((i+1)); sleep 0.1; done; echo x > "$out/x"'
    )
    up = boxed.start("up", "--json")
    eventually(lambda: running(engine, boxed))
    proxy.down()
    threading.Timer(1.5, proxy.up).start()
    out, err = up.communicate(timeout=90)
    proxy.down()
    assert up.returncode == 0, err
    assert json.loads(out)["stages"][0]["status"] == "done"
    lines = [x for x in boxed.run("logs", "a").out.splitlines() if x.startswith("line")]
    assert lines == [f"line {i}" for i in range(40)]
    assert ours(engine, boxed) == []


# --- stopped, killed, found again ---


def test_ctrl_c_passes_sigterm_and_waits(boxed, engine, eventually):
    one(boxed, 'trap "sleep 0.5; echo saved; exit 143" TERM; echo begun; while :; do sleep 0.1; done')
    up = boxed.start("up")
    eventually(lambda: running(engine, boxed))
    eventually(lambda: "begun" in boxed.run("logs", "a").out)
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=60)
    assert up.returncode == 143
    assert "saved" in boxed.run("logs", "a").out
    assert ours(engine, boxed) == [] and boxed.nothing_half_made()


def test_a_second_ctrl_c_ends_it_at_once(boxed, engine, eventually):
    one(boxed, 'trap "" TERM; echo begun; while :; do sleep 0.1; done')
    up = boxed.start("up")
    eventually(lambda: running(engine, boxed))
    up.send_signal(signal.SIGINT)
    assert eventually(lambda: "stopping" in "".join(iter(up.stdout.readline, "")) or True)  # it has heard the first
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=60)
    assert ours(engine, boxed) == [] and boxed.nothing_half_made()


def test_after_kill_9_the_next_run_takes_over_and_leaves_no_container(boxed, engine, eventually):
    one(boxed, 'echo begun; [ -e "$(dirname "$0")/go" ] || sleep 600; echo x > "$out/x"')
    up = boxed.start("up")
    first = eventually(lambda: running(engine, boxed))["Id"]
    up.kill()
    up.communicate()
    assert running(engine, boxed)["Id"] == first, "a container outlives its runner"
    again = boxed.start("up")  # how a plain command ends only its own runner can record: it is made anew
    eventually(lambda: (found := running(engine, boxed)) and found["Id"] != first)
    assert len(ours(engine, boxed)) == 1
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
    assert ours(engine, boxed) == [] and boxed.nothing_half_made()


def test_an_image_that_says_what_it_is_is_a_stage(boxed, engine, tmp_path):
    interface = json.loads((boxed.stage("own", "true") / "interface.json").read_text())
    del interface["image"]
    script = f'#!/bin/sh\n{(boxed.folder / "own" / "run.sh").read_text()}\necho made in an image > "$out/x"\n'
    context = tmp_path / "context"
    context.mkdir()
    (context / "run.sh").write_text(script)
    (context / "Dockerfile").write_text(
        f'FROM {SHELL}\nCOPY --chmod=755 run.sh /run.sh\nENTRYPOINT ["sh", "/run.sh"]\n'.replace("--chmod=755 ", "")
    )
    labels = {"microstages.interface": json.dumps(interface), "microstages.code": ""}
    list(engine.client.build(path=str(context), tag="microstages-test/own:1", labels=labels, rm=True))
    try:
        boxed.pipeline("target: docker\nstages:\n  a: {uses: 'microstages-test/own:1'}\n")
        assert boxed.up() == {"a": "done"}
        assert (boxed.output("a") / "x").read_text() == "made in an image\n"
        assert boxed.up() == {"a": "reused"}
        done = boxed.run("plan", "--target", "process")
        assert done.code == 2 and "cannot run as a process" in done.err
    finally:
        engine.client.remove_image("microstages-test/own:1", force=True)


def test_auto_takes_containers_where_they_are_and_says_so(boxed):
    boxed.stage("plain", 'echo x > "$out/x"', image="")
    boxed.stage("inside", 'echo "$MICROSTAGES_IMAGE" > "$out/x"')
    boxed.pipeline("stages:\n  a: {uses: ./plain}\n  b: {uses: ./inside}\n")
    boxed.up()
    assert (boxed.output("b") / "x").read_text().startswith("sha256:")
    assert boxed.ran() == ["plain"], "only a process can write the trace"


def test_a_plain_command_without_an_image_is_refused_before_anything_runs(boxed):
    one(boxed, "true", image="")
    done = boxed.run("plan")
    assert done.code == 2 and "is a plain command without an image" in done.err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("netwrok: none", "did you mean 'network'?"),
        ("flavor: gpu", "flavor of target b must be cpu or cuda"),
        ("secrets: {TOKEN: abc}", "secrets of target b must be a list"),
        ("secrets: [{name: T, value: abc}]", "`{name: …, file: …}`"),
    ],
)
def test_wrong_options_of_a_target_are_told_with_their_place(boxed, options, text):
    boxed.stage("work", "true")
    boxed.pipeline(f"target: b\ntargets: {{b: {{type: docker, {options}}}}}\nstages:\n  a: {{uses: ./work}}\n")
    done = boxed.run("plan")
    assert done.code == 2
    assert text in done.err and "pipeline.yaml:2:" in done.err
    assert "abc" not in done.err
