"""Checkpoints of MixLoRA's public code as runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from varifocal.cache import file_digest
from varifocal.errors import ModelError
from varifocal.importing.folder import write_run
from varifocal.importing.frozen_weights import FrozenModel, check_frozen
from varifocal.importing.llava_config import LlavaFolder, read_folder
from varifocal.importing.pickles import read_pickle, read_settings
from varifocal.models.layouts.mixlora import (
    PREFIX,
    MixLoraSizes,
    frozen_names,
    mixlora_rules,
    read_mixlora_sizes,
)
from varifocal.models.layouts.rule import read_all
from varifocal.recipe import DataSection, LinearSection, MixLoraSection, ModelSection, Recipe
from varifocal.run import RunDirectory

WEIGHTS = "pytorch_model.bin"
SETTINGS = ("cmoa_args.bin", "training_args.bin")
_EXPECTED = {
    "mix_mm_projector": False,
    "add_noise": False,
    "mix_loraA": True,
    "mix_start_layer": 0,
    "independent_rank": True,
    "ifs_weight": 1,
}
_NOTES = (
    "Factors are chosen as in the authors' code (selection: hard, routing_scope: sequence): by all "
    "tokens of a row, and while decoding by each new token alone. Its routers are as drawn.",
)


def import_mixlora(
    folder: Path,
    out: Path,
    *,
    language_model: str | None = None,
    vision_tower: str | None = None,
    rank: int | None = None,
    lora_alpha: float | None = None,
    dtype: str = "bfloat16",
) -> Path:
    """Write a run directory around a checkpoint of MixLoRA's public code.

    Args:
        folder: with `pytorch_model.bin`, `config.json` and, of its settings, `cmoa_args.bin`.
        out: the run directory.
        language_model: the Vicuna that it was trained on; by default as `config.json` names it.
        vision_tower: the CLIP that it was trained on; by default as `config.json` names it.
        rank: r; by default the checkpoint's own.
        lora_alpha: by default the checkpoint's own, or 2 E.
        dtype: number format of the frozen weights.

    Returns:
        The run directory.

    Raises:
        ModelError: the checkpoint cannot be read, or does not fit these models.
        RunError: the directory holds a run already or other files.
    """
    RunDirectory(out).check_free()
    named = read_folder(folder, language_model, vision_tower)
    file = folder / WEIGHTS
    settings = _settings(folder)
    tensors = read_pickle(file)
    if not isinstance(tensors, dict):
        raise ModelError(f"{file} is no table of tensors")
    sizes = read_mixlora_sizes(tensors, str(file))
    rank = _rank(sizes, rank, settings, folder)
    rules = mixlora_rules(sizes, rank)
    frozen = frozen_names(tensors, rules)
    trained = {name: tensor for name, tensor in tensors.items() if name not in set(frozen)}
    notes = check_frozen(tensors, frozen, _models(named), str(file))
    alpha = lora_alpha or float(settings.get("lora_alpha", 2 * sizes.num_factors))

    def fill(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return read_all(rules, trained, shapes, str(file))

    origin = {
        "layout": "mixlora",
        "file": str(file),
        "sha256": file_digest(file),
        "num_tensors": len(tensors),
        "settings": settings,
        "notes": [*_NOTES, *named.notes, *notes],
    }
    return write_run(_recipe(named, sizes, rank, alpha, dtype), fill, out, origin)


def _settings(folder: Path) -> dict[str, Any]:
    """Read the settings of the training, where the folder has them.

    Raises:
        ModelError: they are of a kind that has no equal here.
    """
    files = [folder / name for name in SETTINGS if (folder / name).is_file()]
    settings = read_settings(files[0]) if files else {}
    for key, expected in _EXPECTED.items():
        if settings.get(key, expected) != expected:
            raise ModelError(
                f"{files[0]} was trained with {key} {settings[key]}, and only {expected}, as in "
                "the authors' script, has an equal here"
            )
    return settings


def _rank(sizes: MixLoraSizes, given: int | None, settings: dict[str, Any], folder: Path) -> int:
    rank = given or sizes.rank or settings.get("n_selected")
    if not isinstance(rank, int):
        raise ModelError(
            f"{folder} has no cmoa_args.bin, and without the conditional router no tensor shows "
            "how many factors are chosen: give --rank"
        )
    if sizes.rank not in (None, rank):
        raise ModelError(f"--rank {rank}: the conditional router in {folder} is of {sizes.rank}")
    return rank


def _models(named: LlavaFolder) -> list[FrozenModel]:
    tower = f"{PREFIX}model.vision_tower.vision_tower."
    return [
        FrozenModel(named.language_model, PREFIX),
        FrozenModel(named.vision_tower, tower, "vision_model."),
    ]


def _recipe(
    named: LlavaFolder, sizes: MixLoraSizes, rank: int, lora_alpha: float, dtype: str
) -> Recipe:
    model = {
        "language_model": named.language_model,
        "vision_tower": named.vision_tower,
        "connector": LinearSection(),
        "image_preparation": "pad" if named.pads else None,
        "dtype": dtype,
    }
    tuner = MixLoraSection(
        num_factors=sizes.num_factors,
        rank=rank,
        conditional="reference" if sizes.is_conditional else False,
        selection="hard",
        routing_scope="sequence",
        lora_alpha=lora_alpha,
        target_modules=sizes.target_modules,
    )
    data = DataSection(chat_template="vicuna_v1")
    return Recipe(model=ModelSection.model_validate(model), tuner=tuner, data=data)
