"""The gradient of one example's loss on what a run trained, as one vector in blocks.

Legend: P trained numbers, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from varifocal.data.encoding.encoder import Encoded
from varifocal.data.rows.packing import Collator, ImageLoader
from varifocal.errors import ModelError
from varifocal.models.loss import supervised_loss
from varifocal.tuners.plugin import evaluating

CONNECTOR, EMBEDDING, TOWER, REST = "connector", "modality_embedding", "vision_tower", "rest"
_ORDER = (EMBEDDING, TOWER, CONNECTOR, REST)

_IN_A_TOWER = re.compile(r"\.(vision_tower|vision_model|visual)\.")
_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")


def block_of(name: str) -> str | int:
    """Tell the block a trained parameter belongs to: a decoder layer's number, or a part's name.

    >>> block_of("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight")
    3
    >>> block_of("base_model.model.vision_tower.model.layers.0.layer_norm1.mma_down.default.weight")
    'vision_tower'
    """
    if ".modules_to_save." in name:
        return CONNECTOR
    if f".{EMBEDDING}." in name:
        return EMBEDDING
    if _IN_A_TOWER.search(name):
        return TOWER
    match = _LAYER.search(name)
    return int(match[1]) if match else REST


def group_names(layers: list[int], num_groups: int | None) -> dict[int, str]:
    """Name the block of each decoder layer: its own, or one shared with its neighbours.

    Args:
        layers: numbers of the adapted layers, ascending.
        num_groups: into how many groups, as equal as can be; None for one block a layer.

    >>> group_names([0, 1, 2], 2)
    {0: 'layers 0-1', 1: 'layers 0-1', 2: 'layer 2'}
    """
    count = min(num_groups or len(layers), len(layers))
    names = {}
    for group in range(count):
        first, after = -(-group * len(layers) // count), -(-(group + 1) * len(layers) // count)
        part = layers[first:after]
        name = f"layer {part[0]}" if len(part) == 1 else f"layers {part[0]}-{part[-1]}"
        names |= dict.fromkeys(part, name)
    return names


class AdapterGradient:
    """Gradients of single examples on the parameters of a model's active adapter.

    While a gradient is computed the model is in evaluation mode (no dropout), and the adapter's
    parameters alone ask for gradients; afterwards it is as it was.

    Args:
        model: with an adapter of any of PEFT's methods.
        load_images: images -> the model's image tensors; None for a model without a vision tower.
        num_groups: into how many blocks the decoder layers are joined; None for one each.
        with_connector: count modules that were trained whole (`modules_to_save`) as well.

    Attributes:
        blocks: the place of each block in the vector of P numbers.

    Raises:
        ModelError: the model has no adapter, or nothing of it was trained.
    """

    def __init__(
        self,
        model: nn.Module,
        load_images: ImageLoader | None = None,
        *,
        num_groups: int | None = None,
        with_connector: bool = False,
    ) -> None:
        if not isinstance(model, PeftModel):
            raise ModelError(
                "the model has no adapter; interference is measured on an adapter's parameters, "
                "so train with tuner.type mma, mixlora, lora_experts or lora"
            )
        named = [(block_of(name), parameter) for name, parameter in _adapter_parameters(model)]
        if not with_connector:
            named = [(block, parameter) for block, parameter in named if block != CONNECTOR]
        if not named:
            raise ModelError(
                "nothing but the connector was trained; measure on its parameters with --connector"
            )
        self.blocks, self._parameters = _in_blocks(named, num_groups)
        self._model = model
        self._collate = Collator(pad_id=0, load_images=load_images)  # rows of one: no padding
        dtypes = (parameter.dtype for parameter in self._parameters)
        self.dtype = torch.promote_types(next(dtypes), torch.float32)

    @property
    def size(self) -> int:
        """P, the trained numbers."""
        return sum(parameter.numel() for parameter in self._parameters)

    def __call__(self, sample: Encoded) -> Tensor:
        """Return the gradient of the example's mean loss a supervised token, [P].

        float32 (float64 of a float64 adapter); zeros where no gradient reaches.
        """
        batch = self._collate([sample])
        return self.of_batch(batch)

    def of_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the gradient of a batch's mean loss a supervised token, [P]."""
        device = self._parameters[0].device
        placed = {name: tensor.to(device) for name, tensor in batch.items()}
        with (
            torch.enable_grad(),
            evaluating(self._model),
            _gradients_of(self._model, self._parameters),
        ):
            loss = supervised_loss(self._model, placed)
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        flat = [
            parameter.new_zeros(parameter.numel()) if gradient is None else gradient.flatten()
            for gradient, parameter in zip(gradients, self._parameters, strict=True)
        ]
        return torch.cat([part.to(device, self.dtype) for part in flat])


@contextmanager
def _gradients_of(model: nn.Module, wanted: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let these parameters alone ask for gradients; afterwards each asks as it did before."""
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    chosen = {id(parameter) for parameter in wanted}
    for parameter, _ in asked:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, before in asked:
            parameter.requires_grad_(before)


def _adapter_parameters(model: PeftModel) -> list[tuple[str, nn.Parameter]]:
    """List what PEFT trains of the active adapter, by name."""
    with _gradients_of(model, ()):
        model.set_adapter(cast(str, model.active_adapter))
        return [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and ".original_module." not in name
        ]


def _in_blocks(
    named: list[tuple[str | int, nn.Parameter]], num_groups: int | None
) -> tuple[dict[str, slice], list[nn.Parameter]]:
    """Order parameters so that each block is one stretch: layers first, then the other parts."""
    groups = group_names(
        sorted({block for block, _ in named if isinstance(block, int)}), num_groups
    )

    def rank(pair: tuple[str | int, nn.Parameter]) -> tuple[int, int]:
        block = pair[0]
        return (0, block) if isinstance(block, int) else (1, _ORDER.index(block))

    blocks: dict[str, slice] = {}
    ordered = sorted(named, key=rank)
    start = 0
    for name, pairs in groupby(ordered, key=lambda pair: groups.get(pair[0], pair[0])):  # type: ignore[arg-type]
        stop = start + sum(parameter.numel() for _, parameter in pairs)
        blocks[str(name)] = slice(start, stop)
        start = stop
    return blocks, [parameter for _, parameter in ordered]
