"""Checkpoints: a run that is stopped anywhere, however often, ends with the bytes of one that was not."""

import io
import itertools
import json
import os
import resource
import shutil
import signal
import threading
from pathlib import Path

import pytest
from microstages.artifact import open_artifact
from microstages.errors import Stopped, UserError
from microstages.state import Place
from microstages_training.stopping import Leash, Stopping
from training_data import RUN, files, saved_steps

LONG = {"steps": 12, "batch_tokens": 300, "checkpoint_minutes": 0.0}


def after(questions: int) -> Stopping:
    """Says stop when asked so many times: after each step, and before each micro-batch of an evaluation."""
    count = itertools.count(1)
    return Stopping(signals=(), also=lambda: next(count) >= questions)


def unhurried() -> Stopping:
    """Never says stop, and lets a checkpoint be finished before the next step."""

    def wait() -> bool:
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()
        return False

    return Stopping(signals=(), also=wait)


def told(events: io.StringIO) -> list[dict]:
    """The checkpoint events."""
    return [e for e in map(json.loads, events.getvalue().splitlines()) if e["event"] == "checkpoint"]


def in_lives(train_here, dataset, model, place, questions, **settings):
    """Train, stopped and started again until it is done: the adapter's folder, what was found, and where it stopped."""
    stops = []
    for _ in range(40):
        try:
            adapter, found, _ = train_here(dataset, model, place=place, stopping=after(questions), **settings)
            return adapter, found, stops
        except Stopped as stopped:
            stops.append(str(stopped))
    raise AssertionError(f"never done: {stops}")


@pytest.mark.parametrize(
    "variant",
    [
        {"dropout": 0.2, "accumulation": 2, "precision": "bf16"},
        {"precision": "bf16", "again": {"threads": 2}},
        {"dora": True, "target_modules": ["qkv_proj", "down_proj"], "dropout": 0.1, "weight_decay": 0.1},
        {"modules_to_save": ["lm_head"], "eval_every": 3.0, "gradient_checkpointing": True},
        {"steps": 90, "eval_every": 2.0, "early_stopping_patience": 2, "learning_rate": 0.2, "schedule": "constant",
         "max_grad_norm": 0.0, "batch_tokens": 512},
    ],
    ids=["dropout, accumulation", "threads", "DoRA", "modules_to_save", "early stopping"],
)  # fmt: skip
def test_a_stopped_run_ends_with_the_bytes_of_one_that_was_not(variant, tones, tiny_model, train_here, tmp_path):
    settings = {**LONG, **variant}
    again = settings.pop("again", {})
    undisturbed, expected, _ = train_here(tones, tiny_model, **settings)
    # when it is stopped again and again, after a step or within an evaluation
    place = Place(str(tmp_path / "checkpoints"), RUN)
    adapter, found, stops = in_lives(train_here, tones, tiny_model, place, 5, **settings, **again)
    # then it has the same bytes: weights, losses by step, curve
    assert len(stops) >= 3
    assert files(adapter) == files(undisturbed)
    # and its metrics count all of it
    same = ("steps", "epochs", "tokens", "trained_tokens", "train_loss", "eval_loss", "stopped_early")
    assert {k: found["metrics"][k] for k in same} == {k: expected["metrics"][k] for k in same}
    assert found["metrics"]["resumed_from_step"] > 0 and "resumed_from_step" not in expected["metrics"]
    assert expected["metrics"]["stopped_early"] == ("early_stopping_patience" in variant)


def test_it_is_so_wherever_it_is_stopped(tones, tiny_model, train_here, tmp_path):
    """Before the first step, within each evaluation, before and after each point of the curve, after the last step."""
    settings = {**LONG, "steps": 4, "eval_every": 2.0, "dropout": 0.1}
    undisturbed, _, _ = train_here(tones, tiny_model, **settings)
    stops = []
    for question in itertools.count(1):
        place = Place(str(tmp_path / f"checkpoints-{question}"), RUN)
        try:
            train_here(tones, tiny_model, place=place, stopping=after(question), **settings)
            break
        except Stopped as stopped:
            stops.append(str(stopped))
        adapter, _, _ = train_here(tones, tiny_model, place=place, **settings)
        assert files(adapter) == files(undisturbed), stops[-1]
    assert stops[0] == "stopped at step 0 of 4; there is nothing to save yet"
    assert stops[-1] == "stopped at step 4 of 4; a checkpoint is saved"


def test_checkpoints_are_made_as_asked_and_the_newest_stay(tones, tiny_model, train_here, tmp_path):
    events, place = io.StringIO(), Place(str(tmp_path / "checkpoints"), RUN)
    settings = {**LONG, "checkpoint_every": 0.5, "checkpoints_kept": 1}
    _, _, said = train_here(tones, tiny_model, place=place, stopping=unhurried(), events=events, **settings)
    # each is told with its step and place, on the way; the last step needs none
    made = told(events)
    assert [e["step"] for e in made] == [3, 6, 9] and {e["total"] for e in made} == {12}
    assert all(e["uri"].startswith(f"{place.uri}/0000000{e['step']}-") for e in made)
    assert "checkpoint at step 9 of 12: " in said
    # the newest is an artifact of safetensors and JSON that names its run
    assert saved_steps(place) == [9]
    kept = open_artifact(made[-1]["uri"], ["checkpoint"])
    assert kept.metadata == {"fingerprint": RUN, "step": 9}
    assert set(kept.files) == {"optimizer.safetensors", "parameters.safetensors", "state.json"}
    # and a run that finds it says so
    events = io.StringIO()
    _, _, said = train_here(tones, tiny_model, place=place, stopping=unhurried(), events=events, **settings)
    assert told(events)[0] | {"time": 0} == {
        "event": "checkpoint", "stage": "train", "time": 0, "uri": made[-1]["uri"], "step": 9, "total": 12,
        "resumed": True,
    }  # fmt: skip
    assert "goes on from the checkpoint of step 9 of 12" in said


def test_by_time_a_short_run_makes_none(tones, tiny_model, train_here, tmp_path):
    place = Place(str(tmp_path / "checkpoints"), RUN)
    train_here(tones, tiny_model, place=place, stopping=unhurried(), steps=4, batch_tokens=300)
    assert not (tmp_path / "checkpoints").exists()
    train_here(
        tones,
        tiny_model,
        place=place,
        stopping=unhurried(),
        steps=4,
        batch_tokens=300,
        checkpoint_minutes=1e-6,
        checkpoints_kept=9,
    )
    assert saved_steps(place) == [1, 2, 3]


def flip(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut(checkpoint: Path) -> None:
    os.truncate(checkpoint / "parameters.safetensors", 1000)


@pytest.mark.parametrize(
    "damage", [flip, cut, lambda c: (c / "artifact.json").unlink(), lambda c: (c / "state.json").unlink()],
    ids=["a byte", "truncated", "no manifest", "a file missing"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(damage, tones, tiny_model, train_here, tmp_path):
    settings = {**LONG, "checkpoint_every": 8, "checkpoints_kept": 2}
    place = Place(str(tmp_path / "checkpoints"), RUN)
    undisturbed, _, _ = train_here(tones, tiny_model, place=place, stopping=unhurried(), **settings)
    assert saved_steps(place) == [4, 8]
    newest = place.names()[-1]
    damage(Path(place.uri) / newest)
    events = io.StringIO()
    adapter, found, said = train_here(tones, tiny_model, place=place, stopping=unhurried(), events=events, **settings)
    assert f"warning: the checkpoint {place.uri}/{newest} is not used: " in said
    assert [(e["step"], e.get("resumed", False)) for e in told(events)] == [(4, True), (8, False)]
    assert found["metrics"]["resumed_from_step"] == 4 and files(adapter) == files(undisturbed)
    # and it is gone when a better one is there
    assert newest not in place.names() and saved_steps(place) == [4, 8]


def test_where_all_are_damaged_it_begins_anew(tones, tiny_model, train_here, tmp_path):
    settings = {**LONG, "checkpoint_every": 8}
    place = Place(str(tmp_path / "checkpoints"), RUN)
    undisturbed, _, _ = train_here(tones, tiny_model, place=place, stopping=unhurried(), **settings)
    for name in place.names():
        cut(Path(place.uri) / name)
    adapter, found, said = train_here(tones, tiny_model, place=place, stopping=unhurried(), **settings)
    assert said.count("is not used") == 2 and "resumed_from_step" not in found["metrics"]
    assert files(adapter) == files(undisturbed)


def test_the_checkpoint_of_another_run_is_never_used_nor_removed(tones, tiny_model, train_here, tmp_path):
    settings = {**LONG, "checkpoint_every": 8, "checkpoints_kept": 1}
    other = Place(str(tmp_path / "checkpoints"), "f" * 32)
    train_here(tones, tiny_model, place=other, stopping=unhurried(), seed=1, **settings)
    foreign = other.names()
    place = Place(other.uri, RUN)
    adapter, _, said = train_here(tones, tiny_model, place=place, stopping=unhurried(), **settings)
    assert f"{place.uri}/{foreign[-1]} is the checkpoint of another run" in said
    undisturbed, _, _ = train_here(tones, tiny_model, **settings)
    assert files(adapter) == files(undisturbed)
    place.clear()
    assert place.names() == foreign


def test_what_a_killed_writer_left_is_removed(tones, tiny_model, train_here, tmp_path):
    place = Place(str(tmp_path / "checkpoints"), RUN)
    with place.draft(3) as draft:
        shutil.copytree(draft.path, left := Path(place.uri) / f".00000003-0123abcd{draft.path.suffix}")
    train_here(tones, tiny_model, place=place, steps=1)
    assert not left.exists()


def test_a_store_elsewhere_serves_as_well(tones, tiny_model, train_here):
    place = Place("memory://checkpoints/of-a-run", RUN)
    undisturbed, _, _ = train_here(tones, tiny_model, **LONG)
    adapter, _, stops = in_lives(train_here, tones, tiny_model, place, 7, **LONG)
    assert stops and files(adapter) == files(undisturbed)
    place.clear()
    assert place.names() == []


def test_a_checkpoint_that_cannot_be_saved_is_lost_and_the_run_is_not(tones, tiny_model, train_here):
    settings = {**LONG, "checkpoint_every": 8}
    undisturbed, _, _ = train_here(tones, tiny_model, **settings)
    place = Place("/dev/full/checkpoints", RUN)
    adapter, _, said = train_here(tones, tiny_model, place=place, stopping=unhurried(), **settings)
    assert "warning: no checkpoint of step 4, training goes on: " in said and "/dev/full" in said
    assert files(adapter) == files(undisturbed)
    # told to stop, it says that nothing is saved
    with pytest.raises(Stopped, match=r"stopped at step \d+ of 12; no checkpoint could be saved, there is none"):
        train_here(tones, tiny_model, place=place, stopping=after(5), **settings)


def test_a_disk_that_takes_no_more_leaves_nothing_half_visible(tones, tiny_model, train_here, tmp_path):
    settings = {**LONG, "checkpoint_every": 8}
    place = Place(str(tmp_path / "checkpoints"), RUN)
    undisturbed, _, _ = train_here(tones, tiny_model, **settings)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (50_000, before[1])
    )  # bytes: more than the adapter, less than a checkpoint
    try:
        adapter, _, said = train_here(tones, tiny_model, place=place, stopping=unhurried(), **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said.count("training goes on: ") == 2 and "optimizer.safetensors" in said
    assert os.listdir(place.uri) == [] and files(adapter) == files(undisturbed)


def test_a_place_that_is_a_file_is_refused_at_once(tones, tiny_model, train_here, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="it is a file; checkpoints need a folder"):
        train_here(tones, tiny_model, place=Place(str(tmp_path / "file"), RUN), steps=1)


def test_the_first_signal_asks_and_the_second_does_not():
    before = signal.getsignal(signal.SIGTERM)
    with Stopping() as stopping:
        assert not stopping.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.asked
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_leash_is_felt_when_it_is_pulled_and_when_its_holder_dies(tmp_path):
    leash = Leash(tmp_path / "leash")
    held = leash.hold()
    assert not leash.pulled()
    leash.pull()
    assert leash.pulled()
    leash = Leash(tmp_path / "other")
    with leash.hold():
        assert not leash.pulled()
    assert leash.pulled()
    held.close()


def test_a_place_that_cannot_be_read_now_is_no_damage(tones, tiny_model, train_here, tmp_path, monkeypatch):
    place = Place(str(tmp_path / "checkpoints"), RUN)
    train_here(tones, tiny_model, place=place, stopping=unhurried(), **{**LONG, "checkpoint_every": 8})
    before = place.names()

    def full(*_):
        raise UserError("the disk is full", where="cache")

    monkeypatch.setattr("microstages.state.open_artifact", full)
    with pytest.raises(UserError, match="the disk is full"):
        place.newest(print)
    place.prune(2)
    assert place.names() == before and not place.damaged
