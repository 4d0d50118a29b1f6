"""Checkpoints of MixLoRA's public code (af5cc3f): pools, routers and the projector.

Letters: E factors, r chosen ones, I inputs and O outputs of a linear.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from varifocal.errors import ModelError
from varifocal.models.layouts.rule import Rule

PREFIX = "base_model.model."
_FACTOR = re.compile(r"base_model\.model\.(model\.layers\.\d+\.(.+))\.lora_A\.default\.\d+")
_OF_B = "cmoa_loarB_extra_selector"  # sic
_OURS = f"{PREFIX}language_model."


@dataclass(frozen=True)
class MixLoraSizes:
    """What the tensors of a checkpoint show of its settings.

    Attributes:
        linears: names of the adapted linears in the language model.
        target_modules: the ends of their names.
        num_factors: E.
        rank: r; None where only the settings say it, without the conditional router.
        is_conditional: whether there is a conditional router.
    """

    linears: tuple[str, ...]
    target_modules: tuple[str, ...]
    num_factors: int
    rank: int | None
    is_conditional: bool


def read_mixlora_sizes(tensors: Mapping[str, Tensor], source: str) -> MixLoraSizes:
    """Read the sizes off the tensors.

    Raises:
        ModelError: these are no tensors of MixLoRA.
    """
    factors = {match[1]: match[2] for name in tensors if (match := _FACTOR.fullmatch(name))}
    if not factors:
        raise ModelError(
            f"{source} holds no factors of MixLoRA: there is no name that ends in lora_A.default.0"
        )
    linears = tuple(factors)
    first = f"{PREFIX}{linears[0]}"
    num_factors = sum(name.startswith(f"{first}.lora_A.default.") for name in tensors)
    conditional = tensors.get(f"{first}.{_OF_B}.loraA_param2loraB_selector.weight")
    rank = None
    if conditional is not None:
        rank = conditional.shape[-1] // tensors[f"{first}.lora_A.default.0"].shape[-1]
    targets = tuple(dict.fromkeys(end.rpartition(".")[2] for end in factors.values()))
    return MixLoraSizes(linears, targets, num_factors, rank, conditional is not None)


def mixlora_rules(sizes: MixLoraSizes, rank: int) -> list[Rule]:
    """Name the trained tensors and the routers of a checkpoint, projector included."""
    rules = []
    for linear in sizes.linears:
        rules += _linear(linear, sizes, rank)
    for kind in ("weight", "bias"):
        ours = f"{PREFIX}connector.local.0.{kind}"
        rules.append(Rule(ours, (f"{PREFIX}model.mm_projector.{kind}",)))
    return rules


def frozen_names(names: Iterable[str], rules: Sequence[Rule]) -> list[str]:
    """List the names that no rule reads: those of the frozen models."""
    read = {name for rule in rules for name in rule.theirs}
    return [name for name in names if name not in read]


def _linear(linear: str, sizes: MixLoraSizes, rank: int) -> list[Rule]:
    theirs, ours = f"{PREFIX}{linear}", f"{_OURS}{linear}"
    router = f"{ours}.mixlora_router"
    rules = [
        Rule(
            f"{ours}.mixlora_{letter.lower()}.weight",
            tuple(f"{theirs}.lora_{letter}.default.{e}" for e in range(sizes.num_factors)),
            read=_cat,
            write=_rows,
        )
        for letter in "AB"
    ]
    of_b = _OF_B if sizes.is_conditional else "cmoa_selector"
    first = f"{theirs}.cmoa_selector.loraA_selector.weight"
    rules += [
        Rule(f"{router}.independent_a", (first,)),
        Rule(f"{router}.independent_b", (f"{theirs}.{of_b}.loraB_selector.weight",)),
    ]
    if sizes.is_conditional:
        rules.append(
            Rule(
                f"{router}.conditional",
                (f"{theirs}.{of_b}.loraA_param2loraB_selector.weight",),
                read=partial(_part, rank),
                write=_join,
            )
        )
    return rules


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors))


def _rows(tensor: Tensor) -> list[Tensor]:
    return list(tensor.split(1))


def _part(rank: int, tensors: Sequence[Tensor]) -> Tensor:
    """Part the inputs of the conditional router: [E, r I] to [r, I, E]."""
    weight = tensors[0]
    return weight.reshape(len(weight), rank, -1).permute(1, 2, 0)


def _join(tensor: Tensor) -> list[Tensor]:
    return [tensor.permute(2, 0, 1).flatten(1)]
