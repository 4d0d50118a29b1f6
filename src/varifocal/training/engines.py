"""FSDP2 under transformers' Trainer, on CPUs too, and its optimiser's state in one piece.

A checkpoint holds whole tensors, so it is resumed on any number of processes, sharded or not.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.training_args import ParallelMode

from varifocal.errors import RecipeError
from varifocal.recipe import Recipe

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


def check_engine(args: TrainingArguments) -> None:
    """Refuse a way of spreading a model that this process cannot keep.

    Raises:
        RecipeError: FSDP in a process that was not launched with others' means.
    """
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise RecipeError(
            "training.fsdp spreads a model over launched processes, and this one was started "
            "alone; start it with: varifocal launch RECIPE --engine fsdp2"
        )


def turn_on_fsdp2(trainer: Trainer) -> None:
    """Make the FSDP that was asked for happen on CPUs, where accelerate runs DDP without a word.

    Raises:
        RecipeError: it is FSDP1, whose flat parameters hide what is trained and what is frozen.
    """
    state: Any = trainer.accelerator.state
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is None and asks_for_fsdp(trainer.args):
        given: dict[str, Any] = trainer.args.fsdp_plugin_args or {}
        plugin = FullyShardedDataParallelPlugin(**given)
        state.fsdp_plugin = plugin
        state.distributed_type = DistributedType.FSDP
        trainer.is_fsdp_enabled = True
    if plugin is not None and plugin.fsdp_version != 2:
        raise RecipeError(
            f"FSDP version {plugin.fsdp_version} was asked for; Varifocal trains under version 2: "
            "set training.fsdp_config: {version: 2}, or fsdp_version: 2 in accelerate's file"
        )


def wrap_present_layers(trainer: Trainer) -> None:
    """Name the layers to shard: accelerate asks for all that the model's class may have.

    A CLIP tower's class lists the text encoder's layers, too, and a graft has none of them.
    """
    plugin: Any = trainer.accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        model: Any = trainer.model
        present = {type(module).__name__ for module in model.modules()}
        listed = getattr(model, "_no_split_modules", None) or ()
        plugin.transformer_cls_names_to_wrap = sorted(present.intersection(listed))


def asks_for_fsdp(args: TrainingArguments) -> bool:
    """Tell whether the recipe or accelerate's file wants FSDP, whatever became of it."""
    by_accelerate = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return args.parallel_mode == ParallelMode.DISTRIBUTED and bool(args.fsdp or by_accelerate)


def spreads_weights(recipe: Recipe) -> bool:
    """Tell whether the recipe, or accelerate, wants FSDP or DeepSpeed."""
    arguments = recipe.training.trainer_arguments()
    by_accelerate = (os.environ.get(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED"))
    return bool(arguments.get("fsdp") or arguments.get("deepspeed")) or any(
        (value or "false").lower() == "true" for value in by_accelerate
    )


def gather_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a sharded optimiser's state together; every process has to call this.

    Returns:
        As `optimizer.state_dict()` of an unsharded model, on the CPU.
    """
    state = optimizer.state_dict()
    whole = {
        number: {name: _whole(value) for name, value in each.items()}
        for number, each in state["state"].items()
    }
    return {**state, "state": whole}


def _whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    return value.cpu() if isinstance(value, Tensor) else value


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Give each process its part of a whole state.

    Args:
        optimizer: of sharded parameters; changed in place.
        saved: as `gather_optimizer_state`.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    parts = {
        number: {name: _part(parameters[number], value) for name, value in each.items()}
        for number, each in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": parts})


def _part(parameter: Any, value: Any) -> Any:
    """Cut out of a moment what this process holds of its parameter; leave counts of steps."""
    is_moment = isinstance(value, Tensor) and value.shape == parameter.shape
    if not is_moment or not isinstance(parameter, DTensor):
        return value
    here = value.to(parameter.device)
    return distribute_tensor(here, parameter.device_mesh, parameter.placements, src_data_rank=None)
