"""`--calibrate`: real training steps of a recipe on this machine, for at most 40 s."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch.utils.data import Subset
from transformers import TrainerCallback

from varifocal.assemble import Assembly, assemble
from varifocal.errors import DataError
from varifocal.planning.calibration import Calibration, write_calibration
from varifocal.planning.devices import GIB
from varifocal.planning.shapes import build_shapes
from varifocal.progress import silent
from varifocal.recipe import Recipe, leaves_text
from varifocal.run import RunDirectory
from varifocal.training.examples import TrainingData, load_training_data
from varifocal.training.train import build_trainer
from varifocal.training.trainer import SupervisedTrainer
from varifocal.training.tuner import attach_tuner

SECONDS = 40.0
"""Of training steps; loading and images come on top."""
BATCHES = 48
"""Most micro-batches; their images are looked at before."""


def calibrate(recipe: Recipe) -> Calibration:
    """Measure this machine on a recipe's model and data, and keep what was found.

    Args:
        recipe: its model is loaded and trained for some steps; nothing is saved of it.

    Raises:
        DataError, ModelError, RecipeError: as a training would.
    """
    shapes = build_shapes(recipe)
    overhead = resident_gib()
    started = time.monotonic()
    parts = assemble(recipe)
    loading = time.monotonic() - started
    rows = BATCHES * recipe.training.per_device_train_batch_size
    data = load_training_data(
        recipe.data,
        parts.encoder,
        seed=recipe.seed,
        num_rows=rows,
        images_only=leaves_text(recipe.tuner),
    )
    parts = parts.with_model(attach_tuner(parts.base, recipe.tuner))
    few = replace(data, rows=cast(Any, _first_rows(recipe, data)))
    image = _time_images(parts, few)
    steps, rate = _time_steps(recipe, parts, few)
    if not steps:
        raise DataError(
            "--calibrate times the micro-batches after the first, and these data fill one alone; "
            "lower training.per_device_train_batch_size, or give more data"
        )
    by_table = parts.features is not None
    calibration = Calibration(
        flops_per_second=rate,
        steps=steps,
        seconds_loading=loading,
        seconds_per_picture=image,
        tower_flops=shapes.formula.image.tower if by_table else 0,
        overhead_gib=overhead,
    )
    write_calibration(recipe, shapes, calibration)
    return calibration


def _first_rows(recipe: Recipe, data: TrainingData) -> Subset[Any]:
    rows = min(len(data.rows), BATCHES * recipe.training.per_device_train_batch_size)
    return Subset(data.rows, range(rows))


def _time_images(parts: Assembly, data: TrainingData) -> float:
    """Fill the table with the images of the first rows; return the seconds each took."""
    if parts.features is None:
        return 0.0
    rows: Any = data.rows
    images = {
        image.fingerprint(): image for row in rows for sample in row for image in sample.images
    }
    with tempfile.TemporaryDirectory() as place:
        fresh = parts.features.in_folder(Path(place))  # what is known already takes no time
        sample = list(images.values())[:BATCHES]
        started = time.monotonic()
        fresh.fill(sample)
        seconds = time.monotonic() - started
    parts.features.fill(list(images.values()))
    return seconds / len(sample) if sample else 0.0


def _time_steps(recipe: Recipe, parts: Assembly, data: TrainingData) -> tuple[int, float]:
    """Train for some seconds; return the micro-batches counted and their operations a second."""
    training = recipe.training.model_copy(update={"save_steps": 10.0**9, "max_steps": -1})
    training = training.model_copy(update={"num_train_epochs": 1.0})
    with tempfile.TemporaryDirectory() as place:
        page = recipe.model_copy(update={"training": training})
        trainer = build_trainer(page, RunDirectory(Path(place)), parts, data, silent)
        watch = _Watch(trainer)
        trainer.add_callback(watch)
        with contextlib.suppress(_EnoughError):
            trainer.train()
    return watch.rate()


class _EnoughError(Exception):
    """Ends a training that has been measured."""


class _Watch(TrainerCallback):
    """Notes time and operations after every micro-batch, and ends the training in time."""

    def __init__(self, trainer: SupervisedTrainer) -> None:
        self.trainer = trainer
        self.notes: list[tuple[float, int]] = []

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note()

    def _note(self) -> None:
        spent = self.trainer.meter.spent
        self.notes.append((time.monotonic(), spent.flops + spent.flops_masked))
        if len(self.notes) > 2 and self.notes[-1][0] - self.notes[0][0] > SECONDS:
            raise _EnoughError

    def rate(self) -> tuple[int, float]:
        """Micro-batches after the first, which warms up, and their operations a second."""
        start, end = self.notes[0], self.notes[-1]
        if len(self.notes) < 2:
            return 0, float("nan")
        return len(self.notes) - 1, (end[1] - start[1]) / (end[0] - start[0])


def resident_gib() -> float:
    """The process's resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / GIB
