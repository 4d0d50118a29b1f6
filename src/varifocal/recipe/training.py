"""How it is trained."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from varifocal.errors import nearest
from varifocal.recipe.page import WrongKeyError
from varifocal.recipe.section import Count, Rate, Section, Share

Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]


class TrainingSection(Section):
    """How it is trained: fields of `transformers.TrainingArguments` under their own names.

    The common ones stand here; any other is passed through (`optim: adamw_8bit`). Batch sizes
    count packed rows.
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

    @model_validator(mode="after")
    def _extras_are_trainer_arguments(self) -> "TrainingSection":
        extras = self.model_extra or {}
        if extras:
            _check_trainer_arguments(extras, list(type(self).model_fields))
        return self

    def trainer_arguments(self) -> dict[str, Any]:
        """Return what goes to `transformers.TrainingArguments`: all but our own knobs."""
        arguments = self.model_dump(exclude=_OWN_KNOBS)
        # transformers 5.21 renamed it and warns about the old name, which 5.20 alone knows.
        if "activation_checkpointing" in _trainer_argument_names():
            arguments["activation_checkpointing"] = arguments.pop("gradient_checkpointing")
        return arguments


_OWN_KNOBS = {"connector_learning_rate", "compile_layers", "loss_chunk", "loss_kernel"}

# What the run itself decides; a recipe that set these would be overruled without a word.
_OURS = {
    "output_dir": "give --out",
    "resume_from_checkpoint": "give --resume",
    "seed": "set seed at the top of the recipe",
    "data_seed": "set seed at the top of the recipe",
    "per_device_eval_batch_size": "set evaluation.batch_size",
    "dataloader_num_workers": "set data.num_workers",
    "remove_unused_columns": "Varifocal needs it as it is",
    "use_liger_kernel": "Varifocal computes the loss; set training.loss_kernel to liger",
    "warmup_ratio": "set warmup_steps to the share, a number below 1",
}


def _trainer_argument_names() -> set[str]:
    from transformers import TrainingArguments

    return {field.name for field in dataclasses.fields(TrainingArguments) if field.init}


def _check_trainer_arguments(extras: Mapping[str, Any], declared: list[str]) -> None:
    """Hold the passed-through keys against the installed transformers; imports torch."""
    known = _trainer_argument_names()
    for key in extras:
        if key in _OURS:
            raise WrongKeyError(key, f"not set here; {_OURS[key]}")
        if key not in known:
            hint = nearest(key, [*declared, *sorted(known)])
            raise WrongKeyError(key, f"unknown key, here and in TrainingArguments{hint}")
