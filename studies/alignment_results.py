"""What the runs of the alignment study came to: from run directories to figures over seeds."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from studies.record import over_seeds
from varifocal.recipe import load_recipe
from varifocal.run import UNLOGGED, RunDirectory

TASKS = {"book": ("none", "words", "captions", "words-few"), "nlvr": ("none", "words", "captions")}
SUITES = {"book": "sciencebook-test", "nlvr": "dev"}
STAGES = ("words", "words-few", "captions")
TARGETS = (60.0, 70.0, 80.0)
"""Percent right whose first crossing is looked for."""

Curve = list[dict[str, float]]
"""Points of one run: `step`, `minutes` (of the processor, with the stage before), `accuracy`."""


def collect(out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Read every finished run of a study.

    Args:
        out: the study's folder.
        seeds: those to read.

    Returns:
        `stages`: by name what they cost; and for each task by setting: `seeds` that are there,
        `curve` over those seeds, `reached` (steps and minutes to each target, by seed), and
        `against_none`, the difference of accuracy at each common step, paired by seed.
    """
    stages = {name: stage_costs(out, name, seeds) for name in STAGES}
    found: dict[str, Any] = {"stages": {name: one for name, one in stages.items() if one}}
    for task, settings in TASKS.items():
        runs = {name: curves_of(out, task, name, seeds) for name in settings}
        found[task] = {
            name: summary(by_seed, runs["none"]) for name, by_seed in runs.items() if by_seed
        }
    return found


def stage_costs(out: Path, name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Images that a stage saw, and its processor minutes, over the seeds that are done."""
    costs = {
        seed: json.loads(file.read_text())
        for seed in seeds
        if (file := out / "stages" / f"{name},seed={seed}" / "cost.json").is_file()
    }
    if not costs:
        return {}
    return {
        "pictures": over_seeds([_images(out, name, seed, costs[seed]) for seed in costs]),
        "minutes": over_seeds([stage_minutes(name, cost) for cost in costs.values()]),
    }


def _images(out: Path, name: str, seed: int, cost: dict[str, Any]) -> float:
    if not name.startswith("words"):
        return cost["vision_lookups"]
    run = RunDirectory(out / "stages" / f"{name},seed={seed}")
    alignment = load_recipe(run.recipe, check_paths=False).alignment
    assert alignment is not None
    return alignment.steps * alignment.batch_size


def stage_minutes(name: str, cost: dict[str, Any]) -> float:
    """Processor minutes of a stage's own steps; loading is left out, as it is for the tunings."""
    stage = "alignment" if name.startswith("words") else "training"
    return cost[f"seconds_cpu_{stage}"] / 60


def curves_of(out: Path, task: str, setting: str, seeds: Sequence[int]) -> dict[int, Curve]:
    """The curve of each seed whose run is finished."""
    found = {}
    for seed in seeds:
        run = RunDirectory(out / task / f"{setting},seed={seed}")
        if (run.root / "point.json").is_file():
            found[seed] = curve(run, SUITES[task], before=_before(out, setting, seed))
    return found


def _before(out: Path, setting: str, seed: int) -> float:
    """Processor minutes of the stage before a tuning."""
    if setting == "none":
        return 0.0
    cost = out / "stages" / f"{setting},seed={seed}" / "cost.json"
    return stage_minutes(setting, json.loads(cost.read_text()))


def curve(run: RunDirectory, suite: str, before: float) -> Curve:
    """Accuracy at each checkpoint of a run, by step and by processor minutes.

    A run that was stopped and resumed has a checkpoint of the stop as well, which is left out.
    """
    points, every = [], _save_steps(run)
    for step in run.steps():
        if step % every:
            continue
        scores = json.loads((run.evaluations_at(step) / f"{suite}.json").read_text())
        spent = json.loads((run.checkpoint(step) / UNLOGGED).read_text())["seconds"]
        points.append(
            {
                "step": step,
                "minutes": before + spent["cpu_training"] / 60,
                "accuracy": average_of(scores),
            }
        )
    return points


def average_of(scores: dict[str, Any]) -> float:
    """Return the percent right over all questions of a score file."""
    return next(one["value"] for one in scores["measures"] if one["name"] == "average")


def _save_steps(run: RunDirectory) -> int:
    return int(load_recipe(run.recipe, check_paths=False).training.save_steps)


def summary(by_seed: dict[int, Curve], none: dict[int, Curve]) -> dict[str, Any]:
    """One setting over its seeds, and against no stage at all."""
    steps = [point["step"] for point in next(iter(by_seed.values()))]
    return {
        "seeds": list(by_seed),
        "curve": [
            {
                "step": step,
                "minutes": over_seeds([curve[place]["minutes"] for curve in by_seed.values()]),
                "accuracy": over_seeds([curve[place]["accuracy"] for curve in by_seed.values()]),
            }
            for place, step in enumerate(steps)
        ],
        "reached": {
            f"{target:.0f}": {
                axis: [crossing(curve, axis, target) for curve in by_seed.values()]
                for axis in ("step", "minutes")
            }
            for target in TARGETS
        },
        "against_none": against(by_seed, none),
    }


def crossing(curve: Curve, axis: str, target: float) -> float | None:
    """Where a curve first reaches an accuracy, on straight lines between its points.

    None where it does not; the first point itself where that is above already.

    >>> curve = [{"step": 8, "accuracy": 50.0}, {"step": 16, "accuracy": 70.0}]
    >>> crossing(curve, "step", 60.0), crossing(curve, "step", 40.0), crossing(curve, "step", 71.0)
    (12.0, 8, None)
    """
    before = None
    for point in curve:
        if point["accuracy"] >= target:
            if before is None:
                return point[axis]
            share = (target - before["accuracy"]) / (point["accuracy"] - before["accuracy"])
            return before[axis] + share * (point[axis] - before[axis])
        before = point
    return None


def at_minutes(curve: Curve, minutes: float) -> float | None:
    """A curve's accuracy after so many minutes, on straight lines; None outside of it.

    >>> at_minutes([{"minutes": 1.0, "accuracy": 50.0}, {"minutes": 2.0, "accuracy": 70.0}], 1.5)
    60.0
    """
    for before, after in pairwise(curve):
        if before["minutes"] <= minutes <= after["minutes"]:
            share = (minutes - before["minutes"]) / (after["minutes"] - before["minutes"])
            return before["accuracy"] + share * (after["accuracy"] - before["accuracy"])
    return None


def against(by_seed: dict[int, Curve], none: dict[int, Curve]) -> dict[str, Any]:
    """Accuracy less that of no stage, paired by seed: at the last common step and at equal minutes.

    At equal minutes the run without a stage is read where its own minutes are those of the other's
    last point, stage included.
    """
    shared = [seed for seed in by_seed if seed in none]
    if not shared:
        return {}
    last = [by_seed[seed][-1] for seed in shared]
    at_step = [
        end["accuracy"] - next(p["accuracy"] for p in none[seed] if p["step"] == end["step"])
        for end, seed in zip(last, shared, strict=True)
    ]
    others = [
        at_minutes(none[seed], end["minutes"]) for end, seed in zip(last, shared, strict=True)
    ]
    paired = [
        end["accuracy"] - other
        for end, other in zip(last, others, strict=True)
        if other is not None
    ]
    return {
        "equal_steps": over_seeds(at_step),
        "equal_minutes": over_seeds(paired) if len(paired) == len(shared) else None,
    }
