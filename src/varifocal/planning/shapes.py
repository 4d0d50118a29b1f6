"""A recipe's model as shapes, and the ways its tokens and pictures would go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from varifocal.assemble import load_encoder
from varifocal.data.encoding.encoder import Encoder
from varifocal.errors import ModelError
from varifocal.models import GraftedForConditionalGeneration, load_model
from varifocal.models.families.llava import is_llava, tokens_per_image
from varifocal.models.families.qwen_vl import check_side, grid_of_side, is_qwen_vl, tokens_of_side
from varifocal.planning.lengths import Eyes
from varifocal.recipe import Recipe
from varifocal.training.flops import FlopFormula
from varifocal.training.tuner import attach_tuner


@dataclass(frozen=True)
class Shapes:
    """A recipe's model on the meta device, its tuner attached.

    Attributes:
        model: the base model, or the PEFT model around it.
        base: the model inside.
        formula: operations of its training step.
        eyes: how pictures come into its batches.
    """

    model: nn.Module
    base: PreTrainedModel
    formula: FlopFormula
    eyes: Eyes

    def in_step(self, beside_others: bool) -> Shapes:
        """The same, trained by one process alone or beside others."""
        return replace(self, formula=replace(self.formula, in_step=beside_others))


def build_shapes(recipe: Recipe) -> Shapes:
    """Build a recipe's model on the meta device; no weight file is opened.

    Raises:
        ModelError: a model's config cannot be had.
        RecipeError: the tuner does not fit the model.
    """
    model = attach_tuner(load_model(recipe.model, meta=True).model, recipe.tuner)
    inside = model.get_base_model() if isinstance(model, PeftModel) else model
    base = cast(PreTrainedModel, inside)
    formula = FlopFormula.of(base, checkpointing=recipe.training.gradient_checkpointing)
    return Shapes(model, base, formula, _eyes(base))


def _eyes(base: PreTrainedModel) -> Eyes:
    config: Any = base.config
    if isinstance(base, GraftedForConditionalGeneration):
        tower = base.vision_tower
        table = not any(isinstance(part, BaseTunerLayer) for part in tower.modules())
        shape = (
            (tower.num_states(base.select), tower.width)
            if table
            else (3, tower.image_size, tower.image_size)
        )
        name = "image_features" if table else "pixel_values"
        loader = _loader(name, shape, tower.model.dtype)
        return Eyes(loader, table, config.image_token_id, base.tokens_per_image)
    if is_llava(config):
        side = config.vision_config.image_size
        loader = _loader("pixel_values", (3, side, side), base.dtype)
        return Eyes(loader, False, config.image_token_index, tokens_per_image(config, side))
    if is_qwen_vl(config):
        side = check_side("model.language_model", config, getattr(base, "picture_side", None))
        loader = _patch_loader(config, side, base.dtype)
        return Eyes(loader, False, config.image_token_id, tokens_of_side(config, side))
    return Eyes()


def _loader(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    def load(images: Sequence[Any]) -> Mapping[str, Tensor]:
        return {name: torch.empty(len(images), *shape, dtype=dtype, device="meta")}

    return load


def _patch_loader(config: Any, side: int, dtype: torch.dtype) -> Any:
    vision = config.vision_config
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2

    def load(images: Sequence[Any]) -> Mapping[str, Tensor]:
        grid = grid_of_side(config, side, len(images))
        patches = torch.empty(int(grid.prod(1).sum()), values, dtype=dtype, device="meta")
        return {"pixel_values": patches, "image_grid_thw": grid}

    return load


def encoder_of(recipe: Recipe) -> Encoder:
    """Load a recipe's tokenizer.

    Raises:
        ModelError: it cannot be had.
    """
    try:
        return load_encoder(recipe)
    except OSError as error:
        raise ModelError(str(error)) from error
