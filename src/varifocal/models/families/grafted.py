"""Grafts: a causal language model, a vision tower and our connector between them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from varifocal.cache import cache_root
from varifocal.models.families.base import ImageLoader, ImageTokens, MetaImages, ModelFamily
from varifocal.models.families.flops import ImageFlops, is_trained
from varifocal.models.features import FeatureStore
from varifocal.models.grafted import GraftedForConditionalGeneration
from varifocal.models.preprocessing import check_words, load_own_processor, pixel_loader
from varifocal.models.shape_cache import ShapeCache
from varifocal.models.sources import Checkpoint
from varifocal.recipe import TunerSection


class GraftedFamily:
    """Any causal language model with any tower: images have the size of the tower's own."""

    connector_name: str | None = "connector"
    connector_is_new = True
    needs_image_side = False
    prefixes_fit = True

    def fits(self, config: PreTrainedConfig) -> bool:
        """Every graft does: its connector gives as many tokens for each image."""
        return True

    def check_image_side(self, checkpoint: Checkpoint, side: int | None) -> None:
        """See `ModelFamily`; the tower has a size of its own."""

    def load_processor(self, checkpoint: Checkpoint, side: int | None) -> Any:
        """Load the processor of a graft that was saved whole; see `ModelFamily`."""
        processor = load_own_processor(checkpoint)
        check_words(checkpoint, processor)
        return processor

    def image_tokens(self, processor: Any, config: PreTrainedConfig) -> ImageTokens:
        """Return the placeholder that the processor has added; see `ModelFamily`."""
        count = processor.tokens_per_image
        return ImageTokens(processor.image_token, processor.image_token_id, count, None)

    def prepare(self, model: PreTrainedModel, side: int | None) -> None:
        """See `ModelFamily`; a graft does so by itself."""

    def image_loader(
        self, base: PreTrainedModel, processor: Any, fingerprint: str | None
    ) -> tuple[FeatureStore | None, ImageLoader]:
        """Load features from a table where the tower is frozen, else pixels; see `ModelFamily`."""
        graft = cast(GraftedForConditionalGeneration, base)
        pixels = pixel_loader(processor, graft.vision_tower.model.dtype)
        if fingerprint is None or _is_adapted(graft.vision_tower):
            return None, pixels
        store = _store(graft, pixels, processor, fingerprint)
        return store, lambda images: {"image_features": store(images)}

    def meta_images(self, base: PreTrainedModel) -> MetaImages:
        """Look features up where the tower is frozen, else load pixels; see `ModelFamily`."""
        graft = cast(GraftedForConditionalGeneration, base)
        tower, side = graft.vision_tower, graft.vision_tower.image_size
        by_table = not _is_adapted(tower)
        shape = (tower.num_states(graft.select), tower.width) if by_table else (3, side, side)
        name = "image_features" if by_table else "pixel_values"

        def load(images: Sequence[Any]) -> Mapping[str, Tensor]:
            empty = torch.empty(len(images), *shape, dtype=tower.model.dtype, device="meta")
            return {name: empty}

        return MetaImages(load, by_table, graft.config.image_token_id, graft.tokens_per_image)

    def image_flops(self, base: PreTrainedModel) -> ImageFlops:
        """Run tower and connector on the meta device, under torch's counter."""
        graft = cast(GraftedForConditionalGeneration, base)
        tower, connector = graft.vision_tower, graft.connector
        pixels = torch.empty(1, 3, tower.image_size, tower.image_size, device="meta")
        features = torch.empty(1, tower.num_states(graft.select), tower.width, device="meta")
        tower_trains = is_trained(tower)
        with ShapeCache(), FlopCounterMode(display=False) as counter:
            with torch.set_grad_enabled(tower_trains):
                states = _on_meta(tower, pixels.to(tower.model.dtype), select=graft.select)
            to_features = counter.get_total_flops()
            tokens = _on_meta(connector, states.float())
            to_tokens = counter.get_total_flops() - to_features
            _back(tokens)
            from_pixels = counter.get_total_flops() - to_features - to_tokens
        with FlopCounterMode(display=False) as counter:
            _back(_on_meta(connector, features.float()))
            from_features = counter.get_total_flops() - to_tokens
        return ImageFlops(
            to_features,
            to_tokens,
            from_pixels,
            from_features,
            tower_trains or is_trained(connector),
        )

    def check_tuner(self, tuner: TunerSection) -> None:
        """See `ModelFamily`; a graft takes every tuner."""


FAMILY: ModelFamily = GraftedFamily()


def _is_adapted(tower: nn.Module) -> bool:
    return any(isinstance(part, BaseTunerLayer) for part in tower.modules())


def _store(
    model: GraftedForConditionalGeneration, pixels: ImageLoader, processor: Any, fingerprint: str
) -> FeatureStore:
    """The feature table of this tower, this preparation of images and this selection."""
    tower = model.vision_tower
    dtype = tower.model.dtype
    prepared = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    text = f"{fingerprint} {model.select} {tower.feature_layer} {dtype} {prepared}"
    key = hashlib.sha256(text.encode()).hexdigest()[:16]

    def compute(images: Sequence[Any]) -> Tensor:
        return model.see(pixels(images)["pixel_values"].to(next(tower.parameters()).device))

    shape = (tower.num_states(model.select), tower.width)
    return FeatureStore(compute, shape, dtype, cache_root() / "features" / key)


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
