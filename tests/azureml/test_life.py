"""A job's life: what runs, what it says, how it ends, and what is told of it."""

import json

import pytest
from azureml.life import Fate
from azureml.server import Fault

from runner.executors.azureml.verdict import code_in
from runner.spec import Resources


def test_a_job_runs_and_says_what_it_has_to_say(boxed_runs):
    script = """echo '{"event": "metric", "n": 1}'; echo 'näher ✓' >&2; echo '{"no": "event"}'; printf 'no end'"""
    status, said, attempt = boxed_runs.run(script)
    assert (status.running, status.code, status.why) == (False, 0, None)
    assert attempt.events.read_text() == '{"event": "metric", "n": 1}\n'
    assert attempt.log.read_text() == 'näher ✓\n{"no": "event"}\nno end'
    assert '"event": "metric"' in said
    states = boxed_runs.job(attempt).states
    assert states == [
        "NotStarted",
        "Queued",
        "Preparing",
        "Provisioning",
        "Starting",
        "Running",
        "Finalizing",
        "Completed",
    ]


def test_what_a_job_waits_for_is_told(runs):
    runs.azure.fate[""] = Fate(states=("NotStarted", *["Queued"] * 1000))
    attempt = runs.attempt("exit 0")
    runs.executor.submit(attempt)
    runs.until(lambda: '"label": "Azure ML: queued"' in runs.executor.read(attempt))
    assert "queued" not in runs.executor.read(attempt)
    runs.executor.forget(attempt)


@pytest.mark.parametrize("code", [0, 2, 70, 75, 143, 1])
def test_exit_codes_come_through(boxed_runs, code):
    status, _, attempt = boxed_runs.run(f"exit {code}")
    assert (status.code, status.why, status.left) == (code, None, False)
    assert attempt.log.read_bytes() == b""


def test_a_program_that_was_killed(runs):
    status, _, _ = runs.run("kill -9 $$")
    assert status.code == -9


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Execution failed. User process 'x' exited with status code 75. Please check log file", 75),
        ("Process 'main' exited with code 2 and error message", 2),
        ("AzureMLCompute job failed\\nExecutionFailed: [REDACTED]\\n\\texit_codes: 70", 70),
        ("User program failed with SystemExit: 3", 3),
        ("The node was lost", None),
    ],
)
def test_the_exit_code_in_azure_mls_own_words(text, code):
    assert code_in(text) == code


def test_without_its_last_line_azure_mls_words_count(runs):
    runs.azure.fate[""] = Fate(silent=True)
    status, _, _ = runs.run("echo x; exit 75")
    assert status.code == 75


def test_nothing_tells_the_exit_code(runs):
    runs.azure.fate[""] = Fate(silent=True, after="The run failed for a reason of its own")
    status, _, _ = runs.run("echo x; exit 9")
    assert status.code == 70
    assert "a reason of its own" in status.why.what and "ml.azure.com" in status.why.fix


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("Failed to pull Docker image team.azurecr.io/x:1. unauthorized", "AcrPull"),
        ("Requested 24 cores exceed the quota of 0 of the family", "quota"),
        ("Compute target gpu is in a failed state", "compute"),
    ],
)
def test_a_job_that_never_starts_says_why(runs, text, remedy):
    runs.azure.fate[""] = Fate(before=text)
    status, _, _ = runs.run("exit 0")
    assert status.code == 2 and not status.left
    assert text in status.why.what and remedy in status.why.fix


def test_azure_mls_own_trouble_is_temporary(runs):
    runs.azure.fate[""] = Fate(before="Internal error", kind="ServiceError")
    assert runs.run("exit 0")[0].code == 75
    runs.azure.fate[""] = Fate(after="The machine was lost", kind="SystemError")
    assert runs.run("exit 0")[0].code == 75


def test_a_program_that_the_image_has_not(boxed_runs):
    status, _, _ = boxed_runs.run("", command=("no-such-program",))
    assert status.code == 2
    assert status.why.what == "its image cannot start no-such-program"


def test_a_job_is_told_to_stop_and_saves(boxed_runs):
    script = "trap 'echo saved; exit 143' TERM; echo ready; while :; do sleep 0.1; done"
    attempt = boxed_runs.attempt(script)
    boxed_runs.executor.submit(attempt)
    boxed_runs.until(lambda: b"ready" in boxed_runs.job(attempt).log if boxed_runs.azure.jobs else False)
    boxed_runs.executor.cancel(attempt)
    status, _ = boxed_runs.wait(attempt)
    assert (status.code, status.why) == (143, None)
    assert attempt.log.read_text() == "ready\nsaved\n"
    assert boxed_runs.job(attempt).status == "Canceled"
    assert boxed_runs.asked("POST", "/cancel") == 1


def test_a_job_that_still_waits_is_cancelled(runs):
    runs.azure.fate[""] = Fate(states=("NotStarted", *["Queued"] * 1000))
    attempt = runs.attempt("echo never")
    runs.executor.submit(attempt)
    runs.until(lambda: runs.azure.jobs)
    runs.executor.cancel(attempt)
    status, _ = runs.wait(attempt)
    assert status.code == 143
    assert "Running" not in runs.job(attempt).states


def test_ended_at_once_nobody_waits_for_it(runs):
    attempt = runs.attempt("trap '' TERM; echo ready; sleep 5")
    runs.executor.submit(attempt)
    runs.until(lambda: b"ready" in runs.job(attempt).log if runs.azure.jobs else False)
    runs.executor.cancel(attempt, now=True)
    status, _ = runs.wait(attempt)
    assert status.code == 143
    assert runs.asked("POST", "/cancel") == 1


def test_cancelled_before_it_was_sent_it_is_not_sent(runs):
    attempt = runs.attempt("echo never")
    runs.azure.faults.append(slow := Fault("PUT", "/environments/", 503, times=5))
    runs.executor.submit(attempt)
    runs.until(lambda: slow.times < 5)
    runs.executor.cancel(attempt)
    status, _ = runs.wait(attempt)
    assert status.code == 143
    assert not runs.azure.jobs


LOOP = "trap 'exit 1' TERM; while :; do sleep 0.1; done"


def test_cancelled_by_somebody_else_it_is_stopped(runs):
    runs.azure.fate[""] = Fate(cancelled=0.3)
    status, _, _ = runs.run(LOOP, timeout=100.0)
    assert status.code == 143
    assert status.why.what == "its job was cancelled in Azure ML"


def test_azure_ml_keeps_to_the_timeout(runs):
    status, _, _ = runs.run(LOOP, timeout=1.0)
    assert status.code == 2
    assert status.why.what == "it took longer than its timeout of 1 s"


def test_last_words_that_come_late_are_waited_for(runs):
    runs.azure.fate[""] = Fate(late=1.0)
    status, _, attempt = runs.run("echo first; echo last; exit 75")
    assert status.code == 75
    assert attempt.log.read_text() == "first\nlast\n"


def test_one_file_for_events_and_log(runs, tmp_path):
    attempt = runs.attempt('echo \'{"event": "metric"}\'; echo words', events=tmp_path / "both.log")
    attempt = type(attempt)(**{**vars(attempt), "log": tmp_path / "both.log"})
    runs.executor.submit(attempt)
    runs.wait(attempt)
    assert (tmp_path / "both.log").read_text() == '{"event": "metric"}\nwords\n'


def test_ten_megabytes_in_order_and_whole(runs):
    lines = 200_000
    script = (
        f"""awk 'BEGIN {{ for (i = 0; i < {lines}; i++) printf "%08d ü the words of this line to fill it\\n", i }}'"""
    )
    status, _, attempt = runs.run(script)
    assert status.code == 0
    found = attempt.log.read_text().splitlines()
    assert len(found) == lines
    assert all(int(line[:8]) == i for i, line in enumerate(found))
    assert attempt.log.stat().st_size > 9_000_000


def test_of_several_nodes_the_first_is_heard(runs):
    script = 'echo "$MICROSTAGES_NODES $MICROSTAGES_NODE_RANK $MASTER_ADDR"'
    status, _, attempt = runs.run(script, resources=Resources(gpus=8, nodes=2, shm=8 << 30))
    assert status.code == 0
    assert attempt.log.read_text() == "2 0 10.0.0.4\n"
    sent = runs.job(attempt).body["properties"]
    assert sent["distribution"] == {"distributionType": "PyTorch", "processCountPerInstance": 1}
    assert sent["resources"] == {"instanceCount": 2, "shmSize": "8192m"}


def test_what_is_quoted_arrives_as_it_is(boxed_runs):
    words = ["--a=${{ inputs.x }}", '--b=it\'s\n"two" lines $HOME `x`', "--c=ü", "--d="]
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    status, _, attempt = boxed_runs.run("", command=("python3", "-c", code), arguments=tuple(words))
    assert status.code == 0
    assert json.loads(attempt.log.read_text()) == words
    assert "${{" not in boxed_runs.job(attempt).body["properties"]["command"]


def test_a_job_that_lost_its_machine_begins_its_log_anew(runs, tmp_path):
    attempt = runs.attempt(f"echo a long first line; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo more")
    runs.executor.submit(attempt)
    runs.until(lambda: attempt.log.exists() and attempt.log.read_text())
    runs.job(attempt).log = b"anew\n"
    runs.until(lambda: "anew" in attempt.log.read_text())
    (tmp_path / "go").touch()
    assert runs.wait(attempt)[0].code == 0
    assert attempt.log.read_text() == "a long first line\nanew\nmore\n"
