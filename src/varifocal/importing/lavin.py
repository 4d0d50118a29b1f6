"""LaVIN's checkpoints as runs."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from varifocal.cache import file_digest
from varifocal.errors import ModelError
from varifocal.importing.folder import check_width, write_run
from varifocal.importing.pickles import read_pickle
from varifocal.models.layouts.lavin import LavinSizes, lavin_rules, read_lavin_sizes, strip_ddp
from varifocal.models.layouts.rule import read_all
from varifocal.recipe import (
    ClsPyramidSection,
    DataSection,
    ImagePreparationSection,
    MMASection,
    ModelSection,
    Recipe,
)
from varifocal.run import RunDirectory

LAYOUT = "lavin"
_GROUPS = 2
_NOTES = (
    "Each patch of an image routes itself (tuner.router: token), as in LaVIN's code for one image.",
    "Images are prepared and prompts written as by LaVIN's code (model.image_preparation and "
    "data.chat_template; of ScienceQA's questions, prompt_text: published).",
)
_IMAGES = ImagePreparationSection.model_validate(
    {"fit": "squash", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
)


@dataclass(frozen=True)
class LavinCheckpoint:
    """A checkpoint of LaVIN's `train.py`.

    Attributes:
        file: where it was read.
        tensors: its trained tensors by LaVIN's names, without `module.`.
        names: their names in the file, in its order.
        settings: of the `args` it was trained with, those that are plain values; empty without.
        sizes: what its tensors show.
    """

    file: Path
    tensors: dict[str, Tensor]
    names: tuple[str, ...]
    settings: dict[str, Any]
    sizes: LavinSizes


def read_lavin(file: Path) -> LavinCheckpoint:
    """Read a checkpoint of LaVIN.

    Raises:
        ModelError: it cannot be read safely, is none of LaVIN's, or holds adapters of a kind that
            has no equal here.
    """
    page = read_pickle(file)
    held = page.get("model") if isinstance(page, dict) else None
    if not isinstance(held, dict) or not all(isinstance(t, Tensor) for t in held.values()):
        raise ModelError(
            f"{file} is no checkpoint of LaVIN: it has no table of tensors under the key 'model'"
        )
    tensors = strip_ddp(held)
    if len(tensors) != len(held):
        raise ModelError(f"{file} holds tensors twice, with the prefix 'module.' and without")
    args = page.get("args")
    settings = vars(args) if isinstance(args, argparse.Namespace) else {}
    plain = {k: v for k, v in settings.items() if isinstance(v, str | int | float | bool)}
    sizes = read_lavin_sizes(tensors, str(file))
    if sizes.num_groups != _GROUPS:
        raise ModelError(
            f"{file} has up-projections in {sizes.num_groups} groups, and adapters here have "
            f"{_GROUPS}, as LaVIN's own"
        )
    return LavinCheckpoint(file, tensors, tuple(held), plain, sizes)


def import_lavin(
    checkpoint: Path,
    language_model: str,
    vision_tower: str,
    out: Path,
    *,
    temperature: float | None = None,
    scale: float | None = None,
    dtype: str = "bfloat16",
) -> Path:
    """Write a run directory around a checkpoint of LaVIN.

    Args:
        checkpoint: as LaVIN's `train.py` saves it.
        language_model: the LLaMA or Vicuna that it was trained on, in transformers' layout.
        vision_tower: OpenAI's CLIP ViT-L/14, or whichever it was trained with.
        out: the run directory.
        temperature: of the routers; by default the checkpoint's own, or 10, LaVIN-7B's.
        scale: of the adapters; by default the checkpoint's own, or 1.
        dtype: number format of the frozen weights.

    Returns:
        The run directory.

    Raises:
        ModelError: the checkpoint cannot be read, or does not fit these models.
        RunError: the directory holds a run already or other files.
    """
    RunDirectory(out).check_free()
    read = read_lavin(checkpoint)
    recipe = _recipe(read, (language_model, vision_tower, dtype), temperature, scale)
    check_width(recipe, read.sizes.num_layers, read.sizes.width, str(checkpoint))
    rules = lavin_rules(read.sizes.num_layers, read.sizes.num_blocks)

    def fill(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return read_all(rules, read.tensors, shapes, str(checkpoint))

    return write_run(recipe, fill, out, _origin(read))


def _recipe(
    read: LavinCheckpoint,
    model: tuple[str, str, str],
    temperature: float | None,
    scale: float | None,
) -> Recipe:
    language_model, vision_tower, dtype = model
    own = read.settings
    tuner = MMASection(
        bottleneck_dim=read.sizes.bottleneck_dim,
        router="token",
        router_temperature=float(temperature or own.get("temperature", 10.0)),
        scale=float(own.get("adapter_scale", 1.0) if scale is None else scale),
        adapt_vision_tower=read.sizes.num_blocks > 0,
    )
    section = ModelSection.model_validate(
        {
            "language_model": language_model,
            "vision_tower": vision_tower,
            "connector": ClsPyramidSection(hidden_dim=read.sizes.hidden_dim),
            "image_preparation": _IMAGES,
            "dtype": dtype,
        }
    )
    template = "lavin_chat" if own.get("do_pretrain") else "lavin"
    return Recipe(model=section, tuner=tuner, data=DataSection(chat_template=template))


def _origin(read: LavinCheckpoint) -> dict[str, Any]:
    """Say where a run comes from, and what its file has that the run's tensors do not show."""
    formats = {str(tensor.dtype).removeprefix("torch.") for tensor in read.tensors.values()}
    if len(formats) != 1 or not hasattr(torch, min(formats)):
        raise ModelError(f"{read.file} mixes number formats: {', '.join(sorted(formats))}")
    return {
        "layout": LAYOUT,
        "file": str(read.file),
        "sha256": file_digest(read.file),
        "dtype": min(formats),
        "num_tensors": len(read.names),
        "names": list(read.names),
        "sizes": asdict(read.sizes),
        "settings": read.settings,
        "notes": _NOTES,
    }
