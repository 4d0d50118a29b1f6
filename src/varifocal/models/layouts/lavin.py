"""LaVIN's checkpoints (its public code at dd0a1bf): adapters, routers, neck and modality tokens.

Letters: D width of the language model, R bottleneck, G groups of the up-projections; a convolution
of kernel 1 has a weight [outputs, inputs / groups, 1].
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from varifocal.errors import ModelError
from varifocal.models.layouts.rule import Rule, stack, unstack

_LAYER = re.compile(r"layers\.(\d+)\.adapter_attn\.")
_BLOCK = re.compile(r"backbone\.visual\.transformer\.resblocks\.(\d+)\.adapter_attn\.")
_OURS = "base_model.model."
_ROUTER = "expert_weights.weight"


@dataclass(frozen=True)
class LavinSizes:
    """What the tensors of a checkpoint show of its settings.

    Attributes:
        num_layers: decoder layers with an adapter.
        num_blocks: blocks of the image encoder with an adapter; 0 where it has none.
        width: D.
        bottleneck_dim: R.
        num_groups: G.
        hidden_dim: of the neck.
    """

    num_layers: int
    num_blocks: int
    width: int
    bottleneck_dim: int
    num_groups: int
    hidden_dim: int


def strip_ddp(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefix `module.`, which names have that were saved out of DDP."""
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def read_lavin_sizes(tensors: Mapping[str, Tensor], source: str) -> LavinSizes:
    """Read the sizes off the tensors.

    Args:
        tensors: by LaVIN's names, without `module.`.
        source: where they come from, for error messages.

    Raises:
        ModelError: these are no tensors of LaVIN, or adapters of a kind that has no equal here.
    """
    if any(".adapter_mlp." in name for name in tensors):
        raise ModelError(
            f"{source} has adapters before the feed-forward layers, too (adapter_type block, or "
            "visual_adapter_type router_block), and only those before self-attention are read"
        )
    layers, blocks = _count(_LAYER, tensors), _count(_BLOCK, tensors)
    try:
        down, up = (tensors[f"layers.0.adapter_attn.{n}.weight"] for n in ("conv_A", "conv_B"))
        neck = tensors["adapter_proj.conv_A.weight"]
        bottleneck, width = down.shape[0], down.shape[1]
        groups = bottleneck // up.shape[1]
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ModelError(
            f"{source} holds no adapters of LaVIN: there is no layers.0.adapter_attn.conv_A with "
            "conv_B, or no adapter_proj next to it"
        ) from error
    if blocks and f"backbone.visual.transformer.resblocks.0.adapter_attn.{_ROUTER}" not in tensors:
        raise ModelError(
            f"{source} was trained with visual_adapter_type normal, train.py's default, whose "
            "adapters replace an image's states and do not add to them; only those of "
            "visual_adapter_type router, as in the authors' scripts, are read"
        )
    return LavinSizes(layers, blocks, width, bottleneck, groups, neck.shape[0])


def lavin_rules(num_layers: int, num_blocks: int) -> list[Rule]:
    """Name all tensors of a checkpoint with so many layers and blocks."""
    rules = []
    for layer in range(num_layers):
        ours = f"language_model.model.layers.{layer}.input_layernorm"
        rules += _adapter(f"layers.{layer}.adapter_attn", ours)
    for block in range(num_blocks):
        theirs = f"backbone.visual.transformer.resblocks.{block}.adapter_attn"
        rules += _adapter(theirs, f"vision_tower.model.encoder.layers.{block}.layer_norm1")
    for theirs, ours in (("conv_A", "down"), ("conv_B", "up")):
        for kind in ("weight", "bias"):
            rules.append(_same(f"adapter_proj.{theirs}.{kind}", f"connector.{ours}.{kind}"))
    tokens = "language_model.model.modality_embedding.mma_embedding.weight"
    return [*rules, _same("adapter_modality_embedding.weight", tokens)]


def _adapter(theirs: str, ours: str) -> list[Rule]:
    ours = f"{_OURS}{ours}"
    branches = (f"{theirs}.conv_B", f"{theirs}.conv_D")
    return [
        Rule(
            f"{ours}.mma_down.weight",
            (f"{theirs}.conv_A.weight",),
            read=lambda parts: _matrix(parts[0]),
            write=lambda tensor: [tensor[..., None]],
        ),
        Rule(f"{ours}.mma_down.bias", (f"{theirs}.conv_A.bias",)),
        Rule(
            f"{ours}.mma_up.weight",
            (f"{branches[0]}.weight", f"{branches[1]}.weight"),
            read=lambda parts: stack([_matrix(part) for part in parts]),
            write=lambda tensor: unstack(tensor[..., None]),
        ),
        Rule(
            f"{ours}.mma_up.bias",
            (f"{branches[0]}.bias", f"{branches[1]}.bias"),
            read=stack,
            write=unstack,
        ),
        Rule(f"{ours}.mma_router.weight", (f"{theirs}.{_ROUTER}",)),
        Rule(f"{ours}.mma_router.bias", (f"{theirs}.expert_weights.bias",)),
    ]


def _same(theirs: str, ours: str) -> Rule:
    return Rule(f"{_OURS}{ours}", (theirs,))


def _matrix(weight: Tensor) -> Tensor:
    """Drop a convolution's kernel of 1: [outputs, inputs, 1] to [outputs, inputs]."""
    if weight.dim() != 3 or weight.shape[-1] != 1:
        raise RuntimeError("no convolution of kernel 1")
    return weight[..., 0]


def _count(pattern: re.Pattern[str], names: Iterable[str]) -> int:
    """Count layers by the largest index in the names; a gap shows as missing tensors."""
    numbers = [int(match[1]) for name in names if (match := pattern.match(name))]
    return max(numbers, default=-1) + 1
