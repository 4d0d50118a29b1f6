"""Full fine-tuning: the language model's own weights are trained, and the model is saved whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from varifocal.errors import RecipeError
from varifocal.models.families.base import connector_name, family_of
from varifocal.recipe import FullSection


def train_full_model(model: PreTrainedModel, section: FullSection) -> PreTrainedModel:
    """Set a model's language model to be trained, and its connector where the section asks.

    AdamW's updates are often smaller than the distance between two bfloat16 numbers (2^-8 of a
    weight) and would be rounded away. So what is trained is held in float32, whatever the recipe's
    `model.dtype`, unless the section says bfloat16; with `training.bf16` it is computed in bfloat16
    all the same. The vision tower stays frozen, in `model.dtype`.

    Args:
        model: any model of transformers, or a graft; changed in place.
        section: the recipe's.

    Raises:
        RecipeError: the language model is quantised.
    """
    if getattr(model, "is_quantized", False):
        raise refuse_quantised()
    model.requires_grad_(False)
    for parameter in _language_parameters(model):
        parameter.requires_grad_(True)
        parameter.data = parameter.data.to(getattr(torch, section.dtype))
    name = connector_name(model)
    if name is not None and section.train_connector:
        connector = model.get_submodule(name).requires_grad_(True)
        hold_in_float32(connector)
    return model


def refuse_quantised() -> RecipeError:
    """Return the error of full fine-tuning on weights of 4 or 8 bits."""
    return RecipeError(
        "tuner.type: full trains every weight of the language model, and model.quantization "
        "holds them in 4 or 8 bits; leave quantization out, or take tuner.type: lora"
    )


def _language_parameters(model: Any) -> list[nn.Parameter]:
    """Return the parameters of decoder, embeddings and head, each once."""
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    parameters = (each for part in parts if part is not None for each in part.parameters())
    return list({id(parameter): parameter for parameter in parameters}.values())


def hold_in_float32(module: nn.Module) -> None:
    """Hold a module's weights in float32; it takes inputs of any floating type."""
    if all(parameter.dtype == torch.float32 for parameter in module.parameters()):
        return
    module.float()
    module.register_forward_pre_hook(_to_float32)


def _to_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    is_float = (isinstance(each, Tensor) and each.is_floating_point() for each in args)
    return tuple(
        each.float() if is_float_arg else each
        for each, is_float_arg in zip(args, is_float, strict=True)
    )


def saved_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a checkpoint holds: the trained, and a graft's frozen connector.

    An alignment, or another run, may have trained the connector that full tuning freezes, and no
    file of the base holds it.
    """
    parameters = {id(each): each for each in model.parameters() if each.requires_grad}
    family = family_of(cast(PreTrainedModel, model).config)
    if family is not None and family.connector_is_new and family.connector_name is not None:
        connector = model.get_submodule(family.connector_name)
        parameters |= {id(each): each for each in connector.parameters()}
    return list(parameters.values())


def saved_tensors(model: nn.Module, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the parameters that a checkpoint holds, by name.

    Args:
        model: being trained, without an adapter.
        state: its tensors, where they were gathered from several processes; else its own.
    """
    chosen = set(map(id, saved_parameters(model)))
    names = [name for name, each in model.named_parameters() if id(each) in chosen]
    own = dict(model.named_parameters()) if state is None else state
    return {name: own[name].detach().contiguous() for name in names}


def save_full_model(
    model: PreTrainedModel,
    processor: Any,
    directory: Path,
    dtype: torch.dtype,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model that `from_pretrained` opens, its language model in the format it came in.

    Args:
        model: trained; its language model is changed to `dtype` in place.
        processor: tokenizer, or processor, written next to it.
        directory: an empty folder.
        dtype: of the recipe's model.
        state: as `saved_tensors`.
    """
    whole: dict[str, Tensor] | None = None
    if state is not None:
        language = {id(each) for each in _language_parameters(model)}
        names = {
            n for n, each in model.named_parameters(remove_duplicate=False) if id(each) in language
        }
        whole = {n: each.to(dtype) if n in names else each for n, each in state.items()}
    for parameter in _language_parameters(model):
        parameter.data = parameter.data.to(dtype)
    cast(Any, model).save_pretrained(directory, state_dict=whole)
    processor.save_pretrained(directory)
