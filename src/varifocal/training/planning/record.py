"""`plan.json` of a run: what was predicted from shapes beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varifocal.models.sharding import in_world
from varifocal.recipe import Recipe
from varifocal.training.examples import TrainingData
from varifocal.training.planning.devices import GPUS, Device, this_cpu
from varifocal.training.planning.estimate import estimate

STAGES = ("loading", "vision_features", "training")


def plan_beside(recipe: Recipe, data: TrainingData, cost: Mapping[str, Any]) -> dict[str, Any]:
    """Lay a run's prediction beside its measures; what fails here is told, and stops nothing.

    The prediction reads shapes and lengths alone, and an earlier calibration of this machine.

    Args:
        recipe: the run's.
        data: as the run opened it.
        cost: as `cost.json` has it.
    """
    seconds = sum(cost.get(f"seconds_{name}", 0.0) for name in STAGES)
    measured = {
        "peak_memory_gib": cost.get("peak_memory_gib"),
        "tokens": cost["tokens"],
        "tokens_padding": cost["tokens_padding"],
        "vision_passes": cost["vision_passes"],
        "flops": cost["flops"],
        "hours": seconds / 3600,
    }
    return {"predicted": _predicted(recipe, data), "measured": measured}


def _predicted(recipe: Recipe, data: TrainingData) -> dict[str, Any]:
    if in_world():
        return {"error": "not made in step with other processes; run: varifocal plan"}
    try:
        return estimate(recipe, this_device(), data=data, quick=True).page()
    except Exception as error:  # a plan is a service: it never costs a finished run
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
