"""A recipe's model as shapes, with its formula of operations, and its encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from varifocal.data.encoding.encoder import Encoder
from varifocal.errors import ModelError
from varifocal.models import load_model
from varifocal.models.families.base import MetaImages, family_of
from varifocal.prompts import load_encoder
from varifocal.recipe import Recipe
from varifocal.training.flops import DecoderShape, FlopFormula, decoder_shape
from varifocal.training.tuner import attach_tuner


@dataclass(frozen=True)
class Shapes:
    """A recipe's model on the meta device, its tuner attached.

    Attributes:
        model: the base model, or the PEFT model around it.
        base: the model inside.
        formula: operations of its training step.
        decoder: its language model's shape without a tuner.
        images: how images come into its batches.
    """

    model: nn.Module
    base: PreTrainedModel
    formula: FlopFormula
    decoder: DecoderShape
    images: MetaImages

    def in_step(self, with_others: bool) -> Shapes:
        """The same, trained by one process alone or next to others."""
        return replace(self, formula=replace(self.formula, in_step=with_others))


def build_shapes(recipe: Recipe) -> Shapes:
    """Build a recipe's model on the meta device; no weight file is opened.

    Raises:
        ModelError: a model's config cannot be had.
        RecipeError: the tuner does not fit the model.
    """
    bare = load_model(recipe.model, meta=True).model
    decoder = decoder_shape(bare)
    model = attach_tuner(bare, recipe.tuner)
    inside = model.get_base_model() if isinstance(model, PeftModel) else model
    base = cast(PreTrainedModel, inside)
    formula = FlopFormula.of(base, checkpointing=recipe.training.gradient_checkpointing)
    family = family_of(base.config)
    images = MetaImages() if family is None else family.meta_images(base)
    return Shapes(model, base, formula, decoder, images)


def encoder_of(recipe: Recipe) -> Encoder:
    """Load a recipe's tokenizer.

    Raises:
        ModelError: it cannot be had.
    """
    try:
        return load_encoder(recipe)
    except OSError as error:
        raise ModelError(str(error)) from error
