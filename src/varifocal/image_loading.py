"""How images reach a model: as pixels, or as features of a frozen tower that are stored once."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from varifocal.cache import cache_root
from varifocal.data.example import Image
from varifocal.data.rows.packing import ImageLoader
from varifocal.models import GraftedForConditionalGeneration
from varifocal.models.families.llava import is_llava
from varifocal.models.families.qwen_vl import QwenVLProcessor
from varifocal.models.features import FeatureStore


def choose_image_loader(
    model: nn.Module, base: nn.Module, processor: Any, fingerprint: str | None
) -> tuple[FeatureStore | None, ImageLoader | None]:
    """Choose how images reach a model: by a table of features where the tower is frozen.

    transformers' own models take no features, so they always get pixels.

    Args:
        model: the base, or the PEFT model around it; its tuner may adapt the tower.
        base: the model inside.
        processor: its own.
        fingerprint: of the frozen weights; without one no features are stored.

    Returns:
        The table, and what makes a model's tensors of images; None for what it does not have.
    """
    if is_llava(cast(PreTrainedModel, base).config):
        return None, pixel_loader(processor, cast(Any, base).model.vision_tower.dtype)
    if isinstance(processor, QwenVLProcessor):
        return None, _images_of_one_size(processor, cast(PreTrainedModel, base).dtype)
    if not isinstance(base, GraftedForConditionalGeneration):
        return None, None
    tower = base.vision_tower
    pixels = pixel_loader(processor, tower.model.dtype)
    if fingerprint is None or any(isinstance(part, BaseTunerLayer) for part in tower.modules()):
        return None, pixels
    store = _store(base, pixels, processor, fingerprint)
    return store, lambda images: {"image_features": store(images)}


def pixel_loader(processor: Any, dtype: torch.dtype) -> ImageLoader:
    """Return what prepares images as `pixel_values` of a number format."""

    def prepare(image: Image) -> Tensor:
        made = processor.image_processor(images=[image.open()], return_tensors="pt")
        return made["pixel_values"].to(dtype)

    def load(images: Sequence[Image]) -> Mapping[str, Tensor]:
        """Prepare one image after the other: large ones would take gigabytes decoded together."""
        return {"pixel_values": torch.cat([prepare(image) for image in images])}

    return load


def _images_of_one_size(processor: QwenVLProcessor, dtype: torch.dtype) -> ImageLoader:
    def load(images: Sequence[Image]) -> Mapping[str, Tensor]:
        made = processor.pictures(image.open() for image in images)
        return {**made, "pixel_values": made["pixel_values"].to(dtype)}

    return load


def _store(
    model: GraftedForConditionalGeneration, pixels: ImageLoader, processor: Any, fingerprint: str
) -> FeatureStore:
    """The feature table of this tower, these pictures' preparation and this selection."""
    tower = model.vision_tower
    dtype = tower.model.dtype
    prepared = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    told = f"{fingerprint} {model.select} {tower.feature_layer} {dtype} {prepared}"
    key = hashlib.sha256(told.encode()).hexdigest()[:16]

    def compute(images: Sequence[Any]) -> Tensor:
        return model.see(pixels(images)["pixel_values"].to(next(tower.parameters()).device))

    shape = (tower.num_states(model.select), tower.width)
    return FeatureStore(compute, shape, dtype, cache_root() / "features" / key)
