"""The prediction that a run writes to `plan.json`."""

from __future__ import annotations

from typing import Any

from varifocal.models.distributed import num_processes
from varifocal.planning.devices import GPUS, Device, this_cpu
from varifocal.planning.estimate import estimate
from varifocal.recipe import Recipe
from varifocal.training.examples import TrainingData


def foresee(recipe: Recipe, data: TrainingData) -> dict[str, Any]:
    """Predict a run from shapes, its data's lengths and an earlier calibration of this machine.

    One process predicts for all: call it before they meet, since they take no part in this.
    What fails here is told in the answer's `error`, and stops nothing.

    Args:
        recipe: the run's, with this process's share of a step's rows.
        data: as the run opened it.
    """
    try:
        return estimate(
            recipe, this_device(), num_devices=num_processes(), data=data, quick=True
        ).page()
    except Exception as error:  # a plan is a service: it never costs a run
        return {"error": f"{type(error).__name__}: {error}"}


def this_device() -> Device:
    """The table's row of this machine's GPU, or its processor."""
    import torch

    if not torch.cuda.is_available():
        return this_cpu()
    name = torch.cuda.get_device_name().lower().replace(" ", "").replace("-", "")
    found = [each for key, each in GPUS.items() if key.partition("-")[0] in name]
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    return min(found, key=lambda each: abs(each.memory_gib - gib), default=this_cpu())
