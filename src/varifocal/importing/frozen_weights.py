"""Frozen weights in a checkpoint, held against the models that are named for them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from varifocal.errors import ModelError
from varifocal.models.checkpoint_files import few
from varifocal.models.sources import weight_files

_TABLE = re.compile(r"(embed_tokens|lm_head)\.weight$")
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")


@dataclass(frozen=True)
class FrozenModel:
    """A model whose weights stand in a checkpoint.

    Attributes:
        name: as a recipe names it.
        prefix: before its names in the checkpoint.
        part: of the model's own names, those that begin so; "" for all. Where none does, the
            files hold that part alone, and the checkpoint's names have it before theirs.
    """

    name: str
    prefix: str
    part: str = ""


def is_computed(name: str) -> bool:
    """Tell a buffer that former versions of transformers saved, and that follows from a config."""
    return _COMPUTED.search(name) is not None


def check_frozen(
    tensors: Mapping[str, Tensor],
    names: Sequence[str],
    models: Sequence[FrozenModel],
    source: str,
) -> list[str]:
    """Compare frozen tensors of a checkpoint with those of the models that are named.

    Args:
        tensors: the checkpoint's.
        names: which of them are frozen.
        models: whose they are.
        source: the checkpoint, for error messages.

    Returns:
        Notes: what the checkpoint has in addition, such as rows of added tokens.

    Raises:
        ModelError: a tensor is none of these models', or has other numbers.
    """
    own = {name: (model, file, key) for name, model, file, key in _own_names(models)}
    unknown = [name for name in names if name not in own and not is_computed(name)]
    if unknown:
        raise ModelError(
            f"{source} holds tensors that neither the adapter nor the models that were named have "
            f"({few(unknown)}); name the models that it was trained on"
        )
    notes = []
    for name in names:
        if name not in own:
            continue
        model, file, key = own[name]
        with safe_open(file, framework="pt") as opened:
            base = opened.get_tensor(key)
        tensor = tensors[name]
        more = len(tensor) - len(base) if _TABLE.search(name) and tensor.dim() == 2 else 0
        if more > 0:
            notes.append(f"{name} has {more} rows more than {model.name}: they are left out.")
            tensor = tensor[: len(base)]
        if not _is_same(tensor, base):
            raise ModelError(
                f"{source}: {name} has other numbers than {model.name}; name the model that it was "
                "trained on"
            )
    return notes


def _own_names(models: Sequence[FrozenModel]) -> Iterator[tuple[str, FrozenModel, Path, str]]:
    """Yield the names in the checkpoint, with the file and the name that each stands for."""
    for model in models:
        keys = [(file, key) for file in weight_files(model.name) for key in _keys(file, model)]
        inside = [(file, key) for file, key in keys if key.startswith(model.part)]
        before = model.prefix if inside else f"{model.prefix}{model.part}"
        for file, key in inside or keys:
            yield f"{before}{key}", model, file, key


def _keys(file: Path, model: FrozenModel) -> list[str]:
    if file.suffix != ".safetensors":
        raise ModelError(
            f"{model.name} is a packaged model, and only weights in safetensors files can be "
            "compared with a checkpoint's"
        )
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _is_same(tensor: Tensor, base: Tensor) -> bool:
    """Tell whether a tensor is another one, rounded to its number format, by way of float16 too."""
    if tensor.shape != base.shape:
        return False
    roundings = (base.to(tensor.dtype), base.to(torch.float16).to(tensor.dtype))
    return any(torch.equal(tensor, rounded) for rounded in roundings)
