"""The fields of transformers' TrainingArguments (of 4.40 and 5.x) that become no parameter: why not.

Those of the first table change no result. Those of the second would: they are told as lost where they are not what
everyone has anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.olive.section import LOST, NEEDLESS, SAME, Section

_FLAG, _TEXT, _NUMBER, _WHOLE = ("flag",), ("text",), ("number",), ("whole",)
_MAP, _LIST = ("mapping", "text"), ("list", "text")

_CURVE = "every step is in the loss curve, and MLflow is told where MLFLOW_TRACKING_URI is set"
_KEPT = "checkpoints are kept beside the artifacts; a run that was stopped goes on from the newest"
_MACHINE = "the stages use the machine as it is: all GPUs, else the CPU"
_BATCHES = "data is read as it is needed, in micro-batches without padding"
_TYPE = "torch_dtype says it"
_EVALUATED = "the loss on the held-out rows, over all of them, before training too"
_SPEED = "a matter of speed or memory"
_HUB = "`runner push` copies results"

# field: (kinds of its value, why it becomes nothing)
WITHOUT_EFFECT: Mapping[str, tuple[Sequence[str], str]] = {
    **dict.fromkeys(("logging_dir", "logging_strategy", "log_level", "log_level_replica", "run_name", "project",
                     "trackio_space_id", "trackio_bucket_id"), (_TEXT, _CURVE)),
    "trackio_static_space_id": (("text", "flag"), _CURVE),
    **dict.fromkeys(("logging_first_step", "logging_nan_inf_filter", "log_on_each_node", "disable_tqdm",
                     "include_tokens_per_second", "skip_memory_metrics"), (_FLAG, _CURVE)),
    "report_to": (_LIST, _CURVE), "include_num_input_tokens_seen": (("flag", "text"), _CURVE), "debug": (_LIST, _CURVE),
    **dict.fromkeys(("output_dir", "resume_from_checkpoint", "save_strategy"), (_TEXT, _KEPT)),
    **dict.fromkeys(("overwrite_output_dir", "save_safetensors", "save_on_each_node", "save_only_model",
                     "enable_jit_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint",
                     "do_train", "do_eval", "do_predict"), (_FLAG, _KEPT)),
    **dict.fromkeys(("no_cuda", "use_cpu", "use_mps_device", "use_ipex", "tpu_metrics_debug",
                     "ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph"), (_FLAG, _MACHINE)),
    **dict.fromkeys(("local_rank", "tpu_num_cores", "ddp_bucket_cap_mb", "ddp_timeout", "_n_gpu"), (_WHOLE, _MACHINE)),
    **dict.fromkeys(("ddp_backend", "xpu_backend", "ray_scope", "mp_parameters"), (_TEXT, _MACHINE)),
    **dict.fromkeys(("accelerator_config", "parallelism_config", "fsdp_config"), (_MAP, _MACHINE)),
    "fsdp_transformer_layer_cls_to_wrap": (_TEXT, _MACHINE), "fsdp_min_num_params": (_WHOLE, _MACHINE),
    "fsdp": (("text", "list", "flag"), _MACHINE), "deepspeed": (("flag", "text", "mapping"), _MACHINE),
    **dict.fromkeys(("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_in_order",
                     "remove_unused_columns", "dispatch_batches", "split_batches"), (_FLAG, _BATCHES)),
    **dict.fromkeys(("dataloader_num_workers", "dataloader_prefetch_factor"), (_WHOLE, _BATCHES)),
    "dataloader_multiprocessing_context": (_TEXT, _BATCHES),
    "length_column_name": (_TEXT, _BATCHES), "label_names": (_LIST, _BATCHES),
    "group_by_length": (_FLAG, "micro-batches have no padding, so rows of any length go together"),
    "train_sampling_strategy": (_TEXT, "micro-batches have no padding, so rows of any length go together"),
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32"), (_FLAG, _TYPE)),
    **dict.fromkeys(("fp16_opt_level", "half_precision_backend", "fp16_backend"), (_TEXT, _TYPE)),
    **dict.fromkeys(("prediction_loss_only", "eval_on_start", "eval_do_concat_batches", "eval_use_gather_object",
                     "batch_eval_metrics", "include_inputs_for_metrics", "jit_mode_eval",
                     "use_legacy_prediction_loop"), (_FLAG, _EVALUATED)),
    **dict.fromkeys(("per_device_eval_batch_size", "per_gpu_eval_batch_size", "eval_accumulation_steps"),
                    (_WHOLE, _EVALUATED)),
    "include_for_metrics": (_LIST, _EVALUATED),
    **dict.fromkeys(("torch_compile", "auto_find_batch_size", "use_cache", "full_determinism",
                     "use_module_with_loss", "average_tokens_across_devices"), (_FLAG, _SPEED)),
    **dict.fromkeys(("torch_compile_backend", "torch_compile_mode", "torchdynamo"), (_TEXT, _SPEED)),
    "torch_empty_cache_steps": (_WHOLE, _SPEED), "liger_kernel_config": (_MAP, _SPEED),
    "activation_checkpointing": (_FLAG, "gradient_checkpointing says it"),
    **dict.fromkeys(("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"), (_MAP, _SPEED)),
    **dict.fromkeys(("push_to_hub", "hub_private_repo", "hub_always_push"), (_FLAG, _HUB)),
    **dict.fromkeys(("hub_model_id", "hub_strategy", "hub_token", "hub_revision", "push_to_hub_model_id",
                     "push_to_hub_organization", "push_to_hub_token"), (_TEXT, _HUB)),
}  # fmt: skip

# field: (kinds, the values that change nothing, why it is lost)
WITH_EFFECT: Mapping[str, tuple[Sequence[str], tuple[Any, ...], str]] = {
    "label_smoothing_factor": (_NUMBER, (0,), "the loss is plain cross entropy"),
    "neftune_noise_alpha": (_NUMBER, (0,), "no noise is added to embeddings"),
    "lr_scheduler_kwargs": (_MAP, ({},), "the schedule has no further arguments"),
    "optim_args": (_TEXT, ("",), "the optimizer has no further arguments"),
    "optim_target_modules": (_LIST, ("",), "of GaLore, which is not there"),
    "dataloader_drop_last": (_FLAG, (False,), "no rows are dropped"),
    "metric_for_best_model": (_TEXT, ("loss", "eval_loss"), "the best is the one with the lowest held-out loss"),
    "greater_is_better": (_FLAG, (False,), "the best is the one with the lowest held-out loss"),
    "eval_delay": (_NUMBER, (0,), "evaluations begin with training"),
    "past_index": (_WHOLE, (-1,), "no state goes from one step to the next"),
    "adafactor": (_FLAG, (False,), "the optimizer is AdamW"),
}


def read_rest(section: Section) -> None:
    """Give all fields that become no parameter their fates."""
    for key, (kinds, why) in WITHOUT_EFFECT.items():
        section.read(key, *kinds, how=NEEDLESS, text=why)
    for key, (kinds, neutral, why) in WITH_EFFECT.items():
        value = section.take(key, *kinds)
        if value is None or value in neutral:
            section.fate(key, SAME, why)
        else:
            section.fate(key, LOST, why)
