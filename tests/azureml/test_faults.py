"""What goes wrong between here and Azure ML: it passes, or it is told in a line; nothing is submitted twice."""

import json
import os

import pytest
from azureml.life import Fate
from azureml.server import Fault
from microstages.errors import TemporaryError, UserError

from runner.executors.azureml import executor as module
from runner.executors.azureml.executor import AzureMLExecutor


@pytest.mark.parametrize("status", [429, 500, 502, 503, 408, -1])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/environments/"), ("PUT", "/jobs/"), ("GET", "/jobs/"), ("GET", "/details"), ("GET", "/logs/"),
        ("GET", "/discovery"), ("GET", "/identity"),
    ],
)  # fmt: skip
def test_what_may_pass_is_asked_again(runs, method, path, status):
    if path == "/identity" and status == -1:
        status = 500
    runs.azure.faults.append(fault := Fault(method, path, status, {"Retry-After": "0"}, times=2))
    run, _, attempt = runs.run("echo one; echo two; exit 75")
    assert run.code == 75 and not run.left
    assert fault.times == 0
    assert attempt.log.read_text() == "one\ntwo\n"
    assert len(runs.azure.jobs) == 1


def test_an_answer_that_got_lost_submits_nothing_twice(runs):
    runs.azure.faults.append(Fault("PUT", "/jobs/", 0))
    run, _, attempt = runs.run("echo once")
    assert run.code == 0
    assert list(runs.azure.jobs) == [f"microstages-{attempt.name}"]
    assert attempt.log.read_text() == "once\n"


def test_retry_after_is_kept_to(runs, monkeypatch):
    waits = []
    wait = module._Job._wait
    monkeypatch.setattr(module._Job, "_wait", lambda job, seconds: (waits.append(seconds), wait(job, 0.01)))
    runs.azure.faults.append(Fault("PUT", "/jobs/", 429, {"Retry-After": "7"}))
    assert runs.run("exit 0")[0].code == 0
    assert waits == [7.0]


def test_azure_that_stays_away_leaves_the_job_and_it_is_taken_up_later(runs, monkeypatch):
    monkeypatch.setattr(module, "GONE", 0.3)
    runs.azure.faults.append(away := Fault("GET", "/jobs/", 503, times=10**6))
    attempt = runs.attempt("echo still here")
    token = runs.executor.submit(attempt)
    status, _ = runs.wait(attempt)
    assert status.left and status.code == 75
    assert isinstance(status.why, TemporaryError) and "taken up" in status.why.fix
    away.times = 0
    later = AzureMLExecutor({})
    assert later.find(attempt, token)
    status, _ = runs.wait(attempt, later)
    assert status.code == 0
    assert attempt.log.read_text() == "still here\n"
    assert runs.asked("PUT", "/jobs/") == 1


def test_away_while_it_is_submitted_it_may_be_there(runs, monkeypatch):
    monkeypatch.setattr(module, "GONE", 0.3)
    runs.azure.faults.append(Fault("PUT", "/jobs/", 500, times=10**6))
    status, _, _ = runs.run("exit 0")
    assert status.left and status.code == 75


def test_nobody_waits_for_it_after_a_second_signal(runs):
    runs.azure.faults.append(fault := Fault("GET", "/jobs/", 503, times=10**6))
    attempt = runs.attempt("exit 0")
    runs.executor.submit(attempt)
    runs.until(lambda: fault.times < 10**6)
    runs.executor.cancel(attempt, now=True)
    status, _ = runs.wait(attempt)
    assert status.left


@pytest.mark.parametrize("status", [401, 403])
def test_who_may_not_is_told_what_he_needs(runs, status):
    body = {"error": {"code": "AuthorizationFailed", "message": "The client 'x' has no authorization for 'write'"}}
    runs.azure.faults.append(Fault("PUT", "/environments/", status, body=body, times=9))
    run, _, _ = runs.run("exit 0")
    assert run.code == 2 and not run.left
    assert "has no authorization" in run.why.what
    assert "az login" in run.why.fix and "AzureML Data Scientist" in run.why.fix
    assert runs.azure.options["workspace"] in run.why.where


def test_a_token_that_has_expired_is_asked_for_again(runs):
    runs.azure.faults.append(Fault("GET", "/jobs/", 401))
    assert runs.run("exit 0")[0].code == 0
    assert runs.asked("GET", "/identity") == 2


def test_nobody_says_who_this_is(runs, monkeypatch):
    for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    run, _, _ = runs.run("exit 0")
    assert run.code == 2 and "does not know who you are" in run.why.what and "az login" in run.why.fix


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"workspace": "other"}, "other"),
        ({"compute": "none-such"}, "none-such"),
        ({"resource_group": "x"}, "not found"),
    ],
)
def test_what_is_not_there_is_named(runs, option, words):
    runs.executor = AzureMLExecutor({**runs.azure.options, **option})
    run, _, _ = runs.run("exit 0")
    assert run.code == 2 and not run.left
    assert words in f"{run.why.where} {run.why.what}"


def test_a_job_is_found_again_and_its_words_are_not_repeated(runs, tmp_path):
    script = f"""for i in 1 2 3; do echo line $i; echo '{{"event": "metric"}}'; done
        while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo last; exit 75"""
    attempt = runs.attempt(script)
    token = runs.executor.submit(attempt)
    assert json.loads(token)["job"] == f"microstages-{attempt.name}"
    runs.until(lambda: attempt.log.exists() and b"line 3" in attempt.log.read_bytes())
    runs.executor.forget(attempt, leave=True)  # as the death of its runner does
    later = AzureMLExecutor({})
    assert later.find(attempt, token)
    (tmp_path / "go").touch()
    status, _ = runs.wait(attempt, later)
    assert status.code == 75
    assert attempt.log.read_text() == "line 1\nline 2\nline 3\nlast\n"
    assert attempt.events.read_text() == '{"event": "metric"}\n' * 3
    assert runs.asked("PUT", "/jobs/") == 1 and runs.asked("POST", "/cancel") == 0


def test_a_job_that_ended_meanwhile_is_found_ended(runs):
    attempt = runs.attempt("echo done; exit 70")
    token = runs.executor.submit(attempt)
    runs.wait(attempt)
    later = AzureMLExecutor({})
    assert later.find(attempt, token)
    status = later.poll(attempt)
    assert (status.running, status.code) == (False, 70)
    later.forget(attempt)
    assert attempt.log.read_text() == "done\n"


def test_a_job_that_was_never_sent_is_not_found(runs):
    attempt = runs.attempt("exit 0")
    assert not runs.executor.find(attempt, runs.executor.address)


def test_what_is_forgotten_while_it_runs_is_cancelled(runs):
    attempt = runs.attempt("while :; do sleep 0.1; done")
    runs.executor.submit(attempt)
    runs.until(lambda: runs.azure.jobs and runs.job(attempt).status == "Running")
    runs.executor.forget(attempt)
    runs.until(lambda: runs.job(attempt).status == "Canceled")


def test_a_log_that_cannot_be_written_is_told(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        runs.executor.submit(runs.attempt("exit 0", events=tmp_path / "file" / "x"))


def test_a_silent_job_comes_back(runs):
    runs.azure.fate[""] = Fate(states=("NotStarted", "Paused", "Unknown", "NotResponding"))
    assert runs.run("exit 0")[0].code == 0


def test_a_token_goes_to_nobody_else(runs, monkeypatch):
    monkeypatch.setenv("AZURE_RESOURCE_MANAGER_URL", "http://management.example.com")
    with pytest.raises(UserError, match="no https address"):
        AzureMLExecutor(runs.azure.options).address  # noqa: B018
    runs.azure.requests.clear()
    assert not runs.azure.requests


def test_no_file_is_left_open(runs):
    def files():
        return len(os.listdir("/proc/self/fd"))

    runs.run("exit 0")
    before = files()
    for _ in range(10):
        runs.run("exit 0")
    runs.until(lambda: files() <= before + 2)  # the server's own connections close a moment later
