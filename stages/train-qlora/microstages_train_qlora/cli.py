"""The command `train-qlora`. The work is in `microstages_training`."""

# ruff: noqa: ARG001  (the parameters are read from run.params, as one Settings)

from __future__ import annotations

from typing import Annotated

from microstages.artifact import Artifact, Draft
from microstages.stage import Input, Output, Run, stage
from microstages_training import settings as s
from microstages_training.settings import Settings


@stage("train-qlora", package="microstages_train_qlora", uses=("microstages_training",), nodes=True)
def main(
    run: Run,
    *,
    dataset: Annotated[Artifact, Input("dataset", help="prepared with the base model's tokenizer")],
    base_model: Annotated[Artifact, Input("model", help="a model folder with safetensors weights")],
    output: Annotated[Draft, Output("adapter", name="adapter")],
    checkpoints: s.Checkpoints = None,
    rank: s.Rank = Settings.rank,
    alpha: s.Alpha = Settings.alpha,
    dropout: s.Dropout = Settings.dropout,
    target_modules: s.TargetModules = None,
    rslora: s.RsLora = Settings.rslora,
    dora: s.Dora = Settings.dora,
    modules_to_save: s.ModulesToSave = None,
    init: s.QuantizedInit = "kaiming",
    learning_rate: s.LearningRate = Settings.learning_rate,
    schedule: s.Schedule = "cosine",
    warmup: s.Warmup = Settings.warmup,
    epochs: s.Epochs = Settings.epochs,
    steps: s.Steps = None,
    batch_tokens: s.BatchTokens = Settings.batch_tokens,
    batch_size: s.BatchSize = None,
    accumulation: s.Accumulation = Settings.accumulation,
    max_grad_norm: s.MaxGradNorm = Settings.max_grad_norm,
    weight_decay: s.WeightDecay = Settings.weight_decay,
    adam_beta1: s.Beta1 = Settings.adam_beta1,
    adam_beta2: s.Beta2 = Settings.adam_beta2,
    adam_epsilon: s.Epsilon = Settings.adam_epsilon,
    quant_type: s.QuantType = "nf4",
    double_quant: s.DoubleQuant = Settings.double_quant,
    compute_dtype: s.Precision = "auto",
    optimizer: s.Optimizer = "adamw",
    gradient_checkpointing: s.GradientCheckpointing = Settings.gradient_checkpointing,
    eval_every: s.EvalEvery = Settings.eval_every,
    early_stopping_patience: s.Patience = Settings.early_stopping_patience,
    keep_best: s.KeepBest = Settings.keep_best,
    seed: s.Seed = Settings.seed,
    data_seed: s.DataSeed = None,
    gpus: s.Gpus = Settings.gpus,
    liger: s.Liger = Settings.liger,
    threads: s.Threads = Settings.threads,
    checkpoint_every: s.CheckpointEvery = Settings.checkpoint_every,
    checkpoint_minutes: s.CheckpointMinutes = Settings.checkpoint_minutes,
    checkpoints_kept: s.CheckpointsKept = Settings.checkpoints_kept,
) -> None:
    """Train a LoRA adapter on a base model quantized to 4 bits.

    The base model's linear layers are quantized by bitsandbytes as they are loaded (QLoRA); on a CPU it works too, but
    saves no memory. The adapter is written in PEFT's format, with the losses by step and their curve as a picture.
    Attention never crosses an example, and no padding is computed.
    """
    from microstages_training.train import train

    params = dict(run.params)
    params["precision"] = params.pop("compute_dtype")
    train(run, dataset, base_model, output, Settings.of(params), checkpoints)


if __name__ == "__main__":
    main()
