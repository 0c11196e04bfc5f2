"""Learning rates by step, and what is asked of a GPU."""

import pytest
import torch
from microstages.errors import UserError
from microstages_training.loop import evaluation_steps
from microstages_training.optimizer import make_optimizer, rate_at, require_gpu, warmup_steps
from microstages_training.settings import Settings


def rates(schedule, warmup, total=10):
    return [round(rate_at(step, total, warmup, schedule), 4) for step in range(total)]


def test_linear_falls_evenly_to_nothing():
    assert rates("linear", 0) == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_warm_up_rises_evenly_and_the_highest_rate_follows_it():
    assert rates("linear", 4) == [0.2, 0.4, 0.6, 0.8, 1.0, 0.8333, 0.6667, 0.5, 0.3333, 0.1667]


def test_cosine_is_half_a_period():
    assert rates("cosine", 2, 6) == [0.3333, 0.6667, 1.0, 0.8536, 0.5, 0.1464]


def test_constant_stays():
    assert rates("constant", 1, 4) == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("warmup", "total", "steps"), [(0, 100, 0), (0.03, 100, 3), (0.5, 10, 5), (1, 10, 1), (7, 10, 7)]
)
def test_warm_up_is_a_share_below_one_and_steps_from_there(warmup, total, steps):
    assert warmup_steps(warmup, total) == steps


@pytest.mark.parametrize(
    ("every", "total", "steps"),
    [
        (0, 8, set()),
        (0.25, 8, {2, 4, 6, 8}),
        (0.5, 3, {2, 3}),
        (3, 8, {3, 6}),
        (100, 8, set()),
        (0.01, 4, {1, 2, 3, 4}),
    ],
)
def test_evaluations_are_a_share_below_one_and_steps_from_there(every, total, steps):
    assert evaluation_steps(every, total) == steps


def test_matrices_decay_and_vectors_do_not():
    optimizer = make_optimizer(
        [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))],
        Settings(weight_decay=0.1),
        torch.device("cpu"),
    )
    assert [(g["params"][0].ndim, g["weight_decay"]) for g in optimizer.param_groups] == [(2, 0.1), (1, 0.0)]


@pytest.mark.parametrize(
    ("settings", "flag"), [(Settings(optimizer="paged-adamw-8bit"), "--optimizer"), (Settings(liger=True), "--liger")]
)
def test_what_needs_a_gpu_says_so_on_a_cpu(settings, flag):
    with pytest.raises(UserError, match="NVIDIA GPU") as error:
        require_gpu(settings, torch.device("cpu"))
    assert error.value.where == flag
