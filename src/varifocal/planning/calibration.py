"""What a machine makes of a model: its rate over real training steps, kept for later plans."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from varifocal.cache import cache_root
from varifocal.planning.devices import processor_name
from varifocal.planning.shapes import Shapes
from varifocal.recipe import Recipe
from varifocal.writing import write_json


@dataclass(frozen=True)
class Calibration:
    """What one machine made of one model.

    Attributes:
        flops_per_second: of training steps, padding included.
        steps: micro-batches it was measured over, the first left out.
        seconds_loading: of models and processors.
        seconds_per_picture: through the tower into the table of features; 0 without a table.
        tower_flops: of these, an image's.
        overhead_gib: resident memory before a model was loaded.
    """

    flops_per_second: float
    steps: int
    seconds_loading: float
    seconds_per_picture: float
    tower_flops: int
    overhead_gib: float


def calibration_file(recipe: Recipe, shapes: Shapes) -> Path:
    """Name the file of this machine and a model's shape."""
    config: Any = shapes.base.config
    settings = {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "config": config.to_diff_dict(),
        "model": recipe.model.model_dump(exclude={"language_model", "vision_tower"}),
        "tuner": recipe.tuner.model_dump(),
        "checkpointing": recipe.training.gradient_checkpointing,
        "compiled": recipe.training.compile_layers,
        "autocast": [recipe.training.bf16, recipe.training.fp16],
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    return cache_root() / "calibration" / f"{key}.json"


def find_calibration(recipe: Recipe, shapes: Shapes) -> Calibration | None:
    """Look up what `calibrate` found on this machine for a model of this shape."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Calibration(**json.loads(calibration_file(recipe, shapes).read_text()))
    return None


def write_calibration(recipe: Recipe, shapes: Shapes, measured: Calibration) -> Path:
    """Write a calibration down for later plans; returns its file."""
    file = calibration_file(recipe, shapes)
    write_json(file, asdict(measured))
    return file
