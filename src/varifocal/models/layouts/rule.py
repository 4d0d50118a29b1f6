"""A tensor of ours, the tensors of other code that it is made of, and both ways between them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varifocal.errors import ModelError
from varifocal.models.checkpoint_files import few


def _alone(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


def _as_it_is(tensor: Tensor) -> list[Tensor]:
    return [tensor]


@dataclass(frozen=True)
class Rule:
    """One tensor of ours.

    Attributes:
        ours: its name in a run's adapter.
        theirs: the names of the tensors that it is made of.
        read: makes ours of theirs.
        write: makes theirs of ours, in the order of `theirs`.
    """

    ours: str
    theirs: tuple[str, ...]
    read: Callable[[Sequence[Tensor]], Tensor] = _alone
    write: Callable[[Tensor], Sequence[Tensor]] = _as_it_is


def read_all(
    rules: Sequence[Rule], tensors: Mapping[str, Tensor], shapes: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Turn another code's tensors into ours, each of them used and each of ours filled.

    Args:
        rules: of all tensors.
        tensors: theirs.
        shapes: ours by name, on the meta device too.
        source: where theirs come from, for error messages.

    Raises:
        ModelError: a tensor is missing or left over on either side, or has another shape.
    """
    wanted = [name for rule in rules for name in rule.theirs]
    check_names(wanted, tensors, source)
    filled: dict[str, Tensor] = {}
    for rule in rules:
        try:
            filled[rule.ours] = rule.read([tensors[name] for name in rule.theirs])
        except RuntimeError as error:
            given = ", ".join(str(list(tensors[name].shape)) for name in rule.theirs)
            raise ModelError(
                f"{source}: {rule.theirs[0]} has an unexpected shape ({given})"
            ) from error
    unfilled = sorted(shapes.keys() ^ filled.keys())
    if unfilled:
        raise ModelError(
            f"{source} does not fill the model that was named: {len(unfilled)} tensors are on one "
            f"side alone ({few(unfilled)}); name the models that it was trained on"
        )
    for rule in rules:
        shape, expected = list(filled[rule.ours].shape), list(shapes[rule.ours].shape)
        if shape != expected:
            raise ModelError(
                f"{source}: {rule.theirs[0]} gives {shape}, and the models that were named need "
                f"{expected}; name those that it was trained on"
            )
    return filled


def write_all(rules: Sequence[Rule], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn our tensors into another code's, as `read_all` read them, bit for bit."""
    written: dict[str, Tensor] = {}
    for rule in rules:
        parts = rule.write(tensors[rule.ours])
        written |= {n: part.contiguous() for n, part in zip(rule.theirs, parts, strict=True)}
    return written


def check_names(wanted: Sequence[str], tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that are missing or unknown, by name.

    Raises:
        ModelError: some are.
    """
    missing = [name for name in wanted if name not in tensors]
    known = set(wanted)
    unknown = [name for name in tensors if name not in known]
    faults = [
        f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {what} ({few(names)})"
        for names, what in ((missing, "missing"), (unknown, "unknown"))
        if names
    ]
    if faults:
        raise ModelError(f"{source} is not laid out as expected: {'; '.join(faults)}")


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors along a new first dimension."""
    return torch.stack(list(tensors))


def unstack(tensor: Tensor) -> list[Tensor]:
    """Take a tensor apart along its first dimension."""
    return list(tensor.unbind(0))
