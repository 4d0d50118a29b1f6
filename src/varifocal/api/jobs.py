"""The jobs of the command line as functions: plan, train, evaluate, compare and export."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from varifocal.api.run import Run
from varifocal.data.example import ImageLike
from varifocal.data.json_files import OnBadRecord
from varifocal.errors import RecipeError
from varifocal.evaluation.compare import Comparison
from varifocal.evaluation.compare import compare_runs as compare_predictions
from varifocal.evaluation.evaluate import (
    Named,
    ProtocolName,
    evaluate_benchmarks,
    evaluate_sources,
)
from varifocal.evaluation.retention import LIMIT, Retention, measure_retention
from varifocal.evaluation.runner import AskOptions
from varifocal.evaluation.sources import ScoreBy
from varifocal.exporting.adapters import prompt_example
from varifocal.exporting.export import Exported
from varifocal.exporting.export import export_run as export_run
from varifocal.exporting.request import Order, Target
from varifocal.models.distributed import is_main_process
from varifocal.planning.estimate import Plan
from varifocal.planning.plan import foresee, plan_recipe
from varifocal.progress import Progress
from varifocal.recipe import Recipe, load_recipe
from varifocal.reports.card import renew_card
from varifocal.reports.card_scores import ScoreLine, read_scores
from varifocal.reports.compare_page import write_comparison
from varifocal.run import RunDirectory
from varifocal.training.train import run_training as train_recipe
from varifocal.writing import claim_folder

Source = str | os.PathLike[str] | Mapping[str, Any] | Recipe
Overrides = Mapping[str, Any] | Iterable[str]
Place = str | os.PathLike[str]

_RUNS = Path("runs")


def train(
    recipe: Source,
    out: Place | None = None,
    *,
    overrides: Overrides = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train a recipe into a run directory, as `varifocal train` does.

    Args:
        recipe: a YAML file, the name of a recipe that ships with Varifocal, its sections as a
            dict, or a `Recipe`.
        out: the run directory; by default `runs/NAME`, by the recipe's name.
        overrides: dotted keys and values, `{"training.max_steps": 100}`.
        resume: go on with an interrupted run.
        progress: called with stage, done, total and a note; `print` will do.

    Returns:
        The run.

    Raises:
        RecipeError: the recipe has a mistake, or no name and there is no `out`.
        RunError: the directory holds another run or other files; a loss is not a number.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was saved.
        DataError, ModelError: the data or the model cannot be used.
    """
    page = load_recipe(recipe, overrides)
    if out is None and page.name is None:
        raise RecipeError("the recipe has no name for its run directory; give a name, or out")
    root = _RUNS / str(page.name) if out is None else Path(out).expanduser()
    train_recipe(page, root, resume=resume, progress=progress, predict=foresee)
    if is_main_process():
        renew_card(root)
    return Run(root)


def plan(
    recipe: Source,
    device: str | None = None,
    *,
    overrides: Overrides = (),
    num_devices: int = 1,
    price: float | None = None,
    calibrate: bool = False,
) -> Plan:
    """Predict what a recipe will take, as `varifocal plan` does; no weight is loaded.

    Args:
        recipe: as `train` takes it; its data need not be there.
        device: `cpu`, or a GPU such as `a100-80g`; by default this machine where it has the
            memory, and else an A100 of 80 GB.
        overrides: dotted keys and values.
        num_devices: devices that share the rows of a step.
        price: USD an hour of one device.
        calibrate: first train on this machine for at most 40 seconds, and save its rate.

    Returns:
        Parameters, memory, tokens, hours and money, and whether it fits.

    Raises:
        RecipeError: the recipe has a mistake, or the device is not known.
        DataError, ModelError: the data or the model cannot be used.
    """
    page = load_recipe(recipe, overrides, check_paths=False)
    return plan_recipe(page, device, num_devices=num_devices, price=price, calibrates=calibrate)


def evaluate(
    run: Place,
    *,
    data: Place | None = None,
    split: str | None = None,
    score: ScoreBy | None = None,
    blind: bool = False,
    checkpoint: int | None = None,
    on_bad_record: OnBadRecord | None = None,
    strength: float = 1.0,
    progress: Progress | None = None,
) -> list[ScoreLine]:
    """Score a run on its recipe's `data.evaluate`, as `varifocal eval` does.

    Scores and predictions are written into the run.

    Args:
        run: the run directory.
        data: score on this source instead.
        split: another split than the recipe's.
        score: by likelihood (`options`), by what is written (`generate`), or `both`.
        blind: leave the images out of the prompts.
        checkpoint: the run as of this step's checkpoint.
        on_bad_record: `fail`, or `skip` what cannot be asked; by default as the recipe says.
        strength: factor on what the adapter changes; others than 1 have files of their own.
        progress: called with stage, done and total.

    Returns:
        Every measure; `main` marks the one that stands for its suite.

    Raises:
        RecipeError: there is no source to score on.
        DataError: a source is not there, or cannot be read.
        RunError, ModelError: the run cannot be opened.
    """
    scored = evaluate_sources(
        os.fspath(run),
        data=_path(data),
        split=split,
        score=score,
        blind=blind,
        checkpoint=checkpoint,
        on_bad_record=on_bad_record,
        strength=strength,
        progress=progress,
    )
    files = [result.file for result in scored]
    renew_card(Path(run))
    return _lines_of(files)


def benchmark(
    model: Place,
    suites: str | Sequence[str],
    *,
    data: Place | None = None,
    split: str | None = None,
    score: ScoreBy | None = None,
    protocol: ProtocolName | None = None,
    blind: bool = False,
    limit: int | None = None,
    batch_size: int = 8,
    adapter: Place | None = None,
    dtype: str = "float32",
    out: Place | None = None,
    on_bad_record: OnBadRecord | None = None,
    strength: float = 1.0,
    progress: Progress | None = None,
) -> list[ScoreLine]:
    """Score a run or any model on named benchmarks, as `varifocal benchmark` does.

    Args:
        model: a run, a packaged model, a directory, or a hub id.
        suites: names of suites or benchmarks.
        data: the folder that holds one folder a benchmark; by default the run's, or `data`.
        split: another split than the usual one.
        score: by likelihood (`options`), by what is written (`generate`), or `both`.
        protocol: ask and read as a paper's code does (`mlan`, `lavin`, `mixlora`).
        blind: leave the images out of the prompts.
        limit: only the first so many items.
        batch_size: questions of a forward pass.
        adapter: PEFT's files to put around a model.
        dtype: number format of the frozen weights.
        out: where scores go; by default into the run, or `runs/MODEL/eval`.
        on_bad_record: `fail`, or `skip` what cannot be asked; by default as the run's recipe says.
        strength: factor on what the adapter changes; others than 1 have files of their own.
        progress: called with stage, done and total.

    Returns:
        Every measure; `main` marks the one that stands for its suite.

    Raises:
        DataError: a benchmark is not known, or its files are missing or broken.
        RunError, ModelError: the run or the model cannot be opened.
    """
    scored = evaluate_benchmarks(
        Named(os.fspath(model), _path(adapter), dtype, strength),
        suites if isinstance(suites, str) else ",".join(suites),
        AskOptions(None, blind, split, limit, batch_size),
        data=_path(data),
        score=score,
        protocol=protocol,
        out=_path(out),
        on_bad_record=on_bad_record,
        progress=progress,
    )
    files = [result.file for result in scored]
    if out is None:
        renew_card(Path(model).expanduser())
    return _lines_of(files)


def retention(
    run: Place,
    *,
    data: Place | None = None,
    text: Place | None = None,
    limit: int | None = None,
    on_bad_record: OnBadRecord | None = None,
    strength: float = 1.0,
    progress: Progress | None = None,
) -> Retention:
    """Measure a run's text skills next to its base's, as `varifocal retention` does.

    Args:
        run: the run directory, into which the measures are written.
        data: holds `scienceqa-text` and `alpaca`; by default the run's own questions are asked.
        text: a file of held-out text.
        limit: texts, questions and instructions, of each so many (100).
        on_bad_record: `fail`, or `skip` what cannot be asked; by default as the recipe says.
        strength: factor on what the adapter changes; others than 1 have a file of their own.
        progress: called with stage, done and total.

    Returns:
        The base, the adapter off and the adapter on, a row a measure.

    Raises:
        DataError: there is nothing to measure on, or it cannot be read.
        RunError, ModelError: the run cannot be opened.
    """
    measured, _ = measure_retention(
        Path(run),
        data=_path(data),
        text=_path(text),
        limit=limit or LIMIT,
        on_bad_record=on_bad_record,
        strength=strength,
        progress=progress,
    )
    renew_card(Path(run))
    return measured


def _path(place: Place | None) -> Path | None:
    return None if place is None else Path(place)


def _lines_of(files: Iterable[Path]) -> list[ScoreLine]:
    """Read the scores of score files."""
    return [line for file in files for line in read_scores(file.parent) if line.suite == file.stem]


def compare(
    first: Place,
    second: Place,
    suites: Sequence[str] = (),
    *,
    any_prompt: bool = False,
    out: Place | None = None,
) -> Comparison:
    """Compare two runs on the items that both answered, as `varifocal compare` does.

    Args:
        first: a run, its `eval` folder, or a file of predictions.
        second: the same.
        suites: only these; by default all that both have.
        any_prompt: compare items that were asked in other words too.
        out: a folder for `compare.json` and `compare.html`.

    Returns:
        Intervals, a test, and the items on which the two differ.

    Raises:
        RunError: there are no predictions that both have, or `out` holds other files.
        DataError: a file is damaged.
    """
    folder = _path(out)
    if folder is not None:
        claim_folder(folder)
    left, right = os.fspath(first), os.fspath(second)
    comparison = compare_predictions(left, right, suites, any_prompt=any_prompt)
    if folder is not None:
        write_comparison(comparison.to_dict(), folder)
    return comparison


def export(
    run: Place,
    to: Target,
    out: Place | None = None,
    *,
    dtype: str | None = None,
    prompt: str | None = None,
    images: Sequence[ImageLike] = (),
    num_prompts: int = 16,
    max_gap: float | None = None,
    shard_gib: float = 4.0,
    strength: float = 1.0,
    serves: Literal["vllm"] | None = None,
    progress: Progress | None = None,
) -> list[Exported]:
    """Write a run in a form that other programs load, as `varifocal export` does.

    Each artifact is compared with the trained model before it takes its place.

    Args:
        run: the run directory.
        to: `merged`, `lora`, `route`, `llava`, `gguf`, `llamacpp` or `model`.
        out: where it goes; by default `RUN/export/TO`.
        dtype: number format of the weights; by default the run's.
        prompt: with `route`, the prompt whose LoRA is written.
        images: with `route`, shown before the prompt.
        num_prompts: prompts that both models answer.
        max_gap: largest difference of two logits that passes; by default as rounding allows.
        shard_gib: most GiB a safetensors file.
        strength: factor on what the adapter changes: 0 is the base, 1 the run as trained.
        serves: the server against whose rules the artifact is held.
        progress: called with stage, done, total and a note.

    Returns:
        The artifacts: two (text and image) of MMA's routes, else one.

    Raises:
        ModelError: the run has no such form, or what was written is not the trained model.
        RunError: there is no run, or `out` holds other files.
    """
    directory = RunDirectory.open(Path(run).expanduser())
    asked = None if prompt is None else prompt_example(prompt, images)
    settings = (dtype, num_prompts, max_gap, shard_gib)
    order = Order(directory, to, *settings, asked, "", strength, serves)
    target = directory.root / "export" / to if out is None else Path(out)
    return export_run(order, target, progress)
