"""Write a plain model as safetensors, one shard in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from varifocal.export.plain import PlainModel
from varifocal.writing import unwritable_is_an_error, write_json

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
        model.config.save_pretrained(directory)
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
