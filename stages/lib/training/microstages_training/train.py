"""From a data set and a base model to an adapter: what `train-lora` and `train-qlora` do.

    check the inputs  ->  find a checkpoint  ->  load the base model  ->  add the adapter  ->  fit  ->  write

Written: `adapter_config.json`, `adapter_model.safetensors` (PEFT's format), `training.json` (losses and learning rate
by step), `loss.svg`. The same inputs and parameters give the same bytes on the same kind of CPU, however often the run
was stopped and went on from a checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from microstages.artifact import Artifact, Draft, open_artifact
from microstages.dataset import FORMAT, Split, load_split
from microstages.errors import TemporaryError, UserError
from microstages.machine import peak_memory
from microstages.reporting import Reporter, duration, number_of
from microstages.stage import Run
from microstages.state import Place
from microstages.tokens import ModelText

from microstages_training.settings import Settings

# What infer and merge need to know about the data that an adapter was trained on.
CARRIED = ("tokenizer_sha256", "vocab_size", "end_token", "end_token_id", "stop_token_ids", "template", "max_length")


@dataclass(frozen=True)
class Keep:
    """Where checkpoints go, and the folder of the one to go on from (empty: none). `damaged` ones are to be removed."""

    uri: str
    fingerprint: str
    resume: str = ""
    resume_uri: str = ""
    damaged: list[str] = field(default_factory=list)

    def place(self) -> Place:
        place = Place(self.uri, self.fingerprint)
        place.damaged.update(self.damaged)
        return place


@dataclass(frozen=True)
class Job:
    """A training run as plain data, so that it can be handed to other processes."""

    dataset: str
    dataset_uri: str
    dataset_metadata: dict[str, Any]
    base_model: str
    base_digest: str
    output: str
    settings: Settings
    device: str = "cpu"
    keep: Keep | None = None  # None: no checkpoints

    @staticmethod
    def from_json(text: str) -> Job:
        value = json.loads(text)
        keep = Keep(**value["keep"]) if value["keep"] is not None else None
        return Job(**{**value, "settings": Settings(**value["settings"]), "keep": keep})

    def splits(self) -> tuple[Split, Split | None]:
        """The train split, and the held-out one where it has trained tokens."""
        artifact = Artifact(self.dataset_uri, Path(self.dataset), "dataset", "", ())
        train = load_split(artifact, "train")
        fix = "prepare the data again, with more rows or a greater max_length"
        if train is None or len(train.bin_lengths) == 0 or not train.trained.any():
            raise UserError("it has no token to train on", where=self.dataset_uri, fix=fix)
        test = load_split(artifact, "test")
        return train, test if test is not None and len(test.bin_lengths) and test.trained.any() else None


def train(
    run: Run, dataset: Artifact, base_model: Artifact, output: Draft, settings: Settings, place: Place | None = None
) -> None:
    """Train an adapter and write it to `output`, with checkpoints at `place`, from the newest of them on.

    Raises UserError for everything the caller can mend.
    """
    settings.check()
    job = Job(
        str(dataset.path), dataset.uri, dict(dataset.metadata), str(base_model.path), base_model.digest,
        str(output.path), settings,
    )  # fmt: skip
    check(job, base_model.uri)
    nodes = run.nodes
    if place is not None and nodes.rank == 0:
        job = replace(job, keep=find(place, run.report))
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from microstages_training.distributed import Meeting, Team, free_port, launch
    from microstages_training.optimizer import require_gpu

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.gpus > gpus:
        raise UserError(
            f"{settings.gpus} GPUs are asked for, {gpus} found", where="--gpus", fix="give 0 for all there are"
        )
    device = torch.device("cuda" if gpus else "cpu")
    require_gpu(settings, device)
    processes = (settings.gpus or gpus) if gpus else 1
    job = replace(job, device=device.type)
    if nodes.several:
        resume = job.keep.resume_uri if job.keep is not None else ""
        mine = {"device": device.type, "checkpoints": place is not None, "resume": resume, "port": free_port()}
        said = nodes.exchange(mine)
        check_nodes(said)
        if place is not None and nodes.rank:
            job = replace(job, keep=follow(place, said[0]["resume"]))
        found = launch(job, processes, run.report, Meeting(nodes, said[0]["port"]))
    elif processes > 1:
        found = launch(job, processes, run.report)
    else:
        found = run_job(job, Team(), device, run.report)
    output.metadata.update(found["metadata"])
    output.metrics.update(found["metrics"])


def find(place: Place, report: Reporter) -> Keep:
    """The newest good checkpoint at a place, and what lies there that is not."""
    found = place.newest(report.warn)
    with suppress(UserError, OSError):  # no matter for this run
        place.sweep()
    folder, uri = (str(found.path), found.uri) if found is not None else ("", "")
    return Keep(place.uri, place.fingerprint, folder, uri, sorted(place.damaged))


def follow(place: Place, uri: str) -> Keep:
    """On a node that helps: the checkpoint that node 0 goes on from (empty: none)."""
    if not uri:
        return Keep(place.uri, place.fingerprint)
    try:
        return Keep(place.uri, place.fingerprint, str(open_artifact(uri, ["checkpoint"]).path), uri)
    except TemporaryError:
        raise
    except UserError as error:
        fix = "keep the checkpoints at a place that all nodes see, in a store or on a shared disk"
        raise UserError(f"node 0 goes on from this checkpoint: {error.what}", where=uri, fix=fix) from None


def check_nodes(said: list[dict[str, Any]]) -> None:
    """Raise UserError where the nodes do not fit together."""
    for rank, other in enumerate(said):
        if other["device"] != said[0]["device"]:
            words = {True: "it has no GPU, node 0 has", False: "it has a GPU, node 0 has none"}
            raise UserError(
                words[said[0]["device"] == "cuda"], where=f"node {rank}", fix="give all nodes the same kind of machine"
            )
        if other["checkpoints"] != said[0]["checkpoints"]:
            raise UserError("only some nodes have it", where="--checkpoints", fix="start all nodes with the same flags")


def check(job: Job, base_uri: str) -> None:
    """Everything that can be known before the model is loaded."""
    facts = job.dataset_metadata
    if facts.get("format") != FORMAT:
        raise UserError(
            "it is not a data set that this version reads", where=job.dataset_uri, fix="make it with prepare-data"
        )
    text = ModelText(Path(job.base_model))
    if facts.get("tokenizer_sha256") != text.sha256:
        raise UserError(
            "it was prepared with the tokenizer of another model",
            where=job.dataset_uri,
            fix=f"prepare the data with this model: prepare-data --model {base_uri}",
        )
    train, test = job.splits()
    if "quantization_config" in text.config:
        raise UserError(
            "this model is quantized already; an adapter is trained on the original weights",
            where=base_uri,
            fix="give the original model: train-qlora quantizes it as it is loaded",
        )
    size, top = text.config.get("vocab_size"), max(int(s.input_ids.max()) for s in (train, test) if s is not None)
    if isinstance(size, int) and top >= size:
        raise UserError(
            f"the base model has {size:,} embeddings, and the data the token id {top:,}",
            where=base_uri,
            fix="its tokenizer and its weights do not belong together: get the model again",
        )
    longest = max(int(s.example_lengths.max()) for s in (train, test) if s is not None)
    limit = text.config.get("max_position_embeddings")
    if isinstance(limit, int) and longest > limit:
        raise UserError(
            f"it has examples of {longest:,} tokens; the base model takes {limit:,}",
            where=job.dataset_uri,
            fix=f"prepare the data with --max-length {limit} or less",
        )
    if job.settings.keeps_best and test is None:
        early = job.settings.early_stopping_patience > 0
        raise UserError(
            f"{'early stopping' if early else 'the best adapter'} needs held-out rows, and the data set has none",
            where="--early-stopping-patience" if early else "--keep-best",
            fix="prepare the data with a test_fraction above 0, or leave it out",
        )


def run_job(job: Job, team: Any, device: Any, report: Reporter, stopping: Any = None) -> dict[str, Any]:
    """Train in this process (one of `team`). Rank 0 writes the files. Returns metadata and metrics.

    `stopping` says how it is told to stop; without it by signals, where there are checkpoints to save.
    """
    from microstages_training.machine import FreeCores, keep_memory, resolve_precision, set_threads

    began, free, settings = time.monotonic(), FreeCores(), job.settings
    from microstages_training import adapter, attention, curve, quantized, sharding
    from microstages_training.base import add_adapter, load_base
    from microstages_training.batches import Examples, Plan
    from microstages_training.checkpoints import Keeper, interval
    from microstages_training.endtoken import check_end_token
    from microstages_training.loop import Task, fit
    from microstages_training.model import Model
    from microstages_training.optimizer import warmup_steps
    from microstages_training.state import rest_of
    from microstages_training.stopping import SIGNALS, Stopping

    train, test = (Examples(s) if s is not None else None for s in job.splits())
    assert train is not None
    order = settings.seed if settings.data_seed is None else settings.data_seed
    plan = Plan(train.bin_tokens, settings.batch_tokens, settings.accumulation, order, settings.epochs,
                settings.steps, settings.batch_size)  # fmt: skip
    if (warmup := warmup_steps(settings.warmup, plan.total)) > plan.total:
        raise UserError(
            f"{warmup:,} steps of warm-up are more than the {plan.total:,} there are",
            where="--warmup",
            fix="give fewer, or a share below 1",
        )
    keep, resume = job.keep, Path(job.keep.resume) if job.keep is not None and job.keep.resume else None
    before = rest_of(resume) if resume is not None else {}
    precision = resolve_precision(settings.precision, device)
    if settings.precision == "auto":
        bf16 = not team.agree(precision != "bf16")  # in all processes
        precision = before.get("precision", "bf16" if bf16 else "fp32")  # as it began, also on another kind of machine
    attention.register()
    if device.type == "cpu":
        keep_memory()
    report.log(f"loading the base model in {precision}")
    causal = load_base(Path(job.base_model), settings, device, precision)
    facts: dict[str, Any] = {}
    if settings.quant_type is not None:
        quantized.keep_layout(causal)
        facts["quantization"] = quantized.record(causal, settings)
        if odd := quantized.distorted(causal):
            report.warn(
                f"on the CPU bitsandbytes distorts layers whose width is no multiple of 64: {odd[0]} and "
                f"{len(odd) - 1} more. The adapter learns to mend what a merge does not have.\n"
                "  Train on a GPU, or with train-lora"
            )
    if settings.liger:
        from microstages_training.fused import use_liger

        use_liger(causal)
    shared = sharding.wanted(causal, settings, team, device, report)
    if not shared and settings.quant_type is None:
        causal.to(device)
    peft = add_adapter(causal, settings)
    if settings.init == "loftq" and resume is None:
        quantized.begin_by_loftq(peft, Path(job.base_model), settings.rank)
    if settings.init == "loftq":
        facts["quantization"]["loftq"] = True
    model = Model(causal, peft, device, precision, sharded=shared, hidden=job.dataset_metadata.get("hidden_token_id"))
    if shared:
        sharding.shard(causal, team, device)
    threads = set_threads(settings.threads, free, before.get("threads", 0))
    model.choose(max(int(e.example_lengths.max()) for e in (train, test) if e is not None), team.agree)
    for note in model.notes:
        report.warn(note)
    parameters = sum(p.numel() for _, p in model.trained)
    report.log(
        f"{parameters:,} parameters to train on {device.type}, {precision}, {number_of(threads, 'thread')}; "
        f"{number_of(plan.total, 'step')} of {_step_size(settings)}"
    )
    check_end_token(model, train, job.dataset_metadata, settings, report)
    keeper = None
    if keep is not None and team.rank == 0:
        keeper = Keeper(
            keep.place(), model, report, total=plan.total, found=keep.resume_uri, kept=settings.checkpoints_kept,
            every=interval(settings.checkpoint_every, plan.total), minutes=settings.checkpoint_minutes,
        )  # fmt: skip
    stopping = stopping or Stopping(signals=SIGNALS if keep is not None else ())
    state = fit(Task(model, train, test, plan, settings, team, report, stopping, keeper, resume))
    meter = state.meter
    tensors = state.best if state.best is not None else adapter.weights(model.peft)
    if team.rank == 0:
        folder = Path(job.output)
        adapter.save(folder, model.peft, tensors, job.base_digest, settings.modules_to_save)
        log = {"steps": state.curve, "evaluations": state.evaluations}
        (folder / "training.json").write_text(json.dumps(log, indent=1) + "\n")
        (folder / "loss.svg").write_text(curve.draw(state.curve, state.evaluations))
    seconds = time.monotonic() - began
    metrics: dict[str, Any] = {
        "train_loss": state.curve[-1]["loss"],
        "steps": state.step,
        "epochs": state.epoch,
        "tokens": meter.tokens,
        "trained_tokens": meter.trained_tokens,
        "tokens_per_second": round(meter.tokens / meter.seconds, 1),
        "trained_tokens_per_second": round(meter.trained_tokens / meter.seconds, 1),
        "training_seconds": round(meter.seconds, 2),
        "seconds": round(seconds, 2),
        "trainable_parameters": parameters,
        "threads": threads,
        "processes": team.size,
        **peak_memory(),
    }
    if state.resumed_from is not None:
        metrics["resumed_from_step"] = state.resumed_from
    said = f"loss {metrics['train_loss']:.3f}"
    if state.evaluations:
        metrics["eval_loss_before"] = state.evaluations[0]["loss"]
        metrics["eval_loss"] = state.best_loss if state.best is not None else state.evaluations[-1]["loss"]
        metrics["stopped_early"] = state.stopped_early
        said += f", held out {metrics['eval_loss_before']:.3f} → {metrics['eval_loss']:.3f}"
    report.log(
        f"trained {number_of(state.step, 'step')} in {duration(meter.seconds)}: {said}; "
        f"{metrics['tokens_per_second']:,.0f} tokens/s, {metrics['trained_tokens_per_second']:,.0f} of them trained"
    )
    shape = asdict(settings)
    facts |= {
        "method": "qlora" if settings.quant_type is not None else "lora",
        "base_model": job.base_digest,
        "precision": precision,
        "target_modules": sorted(model.peft.peft_config["default"].target_modules),
        **{k: shape[k] for k in ("rank", "alpha", "rslora", "dora", "modules_to_save")},
        **{k: job.dataset_metadata.get(k) for k in CARRIED},
    }
    return {"metadata": facts, "metrics": metrics}


def _step_size(settings: Settings) -> str:
    if settings.batch_size is not None:
        return number_of(settings.batch_size * settings.accumulation, "sequence")
    return f"up to {settings.batch_tokens * settings.accumulation:,} tokens"
