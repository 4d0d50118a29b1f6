"""Every field of `transformers.TrainingArguments` that `training` does not declare itself.

A field is passed to transformers, which acts upon it (`PassedArguments`), or it is refused with a
reason (`REFUSED`). A test goes through the fields of the installed transformers.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from varifocal.recipe.base_section import Count, Rate, Section

_LogLevel = Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]

_FSDPWords = Annotated[str, Field(pattern=r"^(full_shard|shard_grad_op)( auto_wrap| offload)*$")]


class PassedArguments(Section):
    """Fields that are passed to transformers under their own names, where a recipe has them."""

    optim: str | None = None
    optim_args: str | None = None
    adam_epsilon: Rate | None = None
    lr_scheduler_kwargs: dict[str, Any] | None = None
    neftune_noise_alpha: Rate | None = None
    tf32: bool | None = None
    torch_empty_cache_steps: Count | None = None
    full_determinism: bool | None = None
    save_strategy: Literal["no", "steps", "epoch"] | None = None
    logging_first_step: bool | None = None
    log_level: _LogLevel | None = None
    log_level_replica: _LogLevel | None = None
    log_on_each_node: bool | None = None
    report_to: str | list[str] | None = None
    run_name: str | None = None
    project: str | None = None
    trackio_space_id: str | None = None
    trackio_bucket_id: str | None = None
    trackio_static_space_id: str | Literal[False] | None = None
    dataloader_pin_memory: bool | None = None
    dataloader_persistent_workers: bool | None = None
    dataloader_prefetch_factor: Count | None = None
    dataloader_multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    ddp_find_unused_parameters: bool | None = None
    ddp_bucket_cap_mb: Count | None = None
    ddp_broadcast_buffers: bool | None = None
    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl", "xccl", "hccl", "cncl", "mccl"] | None = None
    ddp_timeout: Annotated[int, Field(ge=1)] | None = None
    fsdp: bool | _FSDPWords | None = None
    fsdp_config: str | dict[str, Any] | None = None
    deepspeed: str | dict[str, Any] | None = None


NEED_WORKERS = (
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
)
"""Fields that say how processes next to the training read rows."""

NEED_REPORT_TO = (
    "run_name",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
)
"""Fields that are read by the services of `report_to`."""


def _each(reason: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, reason)


REFUSED: dict[str, str] = {
    "output_dir": "give --out",
    "resume_from_checkpoint": "give --resume",
    **_each("set seed at the top of the recipe", "seed", "data_seed"),
    "dataloader_num_workers": "set data.num_workers",
    "warmup_ratio": "set warmup_steps to the share, a number below 1",
    **_each(
        "set training.eval_steps, and what stands next to it; evaluation has the rest",
        "per_device_eval_batch_size",
        "eval_strategy",
        "eval_delay",
        "eval_on_start",
        "eval_accumulation_steps",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "prediction_loss_only",
        "include_for_metrics",
        "batch_eval_metrics",
        "bf16_full_eval",
        "fp16_full_eval",
        "greater_is_better",
        "label_names",
        "do_train",
        "do_eval",
        "do_predict",
    ),
    "label_smoothing_factor": "the loss of Varifocal has no label smoothing",
    **_each(
        "rows are shuffled by the recipe's seed and packed when they are encoded; see data.packing",
        "train_sampling_strategy",
        "length_column_name",
        "group_by_length",
    ),
    "dataloader_drop_last": "every row is trained",
    "dataloader_in_order": "a run resumes by its place in the data, so rows come in their order",
    "ignore_data_skip": "a resumed run goes on where its data stood",
    "remove_unused_columns": "Varifocal needs it as it is",
    "average_tokens_across_devices": "a step's loss is the mean over the tokens of all devices",
    **_each(
        "rows of a step are a run's measure; `varifocal plan` says which batch fits",
        "auto_find_batch_size",
    ),
    "accelerator_config": "Varifocal shares the rows of a step among processes itself",
    "parallelism_config": "models are spread by fsdp or deepspeed; see `varifocal launch`",
    "ddp_static_graph": "a step's graph depends on whether its rows have images",
    "local_rank": "the launcher sets it",
    "use_cpu": "a GPU is used where there is one; hide it with CUDA_VISIBLE_DEVICES=''",
    **_each(
        "Varifocal computes the loss; set training.loss_kernel to liger",
        "use_liger_kernel",
        "liger_kernel_config",
    ),
    **_each(
        "set training.compile_layers",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
    ),
    "activation_checkpointing": "set training.gradient_checkpointing",
    **_each(
        "every layer is recomputed, and `varifocal plan` counts it so",
        "activation_checkpointing_kwargs",
        "gradient_checkpointing_kwargs",
    ),
    "use_cache": "training keeps no keys and values",
    "optim_target_modules": "it belongs to optimisers that are not offered (GaLore, APOLLO)",
    "logging_strategy": "set logging_steps; below 1 it is a share of the run",
    "logging_nan_inf_filter": "a loss that is no number ends the run",
    "debug": "a loss that is no number ends the run, and names its step and records",
    "include_num_input_tokens_seen": "metrics.jsonl counts tokens",
    "skip_memory_metrics": "cost.json holds the peak of the memory",
    "disable_tqdm": "the command line shows the progress",
    "save_only_model": "a checkpoint without the optimiser's state could not be resumed",
    "save_on_each_node": "every node has to see the run directory, and one process writes it",
    "enable_jit_checkpoint": "SIGTERM is answered with a checkpoint already",
    "restore_callback_states_from_checkpoint": "no callback of a run has a state",
    **_each(
        "run `varifocal export` with --push-to-hub after training",
        "push_to_hub",
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
    ),
}
"""Fields that a recipe may not set, and what to do instead or why; some of older transformers."""
