"""From which checkpoint a run goes on, and whether it may."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from varifocal.errors import ModelError, RunError
from varifocal.manifest import MANIFEST
from varifocal.recipe import Recipe, load_recipe
from varifocal.recipe.optimizers import same_state
from varifocal.run import UNLOGGED, RunDirectory, checkpoint_step
from varifocal.staging import delete
from varifocal.training.examples import fingerprint_source

_DECIDE_ROWS = ("train", "mixture", "max_length", "row_length", "packing", "lazy")
_DECIDE_ROWS += ("train_on", "system_prompt", "chat_template")
"""Keys of `data` by which a step's place in the data is known."""


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
        checkpoint: the newest whole one; None begins with the first step.
        passed_over: what is wrong with each newer one.
        is_listed: whether a manifest says what the checkpoint's files held.
    """

    checkpoint: Path | None = None
    passed_over: dict[Path, str] = field(default_factory=dict)
    is_listed: bool = True

    @property
    def step(self) -> int:
        """Steps that are done already."""
        return checkpoint_step(self.checkpoint) if self.checkpoint else 0

    def notes(self) -> list[str]:
        """One sentence for each checkpoint that is damaged, or could not be checked."""
        notes = [
            f"{path} is damaged: {wrong}; going on from step {self.step} instead"
            for path, wrong in self.passed_over.items()
        ]
        if not self.is_listed:
            notes.append(
                f"{self.checkpoint} has no {MANIFEST}, as of an older version: its files open, "
                "and whether they hold what was written is not known"
            )
        return notes


def find_start(run: RunDirectory, resume: bool) -> Start:
    """Choose the checkpoint to go on from.

    Raises:
        RunError: there are checkpoints, and all are damaged.
    """
    if not resume:
        return Start()
    checkpoint, passed_over = run.newest_valid_checkpoint()
    is_listed = checkpoint is None or (checkpoint / MANIFEST).exists()
    return Start(checkpoint, passed_over, is_listed)


def remove_later_checkpoints(run: RunDirectory, start: Start) -> None:
    """Take away what would stand in a resumed run's way; of several processes, one calls it.

    Damaged checkpoints are renamed: a count of checkpoints to keep must not keep them.
    """
    run.sweep()
    for path in start.passed_over:
        run.set_aside(path)
    run.cut_metrics(start.step)
    for folder in run.validation.glob("step-*"):
        if int(folder.name.removeprefix("step-")) > start.step:
            delete(folder)


def check_same(run: RunDirectory, recipe: Recipe, base_fingerprint: str | None) -> None:
    """Refuse to resume with other parts, or other data, than the checkpoint was made with."""
    before = load_recipe(run.recipe, check_paths=False)
    trained_on = before.provenance.base_fingerprint if before.provenance else None
    if trained_on and base_fingerprint and trained_on != base_fingerprint:
        raise ModelError(
            f"{run.root} was started on a base with content hash {trained_on[:12]}, and now it "
            f"has {base_fingerprint[:12]}: give back the former files, or choose another --out"
        )
    pairs = {
        "seed": (before.seed, recipe.seed),
        "tuner": (before.tuner, recipe.tuner),
        "alignment": (before.alignment, recipe.alignment),
        "model.connector": (before.model.connector, recipe.model.connector),
        "model.image_preparation": (before.model.image_preparation, recipe.model.image_preparation),
        "training.keep": (_keep(before), _keep(recipe)),
        **{f"data.{key}": (_data(before, key), _data(recipe, key)) for key in _DECIDE_ROWS},
    }
    for key, (was, now) in pairs.items():
        if was != now:
            raise RunError(
                f"{run.root} was started with another {key}; resume it with the recipe it keeps "
                f"({run.recipe}), or choose another --out"
            )
    _check_records(run, before, recipe)


def _data(recipe: Recipe, key: str) -> Any:
    """A key of the data; of sources how they are read, since files may have been moved."""
    moved = {"path", "image_folder", "name"}
    page = recipe.data.model_dump(exclude={"train": {"__all__": moved}})
    return page[key]


def _keep(recipe: Recipe) -> Any:
    """`training.keep` without its sources: they may have been moved, their answers are compared."""
    keep = recipe.training.keep
    return keep and keep.model_dump(exclude={"instructions"})


def check_same_answers(run: RunDirectory, facts: Mapping[str, Any]) -> None:
    """Refuse to resume with other answers of the base than the run was started with.

    Args:
        run: the run, with the `keep.json` of its start.
        facts: what it would say now.

    Raises:
        RunError: the instructions, or what the base says to them, are others.
    """
    before = json.loads(run.keep.read_text()) if run.keep.is_file() else {}
    if before.get("digest") not in (None, facts["digest"]):
        raise RunError(
            f"{run.root} was started on other answers of the base than training.keep gives now "
            "(other instructions, or another machine's rounding); give back the former "
            "instructions and VARIFOCAL_CACHE, or choose another --out"
        )


def _check_records(run: RunDirectory, before: Recipe, recipe: Recipe) -> None:
    """Refuse other records; a run of an older version may have noted another split's of a place."""
    data = recipe.data
    recorded = before.provenance.data if before.provenance else {}
    for was, now in zip(before.data.train, data.train, strict=True):
        here = [
            each
            for each in (*data.train, *data.captions, *data.evaluate)
            if each.place == now.place
        ]
        known = recorded.get(was.place)
        if known and known not in map(fingerprint_source, here):
            raise RunError(
                f"{run.root} was started on other records than {now.place} holds, or they were "
                "read in another way; give back the former files, or choose another --out"
            )


def rows_per_step(recipe: Recipe, num_processes: int) -> int:
    """Count the rows that all processes together take in one optimiser step."""
    training = recipe.training
    each = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return each * num_processes


def check_pace(checkpoint: Path, recipe: Recipe, num_processes: int) -> None:
    """Refuse to go on with other steps, or from shards that another number of processes wrote.

    Args:
        checkpoint: to resume from.
        recipe: to resume with.
        num_processes: that train now.

    Raises:
        RunError: one step takes another number of rows than before, so a step count would not
            tell where the data stands; or DeepSpeed is to read what it cannot read.
    """
    _check_shards(checkpoint, recipe, num_processes)
    before = _unlogged(checkpoint).get("rows_per_step")
    now = rows_per_step(recipe, num_processes)
    if before is None or before == now:
        return
    steps = recipe.training.gradient_accumulation_steps
    fix = "give back the former number of processes"
    if before * steps % now == 0:
        fix = f"set training.gradient_accumulation_steps to {before * steps // now}"
    raise RunError(
        f"{checkpoint} was trained with {before} rows a step, and {num_processes} processes with "
        f"this recipe would take {now}: {fix}; `varifocal launch` keeps the number by itself"
    )


def check_same_optimizer(run: RunDirectory, checkpoint: Path, recipe: Recipe) -> None:
    """Refuse to go on with an optimiser that cannot read the checkpoint's state.

    Raises:
        RunError: names both.
    """
    before = _unlogged(checkpoint).get("optimizer")
    if before is None:  # of an older version
        before = load_recipe(run.recipe, check_paths=False).training.optimizer
    now = recipe.training.optimizer
    if not same_state(before, now):
        raise RunError(
            f"{checkpoint} holds the state of {before}, and training.optim is {now}, which cannot "
            f"go on with it: set training.optim to {before}, or choose another --out"
        )


def _check_shards(checkpoint: Path, recipe: Recipe, num_processes: int) -> None:
    is_deepspeed = bool((recipe.training.model_extra or {}).get("deepspeed"))
    is_sharded = any(checkpoint.glob("global_step*"))
    if is_deepspeed != is_sharded:
        was, now = ("under", "without") if is_sharded else ("without", "under")
        raise RunError(
            f"{checkpoint} was written {was} DeepSpeed and would be read {now} it, which loses "
            "the optimiser's state; go on with the engine that the run was started with"
        )
    before = len(_unlogged(checkpoint).get("spent", ())) or num_processes
    if is_sharded and before != num_processes:
        raise RunError(
            f"{checkpoint} holds DeepSpeed's shards of {before} processes, and {num_processes} "
            f"cannot read them; go on with {before} processes (checkpoints of ddp and fsdp2 are "
            "read by any number)"
        )


def _unlogged(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / UNLOGGED
    return json.loads(file.read_text()) if file.is_file() else {}


def take_rates(optimizer: Optimizer, schedule: Any, given: list[float]) -> None:
    """Set the learning rates that a resumed run was given; transformers keeps the checkpoint's.

    A run that broke off because they were too high is to be resumed with lower ones. The next step
    already has the given schedule's rate; torch's would have the former's until its second step.

    Args:
        optimizer: as it was loaded; changed in place.
        schedule: of the given recipe, with the checkpoint's state; changed in place. One that is
            no `LambdaLR`, as of DeepSpeed's own file, stays as it was loaded.
        given: the peak of each group of parameters.
    """
    if not isinstance(schedule, LambdaLR):
        return
    for number, (group, peak) in enumerate(zip(optimizer.param_groups, given, strict=True)):
        rate = peak * schedule.lr_lambdas[number](schedule.last_epoch)
        group["initial_lr"] = schedule.base_lrs[number] = peak
        group["lr"] = schedule._last_lr[number] = rate
