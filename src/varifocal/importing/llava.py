"""Projectors and LoRAs of LLaVA's code, and of code that was made of it, as runs."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from varifocal.cache import file_digest
from varifocal.errors import ModelError
from varifocal.importing.folder import write_base, write_run
from varifocal.importing.frozen_weights import FrozenModel, check_frozen, is_computed
from varifocal.importing.llava_config import LlavaFolder, language_config, read_folder
from varifocal.importing.pickles import read_pickle
from varifocal.models.checkpoint_files import INDEX, read_object, weight_paths
from varifocal.models.layouts.rule import Rule, read_all
from varifocal.models.load import find_config
from varifocal.recipe import (
    DataSection,
    LinearSection,
    LlavaMLPSection,
    LoraSection,
    ModelSection,
    NoTunerSection,
    Recipe,
)
from varifocal.run import RunDirectory
from varifocal.staging import delete
from varifocal.writing import atomic_directory

PROJECTOR = "mm_projector.bin"
NOT_LORA = "non_lora_trainables.bin"
LORA_CONFIG = "adapter_config.json"
WHOLE = ("model.safetensors", "pytorch_model.bin")
_PEFT = "base_model.model."
_PROJECTOR = "model.mm_projector."
_TOWER = "model.vision_tower.vision_tower."
_TOKENIZER = (
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
LORA = ("adapter_model.safetensors", "adapter_model.bin")
_PLAIN_LORA = {
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def import_llava(
    folder: Path,
    out: Path,
    *,
    language_model: str | None = None,
    vision_tower: str | None = None,
    dtype: str = "bfloat16",
) -> Path:
    """Write a run directory around a projector, a LoRA, or a whole model of LLaVA's code.

    A language model that was tuned whole becomes the run's own base, `base/` in its directory.

    Args:
        folder: with `config.json` and `mm_projector.bin`; or, of a LoRA, `adapter_config.json`, its
            weights and `non_lora_trainables.bin`; or, of a model that was tuned whole, its weights,
            the projector among them or next to them, and its tokenizer.
        out: the run directory.
        language_model: the one that it was trained on; by default as `config.json` names it. None
            where the folder holds it.
        vision_tower: likewise.
        dtype: number format of the frozen weights.

    Returns:
        The run directory.

    Raises:
        ModelError: the folder cannot be read, or does not fit these models.
        RunError: the directory holds a run already or other files.
    """
    RunDirectory(out).check_free()
    if (files := _whole_files(folder)) and not (folder / LORA_CONFIG).is_file():
        if language_model is not None:
            raise ModelError(
                f"'{folder}' holds its own language model, tuned whole: leave --language-model out"
            )
        return _import_whole(folder, files, out, vision_tower, dtype)
    named = read_folder(folder, language_model, vision_tower)
    files = _files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _plain_names(_read(file), str(file))
    tuner = _lora(folder) if (folder / LORA_CONFIG).is_file() else NoTunerSection()
    rules = [*_projector_rules(named.num_linears), *_lora_rules(tensors)]

    def fill(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return read_all(rules, tensors, shapes, str(folder))

    origin = _origin(folder, files, len(tensors), named.notes)
    return write_run(_recipe(named, tuner, dtype), fill, out, origin)


def _whole_files(folder: Path) -> list[Path]:
    """List the files of a model that was saved whole; none where it was not."""
    return next((files for name in WHOLE if (files := weight_paths(folder, name))), [])


def _import_whole(
    folder: Path, files: Sequence[Path], out: Path, vision_tower: str | None, dtype: str
) -> Path:
    """Write a run whose base is the checkpoint's language model, and whose adapter the rest."""
    was_there, run = out.exists(), RunDirectory(out)
    named = read_folder(folder, str(run.base), vision_tower)
    config = language_config(folder)
    find_config(named.vision_tower)  # before gigabytes are written
    RunDirectory.create(out)
    try:
        with atomic_directory(run.base) as staging:
            shards = (_plain_names(_read(file), str(file)) for file in files)
            others = write_base(config, shards, staging, str(folder))
            for name in _TOKENIZER:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, staging / name)
            num_tensors = len(others) + len(read_object(staging / INDEX)["weight_map"])
        tensors, notes = _beyond_language(folder, others, named.vision_tower)

        def fill(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return read_all(_projector_rules(named.num_linears), tensors, shapes, str(folder))

        origin = _origin(folder, files, num_tensors, (*named.notes, *notes))
        return write_run(_recipe(named, NoTunerSection(), dtype), fill, out, origin)
    except BaseException:
        delete(run.base if was_there else run.root)
        raise


def _beyond_language(
    folder: Path, others: Mapping[str, Tensor], vision_tower: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the projector of a whole checkpoint, and notes on what else it holds.

    Raises:
        ModelError: its vision tower is another than the one that is named.
    """
    tower = [name for name in others if name.startswith(_TOWER)]
    check_frozen(others, tower, [FrozenModel(vision_tower, _TOWER, "vision_model.")], str(folder))
    rest = {n: t for n, t in others.items() if n not in set(tower) and not is_computed(n)}
    notes = ["The language model was tuned whole; it is the run's own base (base/)."]
    if not (folder / PROJECTOR).is_file():
        return rest, notes
    alone = _plain_names(_read(folder / PROJECTOR), str(folder / PROJECTOR))
    if not any(name.startswith(_PROJECTOR) for name in rest):
        return rest | alone, notes
    if any(n not in rest or not torch.equal(rest[n], t.to(rest[n])) for n, t in alone.items()):
        notes.append(
            f"{PROJECTOR} has other numbers than the model's own projector and is not read."
        )
    return rest, notes


def _origin(
    folder: Path, files: Sequence[Path], num_tensors: int, notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "layout": "llava",
        "file": str(folder),
        "sha256": {file.name: file_digest(file) for file in files},
        "num_tensors": num_tensors,
        "settings": {},
        "notes": list(notes),
    }


def _files(folder: Path) -> list[Path]:
    """List the files that hold trained tensors.

    Raises:
        ModelError: one is missing.
    """
    if not (folder / LORA_CONFIG).is_file():
        if not (folder / PROJECTOR).is_file():
            raise ModelError(
                f"'{folder}' has neither {PROJECTOR} nor a LoRA ({LORA_CONFIG}) nor a whole model "
                f"({' or '.join(WHOLE)}); copy what was trained there"
            )
        return [folder / PROJECTOR]
    weights = [folder / name for name in LORA if (folder / name).is_file()]
    others = [folder / name for name in (NOT_LORA, PROJECTOR) if (folder / name).is_file()]
    if not weights or not others:
        missing = " or ".join((NOT_LORA, PROJECTOR) if weights else LORA)
        raise ModelError(f"'{folder}' holds a LoRA and no {missing}; copy it there")
    return [weights[0], others[0]]


def _read(file: Path) -> dict[str, Tensor]:
    held = load_file(file) if file.suffix == ".safetensors" else read_pickle(file)
    if not isinstance(held, dict) or not all(
        isinstance(tensor, Tensor) for tensor in held.values()
    ):
        raise ModelError(f"{file} is no table of tensors")
    return held


def _lora(folder: Path) -> LoraSection:
    """Read a LoRA's settings.

    Raises:
        ModelError: it is of a kind that has no equal here.
    """
    file = folder / LORA_CONFIG
    page: dict[str, Any] = read_object(file)
    for key, value in {"peft_type": "LORA", **_PLAIN_LORA}.items():
        if (page.get(key) or value) != value:
            raise ModelError(
                f"{file}: {key} is {page[key]!r}, and only {value!r} has an equal here"
            )
    targets = page.get("target_modules")
    if not isinstance(targets, list) or not isinstance(page.get("r"), int):
        raise ModelError(f"{file} is damaged: it has no rank r, or no list of target_modules")
    return LoraSection(
        rank=page["r"],
        lora_alpha=float(page.get("lora_alpha") or page["r"]),
        dropout=float(page.get("lora_dropout") or 0.0),
        target_modules=tuple(sorted(targets)),
    )


def _recipe(named: LlavaFolder, tuner: LoraSection | NoTunerSection, dtype: str) -> Recipe:
    model = {
        "language_model": named.language_model,
        "vision_tower": named.vision_tower,
        "connector": LinearSection() if named.num_linears == 1 else LlavaMLPSection(),
        "image_preparation": "pad" if named.pads else None,
        "dtype": dtype,
    }
    data = DataSection(chat_template="vicuna_v1")
    return Recipe(model=ModelSection.model_validate(model), tuner=tuner, data=data)


def _plain_names(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Name tensors as LLaVA's model has them: `model.mm_projector.0.weight`.

    PEFT's and, in old files, one more `model.` stand before names that were saved with a LoRA.

    Raises:
        ModelError: two names become the same.
    """
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(_PEFT)
        if short.startswith("model.model."):
            short = short.removeprefix("model.")
        if short in named:
            raise ModelError(f"{source} holds {short} twice")
        named[short] = tensor
    return named


def _projector_rules(num_linears: int) -> list[Rule]:
    """Name a projector's tensors: one linear, or linears 0 and 2 of a sequence."""
    places = {"": "0."} if num_linears == 1 else {"0.": "0.", "2.": "2."}
    return [
        Rule(f"{_PEFT}connector.local.{ours}{kind}", (f"{_PROJECTOR}{theirs}{kind}",))
        for theirs, ours in places.items()
        for kind in ("weight", "bias")
    ]


def _lora_rules(names: Iterable[str]) -> list[Rule]:
    """Name a LoRA's tensors: those of the language model, whose names it has."""
    return [
        Rule(f"{_PEFT}language_model.{name}", (name,))
        for name in names
        if name.endswith((".lora_A.weight", ".lora_B.weight"))
    ]
