"""From a recipe's `tuner` section to a model to train: the one place where a tuner is attached."""

import re
from collections import Counter
from dataclasses import fields
from typing import Any, cast

from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers import PreTrainedModel

from varifocal.errors import RecipeError, nearest
from varifocal.models import load_model
from varifocal.models.families.base import connector_name, family_of
from varifocal.models.families.llava import PROJECTOR
from varifocal.models.tied_embeddings import adapters_change_one
from varifocal.recipe import (
    FullSection,
    LoraExpertsSection,
    LoraSection,
    MixLoraSection,
    MMASection,
    NoTunerSection,
    PeftSection,
    Recipe,
    TunerSection,
)
from varifocal.training.full_tuning import hold_in_float32, train_full_model
from varifocal.tuners import LoraExpertsConfig, MixLoraConfig, MMAConfig
from varifocal.tuners.image_lora import ImageLoraConfig
from varifocal.tuners.targets import check_targets

# The names transformers gives the image encoder of a vision-language model.
_INSIDE_A_TOWER = r".*\b(vision_tower|vision_model|visual)\..*"


def attach_tuner(
    model: PreTrainedModel,
    tuner: TunerSection,
    *,
    base_fingerprint: str | None = None,
) -> PeftModel | PreTrainedModel:
    """Freeze a model and put a recipe's tuner into it.

    A connector that is trained is held in float32, whatever the model is held in.

    Args:
        model: a grafted model, or any model of transformers; changed in place.
        tuner: the recipe's section. The connector is trained, and saved with the adapter, where
            the section asks for it and the model has one.
        base_fingerprint: content hash of the frozen weights, kept in our own adapters' configs.

    Returns:
        The PEFT model, on the model's device (`meta` too), its adapter named "default". With
        `tuner.type: full` the model itself.

    Raises:
        RecipeError: PEFT refuses the settings for this model.
    """
    if isinstance(tuner, FullSection):
        return train_full_model(model, tuner)
    if (family := family_of(model.config)) is not None:
        family.check_tuner(tuner)
    connector = connector_name(model) if tuner.train_connector else None
    saved = None if connector is None else [connector.rpartition(".")[2]]
    try:
        excluded = _excluded(model, tuner)
        config = _config(tuner, saved, excluded)
        if isinstance(config, MMAConfig | MixLoraConfig | LoraExpertsConfig):
            config.base_fingerprint = base_fingerprint
        if isinstance(tuner, LoraSection | PeftSection):  # our own methods check them themselves
            check_targets(model, tuner.target_modules, excluded)
        with adapters_change_one():
            tuned = cast(PeftModel, get_peft_model(model, config))
    except ValueError as error:
        raise RecipeError(f"tuner: {error}") from error
    if connector is not None:
        wrapper: Any = model.get_submodule(connector)
        hold_in_float32(wrapper.modules_to_save["default"])
    return tuned


def _excluded(model: nn.Module, tuner: TunerSection) -> str | None:
    """Return the pattern of the modules to leave alone; PEFT warns of one that finds nothing."""
    if getattr(tuner, "adapt_vision_tower", True):
        return None
    inside = (re.fullmatch(_INSIDE_A_TOWER, name) for name, _ in model.named_modules())
    return _INSIDE_A_TOWER if any(inside) else None


def _config(
    tuner: MMASection
    | MixLoraSection
    | LoraExpertsSection
    | LoraSection
    | PeftSection
    | NoTunerSection,
    modules_to_save: list[str] | None,
    excluded: str | None,
) -> PeftConfig:
    if isinstance(tuner, MMASection):
        return MMAConfig(
            bottleneck_dim=tuner.bottleneck_dim,
            projection_bias=tuner.projection_bias,
            router=tuner.router,
            router_temperature=tuner.router_temperature,
            text_route=tuner.text_route,
            scale=tuner.scale,
            dropout=tuner.dropout,
            vision_tower=tuner.adapt_vision_tower,
            modules_to_save=modules_to_save,
        )
    if isinstance(tuner, NoTunerSection):
        # A LoRA that matches nothing: PEFT's way to train and save whole modules alone.
        return LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=modules_to_save)
    shared: dict[str, Any] = {
        "target_modules": list(tuner.target_modules),
        "exclude_modules": excluded,
        "modules_to_save": modules_to_save,
    }
    if isinstance(tuner, MixLoraSection):
        own = ("num_factors", "rank", "conditional", "selection", "routing_scope", "lora_alpha")
        more = ("balance", "dropout", "text_route")
        options = {name: getattr(tuner, name) for name in (*own, *more)}
        return MixLoraConfig(**options, **shared)
    if isinstance(tuner, LoraExpertsSection):
        own = ("num_experts", "rank", "router", "top_k", "lora_alpha")
        more = ("balance", "dropout", "text_route")
        options = {name: getattr(tuner, name) for name in (*own, *more)}
        return LoraExpertsConfig(**options, **shared)
    if isinstance(tuner, PeftSection):
        return _peft_config(tuner, shared)
    lora = ImageLoraConfig if tuner.text_route == "base" else LoraConfig
    return lora(
        r=tuner.rank,
        lora_alpha=cast(int, tuner.lora_alpha),  # PEFT says int and only divides by it
        lora_dropout=tuner.dropout,
        **shared,
    )


_NO_OPTIONS = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules",
    "inference_mode", "layer_replication", "modules_to_save", "peft_type",
    "peft_version", "revision", "runtime_config", "target_modules",
    "target_parameters", "task_type", "trainable_token_indices", "alora_invocation_tokens",
    "arrow_config",
})  # fmt: skip
"""Fields that the recipe sets itself, or that change more than the linears of `target_modules`."""
_SAFE_STARTS = (True, False, "gaussian", "orthogonal", "lycoris", "uniform")
"""Values of `init_weights` or `init_lora_weights` that leave the frozen weights as they are."""


def _peft_config(tuner: PeftSection, shared: dict[str, Any]) -> PeftConfig:
    """Make the config of a method of PEFT.

    Raises:
        RecipeError: an option is none of the method, or is not the recipe's to set.
    """
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[tuner.method.upper()]]
    names = {each.name for each in fields(kind)} - _NO_OPTIONS
    options = dict(tuner.options)
    for name, value in options.items():
        if name not in names:
            hint = "" if name in _NO_OPTIONS else nearest(name, names)
            raise RecipeError(f"tuner.options.{name}: no option of method {tuner.method}{hint}")
        if name.startswith("init_") and value not in _SAFE_STARTS:
            raise RecipeError(
                f"tuner.options.{name}: {value!r} changes the frozen weights, and without its "
                "adapter the model would not be the base any more; leave it out"
            )
    if tuner.method == "ia3":
        own = [name for name in tuner.target_modules if name in ("down_proj", "fc2")]
        options.setdefault("feedforward_modules", own)
    if "exclude_modules" not in {each.name for each in fields(kind)}:
        shared = _excluded_by_pattern(shared)
    try:
        return cast(Any, kind)(**options, **shared)
    except TypeError as error:  # of a value of another type
        raise RecipeError(f"tuner.options: {tuner.method} refuses them: {error}") from error


def _excluded_by_pattern(shared: dict[str, Any]) -> dict[str, Any]:
    """Say by `target_modules` alone what is adapted: some methods have no `exclude_modules`."""
    left = {name: value for name, value in shared.items() if name != "exclude_modules"}
    if shared["exclude_modules"] is not None:
        ends = "|".join(map(re.escape, shared["target_modules"]))
        left["target_modules"] = rf"(?!{shared['exclude_modules']})(.*\.)?({ends})"
    return left


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
            # ZeRO-3 leaves an empty parameter after
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
