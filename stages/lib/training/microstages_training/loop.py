"""The training loop. Everything that changes while it runs is in `State`; step n is a pure function of that, the
settings and the data: order, learning rate and dropout are computed from the step's number, never carried along.

On the CPU the result is the same to the bit, whatever the number of threads. The loss of a step is the mean over all
its trained tokens, over all micro-batches and processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from microstages.errors import UserError
from microstages.reporting import Reporter

from microstages_training import adapter
from microstages_training.batches import Examples, MicroBatch, Plan, fill
from microstages_training.distributed import Team
from microstages_training.model import Model
from microstages_training.optimizer import make_optimizer, rate_at, warmup_steps
from microstages_training.settings import Settings

POINTS = 1000  # the curve has at most so many; a point is the mean over the steps since the last


@dataclass
class State:
    """Where training stands: with the adapter's weights in the model, all that a continuation needs."""

    optimizer: Any
    step: int = 0
    epoch: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] | None = None  # the adapter of the best evaluation, kept only with early stopping
    best_loss: float = math.inf
    worse: int = 0  # evaluations since the best
    stopped_early: bool = False


@dataclass
class Meter:
    """What was done and how long it took, evaluations apart."""

    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Task:
    """What is trained, on what, how, by whom, and who hears of it. `test` may be missing."""

    model: Model
    train: Examples
    test: Examples | None
    plan: Plan
    settings: Settings
    team: Team
    report: Reporter


def fit(task: Task) -> tuple[State, Meter]:
    """Train the adapter in the task's model. Raises UserError where the loss is no longer finite."""
    model, settings, total = task.model, task.settings, task.plan.total
    state = State(make_optimizer((p for _, p in model.trained), settings, model.device))
    meter = Meter()
    warmup = warmup_steps(settings.warmup, total)
    eval_steps = evaluation_steps(settings.eval_every, total) | {total}
    every = math.ceil(total / POINTS)
    loss_sum = trained_sum = 0.0
    _evaluate(task, state)
    if settings.gradient_checkpointing:
        model.save_memory()
    model.causal.train()
    with task.report.progress("training", total, "steps") as bar:
        for epoch, micro in task.plan.walk(state.step):
            began = time.monotonic()
            rate = settings.learning_rate * rate_at(state.step, total, warmup, settings.schedule)
            done = _step(task, state, micro, rate)
            state.step, state.epoch = state.step + 1, epoch
            if not (math.isfinite(done.loss) and math.isfinite(done.norm)):
                raise UserError(
                    f"the loss is {done.loss} at step {state.step} of {total} (gradient norm {done.norm})",
                    where="--learning-rate",
                    fix=f"use a lower one than {settings.learning_rate:g}, or a longer --warmup",
                )
            loss_sum, trained_sum = loss_sum + done.loss * done.trained_tokens, trained_sum + done.trained_tokens
            meter.tokens += done.tokens
            meter.trained_tokens += done.trained_tokens
            meter.seconds += time.monotonic() - began
            if state.step % every == 0 or state.step == total:
                point = {"step": state.step, "epoch": epoch, "loss": loss_sum / max(1.0, trained_sum)}
                point |= {"learning_rate": rate, "gradient_norm": done.norm}
                state.curve.append({k: _short(v) for k, v in point.items()})
                loss_sum = trained_sum = 0.0
            bar.update(state.step, loss=f"{done.loss:.3f}", speed=f"{meter.tokens / meter.seconds:,.0f} tokens/s")
            if state.step in eval_steps:
                _evaluate(task, state)
                model.causal.train()
                if settings.early_stopping_patience and state.worse >= settings.early_stopping_patience:
                    state.stopped_early = state.step < total
                    break
    return state, meter


@dataclass(frozen=True)
class Done:
    """One optimizer step: mean loss per trained token, norm of the gradients before clipping, tokens."""

    loss: float
    norm: float
    tokens: int
    trained_tokens: int


def _step(task: Task, state: State, micro: list[Any], rate: float) -> Done:
    model, settings, team = task.model, task.settings, task.team
    if settings.dropout:
        torch.manual_seed((settings.seed << 20) + state.step * team.size + team.rank)
    batches = [task.train.micro_batch(bins) for bins in task.plan.share(micro, team.rank, team.size)]
    counts = [sum(len(b.input_ids) for b in batches), sum(len(b.targets) for b in batches)]
    tokens, trained = (int(v) for v in team.sum(torch.tensor(counts, dtype=torch.float64)).tolist())
    if not trained:
        return Done(0.0, 0.0, tokens, 0)
    parameters = [p for _, p in model.trained]
    state.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=model.device)
    for batch in batches:
        total += model.backward(batch, trained)
    team.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or math.inf)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    return Done(float(team.sum(total)) / trained, float(norm), tokens, trained)


def evaluation_steps(every: float, total: int) -> set[int]:
    """The steps after which to evaluate: `every` below 1 is a share of `total`, else steps; 0: none."""
    if not every:
        return set()
    if every < 1:
        return {max(1, round(i * every * total)) for i in range(1, int(1 / every) + 1)}
    return set(range(int(every), total + 1, int(every)))


def _evaluate(task: Task, state: State) -> None:
    """Measure the loss on the held-out rows and remember it; keep the adapter where it is the best so far."""
    if task.test is None:
        return
    loss = _short(mean_loss(task.model, task.test, task.settings.batch_tokens, task.team))
    state.evaluations.append({"step": state.step, "epoch": _short(state.epoch), "loss": loss})
    task.report.metric(step=state.step, eval_loss=loss)
    if loss < state.best_loss:
        state.best_loss, state.worse = loss, 0
        if task.settings.early_stopping_patience:
            state.best = {k: v.clone() for k, v in adapter.weights(task.model.peft).items()}
    else:
        state.worse += 1


def micro_batches(examples: Examples, batch_tokens: int, rank: int = 0, processes: int = 1) -> Iterator[MicroBatch]:
    """All bins of a split in order, as micro-batches; with several processes every n-th of them."""
    longest = int(examples.bin_tokens.max())
    for piece in fill(examples.bin_tokens, max(batch_tokens, longest))[rank::processes]:
        yield examples.micro_batch(range(piece.start, piece.stop))


def mean_loss(model: Model, examples: Examples, batch_tokens: int, team: Team) -> float:
    """Mean loss per trained token over a whole split, in nats."""
    model.causal.eval()
    total, count = torch.zeros((), dtype=torch.float64, device=model.device), 0
    for batch in micro_batches(examples, batch_tokens, team.rank, team.size):
        if len(batch.targets):
            total += model.losses(batch)[0].double().sum()
            count += len(batch.targets)
    sums = team.sum(torch.tensor([float(total), count], dtype=torch.float64))
    return float(sums[0] / sums[1])


def _short(value: float) -> float:
    """Six significant digits."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
