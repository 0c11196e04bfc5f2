"""`training_args`: the Trainer's arguments as parameters of training, with the defaults of each generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.olive.params import Params
from runner.olive.section import CHANGED, LOST, NEEDLESS, USED, Layers, Section
from runner.olive.trainer import read_rest

# What Olive of a generation trains with where a config says nothing: its own defaults, else the Trainer's.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "A": {"seed": 42, "data_seed": 42, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16,
          "max_steps": 10000, "num_train_epochs": 3.0, "weight_decay": 0.0, "learning_rate": 2e-4,
          "gradient_checkpointing": True, "lr_scheduler_type": "constant", "warmup_ratio": 0.03, "warmup_steps": 0,
          "logging_steps": 10, "eval_strategy": "no", "max_grad_norm": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999,
          "adam_epsilon": 1e-8},
    "B": {"seed": 42, "data_seed": None, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
          "max_steps": -1, "num_train_epochs": 3.0, "weight_decay": 0.0, "learning_rate": 2e-4,
          "gradient_checkpointing": True, "lr_scheduler_type": "constant", "warmup_ratio": 0.03, "warmup_steps": 0,
          "logging_steps": 500, "eval_strategy": None, "max_grad_norm": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999,
          "adam_epsilon": 1e-8},
}  # fmt: skip

# Schedules of transformers: ours, and why another one where it is another one.
SCHEDULES: Mapping[str, tuple[str, str]] = {
    "linear": ("linear", ""), "cosine": ("cosine", ""), "constant": ("constant", ""),
    "constant_with_warmup": ("constant", ""),
    "cosine_with_restarts": ("cosine", "with one cycle, its default, it is the same"),
    "polynomial": ("linear", "of power 1, its default, but for an end at 0 in place of 1e-7"),
    "inverse_sqrt": ("cosine", "there is no inverse square root: another curve"),
    "reduce_lr_on_plateau": ("constant", "the rate does not follow the held-out loss"),
    "cosine_with_min_lr": ("cosine", "down to 0"), "cosine_warmup_with_min_lr": ("cosine", "down to 0"),
    "warmup_stable_decay": ("constant", "without the decay at its end"), "greedy": ("constant", "no greedy schedule"),
}  # fmt: skip
EIGHT_BIT = {"adamw_8bit": "adamw-8bit", "adamw_bnb_8bit": "adamw-8bit", "paged_adamw_8bit": "paged-adamw-8bit"}
ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_apex_fused")
PAGED = ("paged_adamw_32bit", "paged_adamw")
OTHER_OPTIMIZERS = ("adamw_anyprecision", "adafactor", "sgd", "adagrad", "adagrad_bnb_8bit", "lion_8bit", "lion_32bit",
                    "paged_lion_8bit", "paged_lion_32bit", "rmsprop", "rmsprop_bnb", "ademamix", "ademamix_8bit",
                    "paged_ademamix_32bit", "paged_ademamix_8bit", "galore_adamw", "galore_adamw_8bit", "lomo",
                    "adalomo", "grokadamw", "schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd",
                    "adamw_torch_4bit", "adamw_torch_8bit", "apollo_adamw", "stable_adamw")  # fmt: skip
STRATEGIES = ("no", "steps", "epoch")


@dataclass
class Training:
    """Parameters of a training stage. `data_seed`: that of the split of sequences."""

    params: Params = field(default_factory=Params)
    data_seed: int = 42


class _Arguments:
    """The arguments of one pass, each a value of the config or the generation's default."""

    def __init__(self, section: Section | None, generation: str) -> None:
        self.layers = Layers(section, section.child("extra_args") if section else None)
        self.defaults, self.params = DEFAULTS[generation], Params()

    def value(self, key: str, *kinds: str) -> Any:
        return self.layers.take(key, *kinds, default=self.defaults.get(key))

    def place(self, key: str) -> Any:
        holder = self.layers.holder(key)
        return holder.place(key) if holder else None

    def plain(self, key: str, name: str, *kinds: str) -> None:
        """An argument that is a parameter as it is."""
        self.params.put(name, self.value(key, *kinds), self.place(key))
        self.layers.fate(key, USED, name)


def read_training(section: Section | None, generation: str, quantized: bool, evaluated: bool) -> Training:
    """The training arguments; `section` None: all defaults. `evaluated`: whether rows are held out."""
    args = _Arguments(section, generation)
    for key, name, kind in (
        ("learning_rate", "learning_rate", "number"), ("weight_decay", "weight_decay", "number"),
        ("max_grad_norm", "max_grad_norm", "number"), ("adam_beta1", "adam_beta1", "number"),
        ("adam_beta2", "adam_beta2", "number"), ("adam_epsilon", "adam_epsilon", "number"),
        ("gradient_accumulation_steps", "accumulation", "whole"),
        ("gradient_checkpointing", "gradient_checkpointing", "flag"), ("seed", "seed", "whole"),
        ("save_steps", "checkpoint_every", "number"), ("save_total_limit", "checkpoints_kept", "whole"),
        ("use_liger_kernel", "liger", "flag"),
    ):  # fmt: skip
        args.plain(key, name, kind)
    _length(args)
    _batch(args)
    _schedule(args)
    _optimizer(args, quantized)
    _evaluation(args, generation, evaluated)
    seed = args.value("data_seed", "whole")
    args.layers.fate("data_seed", USED, "data_seed, and split_seed of the data")
    if seed is not None and seed != args.params.values["seed"]:
        args.params.put("data_seed", seed, args.place("data_seed"))
    for one in reversed(args.layers.sections):
        read_rest(one)
        one.close()
    return Training(args.params, int(args.params.values["seed"] if seed is None else seed))


def _length(args: _Arguments) -> None:
    steps, epochs = args.value("max_steps", "whole"), args.value("num_train_epochs", "number")
    given = args.layers.holder("max_steps") is not None
    if steps > 0:
        note = "" if given else "the default of Olive then; num_train_epochs counted only with max_steps: -1"
        args.params.put("steps", steps, args.place("max_steps"), note)
        args.layers.fate("max_steps", USED, "steps")
        args.layers.fate(
            "num_train_epochs", NEEDLESS, f"max_steps decides ({steps:,}, {'given' if given else 'the default'})"
        )
        return
    args.params.put("epochs", epochs, args.place("num_train_epochs"))
    args.layers.fate("max_steps", NEEDLESS, "not above 0: num_train_epochs decides")
    args.layers.fate("num_train_epochs", USED, "epochs")


def _batch(args: _Arguments) -> None:
    size = args.layers.take("per_gpu_train_batch_size", "whole")
    args.layers.fate("per_gpu_train_batch_size", USED, "batch_size")
    key = "per_device_train_batch_size"
    given = args.layers.holder(key) is not None
    args.params.put("batch_size", args.value(key, "whole") if given or size is None else size, args.place(key))
    args.layers.fate(key, USED, "batch_size")


def _schedule(args: _Arguments) -> None:
    holder, name = args.layers.holder("lr_scheduler_type"), args.defaults["lr_scheduler_type"]
    if holder:
        name = holder.word("lr_scheduler_type", {k: k for k in SCHEDULES}, name)
    schedule, why = SCHEDULES[name]
    args.params.put("schedule", schedule, args.place("lr_scheduler_type"))
    args.layers.fate("lr_scheduler_type", CHANGED if why else USED, f"schedule: {schedule}", why)
    steps, ratio = args.value("warmup_steps", "number"), args.value("warmup_ratio", "number")
    if name in ("constant", "reduce_lr_on_plateau"):
        args.params.put("warmup", 0.0)
        for key in ("warmup_ratio", "warmup_steps"):
            args.layers.fate(key, NEEDLESS, f"the schedule {name} has no warm-up: warmup is 0")
        return
    key = "warmup_steps" if steps else "warmup_ratio"
    args.params.put("warmup", float(steps or ratio), args.place(key))
    args.layers.fate(key, USED, "warmup")
    args.layers.fate("warmup_ratio", NEEDLESS, "warmup_steps decides")
    args.layers.fate("warmup_steps", NEEDLESS, "0: warmup_ratio decides")


def _optimizer(args: _Arguments, quantized: bool) -> None:
    holder = args.layers.holder("optim")
    known = (*ADAMW, *PAGED, *EIGHT_BIT, *OTHER_OPTIMIZERS)
    name = holder.word("optim", {k: k for k in known}) if holder else ""
    if name in EIGHT_BIT and quantized:
        args.params.put("optimizer", EIGHT_BIT[name], args.place("optim"))
        args.layers.fate("optim", USED, f"optimizer: {EIGHT_BIT[name]}")
    elif name in EIGHT_BIT:
        args.layers.fate("optim", CHANGED, "AdamW in fp32", "an adapter's optimizer state is small")
    elif name in PAGED:
        why = "the same formula; an adapter's optimizer state is too small to page"
        args.layers.fate("optim", CHANGED, "AdamW in fp32", why)
    elif name in OTHER_OPTIMIZERS:
        args.layers.fate("optim", LOST, "there is AdamW only: check the learning rate")
    else:
        args.layers.fate("optim", USED, "AdamW, which it always is")


def _evaluation(args: _Arguments, generation: str, evaluated: bool) -> None:
    layers, keys = args.layers, ("eval_strategy", "evaluation_strategy", "evaluate_during_training")
    values = [layers.take(k, "text", among=STRATEGIES) for k in keys[:2]]
    layers.take(keys[2], "flag")
    strategy = next((v for v in values if v), args.defaults["eval_strategy"])
    if generation == "B":  # it evaluates wherever there is something to evaluate on
        strategy = "epoch" if strategy == "epoch" else "steps"
    every: float | None = None
    steps = layers.take("eval_steps", "number")
    logging = args.value("logging_steps", "number")
    best = layers.take("load_best_model_at_end", "flag", default=False)
    if not evaluated:
        why = "no rows are held out: nothing to evaluate on, as in Olive"
        for key in (*keys, "eval_steps", "load_best_model_at_end"):
            layers.fate(key, NEEDLESS, why)
        strategy = "none"
    elif strategy == "no":
        every = 0.0
        args.params.put("eval_every", every)
    elif strategy == "steps":
        every = steps or logging
        args.params.put("eval_every", every, args.place("eval_steps"))
    elif "epochs" in args.params.values:
        epochs = args.params.values["epochs"]
        every = round(1 / epochs, 6) if epochs > 1 else 0.0  # at the end there is one in any case
        args.params.put("eval_every", every, note="after every epoch")
    else:
        why = "how many steps an epoch has is known only when the data is prepared"
        for key in keys:
            layers.fate(key, CHANGED, "eval_every: four times in all", why)
    for key in keys:
        layers.fate(key, USED, f"eval_every: {every:g}" if every is not None else "eval_every")
    layers.fate(
        "eval_steps", *((USED, "eval_every") if strategy == "steps" else (NEEDLESS, f"the strategy is {strategy}"))
    )
    layers.fate("logging_steps", *(
        (USED, "eval_every, as eval_steps is not given") if strategy == "steps" and not steps
        else (NEEDLESS, "every step is in the loss curve")))  # fmt: skip
    if best and not every:
        layers.fate("load_best_model_at_end", NEEDLESS, "without evaluations there is no best one")
    elif best:
        args.params.put("keep_best", True, args.place("load_best_model_at_end"))
    layers.fate("load_best_model_at_end", USED, "keep_best")
