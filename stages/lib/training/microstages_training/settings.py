"""The parameters of training, as the two stages offer them and as the training code reads them.

`Settings` holds values and defaults; the aliases hold help, limits and units, so that both stages say the same.
Light to import: it is read for `--help`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from microstages.errors import UserError
from microstages.stage import Param, State
from microstages.state import Place

Rank = Annotated[int, Param("rank of the adapter's matrices", min=1)]
Alpha = Annotated[float, Param("scale: the update is alpha / rank × B·A (rsLoRA: alpha / √rank)", above=0)]
Dropout = Annotated[float, Param("dropout on the adapter's input", min=0, below=1)]
TargetModules = Annotated[
    list[str] | None,
    Param("names of the linear layers that get an adapter; repeat the flag. Default: all but the output layer"),
]
RsLora = Annotated[bool, Param("rank-stabilized LoRA: scale by alpha / √rank")]
Dora = Annotated[bool, Param("DoRA: train magnitude and direction apart")]
ModulesToSave = Annotated[
    list[str] | None, Param("layers trained and saved whole, such as lm_head, embed_tokens; repeat the flag")
]
Init = Annotated[
    Literal["kaiming", "gaussian", "orthogonal"], Param("how the adapter begins; the model's answers do not change")
]
QuantizedInit = Annotated[
    Literal["kaiming", "gaussian", "orthogonal", "loftq"],
    Param("how the adapter begins; all but loftq leave the model's answers as they are, loftq makes up for what the "
          "quantization lost"),
]  # fmt: skip
LearningRate = Annotated[float, Param("learning rate at its highest", above=0)]
Schedule = Annotated[Literal["linear", "cosine", "constant"], Param("how the learning rate falls after the warm-up")]
Warmup = Annotated[float, Param("warm-up: below 1 a share of all steps, else steps", min=0)]
Epochs = Annotated[float, Param("how often all data is seen", above=0)]
Steps = Annotated[int | None, Param("optimizer steps to take, instead of epochs", min=1)]
BatchSize = Annotated[
    int | None, Param("a micro-batch: so many sequences, in place of batch_tokens", min=1, unit="sequences")
]
DataSeed = Annotated[int | None, Param("of the order of the data, in place of seed", min=0, max=2**32 - 1)]
Beta1 = Annotated[float, Param("AdamW's decay of the mean of gradients", min=0, below=1)]
Beta2 = Annotated[float, Param("AdamW's decay of the mean of their squares", min=0, below=1)]
Epsilon = Annotated[float, Param("AdamW's term in the denominator", above=0)]
KeepBest = Annotated[bool, Param("keep the adapter of the best evaluation, not the last one")]
BatchTokens = Annotated[int, Param("a micro-batch: as many sequences as fit", min=1, unit="tokens")]
Accumulation = Annotated[int, Param("micro-batches in an optimizer step, over all GPUs", min=1)]
MaxGradNorm = Annotated[float, Param("gradients are clipped to this norm; 0: not clipped", min=0)]
WeightDecay = Annotated[float, Param("AdamW's decoupled weight decay", min=0)]
GradientCheckpointing = Annotated[
    bool, Param("compute activations again instead of keeping them: less memory, a third slower", affects_result=False)
]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"],
    Param("type of the base model and of its arithmetic; the adapter is always fp32. auto: bf16 where it is fast"),
]
Seed = Annotated[int, Param("of the adapter's start, the order of the data and dropout", min=0, max=2**32 - 1)]
EvalEvery = Annotated[
    float,
    Param("evaluate on the held-out rows: below 1 after this share of all steps, else steps; 0: not between", min=0),
]
Patience = Annotated[
    int, Param("stop after so many evaluations without a better loss and keep the best adapter; 0: never", min=0)
]
Gpus = Annotated[int, Param("GPUs of this machine to use; 0: all. Without one it runs on the CPU", min=0, affects_result=False)]  # fmt: skip  # noqa: E501
Shard = Annotated[
    Literal["auto", "on", "off"],
    Param("share the base model out over all GPUs, for one that does not fit one of them. auto: where it takes more "
          "than half of one", affects_result=False),
]  # fmt: skip
Liger = Annotated[bool, Param("fused kernels of liger-kernel, on NVIDIA GPUs")]
Threads = Annotated[int, Param("CPU threads; 0: the cores that are free", min=0, affects_result=False)]
Checkpoints = Annotated[
    Place | None,
    State("a folder or address of their own for checkpoints; a run that finds its checkpoints there goes on from them"),
]
CheckpointEvery = Annotated[
    float,
    Param("the most that a kill may lose: below 1 a share of all steps, else steps; 0: by time only", min=0,
          affects_result=False),
]  # fmt: skip
CheckpointMinutes = Annotated[
    float, Param("the most that a kill may lose; 0: not by time", min=0, unit="minutes", affects_result=False)
]
CheckpointsKept = Annotated[int, Param("checkpoints kept, the newest", min=1, affects_result=False)]

QuantType = Annotated[Literal["nf4", "fp4"], Param("4-bit type of the base model's linear layers")]
DoubleQuant = Annotated[bool, Param("quantize the scales too")]
Optimizer = Annotated[
    Literal["adamw", "adamw-8bit", "paged-adamw-8bit", "paged-adamw-32bit"],
    Param("all but adamw need an NVIDIA GPU"),
]


@dataclass(frozen=True)
class Settings:
    """The resolved parameters of a training run. The stages' defaults are these defaults."""

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list[str] | None = None
    rslora: bool = False
    dora: bool = False
    modules_to_save: list[str] | None = None
    init: str = "kaiming"
    learning_rate: float = 2e-4
    schedule: str = "cosine"
    warmup: float = 0.03
    epochs: float = 3.0
    steps: int | None = None
    batch_tokens: int = 4096
    batch_size: int | None = None
    accumulation: int = 1
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    gradient_checkpointing: bool = False
    precision: str = "auto"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    seed: int = 0
    data_seed: int | None = None
    eval_every: float = 0.25
    early_stopping_patience: int = 0
    keep_best: bool = False
    gpus: int = 0
    shard: str = "auto"
    liger: bool = False
    threads: int = 0
    checkpoint_every: float = 0.0
    checkpoint_minutes: float = 5.0
    checkpoints_kept: int = 2
    optimizer: str = "adamw"
    quant_type: str | None = None  # None: the base model is not quantized
    double_quant: bool = True

    @property
    def keeps_best(self) -> bool:
        """Whether the adapter of the best evaluation is what comes out."""
        return self.keep_best or self.early_stopping_patience > 0

    def check(self) -> None:
        """Raise UserError for what only shows when parameters are seen together."""
        if self.init == "orthogonal" and self.rank % 2:
            raise UserError(
                f"init orthogonal needs an even rank, not {self.rank}", where="--rank", fix=f"use {self.rank + 1}"
            )
        if both := sorted(set(self.target_modules or ()) & set(self.modules_to_save or ())):
            raise UserError(
                f"{both[0]!r} is in --target-modules too", where="--modules-to-save", fix="name it in one of them"
            )
        if self.shard == "on" and self.quant_type is not None:
            raise UserError("a 4-bit base model is not shared out", where="--shard", fix="use train-lora, or leave it")
        if self.init == "loftq" and (self.dora or self.quant_type is None):
            raise UserError("loftq is for a plain adapter on a 4-bit base", where="--init", fix="use kaiming")
        if self.target_modules == []:
            raise UserError("it is empty", where="--target-modules", fix="leave it out for all linear layers")

    @staticmethod
    def of(params: dict[str, Any]) -> Settings:
        """Settings from a stage's resolved parameters."""
        return Settings(**params)
