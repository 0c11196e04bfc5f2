"""The training loop. Everything that changes while it runs is in `State`; step n is a pure function of that, the
settings and the data: order, learning rate and random numbers are computed from the step's number, never carried along.

On the CPU the result is the same to the bit, however often training was stopped and went on. (Another number of threads
may round differently in fp32: torch computes the last few elements of each thread's share in another way.) The loss of
a step is the mean over all its trained tokens, over all micro-batches and processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from microstages.errors import Stopped, UserError
from microstages.reporting import Reporter

from microstages_training import adapter
from microstages_training.batches import Examples, MicroBatch, Plan, fill
from microstages_training.checkpoints import Keeper
from microstages_training.distributed import Team
from microstages_training.model import Model
from microstages_training.optimizer import make_optimizer, rate_at, warmup_steps
from microstages_training.settings import Settings
from microstages_training.state import State, restore
from microstages_training.stopping import Stopping

POINTS = 1000  # the curve has at most so many; a point is the mean over the steps since the last


@dataclass(frozen=True)
class Task:
    """What is trained, on what, how, by whom, and who hears of it. `test` may be missing.

    `keeper` makes checkpoints (in one process), `resume` is the folder of the one to go on from.
    """

    model: Model
    train: Examples
    test: Examples | None
    plan: Plan
    settings: Settings
    team: Team
    report: Reporter
    stopping: Stopping
    keeper: Keeper | None = None
    resume: Path | None = None


def fit(task: Task) -> State:
    """Train the adapter in the task's model, from its checkpoint on where it has one.

    Raises UserError where the loss is no longer finite; Stopped where it is told to stop, after saving a checkpoint.
    """
    model, settings, total = task.model, task.settings, task.plan.total
    state = State(make_optimizer((p for _, p in model.trained), settings, model.device))
    if task.resume is not None:
        restore(task.resume, model, state)
        if task.keeper is not None:
            task.keeper.resumed(state)
    with task.stopping:
        with task.keeper or nullcontext():
            if not state.step:
                _evaluate(task, state)
            if settings.gradient_checkpointing:
                model.save_memory()
            _train(task, state, evaluation_steps(settings.eval_every, total) | {total})
        if task.team.agree(task.stopping.asked):
            _stop(task, state)
    return state


def _train(task: Task, state: State, eval_steps: set[int]) -> None:
    """All steps that are left."""
    model, settings, total, meter = task.model, task.settings, task.plan.total, state.meter
    warmup, every = warmup_steps(settings.warmup, total), math.ceil(total / POINTS)
    model.causal.train()
    with task.report.progress("training", total, "steps", state.step) as bar:
        if state.step and _is_over(task, state, eval_steps):
            return
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
            state.loss_sum += done.loss * done.trained_tokens
            state.trained_sum += done.trained_tokens
            meter.tokens += done.tokens
            meter.trained_tokens += done.trained_tokens
            meter.seconds += time.monotonic() - began
            if state.step % every == 0 or state.step == total:
                point = {"step": state.step, "epoch": epoch, "loss": state.loss_sum / max(1.0, state.trained_sum)}
                point |= {"learning_rate": rate, "gradient_norm": done.norm}
                state.curve.append({k: _short(v) for k, v in point.items()})
                task.report.metric(**state.curve[-1])
                state.loss_sum = state.trained_sum = 0.0
            bar.update(state.step, loss=f"{done.loss:.3f}", speed=f"{meter.tokens / meter.seconds:,.0f} tokens/s")
            if done.stop:
                _stop(task, state)
            if _is_over(task, state, eval_steps):
                return
            if task.keeper is not None and state.step < total:
                task.keeper.after(state)


def _is_over(task: Task, state: State, eval_steps: set[int]) -> bool:
    """What follows a step: the evaluation that is due, unless it was made before a checkpoint; whether it was the last
    step, or training ends early."""
    total, patience = task.plan.total, task.settings.early_stopping_patience
    if state.step in eval_steps:
        if not state.evaluated:
            _evaluate(task, state)
            task.model.causal.train()
        if patience and state.worse >= patience:
            state.stopped_early = state.step < total
            return True
    return state.step >= total


def _stop(task: Task, state: State) -> NoReturn:
    """Save a checkpoint and end as one who was told to."""
    where = f"stopped at step {state.step:,} of {task.plan.total:,}"
    raise Stopped(f"{where}; {task.keeper.at_once(state)}" if task.keeper is not None else where)


@dataclass(frozen=True)
class Done:
    """One optimizer step: mean loss per trained token, norm of the gradients before clipping, tokens; whether one of
    the processes was told to stop."""

    loss: float
    norm: float
    tokens: int
    trained_tokens: int
    stop: bool


def _step(task: Task, state: State, micro: list[Any], rate: float) -> Done:
    model, settings, team = task.model, task.settings, task.team
    torch.manual_seed((settings.seed << 20) + state.step * team.size + team.rank)
    batches = [task.train.micro_batch(bins) for bins in task.plan.share(micro, team.rank, team.size)]
    counts = [sum(len(b.input_ids) for b in batches), sum(len(b.targets) for b in batches)]
    tokens, trained = (int(v) for v in team.sum(torch.tensor(counts, dtype=torch.float64)).tolist())
    if not trained:
        return Done(0.0, 0.0, tokens, 0, team.agree(task.stopping.asked))
    parameters = [p for _, p in model.trained]
    state.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=model.device)
    idle = _idle(task, batches)  # told before the first pass
    for batch in batches:
        total += model.backward(batch, trained)
    for _ in range(idle):
        model.idle(backward=True)
    team.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or math.inf)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    asked = total.new_tensor(float(task.stopping.asked))
    loss, stop = team.sum(torch.stack((total, asked))).tolist()  # one sum over the processes for both
    return Done(loss / trained, float(norm), tokens, trained, stop > 0)


def _idle(task: Task, batches: list[MicroBatch]) -> int:
    """With a base model that is shared out: how many passes another process makes more than these batches take."""
    if not task.model.sharded:
        return 0
    mine = sum(map(task.model.passes, batches))
    return task.team.most(mine) - mine


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
    mean = mean_loss(task, task.test)
    if mean is None:
        _stop(task, state)
    loss = _short(mean)
    state.evaluations.append({"step": state.step, "epoch": _short(state.epoch), "loss": loss})
    task.report.metric(step=state.step, eval_loss=loss)
    if loss < state.best_loss:
        state.best_loss, state.worse = loss, 0
        if task.settings.keeps_best:
            state.best = {k: v.clone() for k, v in adapter.weights(task.model.peft).items()}
    else:
        state.worse += 1


def micro_batches(examples: Examples, batch_tokens: int) -> Iterator[MicroBatch]:
    """All bins of a split in order, as micro-batches."""
    for piece in _pieces(examples, batch_tokens):
        yield examples.micro_batch(range(piece.start, piece.stop))


def _pieces(examples: Examples, batch_tokens: int) -> list[slice]:
    return fill(examples.bin_tokens, max(batch_tokens, int(examples.bin_tokens.max())))


def mean_loss(task: Task, examples: Examples) -> float | None:
    """Mean loss per trained token over a whole split, in nats; None where a process is asked to stop meanwhile."""
    model, team = task.model, task.team
    model.causal.eval()
    total, count = torch.zeros((), dtype=torch.float64, device=model.device), 0
    pieces = _pieces(examples, task.settings.batch_tokens)
    for first in range(0, len(pieces), team.size):
        if team.agree(task.stopping.asked):
            return None
        mine = pieces[first : first + team.size][team.rank : team.rank + 1]
        batches = [examples.micro_batch(range(piece.start, piece.stop)) for piece in mine]
        idle = _idle(task, batches)
        for batch in batches:
            if len(batch.targets):
                total += model.losses(batch)[0].double().sum()
                count += len(batch.targets)
        for _ in range(idle):
            model.idle(backward=False)
    sums = team.sum(torch.tensor([float(total), count], dtype=torch.float64))
    return float(sums[0] / sums[1])


def _short(value: float) -> float:
    """Six significant digits."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
