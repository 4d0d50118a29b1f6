"""Names of modules in a tuner's config: each one has to find a module."""

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

from torch import nn


def check_config(model: nn.Module, config: Any) -> None:
    """Refuse wrong names in a PEFT config's `target_modules`, `exclude_modules`, `modules_to_save`.

    Args:
        model: as it is before the tuner is attached.
        config: of a method with these three fields.

    Raises:
        ValueError: an entry of a list finds nothing, or nothing that is not excluded.
    """
    for key in ("exclude_modules", "modules_to_save"):
        check_target_names(model, getattr(config, key), key)
    check_targets(model, config.target_modules, config.exclude_modules)


def check_targets(
    model: nn.Module,
    target_modules: Collection[str] | str | None,
    exclude_modules: Collection[str] | str | None = None,
) -> None:
    """Refuse an entry of `target_modules` by which no module would be adapted.

    PEFT refuses a list of which nothing is found, and passes over one wrong name among right ones.

    Args:
        model: as it is before the tuner is attached.
        target_modules: as in a PEFT config; a regular expression, and None, are not looked at.
        exclude_modules: as in a PEFT config: ends of names, or a regular expression.

    Raises:
        ValueError: an entry finds nothing, or only what is excluded.
    """
    check_target_names(model, target_modules, "target_modules")
    if target_modules is None or isinstance(target_modules, str) or not exclude_modules:
        return
    left = [name for name in _names(model) if not _is_excluded(name, exclude_modules)]
    for target in sorted(target_modules):
        if not _finds(target, left):
            raise ValueError(
                f"target_modules: every module whose name ends with '{target}' is excluded (a "
                "vision tower is, unless it is to be adapted)"
            )


def check_target_names(model: nn.Module, names: Collection[str] | str | None, key: str) -> None:
    """Refuse an entry of a list of module names that no module's name ends with.

    Args:
        model: as it is before the tuner is attached.
        names: a regular expression, and None, are not looked at.
        key: the list's name in the config.

    Raises:
        ValueError: an entry finds nothing; the text has the nearest name of the model.
    """
    if names is None or isinstance(names, str):
        return
    there = _names(model)
    for wanted in sorted(names):
        if _finds(wanted, there):
            continue
        ends = dict.fromkeys(name.rpartition(".")[2] for name in there)
        near = get_close_matches(wanted.rpartition(".")[2], ends, n=1, cutoff=0.6)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"{key}: no module's name ends with '{wanted}'{hint}")


def _names(model: nn.Module) -> list[str]:
    return [name.replace(".base_layer", "") for name, _ in model.named_modules() if name]


def _finds(wanted: str, names: Iterable[str]) -> bool:
    return any(f".{name}".endswith(f".{wanted}") for name in names)


def _is_excluded(name: str, excluded: Collection[str] | str) -> bool:
    if isinstance(excluded, str):
        return re.fullmatch(excluded, name) is not None
    return any(f".{name}".endswith(f".{each}") for each in excluded)
