"""A recipe's model as shapes, with its formula of operations, and its encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from varifocal.data.encoding.encoder import Encoder
from varifocal.errors import ModelError, VarifocalError
from varifocal.models import load_model
from varifocal.models.families.base import MetaImages, family_of
from varifocal.prompts import load_encoder
from varifocal.recipe import Recipe
from varifocal.training.flops import DecoderShape, FlopFormula, decoder_shape
from varifocal.training.tuner import attach_tuner
from varifocal.training.validation import held_out_samples


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


@dataclass(frozen=True)
class EvaluationWork:
    """What `training.eval_steps` adds to a run, all devices together.

    Attributes:
        num_evaluations: None where steps or held-out data are unknown, like what follows.
        tokens_evaluated: of held-out rows, and of questions with answers as long as the right ones.
        flops_evaluation: operations of them, forward alone.
    """

    num_evaluations: int | None = 0
    tokens_evaluated: int | None = 0
    flops_evaluation: int | None = 0


def evaluation_work(
    recipe: Recipe, formula: FlopFormula, steps: int | None, *, looks_up: bool
) -> EvaluationWork:
    """Count what the evaluations of a run go through.

    Args:
        recipe: its `training.eval_steps`, and its held-out data.
        formula: operations of its model.
        steps: of the run; None where its data are unknown.
        looks_up: whether an image goes through the tower once, and is looked up from then on.
    """
    every = recipe.training.eval_interval(steps or 0)
    if every is None or steps == 0:
        return EvaluationWork()
    try:
        samples = held_out_samples(recipe, encoder_of(recipe))
    except VarifocalError:
        return EvaluationWork(None, None, None)
    if steps is None:
        return EvaluationWork(None, None, None)
    number = math.ceil(steps / every)
    asked = recipe.training.eval_questions * len(recipe.data.evaluate) / len(samples)
    lengths = samples.lengths
    once = formula.decoder.forward(
        tokens=int(lengths.sum()),
        pairs=int((lengths**2).sum()),
        positions=sum(len(sample.trained_ids) for sample in samples),
    )
    images = sum(len(sample.images) for sample in samples) * (1 if looks_up else number)
    return EvaluationWork(
        number,
        round(number * lengths.sum() * (1 + asked)),
        round((number * once + images * formula.image.tower) * (1 + asked)),
    )
