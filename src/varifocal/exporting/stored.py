"""Compare what lies on disk, as others read it, with what was to be written: every number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from varifocal.errors import ModelError
from varifocal.exporting.adapters import LoraFiles
from varifocal.exporting.merging import Produce, named_without_adapters


@dataclass(frozen=True)
class Wanted:
    """A tensor that was to be written.

    Attributes:
        produce: it, not rounded.
        as_read: rounds it as its number format on disk does.
    """

    produce: Produce
    as_read: Callable[[Tensor], Tensor]


def check_stored(model: nn.Module, wanted: Mapping[str, Wanted], what: str) -> None:
    """Compare a model's tensors, as they were read from disk, with what was to be written.

    Args:
        model: the export, opened.
        wanted: by name in the model.
        what: the export, for the error.

    Raises:
        ModelError: a number differs, or a tensor is missing or too many.
    """
    tensors = named_without_adapters(model)
    for name in sorted(tensors.keys() - wanted.keys()):
        raise ModelError(f"{what}: a tensor {name} was read that the trained model does not have")
    for name, entry in wanted.items():
        exact = entry.produce()
        expected = entry.as_read(exact) if exact.is_floating_point() else exact
        if name not in tensors and not exact.any():
            continue  # a bias of zeros that this kind of file leaves out
        _check_equal(name, tensors.get(name), expected, what)


def check_stored_lora(model: PeftModel, files: LoraFiles, trained: nn.Module, what: str) -> None:
    """Compare a LoRA, as PEFT has read it, with what was to be written, its scales included.

    Args:
        model: the base with the written LoRA, opened.
        files: what was to be written.
        trained: the language model with the LoRA of the run; one without LoRA layers is looked at
            no further.
        what: the export, for the error.

    Raises:
        ModelError: a number, a scale or a layer differs.
    """
    # given a state dict, since PEFT takes the bias of a LoRA for a shard in the one it makes
    state = model.state_dict()
    tensors = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    for name in sorted(tensors.keys() ^ files.weights.keys()):
        raise ModelError(f"{what}: {name} is in the adapter as written or as read, not in both")
    for name, expected in files.weights.items():
        _check_equal(name, tensors[name], expected, what)
    read = dict(cast(nn.Module, model.get_base_model()).named_modules())
    for name, layer in trained.named_modules():
        if isinstance(layer, LoraLayer):
            own, theirs = _scale(layer), _scale(read.get(name))
            if own != theirs:
                raise ModelError(
                    f"{what}: the LoRA of {name} is scaled by {theirs} as written, and by {own} in "
                    "the run; nothing was written. Report this with the run's recipe"
                )


def put_unrounded(model: nn.Module, wanted: Mapping[str, Wanted]) -> None:
    """Put the numbers that were not rounded into a model that was read from disk."""
    tensors = named_without_adapters(model)
    with torch.no_grad():
        for name, entry in wanted.items():
            if name in tensors:
                tensors[name].copy_(entry.produce())


def _check_equal(name: str, actual: Tensor | None, expected: Tensor, what: str) -> None:
    if actual is not None and actual.shape == expected.shape:
        expected = expected.detach().to(actual.device, actual.dtype)
        differs = actual.detach() != expected
        if not differs.any():
            return
        gap = (actual.detach().double() - expected.double()).abs().max()
        difference = f"{int(differs.sum())} of {differs.numel()} numbers differ, by up to {gap:.3g}"
    else:
        difference = "it is missing" if actual is None else f"its shape is {list(actual.shape)}"
    raise ModelError(
        f"{what}: the tensor {name} was read back as something else than was to be written: "
        f"{difference}; nothing was written. Report this with the run's recipe"
    )


def _scale(layer: Any) -> float | None:
    """Return the factor on the active adapter's product; None where there is none."""
    if not isinstance(layer, LoraLayer):
        return None
    active = [name for name in layer.active_adapters if name in layer.scaling]
    return layer.scaling[active[0]] if active else None
