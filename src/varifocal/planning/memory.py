"""What a run holds in memory, by part, in bytes until the last line.

An optimiser's state is what the installed optimisers allocate in their first step, without single
numbers (such as the count of steps) and the tables that bitsandbytes has once for all parameters.

Legend: N numbers of a weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from varifocal.planning.tracing import BACKWARD, FORWARD, GRADIENTS, HEAD, TOWER, Step
from varifocal.recipe import Recipe
from varifocal.recipe.optimizers import OPTIMIZERS, parse_arguments

_BLOCK, _OUTER_BLOCK = 64, 256  # of NF4: numbers with one scale, scales with one outer scale
_NF4_CODE, _BYTE_CODE = 16 * 4, 256 * 4  # float32 tables of the values that codes stand for


@dataclass(frozen=True)
class Weights:
    """Bytes that stand from the first step to the last.

    Attributes:
        frozen: of frozen weights, as they are held, and buffers.
        trained: of trained ones.
        gradients: of all trained ones at once.
        optimizer: the optimiser's state.
        dequantised: of the largest weight that is held in 4 or 8 bits, while it is multiplied with.
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    dequantised: int


def nf4_bytes(count: int) -> int:
    """Count the bytes of N numbers in NF4 with double quantisation, as bitsandbytes lays them out.

    Half a byte a number; for every 64 a scale of one byte; for every 256 scales an outer one of
    four bytes; an offset; and two tables of values.

    >>> round(nf4_bytes(4096 * 4096) / 4096**2, 4)  # bytes a number
    0.5159
    """
    blocks = -(-count // _BLOCK)
    outer = -(-blocks // _OUTER_BLOCK)
    return -(-count // 2) + blocks + 4 * outer + 4 + _NF4_CODE + _BYTE_CODE


def int8_bytes(outputs: int, inputs: int) -> int:
    """Count the bytes of a weight in 8 bits: a byte a number, and a float32 scale a row.

    >>> int8_bytes(10, 100)
    1040
    """
    return outputs * inputs + 4 * outputs


def count_weights(model: nn.Module, base: PreTrainedModel, recipe: Recipe) -> Weights:
    """Count the bytes of a model's weights, gradients and optimiser state.

    Args:
        model: on the meta device, its tuner attached.
        base: the model inside any PEFT wrapper.
        recipe: says how the language model is held, and which optimiser moves the rest.
    """
    quantised = _quantised(base) if recipe.model.quantization else []
    shrunk = {id(layer.weight) for layer in quantised}
    frozen = sum(_small(layer, recipe.model.quantization) for layer in quantised)
    frozen += sum(
        _bytes(each)
        for each in model.parameters()
        if not each.requires_grad and id(each) not in shrunk
    )
    frozen += sum(_bytes(each) for each in model.buffers())
    trained = [each for each in model.parameters() if each.requires_grad]
    largest = max((layer.weight.numel() for layer in quantised), default=0)
    moved = sum(map(_bytes, trained))
    return Weights(
        frozen=frozen,
        trained=moved,
        gradients=moved,
        optimizer=sum_of_states(model, recipe.training),
        dequantised=largest * getattr(torch, recipe.model.dtype).itemsize,
    )


def _quantised(base: PreTrainedModel) -> list[nn.Linear]:
    """List the linear layers that transformers quantises: all but the head."""
    model: Any = base
    root = getattr(model, "language_model", None) or model
    head = model.get_output_embeddings()
    return [
        layer
        for name, layer in root.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head and not _ADAPTER.search(name)
    ]


# Layers inside a tuner are named after it; the linear that one wraps is `base_layer`.
_ADAPTER = re.compile(r"(lora|mma|mixlora)_\w+\.|modules_to_save|original_module")


def _small(layer: nn.Linear, quantization: str | None) -> int:
    if quantization == "nf4":
        return nf4_bytes(layer.weight.numel())
    return int8_bytes(layer.out_features, layer.in_features)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def parts_of_peak(
    weights: Weights, step: Step, overhead: float, num_devices: int, waste: float = 0.0
) -> dict[str, float]:
    """Lay out a device's memory at its fullest moment.

    Args:
        weights: what stands.
        step: what a training step adds at its peak.
        overhead: bytes of the process and its libraries.
        num_devices: with several, gradients have a second copy on their way to the others.
        waste: what the allocator holds beyond the step's tensors, as a share of them.

    Returns:
        bytes by part; their sum is the peak.
    """
    at_peak = step.by_part
    gradients = at_peak.get(GRADIENTS, 0)
    rest = step.peak - gradients
    if weights.gradients > step.peak:  # the optimiser's step is the fullest moment
        gradients, rest = weights.gradients, 0
        at_peak = {}
    return {
        "frozen_weights": weights.frozen,
        "trained_weights": weights.trained,
        "gradients": gradients,
        "gradients_in_transit": weights.gradients if num_devices > 1 else 0,
        "optimizer_state": weights.optimizer,
        "activations": at_peak.get(FORWARD, 0),
        "logits": at_peak.get(HEAD, 0),
        "vision_tower_activations": at_peak.get(TOWER, 0),
        "backward_pass": at_peak.get(BACKWARD, 0) if rest else 0,
        "dequantised_weights": weights.dequantised,
        "allocator": waste * rest,
        "framework": overhead,
    }


_MIN_QUANTISED_SIZE = 4096  # numbers; both libraries keep smaller tensors' states unquantised
_STATE_BLOCK = 256  # numbers of a quantised state that share a float32 scale
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
            return moments * (numel + _FLOAT32 * math.ceil(numel / _STATE_BLOCK))
        return moments * numel * _FLOAT32
    if library == "torchao" and is_large and numel % _STATE_BLOCK == 0:
        bits = 4 if "4bit" in optimizer else 8
        return moments * (numel * bits // 8 + _FLOAT32 * (numel // _STATE_BLOCK + 2**bits))
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
