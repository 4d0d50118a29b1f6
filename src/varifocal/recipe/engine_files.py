"""The settings of FSDP and DeepSpeed that a recipe names: read, and held against the recipe."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from varifocal.errors import RecipeError, nearest
from varifocal.recipe.training import TrainingSection

ENGINE_FILES = ("deepspeed", "fsdp_config")
"""Keys of `training` that name a file."""

_FSDP_KEYS = (
    "version",
    "auto_wrap_policy",
    "transformer_layer_cls_to_wrap",
    "min_num_params",
    "reshard_after_forward",
    "state_dict_type",
    "cpu_offload",
    "cpu_ram_efficient_loading",
    "activation_checkpointing",
)
"""What transformers reads of a file for FSDP2, each with or without `fsdp_` before it."""


def check_engine_files(training: TrainingSection, num_processes: int | None = None) -> None:
    """Refuse settings of FSDP or DeepSpeed that cannot be read, or contradict the recipe.

    Args:
        training: the recipe's section.
        num_processes: that train; None leaves the batch sizes unchecked, as a launch shares them.

    Raises:
        RecipeError: no file, no JSON, an unknown key, or a number that the recipe has otherwise.
    """
    if (fsdp := training.get("fsdp_config")) is not None:
        _check_fsdp(_read("fsdp_config", fsdp), training)
    if (deepspeed := training.get("deepspeed")) is not None:
        config = _read("deepspeed", deepspeed)
        if importlib.util.find_spec("deepspeed") is None:
            raise RecipeError(
                "training.deepspeed: deepspeed is not installed; run: pip install deepspeed, or "
                "take another engine (`varifocal launch --engine fsdp2`)"
            )
        _check_deepspeed(config, training, num_processes)


def _read(key: str, value: str | dict[str, Any]) -> dict[str, Any]:
    """Return settings that are written in the recipe, as JSON or in a file of JSON."""
    if isinstance(value, dict):
        return value
    text, where = value, "the text"
    if not value.lstrip().startswith("{"):
        where = value
        try:
            text = Path(value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise RecipeError(f"training.{key}: cannot read '{value}': {reason}") from None
    try:
        config = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"training.{key}: {where} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise RecipeError(f"training.{key}: {where} should hold an object, {{...}}")
    return config


def _check_fsdp(config: dict[str, Any], training: TrainingSection) -> None:
    for key in config:
        if key.removeprefix("fsdp_") not in _FSDP_KEYS:
            hint = nearest(key, _FSDP_KEYS) or f"; known: {', '.join(_FSDP_KEYS)}"
            raise RecipeError(f"training.fsdp_config: {key} would do nothing under FSDP2{hint}")
    given = {key.removeprefix("fsdp_"): value for key, value in config.items()}
    if given.get("version", 2) != 2:
        raise RecipeError(
            f"training.fsdp_config: version {given['version']} was given; Varifocal trains under 2"
        )
    if given.get("activation_checkpointing") and training.gradient_checkpointing:
        raise RecipeError(
            "training.fsdp_config: activation_checkpointing and training.gradient_checkpointing "
            "recompute the same layers; set one of them"
        )


def _check_deepspeed(
    config: dict[str, Any], training: TrainingSection, num_processes: int | None
) -> None:
    for key, ours in (("optimizer", "optim"), ("scheduler", "lr_scheduler_type")):
        if key in config:
            raise RecipeError(
                f"training.deepspeed: take {key} out; training.{ours} decides it, with the "
                "connector's learning rate and what decays"
            )
    for key in ("gradient_clipping", "gradient_accumulation_steps"):
        if key not in config:
            raise RecipeError(
                f'training.deepspeed: without {key} the recipe\'s would do nothing; add "{key}": '
                '"auto"'
            )
    wanted: dict[str, tuple[Any, str]] = {
        "gradient_clipping": (training.max_grad_norm, "max_grad_norm"),
        "fp16.enabled": (training.fp16, "fp16"),
        "bf16.enabled": (training.bf16, "bf16"),
    }
    if num_processes is not None:
        each, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
        wanted |= {
            "train_micro_batch_size_per_gpu": (each, "per_device_train_batch_size"),
            "gradient_accumulation_steps": (steps, "gradient_accumulation_steps"),
            "train_batch_size": (each * steps * num_processes, "the rows of a step"),
        }
    for key, (ours, name) in wanted.items():
        found = _value(config, key)
        if found not in (None, "auto", ours):
            raise RecipeError(
                f"training.deepspeed: {key} is {found!r}, and the recipe has {name} {ours!r}; "
                'write "auto" in the file'
            )


def _value(config: dict[str, Any], key: str) -> Any:
    """Return what stands under a dotted key, None where nothing does."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
