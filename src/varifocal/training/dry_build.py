"""What transformers would refuse after minutes of loading, found on one number beforehand."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.optimization import get_scheduler
from transformers.utils.import_utils import is_torch_tf32_available

from varifocal.errors import RecipeError
from varifocal.models.distributed import num_processes
from varifocal.recipe import Recipe, TrainingSection
from varifocal.recipe.optimizers import missing_package
from varifocal.recipe.reading import check_again
from varifocal.recipe.schedules import check_length
from varifocal.recipe.strict_yaml import WrongKeyError

_STEPS = 10**9  # more than any run's; the parts of a schedule are held against the real number


def check_before_loading(recipe: Recipe) -> None:
    """Refuse what cannot be trained in this process, before any model or data are read.

    Raises:
        RecipeError: one sentence a line for each thing that is wrong.
    """
    check_again(recipe, num_processes())
    _check_device(recipe.training)


def check_connector_is_saved(recipe: Recipe) -> None:
    """Refuse to fit a connector that the adapter would then leave out.

    Raises:
        RecipeError: names the key that would fit it.
    """
    if recipe.tuner.train_connector or recipe.tuner.type == "full":
        return
    connector = recipe.model.connector
    weights = None if connector is None else connector.weights
    for key, value in (("alignment", recipe.alignment), ("model.connector.weights", weights)):
        if value is not None:
            raise RecipeError(
                f"{key} changes the connector, and tuner.train_connector: false would not save it; "
                "set tuner.train_connector to true"
            )


def check_fits(training: TrainingSection | None, steps: int) -> None:
    """Refuse a schedule whose parts do not fit into a run's steps.

    Raises:
        RecipeError: names the key.
    """
    try:
        if training is not None:
            check_length(training, steps)
    except WrongKeyError as error:
        raise RecipeError(f"training.{error.key}: {error}") from None


def check_libraries(training: TrainingSection, *, skip_absent: bool = False) -> None:
    """Build the optimiser and the schedule for one number.

    Args:
        training: a recipe's section.
        skip_absent: pass over an optimiser whose package is not installed.

    Raises:
        RecipeError: a library refuses a value.
    """
    if skip_absent and missing_package(training.optimizer) is not None:
        return
    optimizer = _built("optim", lambda: _optimizer(training))
    _built("lr_scheduler_kwargs", lambda: _schedule(training, optimizer))


def _built(key: str, build: Any) -> Any:
    try:
        return build()
    except (ImportError, TypeError, ValueError) as error:
        raise RecipeError(f"training.{key}: {error}") from error


_ADAMW = ("adamw_torch", "adamw_torch_fused")


def _optimizer(training: TrainingSection) -> torch.optim.Optimizer:
    number = nn.Parameter(torch.zeros(1))
    groups = [{"params": [number], "weight_decay": training.weight_decay}]
    if training.optimizer in _ADAMW and training.get("optim_args") is None:
        betas = training.adam_beta1, training.adam_beta2
        eps = training.get("adam_epsilon", 1e-8)
        return torch.optim.AdamW(groups, lr=training.learning_rate, betas=betas, eps=eps)
    # Trainer imports datasets, pandas and pyarrow, which `plan` does without.
    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    args: Any = SimpleNamespace(
        optim=OptimizerNames(training.optimizer),
        optim_args=training.get("optim_args"),
        learning_rate=training.learning_rate,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.get("adam_epsilon", 1e-8),
        weight_decay=training.weight_decay,
    )
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    return kind(groups, **settings)


def _schedule(training: TrainingSection, optimizer: torch.optim.Optimizer) -> Any:
    return get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=int(training.warmup_steps),
        num_training_steps=_STEPS,
        scheduler_specific_kwargs=training.get("lr_scheduler_kwargs"),
    )


def _check_device(training: TrainingSection) -> None:
    has_gpu = torch.cuda.is_available()
    if training.fp16 and not has_gpu:
        raise RecipeError(
            "training.fp16: float16 is computed on a CUDA device, and there is none here; set "
            "training.bf16, or neither"
        )
    if training.bf16 and has_gpu and not torch.cuda.is_bf16_supported():
        raise RecipeError("training.bf16: this GPU has no bfloat16; set training.fp16")
    if training.optimizer.startswith("paged_") and not has_gpu:
        raise RecipeError(
            f"training.optim: {training.optimizer} moves its state out of a GPU's memory, and "
            "there is no GPU here; take one that is not paged"
        )
    if training.get("tf32") and not is_torch_tf32_available():
        raise RecipeError("training.tf32: this device has no TF32; take the key out")
