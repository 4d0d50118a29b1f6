"""The main job: from a recipe to a trained run."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PrinterCallback, TrainingArguments, set_seed

from varifocal.assemble import Assembly, assemble
from varifocal.data.parallel import lost_worker_is_an_error
from varifocal.data.rows.lazy import EvenRows, LazyRows
from varifocal.data.rows.packing import Collator, PackedDataset
from varifocal.errors import RunError, Stopped
from varifocal.models.distributed import (
    gather_tensors,
    in_world,
    is_main_process,
    is_spread,
    num_processes,
)
from varifocal.models.saved import describe_adapter, start_adapter, start_connector
from varifocal.progress import Progress, silent
from varifocal.recipe import Recipe, leaves_text
from varifocal.recipe.sections import Provenance
from varifocal.recipe.services import reports_in
from varifocal.run import RunDirectory
from varifocal.training.alignment import Aligned, align, aligns
from varifocal.training.callbacks import RunMetrics, StopTraining, stop_wish
from varifocal.training.clock import Clock
from varifocal.training.dry_build import check_before_loading
from varifocal.training.engines import spreads_weights
from varifocal.training.examples import (
    TrainingData,
    fingerprint_sources,
    load_training_data,
)
from varifocal.training.full_tuning import save_full_model, saved_parameters
from varifocal.training.keep import Prepared, prepare_references
from varifocal.training.result import TrainingResult, result_of, with_measures
from varifocal.training.resuming import (
    Start,
    check_pace,
    check_same,
    check_same_answers,
    check_same_optimizer,
    find_start,
    remove_later_checkpoints,
    rows_per_step,
)
from varifocal.training.trainer import SupervisedTrainer
from varifocal.training.tuner import attach_tuner
from varifocal.training.usable import NOTHING_TRAINED, check_usable
from varifocal.training.validation import Validation
from varifocal.writing import atomic_directory, write_json

_LOST = re.compile(r"(?i)connection (was )?(closed|reset|refused)|broken pipe|timed out waiting")

Prediction = Callable[[Recipe, TrainingData], dict[str, Any]]

RECORDED = ("varifocal", "torch", "transformers", "peft", "accelerate", "tokenizers")


@lost_worker_is_an_error
def run_training(
    recipe: Recipe,
    root: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    predict: Prediction | None = None,
) -> TrainingResult:
    """Train a recipe into a run directory.

    Args:
        recipe: what to train, on what, and how.
        root: the run directory.
        resume: go on from its newest whole checkpoint; from the start when there is none.
        progress: told of every stage.
        predict: gives, from the recipe and its opened data, what the run will take; it is written
            to `plan.json`, in the end with what it took. `planning.plan.foresee` is one.

    Raises:
        RunError: the directory holds another run or somebody's files, another process writes it,
            or the disk is full; a loss or a gradient is no number; a process that prepares data
            was killed; every checkpoint is damaged.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was written.
        DataError, ModelError, RecipeError: as their parts.
    """
    check_before_loading(recipe)
    check_usable(recipe)
    run = RunDirectory.create(root, resume=resume)
    with run.lock(), reports_in(run.root.resolve(), recipe.training.get("report_to")):
        return _train(recipe, run, resume, progress or silent, predict)


def _train(
    recipe: Recipe, run: RunDirectory, resume: bool, progress: Progress, predict: Prediction | None
) -> TrainingResult:
    """Train into a run directory that no other process writes."""
    clock = Clock()
    start = find_start(run, resume)
    _check_nothing_is_lost(recipe, run, start)
    for note in start.notes():
        progress("resume", 1, 1, note)
    if start.checkpoint is not None:
        check_same_optimizer(run, start.checkpoint, recipe)
    set_seed(recipe.seed)
    parts, data, prepared = _open(recipe, run, start, progress, clock)
    predicted = predict(recipe, data) if predict and is_main_process() else None
    tuned, aligned = _tune(recipe, parts, start, progress, clock)
    if recipe.training.max_steps != 0:
        with clock.stage("vision_features"):
            _fill_features(tuned, data, progress)
    validation = None
    if recipe.training.eval_steps is not None and recipe.training.max_steps != 0:
        validation = Validation(recipe, run, tuned, progress)
    trainer = build_trainer(recipe, run, tuned, data, progress, clock, validation)
    if aligned is not None:
        trainer.meter.add_alignment(aligned.num_images, aligned.num_words)
    if prepared is not None and start.checkpoint is None:
        trainer.meter.add_keep(prepared.flops)
    # Only now: a mistake found on the way here must not leave what looks like a run.
    run.write_recipe(with_provenance(recipe, parts.fingerprint).dump_yaml())
    if prepared is not None:
        write_json(run.keep, prepared.replay.facts)
    if predicted is not None:
        write_json(run.plan, {"predicted": predicted})
    with clock.stage("training"):
        _run(trainer, run, start)
    result = result_of(trainer, tuned, data, aligned, start)
    gathered = _gather(trainer)
    if trainer.is_world_process_zero():
        _save(run, recipe, tuned, gathered)
        _report(run, result, data, predicted)
    return result


def _open(
    recipe: Recipe, run: RunDirectory, start: Start, progress: Progress, clock: Clock
) -> tuple[Assembly, TrainingData, Prepared | None]:
    """Load the models and encode the data; refuse to go on from a checkpoint of other ones."""
    names = filter(None, (recipe.model.language_model, recipe.model.vision_tower))
    progress("load", 0, 1, ", ".join(names))
    with clock.stage("loading"):
        # An engine that spreads the weights places them itself.
        parts = assemble(recipe, torch.device("cpu") if spreads_weights(recipe) else None)
    progress("load", 1, 1)
    if start.checkpoint is not None:
        check_same(run, recipe, parts.fingerprint)
        check_pace(start.checkpoint, recipe, num_processes())
    with clock.stage("keep"):
        prepared = prepare_references(recipe, parts, lambda *at: progress("keep", *at))
    if start.checkpoint is not None and prepared is not None:
        check_same_answers(run, prepared.replay.facts)
    with clock.stage("encoding"):
        data = load_training_data(
            recipe.data,
            parts.encoder,
            seed=recipe.seed,
            num_rows=_num_rows(recipe),
            progress=lambda *at: progress("encode", *at),
            replay=prepared.replay if prepared else None,
            images_only=leaves_text(recipe.tuner),
        )
    if data.notes:
        progress("data", 1, 1, "; ".join(data.notes))
    return parts, data, prepared


def _tune(
    recipe: Recipe, parts: Assembly, start: Start, progress: Progress, clock: Clock
) -> tuple[Assembly, Aligned | None]:
    """Put the connector's weights in, or fit it to words in a fresh run; then attach the tuner."""
    start_connector(parts.base, recipe, start.checkpoint)
    fresh = start.checkpoint is None
    aligned = align(recipe, parts, progress, clock) if aligns(recipe) and fresh else None
    set_seed(recipe.seed)  # a tuner starts alike, whether there was an alignment or not
    model = attach_tuner(parts.base, recipe.tuner, base_fingerprint=parts.fingerprint)
    if fresh:
        start_adapter(model, recipe, parts.fingerprint)
    return parts.with_model(model), aligned


def _report(
    run: RunDirectory, result: TrainingResult, data: TrainingData, predicted: dict[str, Any] | None
) -> None:
    """Write what the training was, what it read, what it cost, and what had been foreseen."""
    write_json(run.root / "training.json", asdict(result))
    write_json(run.data, data.report())
    write_json(run.cost, result.cost)
    if predicted is not None:
        write_json(run.plan, with_measures(predicted, result.cost))


def _check_nothing_is_lost(recipe: Recipe, run: RunDirectory, start: Start) -> None:
    """Refuse to save a run without a step over one that has taken some."""
    if recipe.training.max_steps == 0 and start.checkpoint is not None:
        raise RunError(
            f"{run.root} has taken steps, and training.max_steps: 0 would save it as if it had "
            "taken none; choose another --out"
        )
    if start.checkpoint is None and run.imported.is_file():
        raise RunError(
            f"{run.root} was imported and has no training to go on with; train from its adapter "
            f"with its recipe.yaml, --set tuner.weights={run.root} and another --out"
        )


def build_trainer(
    recipe: Recipe,
    run: RunDirectory,
    parts: Assembly,
    data: TrainingData,
    progress: Progress,
    clock: Clock | None = None,
    validation: Validation | None = None,
) -> SupervisedTrainer:
    """Join a tuned model and encoded samples into a Trainer.

    Raises:
        RunError: the model has no parameter to train.
    """
    if not any(parameter.requires_grad for parameter in parts.model.parameters()):
        raise RunError(NOTHING_TRAINED)
    row_length = recipe.data.row_length or recipe.data.max_length
    static = row_length if recipe.training.compile_layers else None
    if recipe.training.compile_layers:
        compile_layers(parts.base)
    trainer = SupervisedTrainer(
        model=parts.model,
        # Lazy rows are packed in this process; their samples are encoded in others.
        args=training_arguments(recipe, run, 0 if data.is_lazy else recipe.data.num_workers),
        train_dataset=_shared_rows(recipe, data),
        data_collator=Collator(
            _pad_id(parts), static, parts.load_images, data.replay.table if data.replay else None
        ),
        connector_learning_rate=recipe.training.connector_learning_rate,
        loss_chunk=recipe.training.loss_chunk,
        loss_kernel=recipe.training.loss_kernel,
        reference_weight=getattr(recipe.training.keep, "weight", 1.0),
        callbacks=[RunMetrics(run, progress)],
        clock=clock,
        schedule=recipe.training,
        validation=validation,
    )
    trainer.remove_callback(PrinterCallback)  # only the command line prints
    return trainer


def _shared_rows(recipe: Recipe, data: TrainingData) -> PackedDataset | LazyRows | EvenRows:
    """The rows, filled up to what all processes take equally, where there are several."""
    if num_processes() == 1:
        return data.rows
    return EvenRows(data.rows, recipe.training.per_device_train_batch_size * num_processes())


def _num_rows(recipe: Recipe) -> int | None:
    """Rows that all processes take in the whole run, where `max_steps` decides it."""
    steps = recipe.training.max_steps
    return max(steps, 1) * rows_per_step(recipe, num_processes()) if steps >= 0 else None


def training_arguments(recipe: Recipe, run: RunDirectory, num_workers: int) -> TrainingArguments:
    """The recipe's knobs as transformers takes them, and those that a run decides."""
    given = recipe.training.trainer_arguments()
    if "LOCAL_RANK" not in os.environ:
        given.pop("ddp_backend", None)  # accelerate asks for processes that nobody launched
    return TrainingArguments(
        **{
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": not torch.cuda.is_available(),
            # A loss that is no number ends the run; this would leave it out of the mean, and wait
            # for the device after every micro-batch to know it.
            "logging_nan_inf_filter": False,
            **given,
            "output_dir": str(run.checkpoints),
            "seed": recipe.seed,
            "remove_unused_columns": False,
            "train_sampling_strategy": "sequential",
            "dataloader_num_workers": num_workers,
        }
    )


def compile_layers(model: nn.Module) -> None:
    """Compile each decoder layer on its own, for rows of one static length."""
    decoder = cast(Any, model).get_decoder()
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 4 * len(decoder.layers))
    for layer in decoder.layers:
        layer.compile(dynamic=False)


def with_provenance(recipe: Recipe, base_fingerprint: str | None) -> Recipe:
    """The recipe as a run writes it down: with versions and fingerprints."""
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in RECORDED}
    provenance = Provenance(
        versions=versions,
        data=fingerprint_sources(recipe.data),
        base_fingerprint=base_fingerprint,
    )
    return recipe.model_copy(update={"provenance": provenance})


def _pad_id(parts: Assembly) -> int:
    tokenizer = parts.encoder.tokenizer
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(number for number in known if isinstance(number, int))


def _fill_features(parts: Assembly, data: TrainingData, progress: Progress) -> None:
    """Look at every image once, before the first step."""
    if parts.features is not None:
        parts.features.fill(
            list(data.images()), lambda done, total: progress("features", done, total, "images")
        )


def _run(trainer: SupervisedTrainer, run: RunDirectory, start: Start) -> None:
    """Train, from a checkpoint when there is one; a wish to stop ends in a checkpoint."""
    if trainer.is_world_process_zero():
        remove_later_checkpoints(run, start)
    if trainer.args.max_steps == 0:  # transformers would take num_train_epochs
        return
    whence = str(start.checkpoint) if start.checkpoint else None
    if trainer.args.process_index:  # of one seed, all would drop the same places of their rows
        torch.manual_seed(trainer.args.seed + trainer.args.process_index)
    with stop_wish() as wish:
        trainer.add_callback(StopTraining(wish))
        with lost_process_is_an_error(run):
            trainer.train(resume_from_checkpoint=whence)
    if wish.given:
        raise Stopped(
            f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}; it is "
            f"saved. Go on with: {run.resume_command}"
        )
    if trainer.validation is not None:
        trainer.validation.load_best(trainer)


@contextmanager
def lost_process_is_an_error(run: RunDirectory) -> Iterator[None]:
    """Turn what a collective call says when another process has died into a sentence.

    Raises:
        RunError: it has.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or _LOST.search(str(error))
        if not in_world() or not lost:
            raise
        raise RunError(
            f"{run.root}: another process of this training has ended, and this one cannot go on "
            "without it; repeat the command with --resume"
        ) from error


def _gather(trainer: SupervisedTrainer) -> dict[str, torch.Tensor] | None:
    """Put the weights together that are spread over processes; None where none are."""
    model = cast(nn.Module, trainer.model)
    if is_spread(model):
        return gather_tensors(
            model, saved_parameters(model) if isinstance(model, PeftModel) else None
        )
    if not trainer.is_fsdp_enabled or trainer.args.max_steps == 0:
        return None
    return cast(Any, trainer.accelerator).get_state_dict(trainer.model_wrapped)


def _save(
    run: RunDirectory, recipe: Recipe, parts: Assembly, gathered: dict[str, torch.Tensor] | None
) -> None:
    """Write adapter and processor, or the whole model, each whole or not at all."""
    if isinstance(parts.model, PeftModel):
        with atomic_directory(run.adapter, noted="*.safetensors") as staging:
            cast(Any, parts.model).save_pretrained(
                staging, state_dict=gathered, save_embedding_layers=False
            )
            describe_adapter(staging, recipe)
    else:
        dtype = getattr(torch, recipe.model.dtype)
        with atomic_directory(run.model, noted="*.safetensors") as staging:
            save_full_model(parts.base, parts.processor, staging, dtype, gathered)
    with atomic_directory(run.processor) as staging:
        cast(Any, parts.processor).save_pretrained(staging)
