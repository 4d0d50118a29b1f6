"""Names in `target_modules`: each one has to find a module."""

from collections.abc import Collection
from difflib import get_close_matches

from torch import nn


def check_targets(model: nn.Module, target_modules: Collection[str] | str | None) -> None:
    """Refuse an entry of a list of module names that no module's name ends with.

    PEFT refuses a list of which nothing is found, and passes over one wrong name beside right ones.

    Args:
        model: as it is before the tuner is attached.
        target_modules: as in a PEFT config; a regular expression, and None, are not looked at.

    Raises:
        ValueError: an entry finds nothing; the text has the nearest name of the model.
    """
    if target_modules is None or isinstance(target_modules, str):
        return
    names = [name.replace(".base_layer", "") for name, _ in model.named_modules() if name]
    for target in sorted(target_modules):
        if any(f".{name}".endswith(f".{target}") for name in names):
            continue
        ends = dict.fromkeys(name.rpartition(".")[2] for name in names)
        near = get_close_matches(target.rpartition(".")[2], ends, n=1, cutoff=0.6)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"target_modules: no module's name ends with '{target}'{hint}")
