"""What a training was, in numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from varifocal.assemble import Assembly
from varifocal.training.alignment import Aligned
from varifocal.training.cost import peak_memory_gib
from varifocal.training.examples import TrainingData
from varifocal.training.resuming import Start
from varifocal.training.trainer import SupervisedTrainer
from varifocal.training.tuner import count_trained

PLANNED_STAGES = ("loading", "keep", "vision_features", "training", "evaluation")
"""Those that a calibrated plan has seconds for."""
MEASURED = (
    "peak_memory_gib",
    "steps",
    "tokens",
    "tokens_trained",
    "tokens_padding",
    "vision_passes",
    "vision_lookups",
    "flops",
    "flops_masked",
    "tokens_evaluated",
    "flops_evaluation",
)


@dataclass(frozen=True)
class TrainingResult:
    """What a training was, in numbers; `training.json` of the run directory.

    Attributes:
        steps: optimiser steps.
        loss: of the last logged steps; of all steps, where there are fewer than `logging_steps`;
            None without a step.
        trained_parameters: how many, and by part.
        tokens: that went through the language model, padding left out.
        supervised_tokens: of them, those with a loss.
        vision_passes: images that went through the tower (a table's look-ups do not).
        minutes: wall time of this call, the loading included.
        peak_memory_gib: of the process, GPU memory where there is one.
        packing_efficiency: share of the rows' tokens that are no padding.
        skipped, dropped: what was left out of the data, one sentence each.
        num_cut: samples whose prompt was cut.
        data_notes: what was trained otherwise than the records may suggest, one sentence each.
        passed_over: notes on damaged checkpoints, and on one that could not be checked.
        alignment_loss: of the last hundred alignment steps; None without alignment.
        alignment_seconds: of the alignment's steps alone.
        training_seconds: of the training's steps alone, checkpoints included.
        cost: as `cost.json` has it: of all processes, and of those before a resumption too.
    """

    steps: int
    loss: float | None
    trained_parameters: dict[str, int]
    tokens: int
    supervised_tokens: int
    vision_passes: int
    minutes: float
    peak_memory_gib: float
    packing_efficiency: float
    skipped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    num_cut: int = 0
    data_notes: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    alignment_loss: float | None = None
    alignment_seconds: float | None = None
    training_seconds: float = 0.0
    cost: dict[str, Any] = field(default_factory=dict)


def result_of(
    trainer: SupervisedTrainer,
    parts: Assembly,
    data: TrainingData,
    aligned: Aligned | None,
    start: Start,
) -> TrainingResult:
    """Sum a finished training up; all processes must call it."""
    cost = trainer.meter.page(
        steps=trainer.state.global_step, peak_memory_gib=round(peak_memory_gib(), 3)
    )
    history = trainer.state.log_history
    steps = trainer.state.global_step
    losses = [record["loss"] for record in history if "loss" in record]
    if not losses and steps:  # the sum holds the steps before a resumption, too
        losses = [trainer.total_loss / steps]
    last = history[-1] if history else {}  # without a step there is none
    rows: Any = trainer.train_dataset
    return TrainingResult(
        steps=steps,
        loss=losses[-1] if losses else None,
        trained_parameters=count_trained(parts.model),
        tokens=cost["tokens"],
        supervised_tokens=cost["tokens_trained"],
        vision_passes=cost["vision_passes"],
        minutes=trainer.meter.clock.own_seconds() / 60,
        peak_memory_gib=peak_memory_gib(),
        packing_efficiency=rows.efficiency,
        skipped=data.tally.skipped,
        dropped=data.tally.dropped,
        passed_over=start.notes(),
        num_cut=data.tally.num_cut,
        data_notes=data.tally.notes(),
        alignment_loss=aligned.loss if aligned else None,
        alignment_seconds=aligned.seconds if aligned else None,
        training_seconds=last.get("train_runtime", 0.0),
        cost=cost,
    )


def with_measures(predicted: Mapping[str, Any], cost: Mapping[str, Any]) -> dict[str, Any]:
    """Join a run's prediction and its measures: what `plan.json` holds once it is done.

    As in the prediction, counts are of all processes together, memory is of one device (measured
    on the first process's), and seconds are the clock's.

    Args:
        predicted: as the caller of `train` gave it.
        cost: as `cost.json` has it.
    """
    measured = {name: cost.get(name) for name in MEASURED}
    seconds = {name: cost.get(f"seconds_{name}", 0.0) for name in PLANNED_STAGES}
    hours = sum(seconds.values()) / 3600
    return {
        "predicted": dict(predicted),
        "measured": {**measured, "seconds": seconds, "hours": hours},
    }
