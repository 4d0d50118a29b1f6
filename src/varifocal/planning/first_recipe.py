"""The first recipe for a folder: models that are here, images held out, rows that fit."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from varifocal.data.example import Example
from varifocal.data.holdout import find_held_out, holdout_keys
from varifocal.data.inspect.folder import FolderContents
from varifocal.data.loading import find_captions
from varifocal.data.source import Source, open_source
from varifocal.errors import DataError, ModelError
from varifocal.models.names import check_model_name, downloaded, hub_is_reachable
from varifocal.models.words import check_descriptions
from varifocal.planning.estimate import Plan
from varifocal.planning.plan import plan_recipe, this_device
from varifocal.prompts import load_encoder
from varifocal.recipe import FileSection, Recipe, load_recipe

SMALL, LARGE = "smollm2-135m-instruct", "Qwen/Qwen2.5-VL-3B-Instruct"
_LARGE_GIB = 20.0
_TOWERS = ("efficientnet-lite0", "sciencebook-vit")
_SEEDS = 50
_FEW_IMAGES = 100
_LENGTHS = 2000
_FEW_ROWS, _MOST_ROWS = 240, 1000
_LEAST_STEPS = 30
_MOST_BATCH = 8
_LARGE_EPOCHS = 3


@dataclass(frozen=True)
class FirstRecipe:
    """What was written, and why.

    Attributes:
        text: the recipe as a file, with its comments.
        recipe: the same, read.
        plan: what it will take on this machine.
        num_held_out: rows that are scored on.
    """

    text: str
    recipe: Recipe
    plan: Plan
    num_held_out: int


def write_first_recipe(contents: FolderContents, file: Path) -> FirstRecipe:
    """Write the recipe of a folder for this machine.

    Args:
        contents: of the folder, see `scan_folder`.
        file: where it will stand; its relative paths start there. Nothing is written.

    Raises:
        ModelError: no language model can be had here.
        DataError: a row cannot be read.
    """
    examples = _examples(contents)
    root = os.path.relpath(contents.folder, file.parent)
    page: dict[str, Any] = {**_models(contents), "data": {"root": str(root)}}
    page["data"] |= _sources(contents, examples)
    longest = _longest(page, examples, file)
    page["data"]["max_length"] = longest
    page["data"]["row_length"] = max(2 * longest, 256)
    page["training"] = _pace(page, 1, len(examples), longest)
    no_words = "alignment" in page and _no_words(_read(page, file, contents))
    if no_words:
        page["alignment"] = None
    plan = plan_recipe(_read(page, file, contents), None)
    most = plan.largest_micro_batch or 1
    per_row = max(1, page["data"]["row_length"] // longest)
    batch = max(1, min(most, _MOST_BATCH, _rows(len(examples)) // (per_row * _LEAST_STEPS)))
    page["training"] = _pace(page, batch, len(examples), longest)
    recipe = _read(page, file, contents)
    held_out = sum(
        len(source)
        for section in recipe.data.evaluate
        if isinstance(source := open_source(section), Source)
    )
    plan = plan_recipe(recipe, None)
    return FirstRecipe(_as_text(page, contents, plan, most), recipe, plan, held_out)


def _no_words(recipe: Recipe) -> bool:
    """Tell whether neither captions nor answers have words that tell images apart."""
    try:
        check_descriptions([text for _, text in find_captions(recipe.data)])
    except DataError:
        return True
    return False


def _read(page: Mapping[str, Any], file: Path, contents: FolderContents) -> Recipe:
    absolute = {**page, "data": {**page["data"], "root": os.path.abspath(contents.folder)}}
    return load_recipe({"name": file.stem, **absolute})


def _examples(contents: FolderContents) -> list[Example]:
    source = contents.train
    places = {
        key: str(contents.folder / source[key]) for key in ("path", "image_folder") if key in source
    }
    opened = open_source(FileSection.model_validate({**source, **places}))
    return [example for example in opened if isinstance(example, Example)]


def _models(contents: FolderContents) -> dict[str, Any]:
    """Choose models that are here, or can be had, and that this machine holds."""
    device = this_device()
    large = not device.is_cpu and device.memory_gib >= _LARGE_GIB
    if large and (downloaded(LARGE) or hub_is_reachable()):
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        return {
            "model": {"language_model": LARGE, "image_side": 448, "dtype": "bfloat16"},
            "tuner": {"type": "lora", "rank": 16, "lora_alpha": 32.0, "target_modules": targets},
        }
    check_model_name(SMALL)
    model: dict[str, Any] = {"language_model": SMALL, "dtype": "auto"}
    if contents.kind == "text":
        return {
            "model": model,
            "tuner": {"type": "lora", "rank": 8, "target_modules": ["q_proj", "v_proj"]},
        }
    model |= {
        "vision_tower": next(filter(_is_here, _TOWERS)),
        "attn_implementation": "auto",
        "connector": {"type": "patch_mlp", "num_tokens": 16, "num_global_tokens": 4},
    }
    return {
        "model": model,
        "alignment": {"type": "words", "steps": 300},
        "tuner": {"type": "mma", "router_temperature": 1.0},
    }


def _is_here(name: str) -> bool:
    try:
        check_model_name(name)
    except ModelError:
        return False
    return True


def _sources(contents: FolderContents, examples: list[Example]) -> dict[str, Any]:
    """Return the sources, with a share of the images held out where nothing else is scored on."""
    page: dict[str, Any] = {"train": [dict(contents.train)]}
    if contents.captions is not None:
        page["captions"] = [dict(contents.captions)]
    if contents.num_broken:
        page["on_bad_record"] = "skip"
    if contents.evaluate is not None:
        return {**page, "evaluate": [dict(contents.evaluate)]}
    keys = [holdout_keys(example) for example in examples]
    groups = len({key for row in keys for key in row})
    share = 0.2 if groups < _FEW_IMAGES else 0.1
    misses = {
        seed: abs(int(find_held_out(keys, share, seed).sum()) - share * len(keys))
        for seed in range(_SEEDS if groups < _FEW_IMAGES else 1)
    }
    if groups > 1:
        page["holdout"] = {"share": share, "seed": min(misses, key=lambda seed: misses[seed])}
        if contents.kind == "captions":
            page["holdout"]["metric"] = "anls"
    return page


def _longest(page: Mapping[str, Any], examples: list[Example], file: Path) -> int:
    """Return a limit that rows from the whole table keep to, a multiple of 32 tokens."""
    data = {**page["data"], "max_length": 8192, "root": None, "train": []}
    data = {key: value for key, value in data.items() if key in ("max_length", "train")}
    recipe = load_recipe({**page, "data": data, "alignment": None}, check_paths=False)
    encoder = load_encoder(recipe)
    some = examples[:: math.ceil(len(examples) / _LENGTHS)]
    lengths = [len(encoder.encode(example).input_ids) for example in some]
    margin = 1.0 if len(examples) <= _LENGTHS else 1.25
    return max(64, 32 * math.ceil(max(lengths) * margin / 32))


def _rows(count: int) -> int:
    """Return how many examples a training of some minutes on a processor sees."""
    return min(max(3 * count, _FEW_ROWS), _MOST_ROWS)


def _pace(page: Mapping[str, Any], batch: int, count: int, longest: int) -> dict[str, Any]:
    if page["tuner"]["type"] == "lora" and "image_side" in page["model"]:
        return {
            "num_train_epochs": _LARGE_EPOCHS,
            "per_device_train_batch_size": batch,
            "learning_rate": 2e-4,
            "warmup_steps": 0.03,
            "gradient_checkpointing": True,
            "bf16": True,
        }
    per_step = batch * max(1, page["data"]["row_length"] // longest)
    rates = {"learning_rate": 2e-3}
    if "connector" in page["model"]:
        rates["connector_learning_rate"] = 5e-4
    return {
        "max_steps": math.ceil(_rows(count) / per_step),
        "per_device_train_batch_size": batch,
        **rates,
        "warmup_steps": 5,
        "logging_steps": 5,
    }


def _as_text(page: dict[str, Any], contents: FolderContents, plan: Plan, most: int) -> str:
    """Write the page with a comment above each section."""
    comments = {
        "model": ["Models that are on this machine; both stay frozen."],
        "alignment": [
            "The connector first learns the words that descriptions, or answers, use."
            if page.get("alignment")
            else "No word of descriptions or answers tells images apart, so there is no alignment."
        ],
        "tuner": ["What is trained in the language model: docs/choose.md compares the methods."],
        "data": ["max_length is the longest row found, in tokens, rounded up."],
        "training": [
            f"Up to {most:,} rows at once fit into this machine's memory ({plan.device}, "
            f"{plan.device_memory_gib:.0f} GiB).",
        ],
    }
    if "holdout" in page["data"]:
        comments["data"].append("holdout: this share of the images is scored on, never trained on.")
    head = [f"Made by `varifocal init {contents.folder}`; change what you like.", *contents.notes]
    lines = [_comment(line) for line in head]
    for key, section in page.items():
        lines += ["", *map(_comment, comments.get(key, ()))]
        text = yaml.safe_dump({key: section}, sort_keys=False, allow_unicode=True, width=100)
        lines.append(text.rstrip())
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    r"""Write a comment; a column's name may have line breaks.

    >>> _comment("column 'Antwort\n(kurz)'")
    "# column 'Antwort (kurz)'"
    """
    return f"# {' '.join(text.split())}"
