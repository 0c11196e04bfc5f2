"""`runner gc`: what nobody needs goes, what anybody needs stays, whenever it is killed and whoever else is at work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from microstages import storage

from runner import gc
from runner.executors.processes import own_token
from runner.inventory import look, scan
from runner.lease import Leases
from runner.runs import NAME

NOW = ("--older-than", "0s")
ALL = ("--keep-runs", 0, *NOW, "--yes")


def two_words(shelf) -> tuple[set[str], set[str]]:
    """Run the pipeline with another word, then as it stands; the results of the first and of the second."""
    shelf.project.up("--set", "params.word=old")
    old = shelf.commits()
    shelf.project.up()
    return old, shelf.commits() - old


def test_without_yes_it_only_shows(shelf):
    old, _ = two_words(shelf)
    before = shelf.files()
    done = shelf.run("gc", "--keep-runs", 0, *NOW)
    assert done.code == 0
    assert shelf.files() == before
    lines = done.out.splitlines()
    assert re.fullmatch(r"what +name +why +age +size", lines[0])
    for key in old:
        uses, fingerprint = key.split("/")
        assert any(re.match(rf"result +{uses}/{fingerprint[:8]} +nobody needs it", line) for line in lines)
    assert re.search(r"^could go: .* nothing is removed yet: --yes does it$", done.out, re.MULTILINE)
    assert re.search(r"^kept: 3 needed by pipeline.yaml, ", done.out, re.MULTILINE)


def test_what_the_pipeline_does_not_need_goes(shelf):
    _, new = two_words(shelf)
    done = shelf.ok("gc", *ALL)
    assert shelf.commits() == new
    assert len(shelf.attempts()) == 3
    assert {i["kind"] for i in done["would_go"]} == {"result", "run record"}
    assert sorted(done["removed"]) == sorted(i["name"] for i in done["would_go"])
    assert set(shelf.project.up().values()) == {"reused"}
    assert shelf.project.up("--set", "params.word=old")["first"] == "done"
    assert shelf.run("gc", *ALL).code == shelf.run("gc", *ALL).code == 0
    assert "nothing to remove" in shelf.run("gc", *ALL).out


def test_what_is_young_stays(shelf):
    old, new = two_words(shelf)
    done = shelf.ok("gc", "--keep-runs", 0, "--yes")
    assert done["removed"] == []
    assert shelf.commits() == old | new
    assert done["kept"]["young"]["count"] == 3


def test_what_the_last_runs_need_stays(shelf):
    for n in range(4):
        shelf.project.up("--set", f"params.word=w{n}")
    for _ in range(3):  # runs that need the same count once
        shelf.project.up("--set", "params.word=w3")
    shelf.project.pipeline(shelf.project.file.read_text().replace("word: hello", "word: w3"))
    shelf.run("gc", "--keep-runs", 3, *NOW, "--yes")
    kept = [r["stages"]["first"]["fingerprint"] for r in shelf.runs()]
    assert len(kept) == len(set(kept)) == 3
    assert {f"append/{f}" for f in kept} <= shelf.commits()
    assert len(shelf.commits()) == 9
    assert set(shelf.project.up("--set", "params.word=w1").values()) == {"reused"}


def test_what_a_tag_names_stays_until_it_is_deleted(shelf):
    shelf.project.up("--set", "params.word=old")
    shelf.ok("tag", "v1", "first", "--set", "params.word=old")
    old, _ = two_words(shelf)
    out = shelf.run("gc", *ALL).out
    assert "kept: 1 named by tag v1" in out
    first = shelf.ok("tag")[0]["stages"]["first"]["fingerprint"]
    assert shelf.commits() & old == {f"append/{first}"}
    shelf.ok("tag", "--delete", "v1")
    shelf.run("gc", *ALL)
    assert not shelf.commits() & old


def test_a_tag_keeps_the_very_attempt_that_it_names(shelf):
    shelf.project.up()
    attempt = shelf.ok("tag", "v1", "first")[0]["stages"]["first"]["attempt"]
    shelf.project.up("--force")
    assert len(shelf.attempts()) == 6
    shelf.run("gc", *ALL)
    assert len(shelf.attempts()) == 4
    assert attempt in shelf.attempts()
    assert shelf.run("verify", "v1").code == 0


def test_attempts_that_are_no_result_go(shelf):
    shelf.project.up()
    kept = shelf.attempts()
    folder = Path(shelf.output("first")).parent
    shutil.copytree(folder, folder.parent / "20200101T000000-0000abcd")
    half = folder.parent.parent / ("0" * 32) / "20200101T000000-00001234" / ".out.1234.partial"
    half.mkdir(parents=True)
    (half / "text").write_text("half")
    store = shelf.project.folder / ".runner/store"
    leftovers = [folder.parent / ".commit.json.x1", store / "runs/.2020.json.x2", store / ".trash/x3"]
    for file in leftovers:
        file.parent.mkdir(exist_ok=True)
        file.write_text("half")
    out = shelf.run("gc", *NOW, "--yes").out
    assert "another attempt is the result" in out
    assert "half-made: it was never committed" in out
    assert "of a process that was killed" in out
    assert shelf.attempts() == kept
    assert not half.parent.parent.exists(), "no empty folder stays"
    assert not [file for file in leftovers if file.exists()]
    assert not (store / ".trash").exists()
    assert shelf.run("verify").code == 0


def test_damaged_results_go_even_where_they_are_needed(shelf):
    shelf.project.up()
    (Path(shelf.output("second")).parent.parent / "commit.json").write_text("{")
    (Path(shelf.output("side")) / "artifact.json").unlink()
    out = shelf.run("gc", *NOW, "--yes").out
    assert "damaged: commit.json cannot be read" in out
    assert "damaged: a part of it is missing" in out
    assert len(shelf.commits()) == 1
    assert shelf.project.up() == {"first": "reused", "second": "done", "side": "done"}


@pytest.mark.parametrize("needed", [True, False])
def test_checkpoints_of_what_is_given_up_or_done_go(work, needed):
    """Those of a stage that has still to be made stay: it goes on from there."""
    work.run("up", environment={"ACT": "exit 2"})
    fingerprint = work.run("plan", "--json").json["stages"][0]["fingerprint"]
    root = work.folder / ".runner/store/artifacts/work"
    given_up = root / ("0" * 32) / "state/00000001-abcdabcd"
    mine = root / fingerprint / "state/00000007-abcdabcd"
    for place in (mine, given_up):
        place.mkdir(parents=True)
        (place / "x").write_text("x")
    if not needed:
        assert work.run("up").code == 0
        mine.mkdir(parents=True, exist_ok=True)
        (mine / "x").write_text("x")
    out = work.run("gc", *NOW, "--yes").out
    assert "nobody goes on from there" in out
    assert not given_up.exists()
    assert mine.exists() == needed
    assert ("the stage is done" in out) != needed


def test_what_a_run_under_way_uses_stays(saver, eventually):
    """The run is another pipeline's: only its record and its lease say that it is needed."""
    text = saver.file.read_text()
    (saver.folder / "other.yaml").write_text(text.replace("name: demo", "name: other") + "params: {}\n")
    saver.pipeline("name: mine\nstages:\n  own: {uses: ./good}\n")
    up = saver.start("up", "other.yaml")
    saver.begun(eventually)
    eventually(lambda: list((saver.folder / ".runner/store/artifacts/good").glob("*/commit.json")))
    saver.pipeline("name: mine\nstages:\n  own: {uses: ./work, params: {n: 99}}\n")
    done = saver.run("gc", *ALL, "--json")
    assert done.code == 0, done.err
    assert done.json["removed"] == []
    assert done.json["kept"]["in use by a run under way"]["count"] == 2
    (saver.folder / "trace.wait").unlink()
    assert up.wait(60) == 0, up.communicate()
    saver.run("gc", *ALL)
    assert not list((saver.folder / ".runner/store/artifacts").glob("*/*/commit.json")), "now nobody needs it"


def test_what_still_runs_for_a_runner_that_was_killed_stays(saver, eventually):
    up = saver.start("up")
    saver.begun(eventually)
    up.kill()
    up.wait()
    text = saver.file.read_text()
    saver.pipeline("name: mine\nstages:\n  own: {uses: ./good}\n")
    saver.run("gc", *ALL)
    saver.pipeline(text)
    (saver.folder / "trace.wait").unlink()
    assert saver.up()["bad"] in ("done", "reused")
    assert saver.ran().count("work") == 1


def test_two_at_once_do_not_disturb_each_other(shelf):
    _, new = two_words(shelf)
    both = [shelf.project.start("gc", *ALL) for _ in range(2)]
    for one in both:
        _, err = one.communicate(timeout=60)
        assert one.returncode == 0, err
    shelf.run("gc", *ALL)
    assert shelf.commits() == new
    assert len(shelf.attempts()) == 3


WRONG = [
    (("--older-than", "soon"), "a time such as 12h, 30min or 7d is wanted, not 'soon'"),
    (("--keep-runs", "-1"), "a whole number, 0 or more, is wanted"),
    (("--keep-run", "1"), "did you mean '--keep-runs'?"),
    (("nowhere.yaml",), "there is no such pipeline file"),
]


@pytest.mark.parametrize(("args", "what"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_a_wrong_command_line_is_told(shelf, args, what):
    done = shelf.run("gc", *args)
    assert done.code == 2
    assert what in done.err


def test_inputs_that_are_missing_are_told_before_anything_goes(shelf):
    """What the pipeline needs is not known without them."""
    two_words(shelf)
    before = shelf.files()
    (shelf.project.folder / "data.txt").unlink()
    assert shelf.run("gc", *ALL).code == 2
    assert shelf.files() == before


def test_what_is_not_known_yet_is_what_the_last_run_had(shelf):
    """`first` must run again; if its bytes are the same, what follows is reused."""
    shelf.project.up()
    script = shelf.project.folder / "append/run.sh"
    script.write_text(script.read_text() + "# the same, in other words\n")
    shelf.run("gc", *ALL)
    assert {key.split("/")[0] for key in shelf.commits()} == {"count", "append"}
    assert shelf.project.up() == {"first": "done", "second": "done", "side": "reused"}


def test_the_cache_as_well(shelf):
    shelf.project.up()
    cache = Path(shelf.project.environment["MICROSTAGES_CACHE"])
    unused, partial = cache / "artifacts/aa", cache / "artifacts/.bb.partial"
    for folder in (unused, partial):
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(b"x" * 5000)
    assert "cache" not in shelf.run("gc", *NOW).out
    assert "not used for long" in shelf.run("gc", "--cache", *NOW).out
    assert unused.exists()
    out = shelf.run("gc", "--cache", *NOW, "--yes").out
    assert "of a transfer that was cut off" in out
    assert not unused.exists()
    assert not partial.exists()


# --- what happens between the decision and the removal ---


@pytest.fixture
def decided(shelf, monkeypatch):
    """The results of the old word are to go; what is needed is asked again when they do."""
    old, _ = two_words(shelf)
    monkeypatch.chdir(shelf.project.folder)
    monkeypatch.setenv("MICROSTAGES_CACHE", shelf.project.environment["MICROSTAGES_CACHE"])
    known = look(Path("pipeline.yaml"), [])
    needed = gc.Needed(known, 0)
    decision = gc.decide(known.store, scan(known.store), needed.now(), list(needed.runs.values()), 0.0)
    assert {"/".join(i.run) for i in decision.items if i.kind == "result"} == old
    return known.store, decision.items, needed


def test_a_result_that_a_run_has_begun_to_use_meanwhile_gets_its_commit_back(shelf, decided):
    store, items, needed = decided
    key = next(i.run for i in items if i.kind == "result")
    record = {**shelf.runs()[0], "status": "running", "finished": None, "needs": [list(key)], "stages": {}}
    record["runner"] = own_token()
    name = "20990101T000000000-00000000.json"
    assert NAME.fullmatch(name)
    storage.replace(storage.join(shelf.uri, "runs", name), json.dumps(record).encode())
    said = []
    gone = gc.remove(store, items, needed, said.append)
    assert "/".join(key) in shelf.commits()
    assert key not in {i.run for i in gone}
    assert any("it is needed by now" in text for text in said)
    assert shelf.run("verify", "--all").code == 0


def test_a_result_that_is_made_again_meanwhile_stays(shelf, decided):
    store, items, needed = decided
    shelf.project.up("--force", "--set", "params.word=old", "--only", "first")
    said = []
    gc.remove(store, items, needed, said.append)
    assert any("it was made again meanwhile" in text for text in said)
    assert shelf.run("verify", "--all").code == 0
    assert shelf.project.plan("--set", "params.word=old")["first"] == ("reuse", "unchanged")


def test_what_somebody_has_taken_the_lease_of_stays(shelf, decided):
    store, items, needed = decided
    key = next(i.run for i in items if i.kind == "result")
    leases = Leases(store.uri, "other")
    assert leases.take(*key, owner="somebody", attempt="") is None
    said = []
    gone = gc.remove(store, items, needed, said.append)
    leases.close()
    assert key not in {i.run for i in gone}
    assert any("another run" in text for text in said)
    assert "/".join(key) in shelf.commits()


def test_what_is_tagged_meanwhile_stays(shelf, decided):
    store, items, needed = decided
    shelf.ok("tag", "v1", "--set", "params.word=old")
    gc.remove(store, items, needed, lambda _: None)
    assert shelf.run("verify", "v1").code == 0
    assert len(shelf.commits()) == 6


# --- killed ---


def test_killed_at_any_moment_it_has_broken_nothing_and_goes_on(shelf, killed_at_every_step, tmp_path, monkeypatch):
    shelf.project.up("--set", "params.word=old", "--only", "first")
    shelf.project.up("--only", "first")
    shelf.project.up("--force", "--only", "first")
    store = shelf.project.folder / ".runner" / "store"
    saved = tmp_path / "saved"
    shutil.copytree(store, saved)
    args = ["gc", *map(str, ALL)]

    def fresh() -> None:
        shutil.rmtree(store)
        shutil.copytree(saved, store)

    def then() -> None:
        known = look(shelf.project.file, [])
        for key, folder in scan(known.store).items():
            if folder.commit is not None:
                assert hasattr(known.store.look_up(*key), "outputs"), "what has a commit is whole"
        assert known.steps["first"].action == "reuse"

    monkeypatch.setenv("MICROSTAGES_CACHE", shelf.project.environment["MICROSTAGES_CACHE"])
    kills = killed_at_every_step(shelf.project.folder, store, shelf.project.environment, args, fresh, then)
    assert kills > 10
    done = shelf.files()
    assert len(shelf.commits()) == len(shelf.attempts()) == 1
    for nth in (kills // 3, kills // 2, kills):  # and from there it comes to the same end
        fresh()
        env = {**os.environ, **shelf.project.environment, "BELOW": str(store), "NTH": str(nth)}
        command = [sys.executable, str(tmp_path / "killed.py"), *args]
        subprocess.run(command, cwd=shelf.project.folder, env=env, check=False, capture_output=True)
        assert shelf.run(*args).code == 0
        assert shelf.files() == done
        assert not (store / ".trash").exists()


# --- stores elsewhere ---


def test_in_a_store_elsewhere(far):
    old, new = two_words(far)
    far.ok("tag", "v1", "side", "--set", "params.word=old")
    storage.replace(storage.join(far.uri, "artifacts/append", "0" * 32, "20200101T000000-00001234/out/text"), b"half")
    assert far.ok("gc")["removed"] == []
    assert far.ok("gc")["would_go"] == []  # the store says that it was written just now
    assert "half-made: it was never committed" in {i["why"] for i in far.ok("gc", "--older-than", "0s")["would_go"]}
    assert far.commits() == old | new
    done = far.run("gc", *ALL)
    assert done.code == 0, done.err
    assert far.commits() - new == {key for key in old if key.startswith("count/")}
    assert len(far.attempts()) == 4
    assert set(far.project.up().values()) == {"reused"}
    assert far.run("verify", "--all").code == 0
    assert not [name for name in far.files() if "lease" in name]


def test_for_a_store_in_a_folder_nothing_heavy_is_loaded(shelf):
    shelf.project.up()
    code = (
        "import sys\nfrom runner.cli import call\ncall(['gc'])\ncall(['tag'])\ncall(['verify'])\n"
        "print(*{m.partition('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=shelf.project.folder, env=shelf.project.environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert not set(done.stderr.split()) & {"torch", "numpy", "fsspec", "rich", "asyncio", "docker"}
