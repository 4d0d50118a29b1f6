"""The whole plan of a recipe: what it trains, holds, reads, takes and costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from varifocal.planning.calibration import Calibration, find_calibration
from varifocal.planning.devices import CPU_FIRST_STEP_GIB, GIB, Device, judge_memory
from varifocal.planning.lengths import Workload, work_of
from varifocal.planning.memory import Weights, count_weights, parts_of_peak
from varifocal.planning.paper import compare_with_paper
from varifocal.planning.shapes import (
    EvaluationWork,
    Shapes,
    build_shapes,
    evaluation_work,
)
from varifocal.planning.tracing import Step, switch_checkpointing, trace_step
from varifocal.recipe import Recipe
from varifocal.training.examples import TrainingData
from varifocal.training.tuner import count_frozen, count_trained
from varifocal.training.usable import why_refused

FREE_SHARE = 0.05
"""Share of a device's memory that is left free: allocators waste some."""


@dataclass(frozen=True)
class Plan:
    """What a run will take; `varifocal plan --json` prints it.

    Attributes:
        recipe: its name.
        device, num_devices: what it is planned for.
        trained_parameters: and by part.
        peak_memory_gib: of one device at its fullest, and by part in `memory_gib`.
        device_memory_gib: what it has.
        activations_gib: what a training step adds, with and without gradient checkpointing.
        micro_batch, largest_micro_batch: rows a device takes at once, and the most that fit.
        examples, steps, tokens, tokens_trained, tokens_padding, pad_share: of the whole run, all
            devices together; None where the data are unknown.
        vision_passes, vision_lookups, flops, flops_keep, flops_masked: the same.
        num_evaluations, tokens_evaluated, flops_evaluation: what `training.eval_steps` adds.
        tokens_exact: whether every token was counted.
        num_dropped, num_cut: examples over the limit, left out or cut.
        seconds: by stage.
        hours, usd: of the whole run; `usd` is None without a price.
        calibrated: whether the rate was measured on this machine.
        fits: whether the device holds it and nothing stops it.
        verdict: the last word in a sentence.
        assumptions: what all this rests on.
        paper: what the paper measured next to ours, for its own recipes.
    """

    recipe: str | None
    device: str
    num_devices: int
    trained_parameters: int
    trained_parameters_by_part: dict[str, int]
    frozen_parameters: int
    peak_memory_gib: float
    memory_gib: dict[str, float]
    device_memory_gib: float
    activations_gib: dict[str, float]
    micro_batch: int
    largest_micro_batch: int | None
    examples: int | None
    steps: int | None
    tokens: int | None
    tokens_exact: bool
    tokens_trained: int | None
    tokens_padding: int | None
    pad_share: float | None
    vision_passes: int | None
    vision_lookups: int | None
    flops: int | None
    flops_keep: int | None
    flops_masked: int | None
    num_evaluations: int | None
    tokens_evaluated: int | None
    flops_evaluation: int | None
    num_dropped: int
    num_cut: int
    seconds: dict[str, float] | None
    hours: float | None
    usd: float | None
    calibrated: bool
    fits: bool
    verdict: str
    assumptions: list[str] = field(default_factory=list)
    paper: dict[str, Any] | None = None

    def page(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Traced:
    """What a plan needs to know of a recipe, whatever the device.

    Attributes:
        shapes: its model.
        work: what is read.
        weights: what stands before any step.
        steps: whether checkpointing -> what a step holds.
        evaluation: what is scored while it trains.
    """

    shapes: Shapes
    work: Workload
    weights: Weights
    steps: dict[bool, Step]
    evaluation: EvaluationWork


def trace(
    recipe: Recipe,
    *,
    num_devices: int = 1,
    data: TrainingData | None = None,
    quick: bool = False,
) -> Traced:
    """Build a recipe's model from shapes, count its work and trace its steps; see `estimate`."""
    shapes = build_shapes(recipe).in_step(num_devices > 1)
    work = work_of(recipe, shapes, data, num_devices)
    weights = count_weights(shapes.model, shapes.base, recipe)
    evaluation = evaluation_work(
        recipe, shapes.formula, work.steps, looks_up=bool(work.vision_lookups)
    )
    return Traced(shapes, work, weights, _steps(recipe, shapes, work, quick), evaluation)


def estimate(
    recipe: Recipe,
    device: Device,
    *,
    num_devices: int = 1,
    price: float | None = None,
    data: TrainingData | None = None,
    quick: bool = False,
    traced: Traced | None = None,
) -> Plan:
    """Plan a recipe from its models' shapes and its data's lengths; no weight is loaded.

    Args:
        recipe: what is to be trained.
        device: each of the devices.
        num_devices: that share the rows, each with all weights.
        price: USD an hour of one device.
        data: opened already; else it is opened here, if it can be.
        quick: leave out the other way of checkpointing and the largest micro-batch.
        traced: what `trace` returned for the recipe, where several devices are planned for.

    Raises:
        ModelError: a model's config cannot be had, or it cannot be planned from shapes.
        DataError: the data are there, and cannot be read.
        RecipeError: the tuner does not fit the model.
    """
    traced = traced or trace(recipe, num_devices=num_devices, data=data, quick=quick)
    shapes, work, weights, steps = traced.shapes, traced.work, traced.weights, traced.steps
    calibration = find_calibration(recipe, shapes) if device.is_cpu else None
    machine = _Machine(device, num_devices, calibration)
    # a model that knows no checkpointing was refused before
    step = steps[recipe.training.gradient_checkpointing]
    parts = machine.parts_of_peak(weights, step)
    peak, holds = sum(parts.values()) / GIB, sum(parts.values()) <= machine.room
    largest = None if quick else _largest(recipe, machine, weights, step)
    fits, verdict = judge_memory(recipe, device, num_devices, peak, holds, work, largest)
    # a run that gives its own data has been asked already
    refused = None if data else why_refused(recipe, steps=work.steps, skip_absent=True)
    if refused:
        fits, verdict = False, f"does not start: {refused}"
    return Plan(
        recipe=recipe.name,
        device=device.name,
        num_devices=num_devices,
        **_of_parameters(shapes),
        **_of_memory(parts, steps),
        device_memory_gib=round(device.memory_gib, 2),
        micro_batch=recipe.training.per_device_train_batch_size,
        largest_micro_batch=largest,
        **_of_work(work),
        **_of_time(recipe, machine, traced, price),
        calibrated=calibration is not None,
        fits=fits,
        verdict=verdict,
        assumptions=_assumptions(recipe, machine, work),
        paper=compare_with_paper(recipe, shapes),
    )


@dataclass(frozen=True)
class _Machine:
    """What a run is planned for.

    Attributes:
        device: each of the devices.
        num_devices: that share the rows.
        calibration: what was measured on this machine with such a recipe.
    """

    device: Device
    num_devices: int
    calibration: Calibration | None

    @property
    def room(self) -> float:
        """Bytes of a device that may be held."""
        return self.device.memory_gib * (1 - FREE_SHARE) * GIB

    def rate(self, recipe: Recipe) -> float:
        """Operations of a second, all devices together."""
        if self.calibration is not None:
            return self.calibration.flops_per_second
        return self.device.flops_per_second(compute_format(recipe)) * self.num_devices

    def parts_of_peak(self, weights: Weights, step: Step) -> dict[str, float]:
        """Lay out a device's memory at its fullest moment: bytes by part."""
        framework = self.device.overhead_gib
        if self.calibration is not None:
            framework = self.calibration.overhead_gib + CPU_FIRST_STEP_GIB
        return parts_of_peak(weights, step, framework * GIB, self.num_devices, self.device.waste)


_CHECKPOINTING = {False: "without_checkpointing", True: "with_checkpointing"}


def _of_parameters(shapes: Shapes) -> dict[str, Any]:
    by_part = count_trained(shapes.model)
    return {
        "trained_parameters": sum(by_part.values()),
        "trained_parameters_by_part": by_part,
        "frozen_parameters": count_frozen(shapes.model),
    }


def _of_memory(parts: dict[str, float], steps: dict[bool, Step]) -> dict[str, Any]:
    return {
        "peak_memory_gib": round(sum(parts.values()) / GIB, 3),
        "memory_gib": {name: round(size / GIB, 4) for name, size in parts.items()},
        "activations_gib": {
            _CHECKPOINTING[again]: round(each.peak / GIB, 3) for again, each in steps.items()
        },
    }


def _of_work(work: Workload) -> dict[str, Any]:
    rows = None if work.tokens is None else work.tokens + (work.tokens_padding or 0)
    return {
        "examples": work.examples,
        "steps": work.steps,
        "tokens": work.tokens,
        "tokens_exact": work.exact,
        "tokens_trained": work.tokens_trained,
        "tokens_padding": work.tokens_padding,
        "pad_share": round((work.tokens_padding or 0) / rows, 4) if rows else None,
        "vision_passes": work.vision_passes,
        "vision_lookups": work.vision_lookups,
        "flops": work.flops,
        "flops_keep": work.flops_keep,
        "flops_masked": work.flops_masked,
        "num_dropped": work.num_dropped,
        "num_cut": work.num_cut,
    }


def _steps(recipe: Recipe, shapes: Shapes, work: Workload, quick: bool) -> dict[bool, Step]:
    """Trace a step: as it is, and with the other way of checkpointing.

    Returns:
        whether checkpointing -> step.
    """
    training = recipe.training
    as_it_is = training.gradient_checkpointing
    autocast = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
    steps: dict[bool, Step] = {}
    model: Any = shapes.base
    for again in [as_it_is] if quick else [as_it_is, not as_it_is]:
        if again and not model.supports_gradient_checkpointing:
            continue
        if again or steps:
            switch_checkpointing(shapes.base, again, autocast)
        steps[again] = trace_step(
            shapes.model,
            shapes.base,
            work.batch,
            autocast=autocast,
            keep_gradients=training.gradient_accumulation_steps > 1,
        )
    return steps


def _largest(recipe: Recipe, machine: _Machine, weights: Weights, step: Step) -> int:
    """Find the most rows that fit: what a step holds grows evenly with them."""
    first, second = (
        sum(machine.parts_of_peak(weights, step.of_rows(times)).values()) for times in (1, 2)
    )
    size = recipe.training.per_device_train_batch_size
    each = max((second - first) / size, 1)
    return max(int((machine.room - (first - each * size)) // each), 0)


def _of_time(
    recipe: Recipe, machine: _Machine, traced: Traced, price: float | None
) -> dict[str, Any]:
    evaluation = traced.evaluation
    seconds = _seconds(recipe, machine, traced.work)
    scored = asdict(evaluation)
    if seconds is None:
        return {**scored, "seconds": None, "hours": None, "usd": None}
    if evaluation.flops_evaluation:
        seconds["evaluation"] = evaluation.flops_evaluation / machine.rate(recipe)
    hours = sum(seconds.values()) / 3600
    return {
        **scored,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "hours": hours,
        "usd": None if price is None else hours * price * machine.num_devices,
    }


def _seconds(recipe: Recipe, machine: _Machine, work: Workload) -> dict[str, float] | None:
    """Estimate seconds by stage; None where the data are unknown."""
    if work.flops is None or work.flops_masked is None:
        return None
    calibration, answers = machine.calibration, work.flops_keep or 0
    if calibration is None:
        rate = machine.rate(recipe)
        seconds = {"training": (work.flops - answers + work.flops_masked) / rate}
        return {"keep": answers / rate, **seconds} if answers else seconds
    images = (work.vision_passes or 0) if calibration.seconds_per_picture else 0
    tower = calibration.tower_flops * images
    return {
        "loading": calibration.seconds_loading,
        "vision_features": images * calibration.seconds_per_picture,
        **({"keep": answers / calibration.flops_per_second} if answers else {}),
        "training": (work.flops - tower - answers + work.flops_masked)
        / calibration.flops_per_second,
    }


def compute_format(recipe: Recipe) -> str:
    """Name the number format that matrix products run in."""
    if recipe.training.bf16:
        return "bfloat16"
    return "float16" if recipe.training.fp16 else recipe.model.dtype


def _assumptions(recipe: Recipe, machine: _Machine, work: Workload) -> list[str]:
    """Say in sentences what the plan rests on."""
    device, calibration = machine.device, machine.calibration
    dtype = compute_format(recipe)
    sentences = list(work.notes)
    if calibration is not None:
        sentences.append(
            f"the rate of {calibration.flops_per_second / 1e9:.1f} GFLOP/s, the loading and the "
            f"framework's {calibration.overhead_gib:.2f} GiB were measured here by --calibrate "
            f"({calibration.steps} steps)"
        )
    else:
        peak = device.teraflops.get(dtype, device.teraflops["float32"])
        sentences.append(
            f"{device.utilisation:.0%} of {peak:.4g} TFLOP/s in {dtype} are reached; loading, "
            f"encoding and checkpoints are left out ({device.source})"
        )
        if device.is_cpu:
            sentences.append("this machine's rate is a guess; measure it with --calibrate")
    if dtype not in device.teraflops:
        sentences.append(f"{device.name} has no units for {dtype}; float32's rate is taken")
    if device.waste:
        sentences.append(
            f"the allocator holds {device.waste:.0%} more than the tensors of a step, as it did in "
            "one measured run (docs/plan.md)"
        )
    if not device.is_cpu:
        sentences.append(
            f"{device.overhead_gib:g} GiB for the CUDA context and workspaces is assumed, not "
            f"measured; {FREE_SHARE:.0%} of the memory stays free"
        )
    if machine.num_devices > 1 and calibration is not None:
        sentences.append(f"{machine.num_devices} processes share this machine, and its one rate")
    elif machine.num_devices > 1:
        sentences.append(
            f"{machine.num_devices} devices share the rows evenly, and wait for nobody"
        )
    if recipe.training.compile_layers:
        sentences.append("compiled layers are planned as eager ones: they hold less and run faster")
    if recipe.model.quantization:
        sentences.append(
            f"{recipe.model.quantization} weights are turned back into {recipe.model.dtype} one at "
            "a time; the time that takes is not counted"
        )
    if recipe.alignment is not None:
        sentences.append("the connector's alignment before the training is not counted")
    return sentences
