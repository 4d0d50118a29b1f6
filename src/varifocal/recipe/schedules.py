"""The schedules of transformers' Trainer, and the `lr_scheduler_kwargs` that each takes."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from varifocal.recipe.base_section import Count, Rate
from varifocal.recipe.strict_yaml import WrongKeyError, unread_key

Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]

NOT_OFFERED = {
    "reduce_lr_on_plateau": "it follows an evaluation's loss, and training runs none",
    "greedy": "it follows an evaluation's loss, and training runs none",
}
"""transformers' other schedules, and why they cannot work."""

_Floor = Annotated[float, Field(ge=0)]
_Part = Annotated[float, Field(ge=0, le=1)]
_Curve = Literal["linear", "cosine", "1-sqrt"]
_MINIMUM: dict[str, Any] = {"num_cycles": Rate, "min_lr": _Floor, "min_lr_rate": _Part}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {"num_cycles": Rate},
    "cosine_with_restarts": {"num_cycles": Count},
    "polynomial": {"lr_end": _Floor, "power": Rate},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {"timescale": Count},
    "cosine_with_min_lr": _MINIMUM,
    "cosine_warmup_with_min_lr": {**_MINIMUM, "warmup_lr_rate": _Part},
    "warmup_stable_decay": {
        "num_decay_steps": Count,
        "warmup_type": _Curve,
        "decay_type": _Curve,
        "min_lr_ratio": _Part,
        "num_cycles": Rate,
    },
}
"""Schedule -> its keys of `lr_scheduler_kwargs`, and their types."""


def check_schedule(training: Any) -> None:
    """Refuse arguments that a schedule lacks, passes over or cannot work with.

    Args:
        training: a recipe's section.

    Raises:
        WrongKeyError: names the key of the section.
    """
    name, given = training.lr_scheduler_type, training.get("lr_scheduler_kwargs") or {}
    for key, value in given.items():
        _check_argument(name, key, value)
    if name == "constant" and training.warmup_steps:
        raise WrongKeyError(
            "warmup_steps",
            "the schedule constant has none; set lr_scheduler_type to constant_with_warmup",
        )
    if "min_lr_rate" in ARGUMENTS[name] and ("min_lr" in given) == ("min_lr_rate" in given):
        raise _wrong(
            f"{name} needs min_lr, or min_lr_rate as a share of learning_rate; one of them"
        )
    if name == "warmup_stable_decay" and "num_decay_steps" not in given:
        raise _wrong(f"{name} needs num_decay_steps")
    for key in ("lr_end", "min_lr"):
        least = given.get(key, 1e-7 if name == "polynomial" else 0.0)
        if key in ARGUMENTS[name] and least >= training.learning_rate:
            rate = training.learning_rate
            raise _wrong(f"{key} {least:g} should be below training.learning_rate {rate:g}")
    if training.max_steps > 0:
        check_length(training, training.max_steps)


def check_length(training: Any, steps: int) -> None:
    """Refuse a schedule whose parts do not fit into a run's steps.

    Args:
        training: a recipe's section.
        steps: optimiser steps of the run.

    Raises:
        WrongKeyError: names the key of the section.
    """
    name, given = training.lr_scheduler_type, training.get("lr_scheduler_kwargs") or {}
    share = training.warmup_steps
    warmup = math.ceil(steps * share) if share < 1 else int(share)
    if name == "polynomial" and warmup >= steps:
        raise WrongKeyError(
            "warmup_steps", f"polynomial has no step left to fall in: {warmup} of {steps} warm up"
        )
    decay = given.get("num_decay_steps", 0)
    if name == "warmup_stable_decay" and warmup + decay > steps:
        raise _wrong(
            f"{warmup} steps of warm-up and {decay} of num_decay_steps are more than the run's "
            f"{steps}"
        )


def _check_argument(name: str, key: str, value: Any) -> None:
    allowed = ARGUMENTS[name]
    if key not in allowed:
        raise _wrong(unread_key(f"the schedule {name}", key, allowed))
    try:
        TypeAdapter(allowed[key]).validate_python(value, strict=True)
    except ValidationError as error:
        wanted = error.errors()[0]["msg"].replace("Input should be ", "")
        raise _wrong(f"{key}: {value!r} was given; it should be {wanted}") from None


def _wrong(text: str) -> WrongKeyError:
    return WrongKeyError("lr_scheduler_kwargs", text)
