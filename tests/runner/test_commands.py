"""What people see: `ps`, `logs`, `graph`, the table at the end, the live view, the errors of the command line."""

import os
import re
import subprocess
import sys
import time

import pytest

import runner
from runner.history import History, Record
from runner.records import runs_as_text


def test_help_names_the_commands(project):
    for args in ((), ("--help",)):
        out = project.run(*args).out
        for command in ("up", "run", "plan", "graph", "ps", "logs"):
            assert re.search(rf"^ +{command} ", out, re.MULTILINE)


def test_help_says_the_defaults_and_exit_codes(project):
    out = project.run("up", "--help").out
    assert "pipeline.yaml" in out
    assert "--set KEY=VALUE" in out
    assert "75 try again" in out


WRONG = [
    (("plann",), "did you mean 'plan'?"),
    (("up", "--forse"), "did you mean '--force'?"),
    (("up", "--jobs", "many"), "a whole number, 0 or more, is wanted, not 'many'"),
    (("up", "--jobs"), "expected one argument"),
    (("up", "a", "b"), "unrecognized arguments: b"),
    (("pull", "a", "b", "--target", "process"), "unrecognized arguments: --target process: this command has none"),
    (("ps", "--force=x"), "unrecognized arguments: --force=x: this command has none"),
    (("up", "elsewhere.yaml"), "there is no such pipeline file"),
    (("run",), "required: STAGE"),
    (("run", "frst"), "there is no stage 'frst' (did you mean 'first'?)"),
    (("graph", "--format", "dott"), "did you mean 'dot'?"),
    (("logs",), "there are no runs yet"),
    (("logs", "-p", "nowhere.yaml"), "there is no such pipeline file"),
    (("ps", "--last", "-1"), "a whole number, 0 or more, is wanted"),
]


@pytest.mark.parametrize(("args", "what"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_a_wrong_command_line_is_told(chain, args, what):
    done = chain.run(*args)
    assert done.code == 2
    assert what in done.err
    assert done.out == ""
    assert len(done.err.strip().split("\n")) <= 2


def test_plain_lines_and_the_end(chain):
    done = chain.run("up")
    lines = done.out.split("\n")
    assert lines[0] == "first   running  (new)"
    assert re.fullmatch(r"first   done in \d+\.\d s", lines[1])
    assert re.search(r"^demo: 3 done in \d+\.\d s$", done.out, re.MULTILINE)
    assert "\x1b" not in done.out
    again = chain.run("up").out.split("\n")
    assert again[:3] == ["first   reused", "second  reused", "side    reused"]
    assert chain.run("up", "-q").out == ""


def test_quiet_still_tells_failures(chain):
    chain.stage("count", "exit 2", inputs={"text": ["dataset"]})
    done = chain.run("up", "-q")
    assert done.code == 2
    assert "side    failed" in done.out
    assert "running" not in done.out


def test_ps_lists_the_runs_newest_first(chain):
    assert chain.run("ps").out == "no runs yet\n"
    chain.up()
    chain.up("--set", "stages.side.retries=0", "--set", "params.word=x")
    chain.run("up", "--only", "first")
    lines = chain.run("ps").out.splitlines()
    assert re.fullmatch(r"run +when +pipeline +status +stages +took", lines[0])
    assert [line.split()[0] for line in lines[1:]] == ["3", "2", "1"]
    assert "1 reused" in lines[1]
    assert "3 done" in lines[3]
    assert len(chain.run("ps", "-n", 1).out.splitlines()) == 2


def test_ps_has_the_states_in_one_order(project):
    for name in ("a", "b", "d"):
        project.stage(name, 'test "$fail" = 0 && echo x > "$out/x"', params={"fail": {"type": "integer", "default": 0}})
    project.stage("c", 'echo x > "$out/x"', inputs={"x": ["dataset"]})
    project.pipeline("""\
        target: process
        stages:
          a: {uses: ./a}
          b: {uses: ./b, params: {fail: 1}}
          c: {uses: ./c, inputs: {x: "${{ stages.b.out }}"}}
          d: {uses: ./d}
        """)
    assert project.run("run", "a").code == 0
    assert project.run("up").code != 0
    assert re.search(r" 1 done, 1 reused, 1 failed, 1 not run ", project.run("ps").out)
    assert re.search(r" 1 done, 1 reused, 1 failed, 1 not run ", project.run("ps", "--all").out)


def test_a_run_that_died_took_until_its_last_sign_of_life(tmp_path):
    history = History(tmp_path)
    a, b = history.start_run("demo", "x"), history.start_run("demo", "x")
    log = tmp_path / "log"
    log.write_text("working\n")
    os.utime(log, (1120, 1120))
    history.write(Record(a, "one", "one", "done", started=1000, finished=1030))
    history.write(Record(a, "two", "two", "running", started=1030, log=str(log)))
    gone = f"{2**22 + 5}:{history.me.partition(':')[2]}"
    for run, started in ((a, 1000), (b, 1110)):
        history.db.execute("UPDATE runs SET started=?, runner=? WHERE id=?", (started, gone, run))
    newest, oldest = runs_as_text(history, 0).splitlines()[1:]
    assert oldest.split("  ")[-1].strip() == "1 min 50 s", "the next run may have taken the stage over"
    assert " died " in oldest and newest.endswith("–")
    history.close()


def test_ps_as_json_has_everything(chain):
    chain.up()
    (run,) = chain.run("ps", "--json").json
    assert (run["status"], run["code"], run["pipeline"]) == ("done", 0, "demo")
    first = run["stages"][0]
    assert first["stage"] == "first"
    assert first["params"] == {"word": "hello"}
    assert first["reason"] == "new"
    assert first["inputs"]["text"].startswith("sha256:")
    assert first["outputs"]["out"]["uri"].endswith("/out")
    assert first["finished"] >= first["started"] > 0
    assert first["log"].endswith("logs/1/first.log")


def test_logs_of_all_stages_one_stage_and_an_older_run(chain):
    for name in ("append", "count"):
        script = chain.folder / name / "run.sh"
        script.write_text(script.read_text() + f"echo 'said by {name}'; echo 'warned by {name}' >&2\n")
    chain.up()
    out = chain.run("logs").out
    assert out.index("--- first (done)") < out.index("said by append") < out.index("--- side (done)")
    assert chain.run("logs", "side").out == "said by count\nwarned by count\n"
    chain.up()
    assert "--- side (reused, made in run 1)\nsaid by count" in chain.run("logs").out
    assert chain.run("logs", 1, "side").out == chain.run("logs", 2, "side").out
    done = chain.run("logs", "sidde")
    assert done.code == 2
    assert "did you mean 'side'" in done.err
    assert "there is no run 9" in chain.run("logs", 9).err


def test_logs_follow_until_the_run_ends(project):
    project.stage("slow", 'echo early; while [ ! -e "$TRACE.go" ]; do sleep 0.05; done; echo late; echo x > "$out/x"')
    project.pipeline("stages:\n  a: {uses: ./slow}\n")
    up = project.start("up")
    while "running" not in project.run("ps").out:
        time.sleep(0.02)
    follow = project.start("logs", "-f", "a")
    assert follow.stdout is not None
    assert follow.stdout.readline() == "early\n"
    (project.folder / "trace.go").touch()
    assert follow.communicate(timeout=60)[0] == "late\n"
    assert follow.returncode == 0
    up.communicate(timeout=60)


def test_graph_as_text(chain):
    both = "  both: {uses: ./join, inputs: {a: '${{ stages.second.out }}', b: '${{ stages.side.out }}'}}\n"
    chain.pipeline(chain.file.read_text() + both)
    chain.stage("join", "", inputs={"a": ["files"], "b": ["files"]})
    assert chain.run("graph").out.splitlines() == [
        "first       append",
        "├─ second   append  ← first.out",
        "│  └─ both  join  ← second.out, side.out",
        "└─ side     count  ← first.out",
    ]


def test_graph_for_tools(chain):
    mermaid = chain.run("graph", "--format", "mermaid").out
    assert mermaid.startswith("flowchart LR\n")
    assert "  s_first -->|out| s_second\n" in mermaid
    dot = chain.run("graph", "--format", "dot").out
    assert dot.startswith('digraph "demo" {')
    assert '  "first" -> "side" [label="out"];\n' in dot


def test_graph_needs_neither_data_nor_programs(chain):
    (chain.folder / "data.txt").unlink()
    interface = chain.folder / "count" / "interface.json"
    interface.write_text(interface.read_text().replace('"sh"', '"not-installed-here"'))
    assert chain.run("graph").code == 0
    assert "the program 'not-installed-here' of stage count is not installed" in chain.run("plan").err


PREDICT = """
import json, sys
from microstages.artifact import Draft
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
with Draft(flags["out"], "predictions") as draft:
    (draft.path / "predictions.jsonl").write_text(flags["accuracy"])
    draft.metrics.update(accuracy=float(flags["accuracy"]), decode_tokens_per_s=1234.5, model_bytes=2_500_000)
    draft.commit({})
"""


def test_the_table_at_the_end_sets_predictions_side_by_side(project):
    folder = project.stage("predict", "", outputs={"out": "predictions"}, params={"accuracy": {"type": "number"}})
    (folder / "tool.py").write_text(PREDICT)
    interface = folder / "interface.json"
    text = interface.read_text().replace('["sh", "./run.sh"]', f'["{sys.executable}", "./tool.py"]')
    interface.write_text(text.replace('"manifest": "runner"', '"manifest": "stage"'))
    project.stage("export", 'echo x > "$out/genai_config.json"', outputs={"out": "onnx-model"})
    project.pipeline("""\
        name: demo
        stages:
          onnx: {uses: ./export}
          base: {uses: ./predict, params: {accuracy: 0}}
          tuned: {uses: ./predict, params: {accuracy: 0.9375}}
        """)
    for _ in range(2):  # the same when everything is reused
        out = project.run("up").out
        assert "                   base   tuned\n" in out
        assert "accuracy          0.000   0.938\n" in out
        assert "decode tokens/s   1,234   1,234\n" in out or "decode tokens/s   1,235   1,235\n" in out
        assert "weights          2.5 MB  2.5 MB\n" in out
        assert re.search(r"^onnx \(onnx-model\): \.runner/store/artifacts/export/\w+/[\w-]+/out$", out, re.MULTILINE)


def test_output_that_nobody_reads_ends_no_stage(chain):
    up = subprocess.run(
        f"{' '.join(chain.command('up'))} | true", shell=True, cwd=chain.folder, env=chain.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in up.stderr
    assert set(chain.up().values()) == {"reused"}


def imported(*args: str) -> set[str]:
    code = (
        "import sys\nfrom runner.cli import call\n"
        f"call({list(args)!r})\n"
        "print(*{m.partition('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_start_is_light(chain, monkeypatch):
    """Help needs nothing; a run with nothing to do needs neither rich nor fsspec nor a stage's libraries."""
    heavy = {"torch", "numpy", "transformers", "fsspec", "rich", "typer", "pydantic", "asyncio"}
    assert not imported("--help") & {*heavy, "yaml", "sqlite3", "subprocess"}
    chain.up()
    monkeypatch.chdir(chain.folder)
    monkeypatch.setenv("MICROSTAGES_CACHE", str(chain.folder / "cache"))
    assert not imported("up") & heavy


def test_the_version_is_that_of_the_distribution():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(runner.__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert runner.__version__ == project["version"]
