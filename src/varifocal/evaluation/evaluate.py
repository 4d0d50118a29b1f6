"""Score a run, or any model, by its name: on its recipe's sources, or on benchmarks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from varifocal.data.json_files import OnBadRecord
from varifocal.errors import RecipeError
from varifocal.evaluation.benchmark import Benchmark, Item
from varifocal.evaluation.benchmarks.registry import (
    choose_protocol,
    find_benchmarks,
    find_folders,
    load_items,
)
from varifocal.progress import Progress
from varifocal.recipe import FileSection, Recipe, SourceSection, load_recipe
from varifocal.run import RunDirectory
from varifocal.trained_weights import find_trained
from varifocal.writing import claim_folder

if TYPE_CHECKING:
    from varifocal.evaluation.evaluated_model import Opened
    from varifocal.evaluation.runner import About, AskOptions, Result
    from varifocal.evaluation.sources import ScoreBy

ProtocolName = Literal["mlan", "lavin", "mixlora"]

_DATA = Path("data")
_RUNS = Path("runs")


@dataclass(frozen=True)
class Named:
    """What is scored.

    Attributes:
        model: a run directory; for benchmarks also a packaged model, a directory, or a hub id.
        adapter: PEFT's files to put around a model; a run has its own.
        dtype: number format of the frozen weights.
        strength: factor on what the adapter changes.
    """

    model: str
    adapter: Path | None = None
    dtype: str = "float32"
    strength: float = 1.0

    @property
    def run(self) -> RunDirectory | None:
        """The run of that name, or None for a model."""
        run = RunDirectory(Path(self.model).expanduser())
        return run if run.recipe.is_file() else None


def evaluate_sources(
    root: str | Path,
    *,
    data: Path | None = None,
    split: str | None = None,
    score: ScoreBy | None = None,
    blind: bool = False,
    checkpoint: int | None = None,
    on_bad_record: OnBadRecord | None = None,
    strength: float = 1.0,
    command: str = "",
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Score a run on its recipe's `data.evaluate`, and yield each source's scores.

    Args:
        root: the run directory.
        data: score on this instead, asked for as the recipe's first source is.
        split: another split than the recipe's.
        score: another method than the recipe's.
        blind: leave the images out of the prompts.
        checkpoint: the run as of this step's checkpoint.
        on_bad_record: another rule than the recipe's for records that cannot be asked.
        strength: factor on what the adapter changes; others than 1 have files of their own.
        command: what repeats it, for the score files.
        progress: called with stage, done and total.

    Raises:
        RunError, ModelError: as `open_run`.
        DataError, RecipeError: as `evaluate_recipe`.
    """
    from varifocal.assemble import open_run
    from varifocal.evaluation.sources import about_run, evaluate_recipe

    run = RunDirectory.open(root)
    trained = find_trained(run, checkpoint)
    recipe, parts = open_run(root, checkpoint=checkpoint, strength=strength)
    asks_others = data is not None or split is not None
    yield from evaluate_recipe(
        recipe,
        parts,
        run.evaluations_at(trained.step),
        about_run(root, recipe, parts, checkpoint=checkpoint, command=command, strength=strength),
        sources=_instead(recipe.data.evaluate, data, split) if asks_others else None,
        score=score,
        blind=blind,
        progress=progress,
        on_bad_record=on_bad_record,
    )


def evaluate_benchmarks(
    named: Named,
    suites: str,
    options: AskOptions,
    *,
    data: Path | None = None,
    score: ScoreBy | None = None,
    protocol: ProtocolName | None = None,
    out: Path | None = None,
    on_bad_record: OnBadRecord | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Score a run or a model on benchmarks; what is missing is said before anything is loaded.

    Args:
        named: what is scored.
        suites: names of suites or benchmarks, with commas between them.
        options: how the items are asked.
        data: the folder that holds one folder a benchmark; by default the run's `data.root`, or
            `data`.
        score: another method than the benchmarks' own.
        protocol: ask and read as this paper's code does, in its prompts.
        out: where scores go; by default into the run, or `runs/MODEL/eval`.
        on_bad_record: by default as the run's recipe says, and `fail` for a model.
        command: what repeats it, for the score files.
        progress: called with stage, done and total.

    Raises:
        DataError: a benchmark is not known, or its files are missing or broken.
        RecipeError: the protocol is not known for a benchmark, or a score is asked for next to it.
        RunError, ModelError: the model cannot be had, or another process writes the same scores.
    """
    recipe = _recipe_of(named)
    if protocol is not None and score is not None:
        raise RecipeError(f"--protocol {protocol} reads what is written; leave --score {score} out")
    items = _items_of(suites, protocol, data, recipe, options)
    if out is not None:
        claim_folder(out)
    from varifocal.evaluation.evaluated_model import open_asker
    from varifocal.evaluation.runner import run
    from varifocal.evaluation.sources import METHODS

    opened = open_asker(named.model, named.adapter, named.dtype, named.strength)
    about = _about(named, opened, command)
    rule = on_bad_record or ("fail" if recipe is None else recipe.data.on_bad_record)
    options = replace(options, on_bad_record=rule)
    for benchmark, asked in items:
        style = benchmark.prompts
        asker = opened.asker if style is None else opened.asker.with_prompts(style)
        for method in (None,) if score is None else METHODS[score]:
            yield run(
                benchmark,
                asked,
                asker,
                out or scores_of(named),
                options=replace(options, method=method),
                about=about,
                progress=progress,
            )


def _items_of(
    suites: str,
    protocol: ProtocolName | None,
    data: Path | None,
    recipe: Recipe | None,
    options: AskOptions,
) -> list[tuple[Benchmark, list[Item]]]:
    """Load what benchmarks ask, in a protocol's words where one is named."""
    benchmarks = find_benchmarks(suites)
    if protocol is not None:
        benchmarks = choose_protocol(protocol, benchmarks)
    root = recipe.data.root if recipe is not None else None
    folders = find_folders(benchmarks, data or (Path(root) if root else _DATA))
    return [
        (row, load_items(row, folders[row.name], options.split, options.limit))
        for row in benchmarks
    ]


def _about(named: Named, opened: Opened, command: str) -> About:
    from varifocal.evaluation.runner import About

    return About(
        model=named.model,
        adapter=None if named.adapter is None else str(named.adapter),
        fingerprint=opened.fingerprint,
        seed=opened.seed,
        dtype=named.dtype,
        command=command,
        strength=named.strength,
    )


def scores_of(named: Named) -> Path:
    """Return where the scores of a run or a model go: into the run, or `runs/MODEL/eval`."""
    if named.run is not None:
        return named.run.evaluations_at(find_trained(named.run).step)
    words = [named.model, *([] if named.adapter is None else [str(named.adapter)])]
    name = "-".join(re.sub(r"[^\w.]+", "-", word).strip("-") for word in words)
    return RunDirectory(_RUNS / name).evaluations


def _recipe_of(named: Named) -> Recipe | None:
    """Return a run's recipe; None for a model."""
    return None if named.run is None else load_recipe(named.run.recipe, check_paths=False)


def _instead(
    given: Sequence[SourceSection], data: Path | None, split: str | None
) -> list[SourceSection]:
    """Return other questions, asked for as the recipe's first source is."""
    if data is None and not given:
        raise RecipeError("the run's recipe has no data.evaluate; name something with --data")
    source = given[0] if given else FileSection(path=str(data))
    if data is not None:
        source = source.at(str(data.expanduser()))
    return [source.model_copy(update={"split": split})]
