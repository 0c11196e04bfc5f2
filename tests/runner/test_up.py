"""`up` runs what changed and what follows from it, and nothing else."""

import json
import os
import shutil

import pytest


def test_everything_runs_once_and_is_reused_afterwards(chain):
    assert chain.plan() == {
        "first": ("run", "new"),
        "second": ("wait", "after first; new"),
        "side": ("wait", "after first; new"),
    }
    assert chain.up() == {"first": "done", "second": "done", "side": "done"}
    assert (chain.output("second") / "text").read_text() == "one\ntwo\nhello\nend\n"
    chain.ran()
    assert chain.up() == {"first": "reused", "second": "reused", "side": "reused"}
    assert chain.ran() == []
    assert set(chain.plan().values()) == {("reuse", "unchanged")}


def test_plan_changes_nothing(chain):
    chain.plan()
    assert not (chain.folder / ".runner").exists()
    chain.up()
    before = chain.store()
    chain.plan("--set", "params.word=other")
    assert chain.store() == before
    assert chain.run("ps").out.count("demo") == 1


def test_a_result_is_an_artifact_that_says_what_made_it(chain):
    chain.up()
    manifest = json.loads((chain.output("first") / "artifact.json").read_text())
    assert manifest["kind"] == "dataset"
    assert [f["path"] for f in manifest["files"]] == ["text"]
    made = manifest["provenance"]
    assert made["stage"] == "append"
    assert made["params"] == {"word": "hello"}
    assert made["inputs"]["text"]["uri"] == str(chain.folder / "data.txt")
    commit = next((chain.folder / ".runner/store/artifacts/append" / made["fingerprint"]).glob("commit.json"))
    assert json.loads(commit.read_text())["outputs"]["out"]["digest"] == manifest["digest"]


def test_a_parameter_reruns_its_stage_and_what_follows(chain):
    chain.up()
    chain.ran()
    assert chain.plan("--set", "stages.second.params.word=other") == {
        "first": ("reuse", "unchanged"),
        "second": ("run", "param word: end → other"),
        "side": ("reuse", "unchanged"),
    }
    assert chain.up("--set", "stages.second.params.word=other") == {
        "first": "reused", "second": "done", "side": "reused"
    }  # fmt: skip
    assert chain.ran() == ["append"]
    assert chain.up() == {"first": "reused", "second": "reused", "side": "reused"}, "the old result is still there"


def test_plan_says_what_waits_behind_a_change(chain):
    chain.up()
    assert chain.plan("--set", "params.word=other") == {
        "first": ("run", "param word: hello → other"),
        "second": ("wait", "after first, unless its result is the same"),
        "side": ("wait", "after first, unless its result is the same"),
    }


def test_equal_bytes_cut_what_follows_off(chain):
    """`side` counts lines: another word changes its input, but what follows `side` sees the same bytes."""
    chain.pipeline(chain.file.read_text() + "  last: {uses: ./count2, inputs: {text: '${{ stages.side.out }}'}}\n")
    chain.stage("count2", 'wc -c < "$text/lines" > "$out/bytes"', inputs={"text": ["dataset"]})
    chain.up()
    assert chain.up("--set", "params.word=other") == {
        "first": "done", "second": "done", "side": "done", "last": "reused"
    }  # fmt: skip


@pytest.mark.parametrize("how", ["touch", "copy", "rename"])
def test_where_and_when_the_data_was_written_does_not_matter(chain, how):
    chain.up()
    data = chain.folder / "data.txt"
    more = []
    if how == "touch":
        os.utime(data, (1, 1))
    elif how == "copy":
        shutil.copy(data, chain.folder / "copy.txt")
        data.unlink()
        (chain.folder / "copy.txt").rename(data)
    else:
        data.rename(chain.folder / "renamed.txt")
        more = ["--set", "params.data=renamed.txt"]
    assert set(chain.up(*more).values()) == {"reused"}


def test_one_changed_byte_reruns_even_with_the_same_size_and_time(chain):
    chain.up()
    data = chain.folder / "data.txt"
    before = data.stat()
    data.write_text("one\ntwO\n")
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert data.stat().st_size == before.st_size
    assert chain.plan()["first"] == ("run", "input text changed")
    assert chain.up() == {"first": "done", "second": "done", "side": "done"}


def test_changed_code_reruns(chain):
    chain.up()
    script = chain.folder / "count" / "run.sh"
    script.write_text(script.read_text() + "\n# another line\n")
    assert chain.plan()["side"] == ("run", "code of count changed")
    assert chain.up() == {"first": "reused", "second": "reused", "side": "done"}


def test_another_stage_in_its_place_is_told(chain):
    chain.up()
    text = (
        chain.file.read_text()
        .replace("./count", '"${{ params.method }}"')
        .replace("word:", "method: ./count\n  word:", 1)
    )
    chain.pipeline(text)
    assert chain.plan()["side"] == ("reuse", "unchanged")
    shutil.copytree(chain.folder / "count", chain.folder / "count3")
    interface = chain.folder / "count3" / "interface.json"
    interface.write_text(interface.read_text().replace('"name": "count"', '"name": "count3"'))
    assert chain.plan("--set", "params.method=./count3")["side"] == ("run", "uses: count → count3")


def test_what_only_changes_speed_reruns_nothing(project):
    project.stage(
        "work", 'echo "$threads" > /dev/null; echo x > "$out/x"',
        params={"threads": {"type": "integer", "default": 1, "affects_result": False}},
    )  # fmt: skip
    project.pipeline("stages:\n  a: {uses: ./work}\n")
    project.up()
    assert project.up("--set", "stages.a.params.threads=4") == {"a": "reused"}


def test_the_same_work_in_two_places_is_done_once(project):
    project.stage("work", 'sleep 0.3; echo x > "$out/x"')
    project.pipeline("stages:\n  a: {uses: ./work}\n  b: {uses: ./work}\n  c: {uses: ./work}\n")
    assert sorted(project.up("--jobs", 3).values()) == ["done", "reused", "reused"]
    assert project.ran() == ["work"]


def test_independent_stages_run_side_by_side(project):
    """Each waits until the other has begun: one after the other they would never end."""
    script = """
        touch "$TRACE.$me"
        for i in 1 2 3 4 5 6 7 8 9 10; do [ -e "$TRACE.$other" ] && break; sleep 0.5; done
        [ -e "$TRACE.$other" ] && echo met > "$out/x"
    """
    project.stage("meet", script, params={"me": {"type": "string"}, "other": {"type": "string"}})
    project.pipeline("""\
        stages:
          a: {uses: ./meet, params: {me: a, other: b}}
          b: {uses: ./meet, params: {me: b, other: a}}
        """)
    assert project.up("--jobs", 2) == {"a": "done", "b": "done"}


def test_jobs_limits_what_runs_side_by_side(project):
    script = 'mkdir "$TRACE.busy" || exit 1; sleep 0.1; rmdir "$TRACE.busy"; echo "$n" > "$out/x"'
    project.stage("alone", script, params={"n": {"type": "integer"}})
    lines = "".join(f"  s{i}: {{uses: ./alone, params: {{n: {i}}}}}\n" for i in range(4))
    project.pipeline("stages:\n" + lines)
    assert set(project.up("--jobs", 1).values()) == {"done"}


def test_cpus_are_told_to_the_stage(project):
    project.stage("threads", 'echo "$OMP_NUM_THREADS" > "$out/n"')
    project.pipeline("stages:\n  a: {uses: ./threads, resources: {cpus: 1}}\n")
    project.environment.pop("OMP_NUM_THREADS", None)
    project.up()
    assert (project.output("a") / "n").read_text() == "1\n"


def test_every_type_of_parameter_arrives(project):
    kinds = {"s": "string", "i": "integer", "f": "number", "yes": "boolean", "no": "boolean", "l": "list"}
    params = {k: {"type": t, "default": None, "nullable": True} for k, t in kinds.items()}
    params["empty"] = {"type": "string", "default": None, "nullable": True}
    project.stage("words", "", params=params)
    (project.folder / "words" / "run.sh").write_text(
        'for a in "$@"; do case "$a" in --out=*) out="${a#--out=}";; esac; done\n'
        'for a in "$@"; do case "$a" in --out=*) ;; *) printf "<%s>\\n" "$a" >> "$out/words";; esac; done\n'
    )
    project.pipeline("""\
        stages:
          a:
            uses: ./words
            params: {s: "a b\\nc", i: 3, f: 1e-4, yes: true, no: false, l: [x, y z, 3], empty: null}
        """)
    project.up()
    words = (project.output("a") / "words").read_text()
    assert words == "<--s=a b\nc>\n<--i=3>\n<--f=0.0001>\n<--yes>\n<--no-no>\n<--l=x>\n<--l=y z>\n<--l=3>\n"


def test_a_reference_keeps_its_type_or_becomes_text(project):
    project.stage(
        "show", 'echo "$text $n" > "$out/x"', params={"text": {"type": "string"}, "n": {"type": "integer"}}
    )  # fmt: skip
    project.pipeline("""\
        params: {n: 3, fast: true}
        stages:
          a: {uses: ./show, params: {text: "n=${{ params.n }} fast=${{params.fast}}", n: "${{ params.n }}"}}
        """)
    project.up()
    assert (project.output("a") / "x").read_text() == "n=3 fast=true 3\n"


def test_paths_start_at_the_pipeline_file_wherever_the_runner_is_called(chain):
    other = chain.folder / "elsewhere"
    other.mkdir()
    shutil.copy(chain.folder / "data.txt", chain.folder / "more.txt")
    home, chain.folder = chain.folder, other
    done = chain.run("up", "../pipeline.yaml", "--set", "params.data=more.txt")
    assert done.code == 0, done.err
    assert (home / ".runner" / "store").is_dir()
    assert not (other / ".runner").exists()


@pytest.mark.parametrize("store", ["results", "{tmp}/far away/store", ".runner/other"])
def test_the_store_can_lie_anywhere(chain, store):
    store = store.replace("{tmp}", str(chain.folder))
    assert set(chain.up("--set", f"store={store}").values()) == {"done"}
    assert set(chain.up("--set", f"store={store}").values()) == {"reused"}
    assert list((chain.folder / store / "artifacts").glob("*/*/commit.json"))
    assert chain.run("ps", "--set", f"store={store}").out.count("demo") == 2


def test_a_moved_project_is_reused_where_it_lies(chain, tmp_path_factory):
    chain.up()
    new = tmp_path_factory.mktemp("moved") / "project"
    shutil.move(chain.folder, new)
    chain.folder, chain.file = new, new / "pipeline.yaml"
    assert set(chain.up().values()) == {"reused"}


# --- choosing ---


def test_only_runs_one_stage(chain):
    done = chain.run("up", "--only", "side")
    assert done.code == 2
    assert "first is not done, and side needs it" in done.err
    assert chain.up("--only", "first") == {"first": "done"}
    assert chain.up("--only", "side") == {"first": "reused", "side": "done"}
    assert chain.ran() == ["append", "count"]


def test_run_is_up_with_only(chain):
    assert chain.run("run", "first").code == 0
    assert chain.run("run", "second", "pipeline.yaml", "--set", "stages.second.params.word=x").code == 0
    assert chain.ran() == ["append", "append"]
    done = chain.run("run", "secnd")
    assert done.code == 2
    assert "did you mean 'second'" in done.err


def test_from_runs_a_stage_and_what_follows(chain):
    done = chain.run("up", "--from", "second")
    assert done.code == 2
    assert "first is not done" in done.err
    chain.up("--only", "first")
    assert chain.up("--from", "second") == {"first": "reused", "second": "done"}


def test_only_does_not_look_at_inputs_of_other_stages(chain):
    chain.pipeline(chain.file.read_text() + "  other: {uses: ./append, inputs: {text: not-there.txt}}\n")
    assert chain.up("--only", "first") == {"first": "done"}
    assert "not-there.txt" in chain.run("up").err


def test_force_makes_it_again(chain):
    chain.up()
    before = chain.output("side")
    chain.ran()
    assert chain.up("--only", "side", "--force") == {"first": "reused", "side": "done"}
    assert chain.ran() == ["count"]
    assert chain.output("side") != before, "the new attempt is the result now"
    assert chain.up("--force") == {"first": "done", "second": "done", "side": "done"}
    assert chain.plan("--force")["first"] == ("run", "forced")


def test_unknown_choices_name_the_nearest(chain):
    assert "did you mean 'second'" in chain.run("up", "--only", "secnd").err
    assert "did you mean 'first'" in chain.run("plan", "--from", "frst").err
    assert "exclude each other" in chain.run("up", "--only", "first", "--from", "first").err


def test_a_later_stage_that_is_edited_during_the_run_runs_as_it_is_then(project):
    """`first` edits the script of `second` while it runs."""
    script = f'sleep 0.7; echo "echo new > \\"\\$out/x\\"" >> "{project.folder}/second/run.sh"; echo x > "$out/x"'
    project.stage("first", script)
    project.stage("second", 'echo old > "$out/x"', inputs={"x": ["dataset"]})
    project.pipeline("stages:\n  a: {uses: ./first}\n  b: {uses: ./second, inputs: {x: '${{ stages.a.out }}'}}\n")
    assert project.up() == {"a": "done", "b": "done"}
    assert (project.output("b") / "x").read_text() == "new\n"
    assert project.up() == {"a": "reused", "b": "reused"}
