"""Stages in containers of a real Docker engine: shut in, told apart, found again, and removed."""

from __future__ import annotations

import json
import os
import signal

import pytest

STUCK = 'trap "exit 143" TERM; echo begun; while :; do sleep 0.1; done'


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
    boxed.one('mkdir "$out/deep"; head -c 9000000 /dev/zero > "$out/deep/x"; echo y > "$out/y"')
    boxed.up()
    output = boxed.output("a")
    for path in (output, *output.rglob("*")):
        assert (path.stat().st_uid, path.stat().st_gid) == (os.geteuid(), os.getegid()), path
    remembered = json.loads((output / ".verified.json").read_text())
    status = (output / "deep/x").stat()
    assert remembered["deep/x"][2] == status.st_ctime_ns < remembered["deep/x"][4]


def test_logs_hold_every_line_of_both_streams(boxed):
    boxed.one('i=0; while [ $i -lt 500 ]; do echo "out $i"; echo "err $i" >&2; i=$((i+1)); done; echo x > "$out/x"')
    boxed.up()
    lines = boxed.run("logs", "a").out.splitlines()
    for stream in ("out", "err"):
        assert [x for x in lines if x.startswith(stream)] == [f"{stream} {i}" for i in range(500)]


# --- shut in ---


def test_a_running_container_is_hardened(boxed, eventually):
    boxed.one(STUCK, ", resources: {memory: 256MiB, cpus: 1, shm: 32MiB}")
    up = boxed.start("up")
    found = eventually(boxed.container)
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
    assert boxed.containers() == []
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
    boxed.one(f'{attempt} && echo escaped; echo x > "$out/x"', ", inputs: {data: in}", inputs={"data": ["files"]})
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


def test_secrets_arrive_and_are_seen_nowhere_else(boxed, eventually):
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
    found = eventually(boxed.container)
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


# --- stopped, killed, found again ---


def test_ctrl_c_passes_sigterm_and_waits(boxed, eventually):
    boxed.one('trap "sleep 0.5; echo saved; exit 143" TERM; echo begun; while :; do sleep 0.1; done')
    up = boxed.start("up")
    eventually(boxed.container)
    eventually(lambda: "begun" in boxed.run("logs", "a").out)
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=60)
    assert up.returncode == 143
    assert "saved" in boxed.run("logs", "a").out
    assert boxed.containers() == [] and boxed.nothing_half_made()


def test_a_second_ctrl_c_ends_it_at_once(boxed, eventually):
    boxed.one('trap "" TERM; echo begun; while :; do sleep 0.1; done')
    up = boxed.start("up")
    eventually(boxed.container)
    up.send_signal(signal.SIGINT)
    while "stopping" not in up.stdout.readline():  # it has heard the first
        assert up.poll() is None
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=60)
    assert boxed.containers() == [] and boxed.nothing_half_made()


def test_after_kill_9_the_next_run_takes_over_and_leaves_no_container(boxed, eventually):
    boxed.one('echo begun; [ -e "$(dirname "$0")/go" ] || sleep 600; echo x > "$out/x"')
    up = boxed.start("up")
    first = eventually(boxed.container)["Id"]
    up.kill()
    up.communicate()
    assert boxed.container()["Id"] == first, "a container outlives its runner"
    again = boxed.start("up")  # how a plain command ends only its own runner can record: it is made anew
    eventually(lambda: (found := boxed.container()) and found["Id"] != first)
    assert len(boxed.containers()) == 1
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
    assert boxed.containers() == [] and boxed.nothing_half_made()


def test_an_image_that_says_what_it_is_is_a_stage(boxed, engine, tmp_path):
    interface = json.loads((boxed.stage("own", "true") / "interface.json").read_text())
    del interface["image"]
    script = f'#!/bin/sh\n{(boxed.folder / "own" / "run.sh").read_text()}\necho made in an image > "$out/x"\n'
    context = tmp_path / "context"
    context.mkdir()
    (context / "run.sh").write_text(script)
    (context / "Dockerfile").write_text(
        f'FROM {boxed.image}\nCOPY --chmod=755 run.sh /run.sh\nENTRYPOINT ["sh", "/run.sh"]\n'.replace(
            "--chmod=755 ", ""
        )
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
    boxed.one("true", image="")
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
