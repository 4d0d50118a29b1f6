"""transformers' Idefics3 and SmolVLM, with one tile for each image.

As released, an image larger than a tile is cut into rows and columns of tiles, each with its tag
(`<row_1_col_1>`), and a small one of the whole follows: it takes tokens by its size. Here every
image is the whole alone, on a square of the tower's own side, as their processor gives it without
splitting: `<fake_token_around_image><global-img>`, V times `<image>`, `<fake_token_around_image>`.

Letters: N images, V visual tokens per image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Idefics3Processor, PreTrainedConfig, PreTrainedModel

from varifocal.errors import ModelError, RecipeError
from varifocal.models.distributed import in_world, is_sharded, touch
from varifocal.models.families.base import ImageLoader, ImageTokens, MetaImages, ModelFamily
from varifocal.models.families.flops import ImageFlops, sum_products
from varifocal.models.features import FeatureStore
from varifocal.models.image_rows import check_row_images
from varifocal.models.preprocessing import check_words, load_image_processor
from varifocal.models.sources import Checkpoint, clear_loading_errors
from varifocal.recipe import MMASection, TunerSection


class SmolVLMFamily:
    """Idefics3, SmolVLM and SmolVLM2, their images whole on one tile; videos are not read."""

    connector_name: str | None = "model.connector"
    connector_is_new = False
    needs_image_side = True
    prefixes_fit = True

    def fits(self, config: PreTrainedConfig) -> bool:
        """Every one does, given the side of its tile."""
        return True

    def check_image_side(self, checkpoint: Checkpoint, side: int | None) -> None:
        """Refuse another side than the tower's; see `ModelFamily`."""
        name, config = checkpoint.name, checkpoint.config
        tile = _tile(config)
        if side is None:
            raise ModelError(
                f"{name} is of type {config.model_type}, which cuts an image into as many tiles as "
                f"it is large; set model.image_side, {tile}, so that each image is one tile and "
                f"takes {smolvlm_tokens_per_image(config)} tokens"
            )
        if side != tile:
            raise ModelError(
                f"model.image_side: {side} is not the side of the tiles that {name} reads; "
                f"take {tile}"
            )

    def load_processor(self, checkpoint: Checkpoint, side: int | None) -> Any:
        """Load Idefics3's processor, whose image processor needs PIL alone and splits nothing.

        transformers' own SmolVLM processor wants a video processor, and that wants torchvision.
        """
        image_processor = load_image_processor(checkpoint)
        image_processor.do_image_splitting = False
        with clear_loading_errors(checkpoint.name, checkpoint.path):
            processor: Any = Idefics3Processor.from_pretrained(checkpoint.path)
        processor.image_processor = image_processor
        _check_processor(checkpoint.name, checkpoint.config, processor)
        check_words(checkpoint, processor)
        return processor

    def image_tokens(self, processor: Any, config: PreTrainedConfig) -> ImageTokens:
        """Count a tile's tokens, and write its frame into the chat template."""
        token, frame = processor.image_token, processor.fake_image_token
        framed = f"{frame}{processor.global_image_tag}{token}{frame}"
        template = processor.chat_template.replace(token, framed)
        count = smolvlm_tokens_per_image(config)
        return ImageTokens(token, processor.image_token_id, count, template)

    def prepare(self, model: PreTrainedModel, side: int | None) -> None:
        """Count its images, and keep it in step with other processes; see `ModelFamily`."""
        known: Any = model
        known.image_side, known.vision_passes = side, 0
        known.model.forward = partial(_forward, model, known.model.forward)

    def image_loader(
        self, base: PreTrainedModel, processor: Any, fingerprint: str | None
    ) -> tuple[FeatureStore | None, ImageLoader]:
        """Load one tile for each image, [N, 1, 3, H, W]; see `ModelFamily`."""
        dtype = base.dtype

        def prepare(image: Any) -> Tensor:
            tile = processor.image_processor(images=[[image.open()]], return_tensors="pt")
            return tile["pixel_values"].to(dtype)

        def load(images: Sequence[Any]) -> Mapping[str, Tensor]:
            return {"pixel_values": torch.cat([prepare(image) for image in images])}

        return None, load

    def meta_images(self, base: PreTrainedModel) -> MetaImages:
        """Load one tile for each image; see `ModelFamily`."""
        config: Any = base.config
        side = _tile(config)

        def load(images: Sequence[Any]) -> Mapping[str, Tensor]:
            shape = (len(images), 1, 3, side, side)
            return {"pixel_values": torch.empty(shape, dtype=base.dtype, device="meta")}

        return MetaImages(load, False, config.image_token_id, smolvlm_tokens_per_image(config))

    def image_flops(self, base: PreTrainedModel) -> ImageFlops:
        """Count its ViT over a tile's cells, and the connector over its tokens."""
        model: Any = base
        vision = model.config.vision_config
        cells = (vision.image_size // vision.patch_size) ** 2
        tower = model.model.vision_model
        weights, trained = sum_products(tower.embeddings.patch_embedding, tower.encoder)
        attention = 2 * vision.num_hidden_layers * vision.hidden_size * cells * cells
        joined, moved = sum_products(model.model.connector)
        tokens = smolvlm_tokens_per_image(model.config)
        connector_back = 2 * tokens * (moved + (joined if trained else 0))
        tower_back = 2 * cells * (trained + weights) + 4 * attention if trained else 0
        return ImageFlops(
            2 * (cells * weights + attention),
            2 * tokens * joined,
            connector_back + tower_back,
            0,
            bool(moved or trained),
        )

    def check_tuner(self, tuner: TunerSection) -> None:
        """Refuse MMA in the tower, whose tiles no one has tried it on; see `ModelFamily`."""
        if isinstance(tuner, MMASection) and tuner.adapt_vision_tower:
            raise RecipeError(
                "tuner.adapt_vision_tower: MMA is not made for the tower of a SmolVLM; set it to "
                "false"
            )


FAMILY: ModelFamily = SmolVLMFamily()


def _tile(config: PreTrainedConfig) -> int:
    vision: Any = getattr(config, "vision_config", None)
    return vision.image_size


def smolvlm_tokens_per_image(config: PreTrainedConfig) -> int:
    """Count V, the tokens of a tile: its cells, `scale_factor` squared of them to a token."""
    known: Any = config
    vision = known.vision_config
    return (vision.image_size // vision.patch_size) ** 2 // known.scale_factor**2


def _check_processor(name: str, config: PreTrainedConfig, processor: Any) -> None:
    """Refuse a processor of another model, or one whose template cannot be framed.

    Raises:
        ModelError: image token, tokens of a tile, or its side differ, or no template writes images.
    """
    known: Any = config
    if processor.image_token_id != known.image_token_id:
        raise ModelError(
            f"{name!r}: config.json says that images stand at token {known.image_token_id}, and "
            f"the processor writes {processor.image_token!r}, which is "
            f"{processor.image_token_id}; take both from one checkpoint"
        )
    side, count = (
        processor.image_processor.max_image_size["longest_edge"],
        smolvlm_tokens_per_image(config),
    )
    if (side, processor.image_seq_len) != (_tile(config), count):
        raise ModelError(
            f"{name!r}: its processor makes tiles of {side} pixels and {processor.image_seq_len} "
            f"tokens, and config.json describes {_tile(config)} and {count}; take both from one "
            "checkpoint"
        )
    if processor.image_token not in (processor.chat_template or ""):
        raise ModelError(
            f"{name!r}: its chat template writes no {processor.image_token} for an image; restore "
            "chat_template.jinja or chat_template.json"
        )


def _forward(model: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a SmolVLM without its head, after its images [N, 1, 3, H, W] or in step without any."""
    inner = model.model
    if is_sharded(inner.vision_model, inner.connector):
        raise ModelError(
            "a SmolVLM is trained in whole copies only: take `varifocal launch --engine ddp`, or "
            "one process"
        )
    pixels = kwargs.get("pixel_values")
    if pixels is not None:
        model.vision_passes += pixels.shape[0] * pixels.shape[1]
    if kwargs.get("pixel_attention_mask") is not None:  # transformers' own layout, tiles and all
        return forward(*args, **kwargs)
    ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    zero = touch(inner.vision_model, inner.connector) if _lacks_images(inner, pixels) else None
    if pixels is None and zero is None:
        return forward(*args, **kwargs)
    if embeds is None:
        embeds = inner.get_input_embeddings()(ids)
    if zero is not None:
        embeds = embeds + zero.to(embeds.device, embeds.dtype)
    if pixels is not None:
        # not theirs, which looks for images of zeros: there are none, nor in a plan any numbers
        states = inner.vision_model(pixel_values=pixels.flatten(0, 1).to(inner.dtype))
        visual = inner.connector(states.last_hidden_state).flatten(0, 1)
        is_image = ids == model.config.image_token_id
        check_row_images(int(is_image.sum()), len(pixels), smolvlm_tokens_per_image(model.config))
        is_image = is_image.unsqueeze(-1).to(embeds.device)
        embeds = embeds.masked_scatter(is_image, visual.to(embeds.device, embeds.dtype))
    entering = {"input_ids": None, "pixel_values": None, "inputs_embeds": embeds}
    return forward(*args, **{**kwargs, **entering})


def _lacks_images(inner: Any, pixels: Tensor | None) -> bool:
    """Tell a training batch without images whose step other processes share."""
    return pixels is None and in_world() and inner.training
