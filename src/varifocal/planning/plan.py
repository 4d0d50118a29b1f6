"""Plan a recipe; and the prediction that a run writes to `plan.json`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from varifocal.errors import RecipeError
from varifocal.models.distributed import num_processes
from varifocal.planning.devices import GPUS, Device, find_device, this_cpu
from varifocal.planning.estimate import Plan, estimate, trace
from varifocal.recipe import Recipe, load_recipe
from varifocal.training.examples import TrainingData
from varifocal.training.launch import share_rows


def plan_recipe(
    recipe: Recipe,
    device: str | None = None,
    *,
    num_devices: int = 1,
    price: float | None = None,
    calibrates: bool = False,
) -> Plan:
    """Plan what a recipe will take; no weight is loaded.

    Args:
        recipe: what would be trained.
        device: `cpu` or a GPU's name of `devices.GPUS`; by default this machine where it holds the
            run, and else an A100 of 80 GB.
        num_devices: devices that share the rows of a step.
        price: USD an hour of one device.
        calibrates: first train on this machine for at most 40 seconds, and save its rate.

    Raises:
        RecipeError: there is no such device, or the devices cannot share the rows equally.
        DataError, ModelError: a part of the recipe cannot be had.
    """
    if num_devices > 1:  # as `launch` does: what is learned does not depend on their number
        recipe = load_recipe(recipe, share_rows(recipe, num_devices), check_paths=False)
    if calibrates:
        from varifocal.planning.measuring import calibrate

        if device not in (None, "cpu"):
            raise RecipeError(f"--calibrate measures this machine; leave out --device {device}")
        calibrate(recipe)
        device = "cpu"
    options: Any = {"num_devices": num_devices, "price": price}
    if device is not None:
        return estimate(recipe, find_device(device), **options)
    here = this_device()
    options["traced"] = trace(recipe, num_devices=num_devices)
    planned = estimate(recipe, here, **options)
    if planned.peak_memory_gib <= here.memory_gib:
        return planned
    note = (
        f"this machine has {here.memory_gib:.0f} GiB, too little, so an a100-80g is taken; name "
        "another with --device"
    )
    planned = estimate(recipe, GPUS["a100-80g"], **options)
    return replace(planned, assumptions=[note, *planned.assumptions])


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
    matching = [each for key, each in GPUS.items() if key.partition("-")[0] in name]
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    return min(matching, key=lambda each: abs(each.memory_gib - gib), default=this_cpu())
