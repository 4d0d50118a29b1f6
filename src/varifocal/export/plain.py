"""A trained language model as plain tensors: those of a transformers model without any adapter.

Nothing is copied until it is asked for, so that writing takes the model's memory and one shard.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from varifocal.errors import ModelError
from varifocal.models.grafted import GraftedForConditionalGeneration
from varifocal.tuners.mma.folding import AffineMap, fold_linear, fold_maps, readers

GRAFT = "language_model."
"""Where a grafted model holds its language model."""

# What configs call the biases of the linears that read a norm before attention.
_BIAS_FLAGS = ("attention_bias", "qkv_bias", "use_qkv_bias", "add_bias", "use_bias", "bias")
_ADAPTER_PARTS = ("mma_", "lora_", "mixlora_", "modality_embedding")

Produce = Callable[[], Tensor]


@dataclass(frozen=True)
class PlainModel:
    """A model of transformers, to be written.

    Attributes:
        kind: its class.
        config: its config, with the biases that folding brings.
        generation_config: its defaults for generating, or None.
        tensors: a function for each tensor, by its name in a state dict.
        shapes: a meta tensor for each, by the same names.
    """

    kind: type[PreTrainedModel]
    config: Any
    generation_config: Any
    tensors: dict[str, Produce]
    shapes: dict[str, Tensor]


def language_model(base: PreTrainedModel) -> tuple[PreTrainedModel, str]:
    """Return what an export writes, and its name in the base with a dot behind it.

    Args:
        base: a grafted model (its language model is written), or any other (as it is).
    """
    if isinstance(base, GraftedForConditionalGeneration):
        return base.language_model, GRAFT
    return base, ""


def fold_route(model: PeftModel, modality: int, dtype: torch.dtype) -> PlainModel:
    """Fold an MMA adapter's route into its language model.

    Args:
        model: with an active MMA adapter.
        modality: 0 text, 1 image.
        dtype: of the tensors that are written.

    Raises:
        ModelError: something beside plain linears reads an adapted norm, or the architecture has
            no place for a bias there.
    """
    base = cast(PreTrainedModel, model.get_base_model())
    written, prefix = language_model(base)
    try:
        maps, names = fold_maps(model, modality), readers(model)
    except ValueError as error:
        raise ModelError(f"{error}; export --to lora keeps the base as it is") from error
    folded: dict[str, AffineMap] = {
        linear.removeprefix(prefix): maps[norm]
        for norm, linears in names.items()
        for linear in linears
    }
    tensors = plain_tensors(written, dtype)
    for name, affine in folded.items():
        linear = written.get_submodule(name)
        tensors[f"{name}.weight"] = partial(_fold, linear, affine, "weight", dtype)
        tensors[f"{name}.bias"] = partial(_fold, linear, affine, "bias", dtype)
    return _as_plain(written, tensors, dtype)


def plain(written: PreTrainedModel, dtype: torch.dtype) -> PlainModel:
    """Take a model without adapters, or with adapters that were merged into its own weights."""
    return _as_plain(written, plain_tensors(written, dtype), dtype)


def plain_tensors(model: nn.Module, dtype: torch.dtype) -> dict[str, Produce]:
    """List a model's own tensors by the names they have without adapters, tied ones once."""
    tensors: dict[str, Produce] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if any(part.startswith(_ADAPTER_PARTS) for part in name.split(".")):
            continue
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name.replace(".base_layer.", ".")] = partial(_own, tensor, dtype)
    return tensors


def _own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach()
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _fold(linear: nn.Module, affine: AffineMap, part: str, dtype: torch.dtype) -> Tensor:
    weight, bias = cast(Tensor, linear.weight), cast("Tensor | None", linear.bias)
    turned = not isinstance(linear, nn.Linear)  # transformers' Conv1D holds [D, O]
    with torch.no_grad():
        weight = weight.T if turned else weight
        folded, shifted = fold_linear(weight, bias, affine, dtype=dtype)
    return shifted if part == "bias" else (folded.T.contiguous() if turned else folded)


def _as_plain(
    written: PreTrainedModel, tensors: dict[str, Produce], dtype: torch.dtype
) -> PlainModel:
    """Find the config whose model has a place for every tensor; further biases are zeros."""
    for config in _configs(written.config):
        shapes = _shapes(type(written), config, dtype)
        missing = shapes.keys() - tensors.keys()
        if tensors.keys() <= shapes.keys() and all(name.endswith(".bias") for name in missing):
            zeros = {
                name: partial(torch.zeros, shapes[name].shape, dtype=dtype) for name in missing
            }
            config.architectures, config.dtype = [type(written).__name__], dtype
            found = {**tensors, **zeros}
            ordered = {name: found[name] for name in shapes}
            return PlainModel(type(written), config, written.generation_config, ordered, shapes)
    raise ModelError(
        f"{type(written).__name__} has no bias where the adapter needs one, so it cannot hold a "
        "folded route; export --to lora instead: PEFT's LoRA brings a bias of its own"
    )


def _configs(config: Any) -> Iterator[Any]:
    """Yield the model's config, then with each flag set that may bring biases."""
    yield copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    for flag in _BIAS_FLAGS:
        if getattr(text, flag, None) is False:
            changed = copy.deepcopy(config)
            setattr(changed.get_text_config(decoder=True), flag, True)
            yield changed


def _shapes(kind: type[PreTrainedModel], config: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """List a model's tensors as a checkpoint holds them, tied ones once."""
    with torch.device("meta"):
        model = kind._from_config(config, dtype=dtype)
    model.tie_weights()
    return distinct(model)


def distinct(model: nn.Module) -> dict[str, Tensor]:
    """List a model's tensors by name, tied ones once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found
