"""From a recipe's `tuner` section to a model to train: the one place where a tuner is attached."""

import re
from typing import Any, cast

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import PreTrainedModel

from varifocal.errors import RecipeError
from varifocal.models.llava import connector_name
from varifocal.models.qwen_vl import is_qwen_vl
from varifocal.models.shared_table import adapters_change_one
from varifocal.recipe import (
    FullSection,
    LoraSection,
    MixLoraSection,
    MMASection,
    NoTunerSection,
    TunerSection,
)
from varifocal.training.full import hold_in_float32, train_whole
from varifocal.tuners import MixLoraConfig, MMAConfig
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
        return train_whole(model, tuner)
    if isinstance(tuner, MMASection) and tuner.adapt_vision_tower and is_qwen_vl(model.config):
        raise RecipeError(
            "tuner.adapt_vision_tower: a Qwen-VL's tower runs all pictures of a batch as one row, "
            "where MMA could not choose its branches for each; set it to false"
        )
    connector = connector_name(model) if tuner.train_connector else None
    saved = None if connector is None else [connector.rpartition(".")[2]]
    try:
        sees = any(re.fullmatch(_INSIDE_A_TOWER, name) for name, _ in model.named_modules())
        config = _config(tuner, saved, sees)
        if isinstance(config, MMAConfig | MixLoraConfig):
            config.base_fingerprint = base_fingerprint
        if isinstance(tuner, LoraSection):  # our own methods look for themselves
            check_targets(model, tuner.target_modules, cast(Any, config).exclude_modules)
        with adapters_change_one():
            tuned = cast(PeftModel, get_peft_model(model, config))
    except ValueError as error:
        raise RecipeError(f"tuner: {error}") from error
    if connector is not None:
        wrapper: Any = model.get_submodule(connector)
        hold_in_float32(wrapper.modules_to_save["default"])
    return tuned


def _config(
    tuner: MMASection | MixLoraSection | LoraSection | NoTunerSection,
    modules_to_save: list[str] | None,
    sees: bool,
) -> PeftConfig:
    if isinstance(tuner, MMASection):
        return MMAConfig(
            bottleneck_dim=tuner.bottleneck_dim,
            router=tuner.router,
            router_temperature=tuner.router_temperature,
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
        # PEFT warns of an exclusion that excludes nothing.
        "exclude_modules": _INSIDE_A_TOWER if sees and not tuner.adapt_vision_tower else None,
        "modules_to_save": modules_to_save,
    }
    if isinstance(tuner, MixLoraSection):
        own = ("num_factors", "rank", "conditional", "selection", "routing_scope", "lora_alpha")
        options = {name: getattr(tuner, name) for name in (*own, "balance", "dropout")}
        return MixLoraConfig(**options, **shared)
    return LoraConfig(
        r=tuner.rank,
        lora_alpha=cast(int, tuner.lora_alpha),  # PEFT says int and only divides by it
        lora_dropout=tuner.dropout,
        **shared,
    )
