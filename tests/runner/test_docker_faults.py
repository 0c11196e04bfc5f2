"""What can go wrong with containers is told in a line or two, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace

import pytest

from runner.executors.engine import ran_out


def test_out_of_memory_names_the_limit_and_the_key(boxed):
    script = "python3 -c \"x = bytearray(300 << 20); x[::4096] = b'x' * len(x[::4096])\"; exit $?"
    boxed.one(script, ", resources: {memory: 64MiB}")
    done = boxed.run("up")
    assert done.code == 2
    assert "out of memory: it needed more than its limit of 64 MiB" in done.out
    assert "raise `memory` below `resources:` of a" in done.out
    assert boxed.containers() == [] and boxed.nothing_half_made()


def test_that_memory_ran_out_is_known_from_the_engines_word_alone(engine):
    """The state of a container lacks it where the engine hears of it after the end."""
    client = engine.client
    for script, ran in (("x = bytearray(300 << 20); x[::4096] = b'x' * len(x[::4096])", True), ("pass", False)):
        limits = client.create_host_config(mem_limit="64m", memswap_limit="64m")
        command = ["python3", "-c", script]
        box = client.create_container("microstages/merge:latest", entrypoint=command, host_config=limits)["Id"]
        try:
            client.start(box)
            client.wait(box)
            assert ran_out(client, box) is ran
        finally:
            client.remove_container(box, force=True)


def test_a_timeout_ends_the_container(boxed):
    boxed.one("sleep 600", ", timeout: 1s, grace: 1s")
    done = boxed.run("up")
    assert done.code == 2
    assert "it took longer than its timeout of 1 s" in done.out
    assert boxed.containers() == [] and boxed.nothing_half_made()


def test_a_missing_image_is_told(boxed):
    boxed.one("true", image="microstages/no-such:1")
    done = boxed.run("up")
    assert done.code == 2
    assert "the image microstages/no-such:1 is not there" in done.out and "docker pull" in done.out


def test_a_program_that_the_image_does_not_hold_is_told(boxed):
    boxed.one("true", command=["/usr/bin/env", "no-such-program"])
    done = boxed.run("up")
    assert done.code != 0
    assert "no-such-program" in done.out


def test_exit_codes_of_the_contract_pass_through(boxed):
    for code, text in ((2, "exit code 2"), (75, "try 2 of 2"), (143, "stopped"), (9, "exit code 9")):
        boxed.one(f"exit {code}", ", retries: 1")
        done = boxed.run("up")
        assert done.code == {9: 70}.get(code, code), done.out
        assert text in done.out, (code, done.out)


def test_without_an_engine_it_says_so(boxed):
    boxed.one("true")
    done = boxed.run("up", environment={"DOCKER_HOST": "unix:///nonexistent/docker.sock"})
    assert done.code == 2
    assert "no Docker engine answers" in done.out and "--target process" in done.out


def test_gpus_without_their_runtime_are_told(boxed, engine, tmp_path, monkeypatch):
    from runner.executors import Attempt
    from runner.executors.docker import DockerExecutor
    from runner.spec import Resources

    if "nvidia" in engine.client.info()["Runtimes"]:
        pytest.skip("this engine has an NVIDIA runtime")
    os.environ["DOCKER_HOST"], before = engine.address, os.environ["DOCKER_HOST"]
    try:
        attempt = Attempt(
            "gpu-test", "train", ("true",), tmp_path, tmp_path / "log", tmp_path / "log", resources=Resources(gpus=2),
            writes=(tmp_path / "out",), image=boxed.image, code_folders=(tmp_path,),
        )  # fmt: skip
        executor = DockerExecutor()
        requests = executor._limits(attempt)["device_requests"]
        assert requests[0]["Count"] == 2 and requests[0]["Capabilities"] == [["gpu"]]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")  # the second of those that may be used
        requests = executor._limits(replace(attempt, gpus=(1,)))["device_requests"]
        assert requests[0]["DeviceIDs"] == ["3"]
        executor.submit(attempt)
        executor._containers["gpu-test"].thread.join(30)
        status = executor.poll(attempt)
        assert (status.running, status.code) == (False, 2)
        assert "cannot give GPUs" in str(status.why) and "NVIDIA Container Toolkit" in str(status.why)
        executor.forget(attempt)
    finally:
        os.environ["DOCKER_HOST"] = before
    assert boxed.containers() == []


def test_an_engine_that_goes_away_for_a_moment_costs_nothing(boxed, proxy, eventually):
    boxed.environment["DOCKER_HOST"] = f"unix://{proxy.path}"
    boxed.one('echo begun; i=0; while [ $i -lt 40 ]; do echo "line $i"; i=$((i+1)); sleep 0.1; done; echo x > "$out/x"')
    up = boxed.start("up", "--json")
    eventually(boxed.container)
    proxy.down()
    threading.Timer(1.5, proxy.up).start()
    out, err = up.communicate(timeout=90)
    assert up.returncode == 0, err
    assert json.loads(out)["stages"][0]["status"] == "done"
    lines = [x for x in boxed.run("logs", "a").out.splitlines() if x.startswith("line")]
    assert lines == [f"line {i}" for i in range(40)]
    assert boxed.containers() == []
