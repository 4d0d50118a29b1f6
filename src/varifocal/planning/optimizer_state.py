"""Count the bytes that an optimiser holds for each parameter.

Counted is what the installed optimisers allocate in their first step, without single numbers (such
as the count of steps) and the tables that bitsandbytes has once for all parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from varifocal.recipe.optimizers import OPTIMIZERS, parse_arguments

_MIN_QUANTISED_SIZE = 4096  # numbers; both libraries keep smaller tensors' states unquantised
_BLOCK = 256  # numbers of a quantised state that share a float32 scale
_FLOAT32 = 4


def state_bytes(
    shape: torch.Size,
    element_size: int,
    optimizer: str,
    arguments: str = "",
    *,
    of_embedding: bool = False,
) -> int:
    """Count the bytes of an optimiser's state of one parameter.

    torch's own optimisers, and torch-optimi's, keep moments in the parameter's number format.
    Adafactor keeps float32 sums of rows and columns. bitsandbytes keeps float32, or 8 bits and a
    scale a block for a tensor of 4,096 numbers or more (`Optimizer2State.init_state`). torchao
    (0.18, `_AdamBase._new_buffer`) keeps 4 or 8 bits, a scale a block and a table of values for
    each moment, where a tensor has 4,096 numbers or more and fills its blocks, and else the
    parameter's format.

    Args:
        shape: of the parameter.
        element_size: bytes of one of its numbers.
        optimizer: transformers' name, `training.optim`.
        arguments: the recipe's `training.optim_args`.
        of_embedding: whether the parameter is an embedding's weight, whose 8-bit state
            transformers' Trainer has bitsandbytes keep in float32 (`create_optimizer`).

    >>> state_bytes(torch.Size([64, 64]), 4, "adamw_8bit"), 2 * 4096 + 2 * 16 * 4
    (8320, 8320)
    >>> state_bytes(torch.Size([4095]), 4, "adamw_8bit"), 2 * 4095 * 4
    (32760, 32760)
    >>> state_bytes(torch.Size([10]), 2, "sgd", "momentum=0.9")
    20
    """
    numel = shape.numel()
    if optimizer == "adafactor":
        return _FLOAT32 * (numel if len(shape) < 2 else numel // shape[-1] + numel // shape[-2])
    moments = _num_moments(optimizer, element_size, parse_arguments(arguments))
    library = OPTIMIZERS[optimizer].module
    is_large = numel >= _MIN_QUANTISED_SIZE
    if library == "bitsandbytes":
        if "8bit" in optimizer and is_large and not of_embedding:
            return moments * (numel + _FLOAT32 * math.ceil(numel / _BLOCK))
        return moments * numel * _FLOAT32
    if library == "torchao" and is_large and numel % _BLOCK == 0:
        bits = 4 if "4bit" in optimizer else 8
        return moments * (numel * bits // 8 + _FLOAT32 * (numel // _BLOCK + 2**bits))
    return moments * numel * element_size


def _num_moments(optimizer: str, element_size: int, arguments: Mapping[str, str]) -> int:
    """Count the numbers that an optimiser keeps for each of a parameter's."""
    has_momentum = float(arguments.get("momentum", 0)) > 0
    if optimizer == "sgd":
        return int(has_momentum)
    if optimizer == "rmsprop":
        is_centred = arguments.get("centered", "").lower() == "true"
        return 1 + has_momentum + is_centred
    if optimizer == "stable_adamw":  # a compensation of what the weight's format rounds away
        return 2 + (element_size < _FLOAT32)
    if "ademamix" in optimizer:
        return 3
    return 1 if any(word in optimizer for word in ("lion", "rmsprop", "adagrad")) else 2


def sum_of_states(model: torch.nn.Module, training: Any) -> int:
    """Count the bytes of an optimiser's state of all trained parameters.

    Args:
        model: its tuner attached.
        training: the recipe's section.
    """
    tables = (each for each in model.modules() if isinstance(each, torch.nn.Embedding))
    embeddings = {id(each.weight) for each in tables}
    arguments = training.get("optim_args") or ""
    return sum(
        state_bytes(
            each.shape,
            each.element_size(),
            training.optimizer,
            arguments,
            of_embedding=id(each) in embeddings,
        )
        for each in model.parameters()
        if each.requires_grad
    )
