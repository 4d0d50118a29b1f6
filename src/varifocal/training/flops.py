"""How many floating point operations a training step takes, by a formula over the model's shapes.

A matrix product of a [N, I] state with an [I, O] weight takes 2 N I O operations forward, as many
for the gradient of its input and as many again for the gradient of its weight. Frozen weights need
no gradient of their own, but pass one on where something before them trains; weights before the
first trained one need neither. Attention's two products see pairs of tokens. `docs/cost.md` holds
the formula beside what torch's own counter finds.

Legend: B rows, T tokens, S supervised positions, D width, R bottleneck.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from varifocal.models import GraftedForConditionalGeneration
from varifocal.models.families.qwen_vl import is_qwen_vl
from varifocal.tuners.mma.layer import MMALayer

FUSED = ("segments", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention implementations that never form a pair of tokens from two segments."""

_SIDES = ("vision_tower", "vision_model", "visual")
# PEFT's frozen copy of a module that it trains whole, and what runs once a prompt.
_APART = (".original_module.", ".mixlora_router.")


@dataclass(frozen=True)
class PictureFlops:
    """Operations of one picture.

    Attributes:
        tower: the vision tower's forward pass.
        connector: the connector's forward pass.
        backward_from_pixels: the backward pass through both, when the tower ran in the step.
        backward_from_features: the connector's backward pass, when the features were looked up.
        trains: whether a picture's tokens need a gradient.
    """

    tower: int = 0
    connector: int = 0
    backward_from_pixels: int = 0
    backward_from_features: int = 0
    trains: bool = False


@dataclass(frozen=True)
class DecoderShape:
    """What the formula needs of a language model; weights are multiply-adds a token.

    Attributes:
        weights: of all matrix products in the layers, tuners included.
        behind: of them, in the first layer with a trained weight and all later ones.
        trained: of them, with a trained weight.
        again: of them, those that gradient checkpointing runs a second time.
        num_layers: the layers.
        num_behind: the layers that `behind` counts.
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
    behind: int
    trained: int
    again: int
    num_layers: int
    num_behind: int
    attention_width: int
    head: int
    head_trains: bool
    input_trains: bool
    fused: bool
    attention_backward: float
    routing_tokens: int


@dataclass(frozen=True)
class FlopFormula:
    """Operations of a training step of one model.

    Attributes:
        decoder: the language model's shape.
        picture: operations of a picture.
        checkpointing: whether the layers run again in the backward pass.
        in_step: whether other processes train beside, so that a trained connector has a gradient
            where there is no picture, too.
    """

    decoder: DecoderShape
    picture: PictureFlops
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
            in_step: whether other processes will train beside.
        """
        return cls(decoder_shape(base), picture_flops(base), checkpointing, in_step)

    def language(
        self,
        *,
        tokens: int,
        pairs: int,
        positions: int,
        num_pictures: int,
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
            num_pictures: among these tokens; a trained connector wants their gradient.
            forwards: forward passes; each runs the tuner's own tokens once.
        """
        shape = self.decoder
        own = shape.routing_tokens * forwards
        # A trained connector is reached through every layer.
        to_input = shape.input_trains or (
            self.picture.trains and (num_pictures > 0 or self.in_step)
        )
        weights, layers = (
            (shape.weights, shape.num_layers) if to_input else (shape.behind, shape.num_behind)
        )
        again = shape.again if self.checkpointing else 0
        products = (tokens + own) * (shape.weights + again + shape.trained)
        products += tokens * weights + own * shape.weights
        runs = shape.num_layers * (2 if self.checkpointing else 1)
        attention = 2 * pairs * shape.attention_width * (runs + shape.attention_backward * layers)
        trains = to_input or shape.num_behind > 0
        logits = positions * shape.head * (1 + int(trains) + int(shape.head_trains))
        logits += positions_again * shape.head * int(trains)
        return 2 * (products + round(attention) + logits)

    def pictures(self, num_from_pixels: int, num_from_features: int) -> int:
        """Count what pictures take in a step, the tower's forward pass left out."""
        one = self.picture
        return num_from_pixels * (one.connector + one.backward_from_pixels) + num_from_features * (
            one.connector + one.backward_from_features
        )


def decoder_shape(base: PreTrainedModel) -> DecoderShape:
    """Count the multiply-adds of a language model's layers.

    Args:
        base: the model inside any PEFT wrapper.
    """
    model = cast(Any, base)
    decoder, config = model.get_decoder(), model.config.get_text_config()
    layers = _layers(decoder)
    products = [list(_products(layer)) for layer in layers]
    trains = [any(trained for _, trained in layer) for layer in products]
    first = trains.index(True) if any(trains) else len(layers)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    head = model.get_output_embeddings()
    attention = getattr(config, "_attn_implementation", None) or "eager"
    routes = any(isinstance(part, MMALayer) and part.mma_router for part in decoder.modules())
    return DecoderShape(
        weights=sum(count for layer in products for count, _ in layer),
        behind=sum(count for layer in products[first:] for count, _ in layer),
        trained=sum(count for layer in products for count, trained in layer if trained),
        again=sum(sum(count for count, _ in _products(layer)) - _spared(layer) for layer in layers),
        num_layers=len(layers),
        num_behind=len(layers) - first,
        attention_width=config.num_attention_heads * width,
        head=sum(count for count, _ in _products(head)),
        head_trains=any(trained for _, trained in _products(head)),
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


def _products(root: nn.Module) -> Iterator[tuple[int, bool]]:
    """Yield the multiply-adds a token of each matrix product, and whether its weight is trained."""
    inside: list[str] = []
    for name, module in root.named_modules():
        if any(part in f".{name}." for part in _APART):
            continue
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, MMALayer):
            inside.append(f"{name}.")
            yield from _of_mma(module)
        elif isinstance(module, nn.Linear):
            yield module.in_features * module.out_features, _trains(module)
        elif not isinstance(module, nn.Embedding):
            own = module.parameters(recurse=False)
            yield from ((each.numel(), each.requires_grad) for each in own if each.dim() > 1)


def _spared(layer: nn.Module) -> int:
    """The multiply-adds that recomputing a layer leaves out: its last product, if it is frozen.

    Recomputation ends with the last state that the backward pass reads, and a frozen product's
    backward pass reads its weight alone. One that a tuner has wrapped is not the last.
    """
    adapters = [part for part in layer.modules() if isinstance(part, BaseTunerLayer)]
    wrapped = {id(part) for each in adapters for part in cast(nn.Module, each).modules()}
    of_mma = [each for each in adapters if isinstance(each, MMALayer)]
    beside = {id(part) for each in of_mma for part in each.modules()}
    products = [
        part for part in layer.modules() if isinstance(part, nn.Linear) and id(part) not in beside
    ]
    return sum(
        part.in_features * part.out_features
        for part in products[-1:]
        if id(part) not in wrapped and not _trains(part)
    )


def _of_mma(layer: MMALayer) -> Iterator[tuple[int, bool]]:
    """An adapter's product down, and the one up: a block [2 (R + 1), D] for two modalities.

    Without a router there is one block of R + 1 rows for both.
    """
    for name in layer.active_adapters:
        if name in layer.mma_down:
            down = cast(nn.Linear, layer.mma_down[name])
            yield down.in_features * down.out_features, _trains(down)
            mixtures = 2 if name in layer.mma_router else 1
            yield mixtures * (down.out_features + 1) * layer.width, _trains(layer.mma_up[name])


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def picture_flops(base: PreTrainedModel) -> PictureFlops:
    """Count what one picture takes, backward through whatever trains."""
    if isinstance(base, GraftedForConditionalGeneration):
        return _of_graft(base)
    if is_qwen_vl(base.config):
        return _of_qwen_vl(base)
    side = [part for name, part in base.named_modules() if name.rpartition(".")[2] in _SIDES]
    return _of_transformer(base, side[0]) if side else PictureFlops()


def _of_graft(base: GraftedForConditionalGeneration) -> PictureFlops:
    """Run tower and connector on the meta device, under torch's counter."""
    tower, connector = base.vision_tower, base.connector
    pixels = torch.empty(1, 3, tower.image_size, tower.image_size, device="meta")
    features = torch.empty(1, tower.num_states(base.select), tower.width, device="meta")
    tower_trains = _trains(tower)

    def see(requires_grad: bool = tower_trains) -> Tensor:
        with torch.set_grad_enabled(requires_grad):
            return _on_meta(tower, pixels.to(tower.model.dtype), select=base.select)

    def connect(states: Tensor) -> Tensor:
        return _on_meta(connector, states.float())

    to_features = _count(lambda: see(False))
    to_tokens = _count(lambda: connect(features))
    from_features = _count(lambda: _back(connect(features))) - to_tokens
    from_pixels = _count(lambda: _back(connect(see()))) - to_tokens - to_features
    return PictureFlops(
        to_features, to_tokens, from_pixels, from_features, tower_trains or _trains(connector)
    )


def _on_meta(module: nn.Module, *args: Tensor, **kwargs: Any) -> Tensor:
    """Call a module with weights that are shapes alone."""
    state = {
        name: torch.empty(
            getattr(tensor, "ds_shape", tensor.shape),  # ZeRO-3 leaves a shape of nothing
            dtype=tensor.dtype,
            device="meta",
            requires_grad=tensor.requires_grad,
        )
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    return functional_call(module, state, args, kwargs)


def _back(result: Tensor) -> None:
    if result.requires_grad:
        result.sum().backward()


def _count(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _of_transformer(base: PreTrainedModel, tower: nn.Module) -> PictureFlops:
    """Count a vision-language model of transformers: its ViT, and what stands between."""
    vision: Any = cast(Any, base.config).vision_config
    cells = (vision.image_size // vision.patch_size) ** 2
    model = cast(Any, base)
    language = {id(part) for part in model.get_decoder().modules()}
    language |= {id(part) for part in model.get_output_embeddings().modules()}
    inside = {id(part) for part in tower.modules()}
    between = [
        part
        for part in base.modules()
        if isinstance(part, nn.Linear) and id(part) not in language | inside
    ]
    weights, trained = _sum(list(_products(tower)))
    attention = 2 * vision.num_hidden_layers * vision.hidden_size * cells * cells
    forward = 2 * (cells * weights + attention)
    joined, moved = _sum([pair for part in between for pair in _products(part)])
    connector = 2 * cells * joined
    from_features = 2 * cells * 2 * moved
    tower_back = 2 * cells * trained + 2 * (cells * weights + 2 * attention) if trained else 0
    return PictureFlops(
        forward, connector, from_features + tower_back, from_features, bool(moved or trained)
    )


def _of_qwen_vl(base: PreTrainedModel) -> PictureFlops:
    """Count a Qwen-VL's tower at `picture_side`; its merger, behind the blocks, is the connector.

    A model whose pictures have no size of their own is not trained, and counts nothing.
    """
    model = cast(Any, base)
    side = getattr(model, "picture_side", None)
    if side is None:
        return PictureFlops()
    tower, vision = model.model.visual, model.config.vision_config
    cells = (side // vision.patch_size) ** 2
    merged = cells // vision.spatial_merge_size**2
    weights, trained = _sum([*_products(tower.patch_embed), *_products(tower.blocks)])
    joined, moved = _sum(list(_products(tower.merger)))
    width = getattr(vision, "embed_dim", vision.hidden_size)
    whole = set(getattr(vision, "fullatt_block_indexes", range(vision.depth)))
    window = getattr(vision, "window_size", side) // vision.patch_size
    pairs = [cells if block in whole else min(window**2, cells) for block in range(vision.depth)]
    attention = 2 * width * cells * sum(pairs)
    forward = 2 * (cells * weights + attention)
    connector_back = 2 * merged * 2 * moved
    tower_back = 2 * cells * (trained + weights) + 4 * attention if trained else 0
    return PictureFlops(
        forward, 2 * merged * joined, connector_back + tower_back, 0, bool(moved or trained)
    )


def _sum(products: list[tuple[int, bool]]) -> tuple[int, int]:
    """Sum the multiply-adds of all products, and of the trained ones."""
    return (
        sum(count for count, _ in products),
        sum(count for count, trained in products if trained),
    )
