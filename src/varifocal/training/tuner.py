"""From a recipe's `tuner` section to a PEFT model: the one place where a tuner is attached."""

import re
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file
from transformers import PreTrainedModel

from varifocal.errors import RecipeError
from varifocal.recipe import LoraSection, MMASection, NoTunerSection, TunerSection
from varifocal.tuners import MMAConfig

CONNECTOR = "connector"

# The names transformers gives the image encoder of a vision-language model.
_INSIDE_A_TOWER = r".*\b(vision_tower|vision_model|visual)\..*"


def attach_tuner(
    model: PreTrainedModel,
    tuner: TunerSection,
    *,
    base_fingerprint: str | None = None,
) -> PeftModel:
    """Freeze a model and put a recipe's tuner into it.

    Args:
        model: a grafted model, or any model of transformers; changed in place.
        tuner: the recipe's section. The connector is trained, and saved with the adapter, where
            the section asks for it and the model has one.
        base_fingerprint: content hash of the frozen weights, kept in an MMA adapter's config.

    Returns:
        The PEFT model, on the model's device (`meta` too), its adapter named "default".

    Raises:
        RecipeError: PEFT refuses the settings for this model.
    """
    saved = [CONNECTOR] if tuner.train_connector and hasattr(model, CONNECTOR) else None
    try:
        sees = any(re.fullmatch(_INSIDE_A_TOWER, name) for name, _ in model.named_modules())
        config = _config(tuner, saved, sees)
        if isinstance(config, MMAConfig):
            config.base_fingerprint = base_fingerprint
        return cast(PeftModel, get_peft_model(model, config))
    except ValueError as error:
        raise RecipeError(f"tuner: {error}") from error


def _config(tuner: TunerSection, modules_to_save: list[str] | None, sees: bool) -> PeftConfig:
    if isinstance(tuner, MMASection):
        return MMAConfig(
            bottleneck_dim=tuner.bottleneck_dim,
            router_temperature=tuner.router_temperature,
            scale=tuner.scale,
            dropout=tuner.dropout,
            vision_tower=tuner.adapt_vision_tower,
            modules_to_save=modules_to_save,
        )
    if not isinstance(tuner, LoraSection | NoTunerSection):
        raise RecipeError(f"tuner.type: {tuner.type} cannot be trained by this version")
    lora: dict[str, Any] = {"modules_to_save": modules_to_save}
    if isinstance(tuner, NoTunerSection):
        # A LoRA that matches nothing: PEFT's way to train and save whole modules alone.
        return LoraConfig(target_modules=DUMMY_TARGET_MODULES, **lora)
    return LoraConfig(
        r=tuner.rank,
        lora_alpha=cast(int, tuner.lora_alpha),  # PEFT says int and only divides by it
        lora_dropout=tuner.dropout,
        target_modules=list(tuner.target_modules),
        # PEFT warns of an exclusion that excludes nothing.
        exclude_modules=_INSIDE_A_TOWER if sees and not tuner.adapt_vision_tower else None,
        **lora,
    )


def load_connector(model: PreTrainedModel, run: Path) -> None:
    """Start a model's connector from the one that another run trained.

    Args:
        model: a grafted model without a tuner; changed in place.
        run: a run directory with an adapter.

    Raises:
        RecipeError: the run has no adapter with a connector, or its connector does not fit.
    """
    where = f"model.connector.weights: '{run}'"
    file = run / "adapter" / "adapter_model.safetensors"
    if not file.is_file():
        raise RecipeError(f"{where} holds no trained adapter")
    marker = f".{CONNECTOR}."
    tensors = {
        name.split(marker, 1)[1]: tensor
        for name, tensor in load_file(file).items()
        if marker in name
    }
    try:
        cast(Any, model).connector.load_state_dict(tensors)
    except RuntimeError as error:
        raise RecipeError(f"{where} was trained with another connector: {error}") from error
