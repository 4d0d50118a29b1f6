"""transformers' Qwen2-VL and Qwen2.5-VL, with images of one size.

As they are, an image takes as many tokens as it has cells, and every token has three positions
(time, height, width; M-RoPE) that its processor's companion arrays say how to count. Here every
image is first put on a square of one side, so that all take as many tokens; and the three
positions are derived from the one that rows, trees of options and caches are laid out by.

transformers counts a token after an image from the image's height on, so that positions lag
after the number of tokens by then. Here they are counted backwards from the row's end: what
follows the last image is where its place in its segment says, and what stands before lies the lag
further on. Rotary attention sees differences alone, and those are transformers' own. So a cache can
be continued by counting tokens, as for any model.

Letters: B rows, T tokens, N images, V visual tokens per image, S cells at an image's side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from varifocal.errors import ModelError, RecipeError
from varifocal.models.distributed import in_world, is_sharded, touch
from varifocal.models.families.base import ImageLoader, ImageTokens, MetaImages, ModelFamily
from varifocal.models.families.flops import ImageFlops, sum_products
from varifocal.models.features import FeatureStore
from varifocal.models.preprocessing import load_image_processor, load_tokenizer
from varifocal.models.sources import Checkpoint
from varifocal.recipe import MMASection, TunerSection


class QwenVLProcessor:
    """Tokenizer and image processor of a Qwen-VL, for images alone.

    transformers' own processor wants a video processor, and that wants torchvision.

    Args:
        image_processor: its own, the one that needs PIL alone.
        tokenizer: its own.
        image_side: of the squares, in pixels.
        image_token_id: the placeholder's.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: PreTrainedTokenizerBase,
        image_side: int,
        image_token_id: int,
    ) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.image_side = image_side
        self.image_token_id = image_token_id
        self.image_token = str(tokenizer.convert_ids_to_tokens(image_token_id))
        self.chat_template = tokenizer.chat_template

    def images(self, images: Iterable[PIL.Image.Image]) -> Mapping[str, Tensor]:
        """Turn images into the tower's patches, and their grids.

        An image that is no square gets grey margins; nothing is cut away or pressed.

        Returns:
            `pixel_values` [N x patches, values], and `image_grid_thw` [N, 3].
        """
        size = (self.image_side, self.image_side)
        squares = [
            PIL.ImageOps.pad(image.convert("RGB"), size, PIL.Image.Resampling.BICUBIC, "#7f7f7f")
            for image in images
        ]
        area = self.image_side**2  # so it is not made larger or smaller again
        sized = {"shortest_edge": area, "longest_edge": area}
        inputs = self.image_processor(images=squares, size=sized, return_tensors="pt")
        return {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}

    def save_pretrained(self, directory: str | Path) -> None:
        """Write both parts' files."""
        self.image_processor.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)


class QwenVLFamily:
    """Qwen2-VL and Qwen2.5-VL, their images on squares of `model.image_side` pixels.

    The tower's last part, the merger, is what others call connector.
    """

    connector_name: str | None = None
    connector_is_new = False
    needs_image_side = True
    prefixes_fit = False  # positions are counted backwards from what follows

    def fits(self, config: PreTrainedConfig) -> bool:
        """Every one does, given a side."""
        return True

    def check_image_side(self, checkpoint: Checkpoint, side: int | None) -> None:
        """See `check_side`."""
        check_side(checkpoint.name, checkpoint.config, side)

    def load_processor(self, checkpoint: Checkpoint, side: int | None) -> Any:
        """Load tokenizer and image processor apart; see `QwenVLProcessor`."""
        config: Any = checkpoint.config
        parts = load_image_processor(checkpoint), load_tokenizer(checkpoint)
        return QwenVLProcessor(
            *parts, check_side(checkpoint.name, config, side), config.image_token_id
        )

    def image_tokens(self, processor: Any, config: PreTrainedConfig) -> ImageTokens:
        """Count the merged cells of a square; see `ModelFamily`."""
        count = tokens_of_side(config, processor.image_side)
        template = processor.chat_template
        return ImageTokens(processor.image_token, processor.image_token_id, count, template)

    def prepare(self, model: PreTrainedModel, side: int | None) -> None:
        """Let it read rows of segments, and remember the side; see `ModelFamily`."""
        known: Any = model
        known.image_side, known.vision_passes = side, 0
        known.model.forward = partial(_forward, model, known.model.forward)

    def image_loader(
        self, base: PreTrainedModel, processor: Any, fingerprint: str | None
    ) -> tuple[FeatureStore | None, ImageLoader]:
        """Load patches of squares, and their grids; see `ModelFamily`."""
        dtype = base.dtype

        def load(images: Sequence[Any]) -> Mapping[str, Tensor]:
            prepared = processor.images(image.open() for image in images)
            return {**prepared, "pixel_values": prepared["pixel_values"].to(dtype)}

        return None, load

    def meta_images(self, base: PreTrainedModel) -> MetaImages:
        """Load patches of squares, and their grids; see `ModelFamily`."""
        config: Any = base.config
        side = check_side("model.language_model", config, getattr(base, "image_side", None))
        vision = config.vision_config
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2

        def load(images: Sequence[Any]) -> Mapping[str, Tensor]:
            grid = grid_of_side(config, side, len(images))
            shape = (int(grid.prod(1).sum()), values)
            patches = torch.empty(shape, dtype=base.dtype, device="meta")
            return {"pixel_values": patches, "image_grid_thw": grid}

        return MetaImages(load, False, config.image_token_id, tokens_of_side(config, side))

    def image_flops(self, base: PreTrainedModel) -> ImageFlops:
        """Count the tower at `image_side`, window by window, and its merger as a connector.

        A model whose images have no size of their own is not trained, and counts nothing.
        """
        model: Any = base
        side = getattr(model, "image_side", None)
        if side is None:
            return ImageFlops()
        tower, vision = model.model.visual, model.config.vision_config
        cells = (side // vision.patch_size) ** 2
        merged = cells // vision.spatial_merge_size**2
        weights, trained = sum_products(tower.patch_embed, tower.blocks)
        joined, moved = sum_products(tower.merger)
        width = getattr(vision, "embed_dim", vision.hidden_size)
        whole = set(getattr(vision, "fullatt_block_indexes", range(vision.depth)))
        window = getattr(vision, "window_size", side) // vision.patch_size
        window_cells = min(window**2, cells)
        pairs = sum(cells if block in whole else window_cells for block in range(vision.depth))
        attention = 2 * width * cells * pairs
        forward = 2 * (cells * weights + attention)
        connector_back = 2 * merged * 2 * moved
        tower_back = 2 * cells * (trained + weights) + 4 * attention if trained else 0
        return ImageFlops(
            forward, 2 * merged * joined, connector_back + tower_back, 0, bool(moved or trained)
        )

    def check_tuner(self, tuner: TunerSection) -> None:
        """Refuse MMA in the tower; see `ModelFamily`."""
        if isinstance(tuner, MMASection) and tuner.adapt_vision_tower:
            raise RecipeError(
                "tuner.adapt_vision_tower: a Qwen-VL's tower runs all images of a batch as one "
                "row, where MMA could not choose its branches for each; set it to false"
            )


FAMILY: ModelFamily = QwenVLFamily()


def check_side(name: str, config: PreTrainedConfig, side: int | None) -> int:
    """Return the side of a model's images in pixels.

    Raises:
        ModelError: a Qwen-VL has none, or one that is no whole number of cells.
    """
    cell = cell_side(config)
    if side is None:
        raise ModelError(
            f"{name} is of type {config.model_type}, whose images take more or fewer tokens by "
            f"their size; set model.image_side, {16 * cell} for example, so that each is put on "
            "a square of that many pixels and takes 256 tokens"
        )
    if side % cell:
        lower = max(side // cell, 1) * cell
        raise ModelError(
            f"model.image_side: {side} is no multiple of {cell}, the side of what one token of "
            f"{name} sees; take {lower} or {lower + cell}"
        )
    return side


def cell_side(config: PreTrainedConfig) -> int:
    """Return the side, in pixels, of what one visual token sees."""
    vision: Any = config.vision_config
    return vision.patch_size * vision.spatial_merge_size


def tokens_of_side(config: PreTrainedConfig, side: int) -> int:
    """Count V, the tokens of an image of that side."""
    return (side // cell_side(config)) ** 2


def grid_of_side(config: PreTrainedConfig, side: int, num_images: int) -> Tensor:
    """Return `image_grid_thw` [N, 3] of images of that side."""
    vision: Any = config.vision_config
    cells = side // vision.patch_size
    return torch.tensor([[1, cells, cells]]).expand(num_images, 3)


def positions_of_rows(
    position_ids: Tensor, is_image: Tensor, tokens_per_image: int, side_tokens: int
) -> Tensor:
    """Derive M-RoPE's positions from places in segments.

    Args:
        position_ids: [B, T]; they restart at each segment.
        is_image: [B, T] bool, True at placeholders.
        tokens_per_image: V.
        side_tokens: S.

    Returns:
        [4, B, T]: the places as given, by which masks are made, and time, height and width.

    >>> places, seen = torch.arange(6)[None], torch.tensor([[0, 1, 1, 1, 1, 0]]).bool()
    >>> positions_of_rows(places, seen, tokens_per_image=4, side_tokens=2)[1:, 0]
    tensor([[2, 3, 3, 3, 3, 5],
            [2, 3, 3, 4, 4, 5],
            [2, 3, 4, 3, 4, 5]])
    """
    lag = tokens_per_image - side_tokens
    marks = is_image.long()
    number = marks.cumsum(1) - marks  # of placeholders before
    # Those of later segments move a whole segment on, which attention inside it does not see.
    coming = marks.sum(1, keepdim=True) // tokens_per_image - number // tokens_per_image
    place = torch.where(is_image, number % tokens_per_image, 0)
    begin = position_ids + coming * lag - place
    rows = torch.where(is_image, place // side_tokens, 0)
    columns = torch.where(is_image, place % side_tokens, 0)
    return torch.stack([position_ids, begin, begin + rows, begin + columns])


def _forward(model: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a Qwen-VL without its head on rows that have places [B, T]."""
    inner, ids, places = model.model, kwargs.get("input_ids"), kwargs.get("position_ids")
    _refuse_sharded(inner.visual)
    is_vision_language = kwargs.get("pixel_values") is not None
    if is_vision_language:
        kwargs["mm_encoder_outputs"] = {"image": _embed_images(model, kwargs)}
        kwargs["pixel_values"] = None
    elif in_world():
        kwargs = _in_step(inner, kwargs)
    if ids is None or places is None or places.dim() != 2:  # transformers' own `generate`
        return forward(*args, **kwargs)
    is_image = ids == model.config.image_token_id
    cache = kwargs.get("past_key_values")
    if is_vision_language and cache is not None and cache.get_seq_length():
        raise ModelError(
            "a Qwen-VL cannot go on from a cache with further images: what is cached lies where "
            "no image follows; read the whole conversation again"
        )
    tokens = tokens_of_side(model.config, model.image_side)
    side = model.image_side // cell_side(model.config)
    kwargs["position_ids"] = positions_of_rows(places.expand_as(ids), is_image, tokens, side)
    return forward(*args, **kwargs)


def _embed_images(model: Any, kwargs: Mapping[str, Any]) -> Any:
    """Run the tower; the marks of rows are not for it."""
    grid = kwargs["image_grid_thw"]
    model.vision_passes += len(grid)
    return model.model.get_image_features(kwargs["pixel_values"], grid, return_dict=True)


def _refuse_sharded(tower: nn.Module) -> None:
    """Refuse a tower that all processes have to run whenever one has an image."""
    if is_sharded(tower):
        raise ModelError(
            "a Qwen-VL is trained in whole copies only: take `varifocal launch --engine ddp`, or "
            "one process"
        )


def _in_step(inner: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without images, let the decoder's input depend on a tower that trains elsewhere."""
    zero = touch(inner.visual) if inner.training else None
    if zero is None:
        return kwargs
    embeds = kwargs.get("inputs_embeds")
    if embeds is None:
        embeds = inner.get_input_embeddings()(kwargs["input_ids"])
    return {**kwargs, "inputs_embeds": embeds + zero.to(embeds.device, embeds.dtype)}
