"""A model's tensors as they are without PEFT's modules: LoRAs merged, modules trained whole put in.

Nothing is changed in the model: each tensor is computed when it is asked for, in float32 at least.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from varifocal.errors import ModelError

Produce = Callable[[], Tensor]

_ADAPTER_PARTS = ("mma_", "lora_", "mixlora_", "modality_embedding")


def plain_tensors(model: nn.Module, *, merge: bool = True) -> dict[str, Produce]:
    """List a model's tensors by the names they have without adapters, tied ones once.

    LoRAs are merged, or left out as other adapters are.

    A table that head and embedding share is listed twice where an adapter changes one of them
    alone: PEFT runs it so, and a merge in place would change both.
    """
    adapters = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, (LoraLayer, AuxiliaryTrainingWrapper))
    }
    tensors: dict[str, Produce] = {}
    known: set[tuple[int, str]] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        own, owner = _own_name(name, adapters)
        if own and (id(tensor), owner) not in known:
            known.add((id(tensor), owner))
            layer = adapters.get(owner)
            tensors[own] = (
                partial(_merged, layer, own.removeprefix(f"{owner}."))
                if merge and isinstance(layer, LoraLayer)
                else partial(wide, tensor)
            )
    return tensors


def named_without_adapters(model: nn.Module) -> dict[str, Tensor]:
    """List a model's own tensors by the names they have without adapters, tied ones once.

    A module that was trained whole is listed by its trained copy, and a LoRA is not merged.
    """
    wrapped = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, (LoraLayer, AuxiliaryTrainingWrapper))
    }
    tensors: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        own, _ = _own_name(name, wrapped)
        if own and id(tensor) not in known:
            known.add(id(tensor))
            tensors[own] = tensor.detach()
    return tensors


def copied_without_hooks(layer: LoraLayer) -> LoraLayer:
    """Copy a LoRA layer as it is for tokens that no gate stops; a hook's owner is not copied."""
    parts = cast(nn.Module, layer).modules()
    return copy.deepcopy(layer, {id(part._forward_hooks): OrderedDict() for part in parts})


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 at least; integers as they are."""
    tensor = tensor.detach()
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def rounded_to(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Return a tensor in a narrower number format; integers as they are.

    Raises:
        ModelError: a number is too large for the format.
    """
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(dtype)
    if not rounded.isfinite().all() and tensor.isfinite().all():
        raise ModelError(
            f"{name} holds numbers up to {float(tensor.abs().max()):.3g}, which "
            f"{str(dtype).removeprefix('torch.')} cannot hold; export with --dtype bfloat16 or "
            "float32; nothing was written"
        )
    return rounded


def shared_table_is_adapted(model: PreTrainedModel) -> bool:
    """Whether head and embedding share a table, and an adapter changes one of them."""
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    inside = [_inside(table) for table in tables if table is not None]
    shared = len(inside) == 2 and inside[0].weight is inside[1].weight
    return shared and any(module is not table for module, table in zip(inside, tables, strict=True))


def _inside(module: Any) -> Any:
    """Return the module that an adapter, or a copy trained whole, stands for."""
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module


def _own_name(name: str, adapters: dict[str, Any]) -> tuple[str, str]:
    """Return a tensor's name without adapters ("" where it has none), and its LoRA layer's name.

    A copy that was trained whole has the name of what it replaces, which is not listed.
    """
    if any(part.startswith(_ADAPTER_PARTS) for part in name.split(".")):
        return "", ""
    for mark in (".modules_to_save.", ".original_module."):
        owner, mark_found, inside = name.partition(mark)
        wrapper = adapters.get(owner)
        if mark_found and isinstance(wrapper, AuxiliaryTrainingWrapper):
            active = next((a for a in wrapper.active_adapters if a in _copies(wrapper)), None)
            adapter, _, rest = inside.partition(".")
            if mark == ".original_module.":
                return ("" if active else f"{owner}.{inside}"), ""
            return (f"{owner}.{rest}" if adapter == active else ""), ""
    owner, mark_found, inside = name.rpartition(".base_layer.")
    if mark_found:
        return f"{owner}.{inside}", owner if owner in adapters else ""
    return name, ""


def _copies(wrapper: Any) -> Any:
    return getattr(wrapper, "modules_to_save", {})


def _merged(layer: LoraLayer, part: str) -> Tensor:
    """Merge a copy of one layer by PEFT's own means."""
    merged: Any = copied_without_hooks(layer)
    own = wide(getattr(merged.get_base_layer(), part))
    if part != "weight" and not any(merged.lora_bias.values()):
        return own
    with torch.no_grad():
        merged.to(own.dtype).merge()
    return cast(Tensor, getattr(merged.get_base_layer(), part)).detach()
