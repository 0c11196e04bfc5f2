"""Which examples a step trains, and what a micro-batch holds."""

import numpy as np
import pytest
from microstages.dataset import Split
from microstages.errors import UserError
from microstages_training.batches import Examples, Plan, fill


def split(examples, bins):
    ids = [t for e, _ in examples for t in e]
    trained = [t for _, e in examples for t in e]
    lengths = [len(e) for e, _ in examples]
    return Split(np.asarray(ids, np.uint16), np.asarray(trained, np.uint8), np.asarray(lengths), np.asarray(bins))


def test_a_micro_batch_holds_whole_examples_with_positions_that_restart():
    # given two examples in one bin, the second trained from its first token on
    examples = Examples(split([([5, 6, 7, 8], [0, 0, 1, 1]), ([9, 10, 11], [1, 1, 1])], [2]))
    # when they become a micro-batch
    b = examples.micro_batch([0])
    # then the last token of each is only predicted, and the first never
    assert b.input_ids.tolist() == [5, 6, 7, 9, 10]
    assert b.positions.tolist() == [0, 1, 2, 0, 1]
    assert b.lengths.tolist() == [3, 2]
    assert b.rows.tolist() == [1, 2, 3, 4]
    assert b.targets.tolist() == [7, 8, 10, 11]


def test_tokens_after_the_last_trained_one_are_left_out():
    examples = Examples(split([([5, 6, 7, 8, 9], [0, 1, 0, 0, 0]), ([1, 2], [1, 0]), ([3, 4], [0, 1])], [1, 2]))
    b = examples.micro_batch([0, 1])
    assert b.input_ids.tolist() == [5, 3]
    assert b.targets.tolist() == [6, 4]
    assert b.lengths.tolist() == [1, 1]


def test_nothing_to_train_is_an_empty_micro_batch():
    assert len(Examples(split([([5, 6], [1, 0])], [1])).micro_batch([0]).lengths) == 0


def test_bins_fill_micro_batches_up_to_the_capacity_in_order():
    assert fill(np.asarray([3, 3, 4, 10, 1, 9]), 10) == [slice(0, 3), slice(3, 4), slice(4, 6)]


def test_each_epoch_trains_each_bin_once_in_an_order_of_its_own():
    plan = Plan(np.asarray([7, 5, 9, 3, 8, 6, 2]), 16, 2, seed=3, epochs=2)
    steps = [[int(b) for bins in micro for b in bins] for _, micro in plan.walk()]
    half = len(plan.epoch(0)[1])
    first, second = ([b for step in part for b in step] for part in (steps[:half], steps[half:]))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert len(steps) == plan.total
    assert all(len(micro) <= 2 for _, micro in plan.walk())


def test_the_order_follows_the_seed_alone_and_can_be_entered_at_any_step():
    def steps(seed, start=0):
        return [[b.tolist() for b in micro] for _, micro in Plan(tokens, 16, 1, seed, 3).walk(start)]

    tokens = np.asarray([7, 5, 9, 3, 8, 6, 2])
    assert steps(1) == steps(1) != steps(2)
    assert steps(1, 4) == steps(1)[4:]


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(1, None, 4), (1.5, None, 6), (0.1, None, 1), (1, 9, 9)])
def test_steps_come_from_epochs_or_are_given(epochs, steps, expected):
    assert Plan(np.full(8, 10), 20, 1, 0, epochs, steps).total == expected
    assert len(list(Plan(np.full(8, 10), 20, 1, 0, epochs, steps).walk())) == expected


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_a_step_without_loss_and_each_micro_batch_fits(processes):
    plan = Plan(np.asarray([7, 5, 9, 3, 8, 6, 2, 4]), 12, 4, 0, 1)
    for _, micro in plan.walk():
        shares = [plan.share(micro, rank, processes) for rank in range(processes)]
        dealt = sorted(int(b) for share in shares for bins in share for b in bins)
        assert dealt == sorted(int(b) for bins in micro for b in bins)
        assert all(plan.bin_tokens[bins].sum() <= 12 for share in shares for bins in share)


def test_a_sequence_longer_than_a_micro_batch_is_an_error_that_says_what_fits():
    with pytest.raises(UserError, match=r"1,000 tokens cannot hold a sequence of 2,048") as error:
        Plan(np.asarray([10, 2048]), 1000, 1, 0, 1)
    assert "at least 2048" in error.value.fix
