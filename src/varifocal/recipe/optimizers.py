"""The optimisers of transformers' Trainer: what each needs and reads, and why some are refused.

Read off `transformers.trainer_optimizer`, which passes over what an optimiser does not read.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from varifocal.errors import nearest
from varifocal.recipe.strict_yaml import WrongKeyError, unread_key

_BETAS = ("adam_beta1", "adam_beta2")
_ADAM = (*_BETAS, "adam_epsilon")


@dataclass(frozen=True)
class Optimizer:
    """What a recipe has to know of an optimiser.

    Attributes:
        module: that has to be importable.
        package: that brings it, as pip names it.
        reads: of `adam_beta1`, `adam_beta2` and `adam_epsilon`, those that it takes.
        arguments: keys of `optim_args` that it takes, and their type.
        state: what its state in a checkpoint is; optimisers of one state follow one another.
    """

    module: str = "torch"
    package: str = "torch"
    reads: tuple[str, ...] = ()
    arguments: Mapping[str, type] | None = None
    state: str | None = None


def _bitsandbytes(reads: tuple[str, ...], arguments: Mapping[str, type] | None = None) -> Optimizer:
    return Optimizer("bitsandbytes", "bitsandbytes", reads, arguments)


_MIXED: dict[str, type] = {"beta1": float, "beta2": float, "beta3": float, "alpha": float}
_ADEMAMIX = _bitsandbytes(_ADAM, _MIXED | {"eps": float, "t_alpha": int, "t_beta3": int})
_TORCHAO = Optimizer("torchao", "torchao", _ADAM, {"bf16_stochastic_round": bool})
_ADAMW = Optimizer(reads=_ADAM, state="adamw")
_ADAMW_8BIT = Optimizer("bitsandbytes", "bitsandbytes", _ADAM, state="adamw_8bit")

OPTIMIZERS: dict[str, Optimizer] = {
    "adamw_torch": _ADAMW,
    "adamw_torch_fused": _ADAMW,
    "adafactor": Optimizer(),
    "sgd": Optimizer(arguments={"momentum": float, "dampening": float, "nesterov": bool}),
    "adagrad": Optimizer(arguments={"lr_decay": float, "eps": float}),
    "rmsprop": Optimizer(
        arguments={"momentum": float, "alpha": float, "eps": float, "centered": bool}
    ),
    "adamw_8bit": _ADAMW_8BIT,
    "adamw_bnb_8bit": _ADAMW_8BIT,
    "paged_adamw_8bit": _bitsandbytes(_ADAM),
    "paged_adamw_32bit": _bitsandbytes(_ADAM),
    "lion_8bit": _bitsandbytes(_BETAS),
    "lion_32bit": _bitsandbytes(_BETAS),
    "paged_lion_8bit": _bitsandbytes(_BETAS),
    "paged_lion_32bit": _bitsandbytes(_BETAS),
    "ademamix": _ADEMAMIX,
    "ademamix_8bit": _ADEMAMIX,
    "paged_ademamix_8bit": _ADEMAMIX,
    "paged_ademamix_32bit": _ADEMAMIX,
    "rmsprop_bnb": _bitsandbytes(()),
    "rmsprop_bnb_8bit": _bitsandbytes(()),
    "rmsprop_bnb_32bit": _bitsandbytes(()),
    "adamw_torch_4bit": _TORCHAO,
    "adamw_torch_8bit": _TORCHAO,
    "stable_adamw": Optimizer("optimi", "torch-optimi", _ADAM, {"max_lr": float}),
}
"""Those that train here, by transformers' names."""

_IN_BACKWARD = (
    "it moves weights during the backward pass, before a gradient that is no number can be refused"
)
_OWN_GROUPS = "it groups the parameters itself, so training.weight_decay would do nothing"
_UNAVERAGED = "a checkpoint would hold its working weights in the place of the averaged ones"

REFUSED: dict[str, str] = {
    "adamw_torch_xla": "it is for TPUs, where Varifocal does not run",
    "adamw_torch_npu_fused": "it is for Ascend NPUs, where Varifocal does not run",
    "adamw_anyprecision": "its package torchdistx is no longer kept up",
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit", "galore_adafactor"), _OWN_GROUPS),
    "apollo_adamw": _OWN_GROUPS,
    "galore_adamw_layerwise": _IN_BACKWARD,
    "galore_adamw_8bit_layerwise": _IN_BACKWARD,
    "galore_adafactor_layerwise": _IN_BACKWARD,
    "apollo_adamw_layerwise": _IN_BACKWARD,
    "lomo": _IN_BACKWARD,
    "adalomo": _IN_BACKWARD,
    "grokadamw": "its state is not in its checkpoints, so a resumed run would end elsewhere",
    "schedule_free_radam": _UNAVERAGED,
    "schedule_free_adamw": _UNAVERAGED,
    "schedule_free_sgd": _UNAVERAGED,
}
"""Those that are not offered, and why."""


def check_optimizer(training: Any) -> None:
    """Refuse an optimiser that does not train here, and settings that it would pass over.

    Args:
        training: a recipe's section.

    Raises:
        WrongKeyError: names the key of the section.
    """
    name = training.optimizer
    if name in REFUSED:
        raise WrongKeyError("optim", f"{name} is not offered: {REFUSED[name]}")
    if name not in OPTIMIZERS:
        hint = nearest(name, OPTIMIZERS) or f"; known: {', '.join(OPTIMIZERS)}"
        raise WrongKeyError("optim", f"{name!r} is no optimiser of transformers{hint}")
    optimizer = OPTIMIZERS[name]
    standard = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
    for key, usual in standard.items():
        given = training.get(key, usual)
        if given != usual and key not in optimizer.reads:
            raise WrongKeyError(key, f"{given} would do nothing: {name} does not read it")
    arguments = parse_arguments(training.get("optim_args") or "")
    for key, text in arguments.items():
        _check_argument(name, key, text)
    if arguments.get("nesterov", "").lower() == "true" and not float(arguments.get("momentum", 0)):
        raise WrongKeyError("optim_args", "nesterov needs a momentum above 0")


def parse_arguments(text: str) -> dict[str, str]:
    """Split `key=value,key=value`, as transformers does.

    Raises:
        WrongKeyError: it is written otherwise.
    """
    pairs = [pair.partition("=") for pair in text.replace(" ", "").split(",") if pair]
    if any(not (key and equals and value) for key, equals, value in pairs):
        raise WrongKeyError("optim_args", f"{text!r} was given; write it as key=value,key=value")
    return {key: value for key, _, value in pairs}


def _check_argument(name: str, key: str, text: str) -> None:
    allowed = OPTIMIZERS[name].arguments or {}
    if key not in allowed:
        raise WrongKeyError("optim_args", unread_key(name, key, allowed))
    wanted = allowed[key]
    try:
        fits = text.lower() in ("true", "false") if wanted is bool else wanted(text) is not None
    except ValueError:
        fits = False
    if not fits:
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[wanted]
        raise WrongKeyError("optim_args", f"{key}={text} was given; it should be {kind}")


def missing_package(name: str) -> str | None:
    """Name the package of an optimiser that is not installed, or None."""
    optimizer = OPTIMIZERS.get(name)
    if optimizer is None or importlib.util.find_spec(optimizer.module) is not None:
        return None
    return optimizer.package


def same_state(first: str, second: str) -> bool:
    """Tell whether an optimiser can go on with another's state.

    >>> same_state("adamw_torch", "adamw_torch_fused"), same_state("adamw_torch", "sgd")
    (True, False)
    """
    states = [OPTIMIZERS[name].state if name in OPTIMIZERS else None for name in (first, second)]
    return first == second or (states[0] is not None and states[0] == states[1])
