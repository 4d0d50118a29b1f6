"""The parameters that a recipe trains and leaves, counted before any weight is loaded."""

from collections import Counter
from typing import Any

from torch import nn

from varifocal.models import load_model
from varifocal.models.llava import PROJECTOR
from varifocal.recipe import Recipe
from varifocal.training.tuner import attach_tuner

_PARTS = {
    "connector": "connector",
    PROJECTOR: "connector",
    "vision_tower": "vision_tower",
    "modality_embedding": "modality_embedding",
}


def count_parameters(recipe: Recipe) -> dict[str, Any]:
    """Build a recipe's model on the meta device and count its parameters.

    Args:
        recipe: its data is not looked at.

    Returns:
        `trained_parameters`, the same `trained_parameters_by_part` (see `part_of`), and
        `frozen_parameters`.

    Raises:
        ModelError: a model's config cannot be found.
        RecipeError: the tuner does not fit the model.
    """
    model = attach_tuner(load_model(recipe.model, meta=True).model, recipe.tuner)
    by_part = count_trained(model)
    return {
        "trained_parameters": sum(by_part.values()),
        "trained_parameters_by_part": by_part,
        "frozen_parameters": count_frozen(model),
    }


def count_trained(model: nn.Module) -> dict[str, int]:
    """Count the parameters that training moves, by part, largest first."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # ZeRO-3 leaves an empty parameter behind
            counts[part_of(name)] += getattr(parameter, "ds_numel", parameter.numel())
    return dict(counts.most_common())


def count_frozen(model: nn.Module) -> int:
    """Count the parameters that stay as they are."""
    # PEFT keeps an untouched copy of a module that it trains whole; it is no part of the model.
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and ".original_module." not in name
    )


def part_of(name: str) -> str:
    """Tell which part a parameter's name belongs to.

    >>> part_of("base_model.model.vision_tower.model.layers.0.layer_norm1.mma_down.default.weight")
    'vision_tower'
    >>> part_of("base_model.model.model.layers.0.input_layernorm.mma_up.default.bias")
    'language_model'
    """
    for mark, part in _PARTS.items():
        if f".{mark}." in f".{name}.":
            return part
    return "language_model"


def decayed_names(model: nn.Module) -> list[str]:
    """List the parameters that weight decay shrinks: matrices, by their dimension.

    As LaVIN's code decides. By their names, as transformers decides, every adapter in a layer that
    is called `layernorm` would be left out. A bias stays whole, MMA's stacked ones ([2, D]) too.
    """
    return [
        name
        for name, parameter in model.named_parameters()
        if len(getattr(parameter, "ds_shape", parameter.shape)) > 1  # ZeRO-3 keeps one flat
        and not name.endswith("bias")
    ]
