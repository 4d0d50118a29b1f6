"""How it is trained."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from varifocal.errors import RecipeError, nearest
from varifocal.recipe.base_section import Count, Rate, Section, Share
from varifocal.recipe.keep import KeepSection
from varifocal.recipe.optimizers import check_optimizer
from varifocal.recipe.schedules import NOT_OFFERED, Schedule, check_schedule
from varifocal.recipe.services import check_services, services
from varifocal.recipe.strict_yaml import WrongKeyError, validate
from varifocal.recipe.trainer_arguments import NEED_REPORT_TO, REFUSED, PassedArguments


class TrainingSection(Section):
    """How it is trained: fields of `transformers.TrainingArguments` under their own names.

    The common ones stand here. These may stand next to them: `optim`, `optim_args`, `adam_epsilon`,
    `lr_scheduler_kwargs`, `neftune_noise_alpha` (rows of one example), `save_strategy` (no, steps,
    epoch), `logging_first_step`, `log_level`, `log_level_replica`, `log_on_each_node`, `report_to`,
    `run_name`, `project`, `trackio_space_id`, `trackio_bucket_id`, `trackio_static_space_id`,
    `tf32`, `torch_empty_cache_steps`, `full_determinism`, `dataloader_pin_memory`,
    `dataloader_persistent_workers`, `dataloader_prefetch_factor`,
    `dataloader_multiprocessing_context`, `ddp_find_unused_parameters`, `ddp_bucket_cap_mb`,
    `ddp_broadcast_buffers`, `ddp_backend`, `ddp_timeout`, `fsdp`, `fsdp_config`, `deepspeed`. Any
    other is refused with what to do instead: it would do nothing here, or something else. Batch
    sizes count packed rows.
    """

    model_config = ConfigDict(extra="allow")

    num_train_epochs: Rate = 3.0
    """Passes over the data; fractions are allowed."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Optimiser steps, instead of num_train_epochs; 0 takes none, and a run is what its connector's
    alignment or weights are."""
    per_device_train_batch_size: Count = 8
    """Rows per device and forward pass."""
    gradient_accumulation_steps: Count = 1
    """Forward passes per optimiser step."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of the tuner."""
    connector_learning_rate: Rate | None = None
    """Our own: peak learning rate of the connector; by default learning_rate."""
    lr_scheduler_type: Schedule = "cosine"
    """Shape of the schedule after the warm-up."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.0
    """Warm-up in steps, or below 1 as a share of all steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay of trained matrices; biases and norms keep their size."""
    adam_beta1: Share = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: Share = 0.999
    """AdamW's decay of the second moment."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip the gradient's norm to this; 0 does not clip."""
    bf16: bool = False
    """Compute in bfloat16 where autocast finds it safe."""
    fp16: bool = False
    """Compute in float16 with loss scaling (CUDA)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    logging_steps: Rate = 10.0
    """A line of metrics every so many steps, or below 1 every such share of the run."""
    save_steps: Rate = 500.0
    """A checkpoint every so many steps, or below 1 every such share of the run."""
    save_total_limit: Count | None = 2
    """Checkpoints that are kept, the newest."""
    compile_layers: bool = False
    """Our own: compile each decoder layer, for rows of one length; it pays in long runs. Where
    there is dropout, a compiled layer draws other masks from the same seed."""
    loss_chunk: Count | None = 1024
    """Our own: logits of so many supervised tokens at once, the rest in turn; null: all at once."""
    loss_kernel: Literal["liger"] | None = None
    """Our own: `liger` fuses head and loss into one kernel without logits (CUDA, liger-kernel)."""
    eval_steps: Rate | None = None
    """Score `data.evaluate` every so many steps, or below 1 every such share of the run, and after
    the last; the best checkpoint is kept next to the newest. Null: only after training."""
    eval_samples: Count | None = 256
    """Our own: held-out examples whose loss is scored, drawn by seed; null: all of them."""
    eval_questions: Annotated[int, Field(ge=0)] = 16
    """Our own: questions of each held-out source that are answered and scored as `varifocal eval`
    does, drawn by seed; 0: none, and no sample answers."""
    metric_for_best_model: Literal["loss", "score"] = "loss"
    """What decides which checkpoint is the best: the lowest held-out loss, or the highest mean of
    the sources' own metrics."""
    load_best_model_at_end: bool = False
    """Save the best checkpoint's weights as the run's adapter, instead of the last step's."""
    early_stopping_patience: Count | None = None
    """Stop after so many evaluations in a row without a better one; null: never."""
    early_stopping_threshold: Annotated[float, Field(ge=0)] = 0.0
    """How much better an evaluation must be for early_stopping_patience to count it as better."""
    keep: KeepSection | None = None
    """Our own: preserve the base's language by rows of plain text; null: no such rows."""

    @field_validator("lr_scheduler_type", mode="before")
    @classmethod
    def _schedule_can_work(cls, value: Any) -> Any:
        if isinstance(value, str) and value in NOT_OFFERED:
            raise ValueError(f"{value} is not offered: {NOT_OFFERED[value]}")
        return value

    @model_validator(mode="after")
    def _everything_is_acted_upon(self, info: ValidationInfo) -> "TrainingSection":
        """Refuse what would do nothing; of a run that is trained already, nothing more is asked."""
        if not (info.context or {}).get("is_trained"):
            _check_passed(self.model_extra or {}, list(type(self).model_fields))
            check_optimizer(self)
            check_schedule(self)
            check_services(self.get("report_to"))
            _check_combinations(self)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return a passed-through argument, or a default where it is not set or null."""
        value = (self.model_extra or {}).get(key, getattr(self, key, None))
        return default if value is None else value

    def eval_interval(self, max_steps: int) -> int | None:
        """Return the steps from one evaluation to the next in a run of `max_steps`, or None."""
        if self.eval_steps is None:
            return None
        share = self.eval_steps * max_steps if self.eval_steps < 1 else self.eval_steps
        return max(math.ceil(share), 1)

    @property
    def optimizer(self) -> str:
        """The optimiser, by transformers' name."""
        return self.get("optim", DEFAULT_OPTIMIZER)

    def trainer_arguments(self) -> dict[str, Any]:
        """Return what goes to `transformers.TrainingArguments`: all but our own knobs."""
        unset = {key for key, value in (self.model_extra or {}).items() if value is None}
        arguments = self.model_dump(exclude=_OWN_KNOBS | unset)
        # transformers 5.21 renamed it and warns about the old name, which 5.20 alone knows.
        if "activation_checkpointing" in _trainer_argument_names():
            arguments["activation_checkpointing"] = arguments.pop("gradient_checkpointing")
        return arguments


DEFAULT_OPTIMIZER = "adamw_torch_fused"
"""transformers' optimiser where `optim` is not set."""

_EVALUATION_KNOBS = {"eval_steps", "eval_samples", "eval_questions", "metric_for_best_model"}
_EVALUATION_KNOBS |= {
    *("load_best_model_at_end", "early_stopping_patience", "early_stopping_threshold"),
}
_OWN_KNOBS = {"connector_learning_rate", "compile_layers", "loss_chunk", "loss_kernel", "keep"}
_OWN_KNOBS |= _EVALUATION_KNOBS

SPREAD_WEIGHTS = (
    "needs the weights whole in every process, and fsdp and deepspeed spread them; leave it out, "
    "or train with ddp"
)


def _trainer_argument_names() -> set[str]:
    from transformers import TrainingArguments

    return {field.name for field in dataclasses.fields(TrainingArguments) if field.init}


def _check_passed(extras: Mapping[str, Any], declared: list[str]) -> None:
    """Hold the passed-through keys against those that do something, and their values."""
    passed = PassedArguments.model_fields
    for key, value in extras.items():
        if key in REFUSED:
            raise WrongKeyError(key, f"not set here; {REFUSED[key]}")
        if key not in passed:
            hint = nearest(key, [*declared, *passed, *sorted(REFUSED)])
            raise WrongKeyError(key, f"unknown key, here and in TrainingArguments{hint}")
        try:
            validate(PassedArguments, {key: value})
        except RecipeError as error:
            text = str(error).splitlines()[0].partition(": ")[2]
            raise WrongKeyError(key, text) from None


def _check_combinations(training: TrainingSection) -> None:
    """Refuse keys that need others, exclude others, or are neither a count nor a share."""
    for key in ("logging_steps", "save_steps", "eval_steps"):
        value = getattr(training, key)
        if value is not None and value > 1 and value != int(value):
            raise WrongKeyError(
                key, f"{value} was given; give whole steps, or a share of the run below 1"
            )
    if training.fp16 and training.bf16:
        raise WrongKeyError("fp16", "bf16 is set as well; set one of them")
    if training.get("fsdp_config") is not None and not training.get("fsdp"):
        raise WrongKeyError("fsdp_config", "does nothing without training.fsdp: true")
    if training.get("fsdp") and training.get("deepspeed") is not None:
        raise WrongKeyError("deepspeed", "fsdp is set as well; set one of them")
    _check_evaluation(training)
    for key in NEED_REPORT_TO:
        if training.get(key) is not None and not services(training.get("report_to")):
            raise WrongKeyError(key, "does nothing without training.report_to")


def _check_evaluation(training: TrainingSection) -> None:
    """Refuse what no evaluation would read, and evaluations that cannot run."""
    if training.eval_steps is None:
        for key in sorted(_EVALUATION_KNOBS):  # a run's recipe has them all, as they are by default
            if getattr(training, key) != TrainingSection.model_fields[key].default:
                raise WrongKeyError(key, "does nothing without training.eval_steps")
        return
    if training.get("fsdp") or training.get("deepspeed") is not None:
        raise WrongKeyError("eval_steps", SPREAD_WEIGHTS)
    if training.metric_for_best_model == "score" and not training.eval_questions:
        raise WrongKeyError("eval_questions", "0 gives metric_for_best_model: score no score")
    if training.early_stopping_threshold and training.early_stopping_patience is None:
        text = "does nothing without training.early_stopping_patience"
        raise WrongKeyError("early_stopping_threshold", text)
