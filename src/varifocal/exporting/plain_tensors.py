"""A trained language model as plain tensors: those of a transformers model without any adapter.

Nothing is copied until it is asked for, so that writing takes the model's memory and one shard; and
nothing is rounded until it is written.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from varifocal.data.encoding.chat_template import with_system
from varifocal.data.encoding.encoder import Encoder
from varifocal.errors import ModelError
from varifocal.exporting.merging import Produce, plain_tensors, rounded_to
from varifocal.models.grafted import GraftedForConditionalGeneration
from varifocal.tuners.mma.folding import AffineMap, fold_linear, fold_maps, readers
from varifocal.writing import unwritable_is_an_error, write_json


def chat_template(encoder: Encoder) -> str:
    """Return the run's chat template, with the run's system turn where a talk brings none.

    Others who load an export do not know `data.system_prompt`; without it many templates write a
    default that the run never saw.
    """
    return with_system(encoder.template.jinja, encoder.system)


GRAFT = "language_model."
"""Where a grafted model holds its language model."""

# What configs call the biases of the linears that read a norm before attention.
_BIAS_FLAGS = ("attention_bias", "qkv_bias", "use_qkv_bias", "add_bias", "use_bias", "bias")
_TIE = "tie_word_embeddings"


@dataclass(frozen=True)
class PlainModel:
    """A model of transformers, to be written.

    Attributes:
        kind: its class.
        config: its config, with the biases that folding brings, and head and embedding apart where
            an adapter changed one of them.
        generation_config: its defaults for generating, or None.
        tensors: a function for each tensor, by its name on disk: not rounded yet, so in float32 or
            wider.
        shapes: a meta tensor for each, by the same names, in the number format to be written.
        inside: the names in the model, by those on disk that differ.
    """

    kind: type[PreTrainedModel]
    config: Any
    generation_config: Any
    tensors: dict[str, Produce]
    shapes: dict[str, Tensor]
    inside: dict[str, str] = field(default_factory=dict)

    def rounded(self, name: str) -> Tensor:
        """Return a tensor in the number format to be written.

        Raises:
            ModelError: a number is too large for it.
        """
        return rounded_to(self.tensors[name](), self.shapes[name].dtype, name)


def language_model(base: PreTrainedModel) -> tuple[PreTrainedModel, str]:
    """Return what an export writes, and its name in the base with a dot after it.

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
        ModelError: something next to plain linears reads an adapted norm, or the architecture has
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
    tensors = plain_tensors(written)
    for name, affine in folded.items():
        linear = written.get_submodule(name)
        tensors[f"{name}.weight"] = partial(_fold, linear, affine, "weight")
        tensors[f"{name}.bias"] = partial(_fold, linear, affine, "bias")
    return _as_plain(written, tensors, dtype)


def plain_model(written: PreTrainedModel, dtype: torch.dtype, *, merge: bool = True) -> PlainModel:
    """Take a model without adapters; LoRAs are merged as its tensors are written, or left out."""
    return _as_plain(written, plain_tensors(written, merge=merge), dtype)


def _fold(linear: nn.Module, affine: AffineMap, part: str) -> Tensor:
    weight, bias = cast(Tensor, linear.weight), cast("Tensor | None", linear.bias)
    wide = torch.promote_types(weight.dtype, torch.float32)
    turned = not isinstance(linear, nn.Linear)  # transformers' Conv1D holds [D, O]
    with torch.no_grad():
        weight = weight.T if turned else weight
        folded, shifted = fold_linear(weight, bias, affine, dtype=wide)
    return shifted if part == "bias" else (folded.T.contiguous() if turned else folded)


def _as_plain(
    written: PreTrainedModel, tensors: dict[str, Produce], dtype: torch.dtype
) -> PlainModel:
    """Find the config whose model has a place for every tensor; further biases are zeros."""
    for config in _configs(written.config):
        shapes = _shapes(type(written), config, dtype)
        missing = shapes.keys() - tensors.keys()
        if tensors.keys() <= shapes.keys() and all(name.endswith(".bias") for name in missing):
            zeros = {name: partial(torch.zeros, shapes[name].shape) for name in missing}
            config.architectures, config.dtype = [type(written).__name__], dtype
            available = {**tensors, **zeros}
            ordered = {name: available[name] for name in shapes}
            return PlainModel(type(written), config, written.generation_config, ordered, shapes)
    raise ModelError(
        f"{type(written).__name__} has no bias where the adapter needs one, so it cannot hold a "
        "folded route; export --to lora instead: PEFT's LoRA brings a bias of its own"
    )


def _configs(config: Any) -> Iterator[Any]:
    """Yield the model's config, then with head and embedding apart, then with biases, then both."""
    text = config.get_text_config(decoder=True)
    flags = [flag for flag in _BIAS_FLAGS if getattr(text, flag, None) is False]
    for flag in (None, *flags):
        for apart in (False, True):
            changed = copy.deepcopy(config)
            inside = changed.get_text_config(decoder=True)
            if flag is not None:
                setattr(inside, flag, True)
            if not apart:
                yield changed
            elif getattr(config, _TIE, False) or getattr(text, _TIE, False):
                for part in (changed, inside):
                    setattr(part, _TIE, False)
                yield changed


def _shapes(kind: type[PreTrainedModel], config: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """List a model's tensors as a checkpoint holds them, tied ones once."""
    with torch.device("meta"):
        model = kind._from_config(config, dtype=dtype)
    model.tie_weights()
    return distinct(model)


def distinct(model: nn.Module) -> dict[str, Tensor]:
    """List a model's tensors by name, tied ones once."""
    tensors_by_name: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in known:
            known.add(id(tensor))
            tensors_by_name[name] = tensor.detach()
    return tensors_by_name


SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def write_plain(model: PlainModel, directory: Path, *, shard_gib: float = 4.0) -> None:
    """Write config and weights as `save_pretrained` does.

    Args:
        model: its tensors are produced a shard at a time.
        directory: an empty folder.
        shard_gib: most GiB a file; a larger tensor stands alone.

    Raises:
        RunError: the disk is full.
    """
    groups = list(_groups(model.shapes, int(shard_gib * 2**30)))
    placed: dict[str, str] = {}
    with unwritable_is_an_error(directory):
        _without_places(model.config).save_pretrained(directory)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(directory)
        for number, names in enumerate(groups, start=1):
            file = SINGLE if len(groups) == 1 else _shard(number, len(groups))
            _write_shard(model, names, directory / file)
            placed |= dict.fromkeys(names, file)
    if len(groups) > 1:
        size = sum(_bytes(shape) for shape in model.shapes.values())
        write_json(
            directory / INDEX,
            {"metadata": {"total_size": size}, "weight_map": dict(sorted(placed.items()))},
        )


def _without_places(config: PreTrainedConfig) -> PreTrainedConfig:
    """Copy a config without the folders that its parts were loaded from."""
    copied = copy.deepcopy(config)
    for part in (copied, *vars(copied).values()):
        if isinstance(part, PreTrainedConfig):
            part._name_or_path = ""
    return copied


def _write_shard(model: PlainModel, names: list[str], file: Path) -> None:
    """Write one file; its tensors are gone when this returns, before the next are made."""
    shard = {name: as_stored(model.rounded(name)) for name in names}
    save_file(shard, file, metadata={"format": "pt"})


def _shard(number: int, total: int) -> str:
    return f"model-{number:05}-of-{total:05}.safetensors"


def _groups(shapes: dict[str, Tensor], limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + _bytes(shape) > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += _bytes(shape)
    yield names


def _bytes(shape: Tensor) -> int:
    return shape.numel() * shape.element_size()


def as_stored(tensor: Tensor) -> Tensor:
    """Bring a tensor into a file's form: on the CPU, in one piece, sharing memory with none."""
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format).clone()
