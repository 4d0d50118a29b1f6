"""How many floating point operations a training step takes, by a formula over the model's shapes.

A matrix product of a [N, I] state with an [I, O] weight takes 2 N I O operations forward, as many
for the gradient of its input and as many again for the gradient of its weight. Frozen weights need
no gradient of their own, but pass one on where something before them trains; weights before the
first trained one need neither. Attention's two products see pairs of tokens. `docs/cost.md` holds
the formula next to what torch's own counter finds.

Legend: B rows, T tokens, S supervised positions, D width, R bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from varifocal.models.families.base import family_of
from varifocal.models.families.flops import ImageFlops, is_trained, matrix_products
from varifocal.tuners.mma.layer import MMALayer

FUSED = ("segments", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention implementations that never form a pair of tokens from two segments."""


@dataclass(frozen=True)
class DecoderShape:
    """What the formula needs of a language model; weights are multiply-adds a token.

    Attributes:
        weights: of all matrix products in the layers, tuners included.
        after: of them, in the first layer with a trained weight and all later ones.
        trained: of them, with a trained weight.
        again: of them, those that gradient checkpointing runs a second time.
        num_layers: the layers.
        num_after: the layers that `after` counts.
        attention_width: heads times their width.
        head: of the logits of one position.
        head_trains: whether the head's weight is trained.
        input_trains: whether the input embedding is trained.
        fused: whether attention skips pairs of tokens from two segments.
        attention_backward: its operations backward over those forward: 2, and 2.5 where a kernel
            computes its scores again.
        routing_tokens: tokens of the tuner's own in every forward pass (MMA's two).
    """

    weights: int
    after: int
    trained: int
    again: int
    num_layers: int
    num_after: int
    attention_width: int
    head: int
    head_trains: bool
    input_trains: bool
    fused: bool
    attention_backward: float
    routing_tokens: int

    def forward(self, *, tokens: int, pairs: int, positions: int) -> int:
        """Count a forward pass without gradients; see `FlopFormula.language` for the three."""
        attention = 2 * pairs * self.attention_width * self.num_layers
        return 2 * (tokens * self.weights + attention + positions * self.head)


@dataclass(frozen=True)
class FlopFormula:
    """Operations of a training step of one model.

    Attributes:
        decoder: the language model's shape.
        image: operations of an image.
        checkpointing: whether the layers run again in the backward pass.
        in_step: whether other processes train next to, so that a trained connector has a gradient
            where there is no image, too.
    """

    decoder: DecoderShape
    image: ImageFlops
    checkpointing: bool
    in_step: bool = False

    @classmethod
    def of(
        cls, base: PreTrainedModel, *, checkpointing: bool = False, in_step: bool = False
    ) -> FlopFormula:
        """Read a formula off a model, its tuner attached and its gradients switched on and off.

        Args:
            base: the model inside any PEFT wrapper, before a launcher wraps or shards it.
            checkpointing: whether the layers will run again in the backward pass.
            in_step: whether other processes will train next to.
        """
        return cls(decoder_shape(base), image_flops(base), checkpointing, in_step)

    def language(
        self,
        *,
        tokens: int,
        pairs: int,
        positions: int,
        num_images: int,
        positions_again: int = 0,
        forwards: int = 1,
    ) -> int:
        """Count the language model's operations, forward and backward.

        Args:
            tokens: that go through the layers.
            pairs: of tokens that attention compares: for a segment of n tokens n * n, as torch's
                counter has it, with the half that causality masks.
            positions: whose logits are computed.
            positions_again: of them, those whose logits the backward pass computes again.
            num_images: among these tokens; a trained connector wants their gradient.
            forwards: forward passes; each runs the tuner's own tokens once.
        """
        shape = self.decoder
        own = shape.routing_tokens * forwards
        # A trained connector is reached through every layer.
        to_input = shape.input_trains or (self.image.trains and (num_images > 0 or self.in_step))
        weights, layers = (
            (shape.weights, shape.num_layers) if to_input else (shape.after, shape.num_after)
        )
        again = shape.again if self.checkpointing else 0
        products = (tokens + own) * (shape.weights + again + shape.trained)
        products += tokens * weights + own * shape.weights
        runs = shape.num_layers * (2 if self.checkpointing else 1)
        attention = 2 * pairs * shape.attention_width * (runs + shape.attention_backward * layers)
        trains = to_input or shape.num_after > 0
        logits = positions * shape.head * (1 + int(trains) + int(shape.head_trains))
        logits += positions_again * shape.head * int(trains)
        return 2 * (products + round(attention) + logits)

    def images(self, num_from_pixels: int, num_from_features: int) -> int:
        """Count what images take in a step, the tower's forward pass left out."""
        image = self.image
        return num_from_pixels * (
            image.connector + image.backward_from_pixels
        ) + num_from_features * (image.connector + image.backward_from_features)


def decoder_shape(base: PreTrainedModel) -> DecoderShape:
    """Count the multiply-adds of a language model's layers.

    Args:
        base: the model inside any PEFT wrapper.
    """
    model = cast(Any, base)
    decoder, config = model.get_decoder(), model.config.get_text_config()
    layers = _layers(decoder)
    products = [list(matrix_products(layer)) for layer in layers]
    trains = [any(trained for _, trained in layer) for layer in products]
    first = trains.index(True) if any(trains) else len(layers)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    head = model.get_output_embeddings()
    attention = getattr(config, "_attn_implementation", None) or "eager"
    routes = any(isinstance(part, MMALayer) and part.mma_router for part in decoder.modules())
    return DecoderShape(
        weights=sum(count for layer in products for count, _ in layer),
        after=sum(count for layer in products[first:] for count, _ in layer),
        trained=sum(count for layer in products for count, trained in layer if trained),
        again=sum(
            sum(count for count, _ in matrix_products(layer)) - _spared(layer) for layer in layers
        ),
        num_layers=len(layers),
        num_after=len(layers) - first,
        attention_width=config.num_attention_heads * width,
        head=sum(count for count, _ in matrix_products(head)),
        head_trains=any(trained for _, trained in matrix_products(head)),
        input_trains=any(
            parameter.requires_grad for parameter in model.get_input_embeddings().parameters()
        ),
        fused=attention in FUSED,
        attention_backward=2.0 if attention == "eager" else 2.5,
        routing_tokens=2 if routes else 0,
    )


def _layers(decoder: nn.Module) -> list[nn.Module]:
    """The decoder's layers: its longest list of modules."""
    lists = [part for part in decoder.children() if isinstance(part, nn.ModuleList)]
    return list(max(lists, key=len, default=[decoder]))


def _spared(layer: nn.Module) -> int:
    """The multiply-adds that recomputing a layer leaves out: its last product, if it is frozen.

    Recomputation ends with the last state that the backward pass reads, and a frozen product's
    backward pass reads its weight alone. One that a tuner has wrapped is not the last.
    """
    adapters = [part for part in layer.modules() if isinstance(part, BaseTunerLayer)]
    wrapped = {id(part) for each in adapters for part in cast(nn.Module, each).modules()}
    of_mma = [each for each in adapters if isinstance(each, MMALayer)]
    adapter_parts = {id(part) for each in of_mma for part in each.modules()}
    products = [
        part
        for part in layer.modules()
        if isinstance(part, nn.Linear) and id(part) not in adapter_parts
    ]
    return sum(
        part.in_features * part.out_features
        for part in products[-1:]
        if id(part) not in wrapped and not is_trained(part)
    )


def image_flops(base: PreTrainedModel) -> ImageFlops:
    """Count what one image takes, backward through whatever trains; nothing without a family."""
    family = family_of(base.config)
    return ImageFlops() if family is None else family.image_flops(base)
