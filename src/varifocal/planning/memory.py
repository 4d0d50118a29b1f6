"""What a run holds in memory, by part, in bytes until the last line.

Legend: N numbers of a weight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from varifocal.planning.optimizer_state import sum_of_states
from varifocal.planning.tracing import BACKWARD, FORWARD, GRADIENTS, HEAD, TOWER, Step
from varifocal.recipe import Recipe

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

    @property
    def standing(self) -> int:
        """Bytes that are there all the time; gradients come and go."""
        return self.frozen + self.trained + self.optimizer


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


def weigh(model: nn.Module, base: PreTrainedModel, recipe: Recipe) -> Weights:
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
