"""A stage that fails, or takes too long: it is told, nothing half-made is visible, and the next `up` continues."""

import json
import sys
import time
from pathlib import Path

import pytest
from microstages.errors import UserError
from microstages.interface import Interface

from runner.translated import translated

FAILURES = [
    ("exit 2", 2, "it ended with exit code 2"),
    ("exit 70", 70, "it ended with exit code 70"),
    ("exit 1", 70, "it ended with exit code 1"),
    ("kill -9 $$", 70, "it was ended by SIGKILL"),
    ("kill -SEGV $$", 70, "it was ended by SIGSEGV"),
    ('echo oops >&2; exit 2', 2, "| oops"),
    ("""echo '{"event":"error","what":"the rank is 0","where":"--rank","fix":"give 1 or more"}'; exit 2""", 2,
     "--rank: the rank is 0"),
    ("out=/dev/null; exit 0", 2, "wrote nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "code", "words"), FAILURES, ids=[f[0][:40] for f in FAILURES])
def test_a_failure_is_told_and_stops_only_what_depends_on_it(work, act, code, words):
    done = work.run("up", "--json", environment={"ACT": act})
    assert done.code == code
    assert done.states == {"bad": "failed", "after": "not run", "beside": "done"}
    assert words in done.err
    assert "log: .runner/logs/1/bad.log" in done.err
    assert work.nothing_half_made()
    work.ran()
    assert work.up() == {"bad": "done", "after": "done", "beside": "reused"}, "mended, it continues"
    assert work.ran() == ["work", "next"]


def test_what_a_stage_says_of_its_failure_comes_with_the_remedy(work):
    event = {"event": "error", "what": "the rank is 0", "where": "--rank", "fix": "give 1 or more"}
    done = work.run("up", environment={"ACT": f"echo '{json.dumps(event)}'; exit 2"})
    assert "bad     failed" in done.out
    assert "--rank: the rank is 0" in done.out
    assert "give 1 or more" in done.out


def test_a_remedy_is_told_in_the_words_of_the_pipeline(work):
    """A stage speaks of its flags; who runs a pipeline has no command line of it."""
    folder = work.folder / "work"
    interface = json.loads((folder / "interface.json").read_text())
    interface["params"] |= {
        "bad_rows": {"flag": "--bad-rows", "type": "string", "choices": ["error", "skip"], "default": "error"},
        "template": {"flag": "--template", "type": "string", "nullable": True},
    }
    (folder / "interface.json").write_text(json.dumps(interface))
    event = {"event": "error", "what": "a row is bad", "fix": "mend it, or leave such rows out: --bad-rows skip"}
    done = work.run("up", environment={"ACT": f"echo '{json.dumps(event)}'; exit 2"})
    option = "--set stages.bad.params.bad_rows=skip"
    assert f"leave such rows out: bad_rows: skip below params of stage bad ({option})\n" in done.out
    event = {"event": "error", "what": "it names no field", "where": "--template", "fix": "write {field} in it"}
    done = work.run("up", environment={"ACT": f"echo '{json.dumps(event)}'; exit 2"})
    assert "stages.bad.params.template: it names no field" in done.out
    assert work.run("plan", *option.split()).code == 0, "what is said can be typed"


INTERFACE = Interface.load(Path(__file__).parents[2] / "stages/prepare-data/interface.json")
REMEDIES = [
    ("give --prompt-field too", "give prompt_field too (below params of stage data)"),
    ("leave --loss out to train on all", "leave loss out to train on all (below params of stage data)"),
    ("give a smaller --max-length, or --strategy pack",
     "give a smaller max_length, or strategy: pack below params of stage data"
     " (--set stages.data.params.strategy=pack)"),
    ("give more, or --end-token none",
     "give more, or end_token: none below params of stage data (--set stages.data.params.end_token=none)"),
    ("say it: --end-token '<|end|>', or --end-token none",
     "say it: end_token: '<|end|>', or end_token: none below params of stage data"),
    ("give --no-loss-on-pad too",
     "give loss_on_pad: false too (below params of stage data: --set stages.data.params.loss_on_pad=false)"),
    ("write --where language=Python",
     "write where: [language=Python] below params of stage data (--set 'stages.data.params.where=[language=Python]')"),
    ("give --test-source", "give test_source below inputs of stage data"),
    ("see --help, or --columnsx", "see --help, or --columnsx"),
    ("correct this row", "correct this row"),
]  # fmt: skip


@pytest.mark.parametrize(("fix", "said"), REMEDIES, ids=[r[0] for r in REMEDIES])
def test_flags_are_translated_by_the_interface(fix, said):
    assert translated(UserError("it", fix=fix), INTERFACE, "data").fix == said


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("--template", "stages.data.params.template"),
        ("--bad-rows skip", "stages.data.params.bad_rows"),
        ("--source", "stages.data.inputs.source"),
        ("rows.csv:3", "rows.csv:3"),
    ],
)
def test_a_place_is_translated_too(where, said):
    assert translated(UserError("it", where=where), INTERFACE, "data").where == said


def test_a_program_that_cannot_start_is_told(work):
    script = work.folder / "work" / "tool"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    interface = work.folder / "work" / "interface.json"
    interface.write_text(interface.read_text().replace('["sh", "./run.sh"]', '["./tool"]'))
    done = work.run("up", "--json")
    assert done.code == 2
    assert "it cannot be started" in done.err
    assert done.states["beside"] == "done"
    assert work.nothing_half_made()


def test_a_file_that_is_not_executable_is_told_before_anything_runs(work):
    (work.folder / "work" / "tool").write_text("#!/bin/sh\n")
    interface = work.folder / "work" / "interface.json"
    interface.write_text(interface.read_text().replace('["sh", "./run.sh"]', '["./tool"]'))
    done = work.run("up")
    assert done.code == 2
    assert "is not executable" in done.err
    assert "chmod +x" in done.err
    assert work.ran() == []


def test_an_output_of_another_kind_than_promised_is_refused(work):
    """A stage that writes its own manifest, and not the one that its interface promises."""
    program = work.folder / "work" / "tool.py"
    program.write_text(
        "import sys\nfrom microstages.artifact import Draft\n"
        "draft = Draft(sys.argv[-1].split('=')[1], 'model')\n"
        "(draft.path / 'x').write_text('x')\ndraft.commit({})\n"
    )
    interface = work.folder / "work" / "interface.json"
    text = interface.read_text().replace('["sh", "./run.sh"]', f'["{sys.executable}", "./tool.py"]')
    interface.write_text(text.replace('"manifest": "runner"', '"manifest": "stage"'))
    done = work.run("up", "--json")
    assert done.code == 2
    assert "wrote 'out' of kind model, and promises dataset" in done.err
    assert work.nothing_half_made()


def test_a_stage_that_ends_well_without_its_output_failed(work):
    interface = work.folder / "work" / "interface.json"
    interface.write_text(interface.read_text().replace('"manifest": "runner"', '"manifest": "stage"'))
    (work.folder / "work" / "run.sh").write_text("exit 0\n")
    done = work.run("up", "--json")
    assert done.code == 70
    assert "did not write out" in done.err
    assert work.nothing_half_made()


def test_an_input_that_changes_while_it_is_read_makes_no_result(project):
    project.stage("slow", 'cat "$x" > "$out/x"; echo more >> "$x"', inputs={"x": ["files"]})
    (project.folder / "data").write_text("before")
    project.pipeline("stages:\n  a: {uses: ./slow, inputs: {x: data}}\n")
    done = project.run("up", "--json")
    assert done.code == 2
    assert "the input x (data) changed while it ran" in done.err
    assert project.nothing_half_made()


def test_code_that_changes_while_it_runs_makes_no_result(project):
    folder = project.stage("slow", f'echo x > "$out/x"; echo "# more" >> "{project.folder}/slow/run.sh"')
    project.pipeline("stages:\n  a: {uses: ./slow}\n")
    done = project.run("up", "--json")
    assert done.code == 2
    assert "the code changed while it ran" in done.err
    assert folder.is_dir()


def test_one_mistake_in_many_stages_runs_nothing(work):
    done = work.run("up", "--set", "stages.after.params.n=1")
    assert done.code == 2
    assert work.ran() == []
    assert not (work.folder / ".runner").exists()


@pytest.mark.parametrize("words", [("up", "--set", "params.data=nothing"), ("run", "second")], ids=" ".join)
def test_a_missing_input_leaves_nothing_behind(chain, words):
    """A file that is not there, or a result that is not made yet."""
    done = chain.run(*words)
    assert done.code == 2
    assert chain.ran() == []
    assert not (chain.folder / ".runner").exists()


# --- temporary failures and time ---


def test_only_a_temporary_failure_is_tried_again(work):
    """It fails with 75 twice, then succeeds."""
    count = 'n=$(cat "$TRACE.n" 2>/dev/null || echo 0); echo $((n+1)) > "$TRACE.n"'
    act = f"{count}; echo try $n >&2; [ $n -ge 2 ] || exit 75"
    done = work.run("up", "--json", environment={"ACT": act})
    assert done.code == 0
    assert done.states["bad"] == "done"
    assert "try 2 of 3" in done.err
    assert (work.folder / "trace.n").read_text() == "3\n"
    assert "try 2" in work.run("logs", "bad").out
    assert work.nothing_half_made()


def test_tries_are_limited(work):
    act = 'echo x >> "$TRACE.n"; exit 75'
    done = work.run("up", "--json", "--set", "stages.bad.retries=1", environment={"ACT": act})
    assert done.code == 75
    assert (work.folder / "trace.n").read_text() == "x\nx\n"
    assert work.nothing_half_made()


def test_a_timeout_ends_a_stage(work):
    done = work.run("up", "--json", "--set", "stages.bad.timeout=0.3s", environment={"ACT": "sleep 60"})
    assert done.code == 2
    assert "longer than its timeout of 0.3 s" in done.err
    assert done.states == {"bad": "failed", "after": "not run", "beside": "done"}
    assert work.nothing_half_made()


def test_a_stage_that_does_not_stop_is_ended_after_its_grace(work):
    act = "trap '' TERM; while :; do sleep 0.1; done"
    options = ("--set", "stages.bad.timeout=0.2", "--set", "stages.bad.grace=0.3")
    began = time.monotonic()
    done = work.run("up", "--json", *options, environment={"ACT": act})
    assert done.code == 2
    assert time.monotonic() - began < 30
    assert work.nothing_half_made()


def test_what_a_stage_leaves_running_is_ended(work, eventually):
    done = work.run("up", environment={"ACT": 'sleep 300 & echo $! > "$TRACE.pid"'})
    assert done.code == 0, done.err
    pid = int((work.folder / "trace.pid").read_text())
    eventually(lambda: not work.alive(pid))
