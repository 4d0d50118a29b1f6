"""One recipe over a grid: every point a run directory, one report at the end.

A sweep is a strict page of its own. All its recipes are built and validated before the first one
trains; a sweep that was killed goes on at the point, and the step, where it stopped.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from varifocal.errors import RecipeError, RunError, Stopped
from varifocal.progress import Progress, silent
from varifocal.recipe import Recipe, SourceSection, load_recipe
from varifocal.recipe.base_section import RunName, Section
from varifocal.recipe.data import SourceSections
from varifocal.recipe.strict_yaml import WrongKeyError, as_overrides, read_page, validate
from varifocal.reports.runs import flat
from varifocal.run import RunDirectory
from varifocal.writing import atomic_file, claim_folder, write_json

if TYPE_CHECKING:
    from varifocal.reports.runs_table import RunsTable

REPORT_FILES = ("report.md", "report.json", "report.png")
DONE = "point.json"
"""A run's file that says its point is trained and scored."""

Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(strict=False)]


class PointSection(Section):
    """One named point."""

    label: str
    """What its runs are called."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Overrides by dotted key."""


class SweepSection(Section):
    """A recipe and the points at which it is trained and scored.

    Overrides are those of `--set`: a relative path in them starts where it would in the recipe.
    """

    name: RunName | None = None
    """Name of the sweep; by default the file's."""
    recipe: str
    """A recipe's file, from the sweep's own folder or the current one, or a shipped one's name."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Overrides of every point, by dotted key."""
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Dotted key -> values; every combination is a point."""
    points: Annotated[tuple[PointSection, ...], Field(strict=False)] = ()
    """Instead of `grid`: named points."""
    seeds: Seeds = ()
    """All points are run with the first, then with the next; by default with the recipe's own."""
    evaluate: bool = True
    """Score every run; a model without a vision tower is asked without the images."""
    checkpoints: bool = False
    """Score the checkpoints of `training.save_steps` too, into `eval/checkpoint-STEP`."""
    sources: SourceSections | None = None
    """Score on these instead of the recipe's `data.evaluate`."""

    @model_validator(mode="after")
    def _has_points(self) -> SweepSection:
        if self.grid and self.points:
            raise WrongKeyError("points", "grid says what the points are already; give one")
        if not (self.grid or self.points or self.seeds):
            raise WrongKeyError("grid", "there is no point: give grid, points or seeds")
        for key, values in self.grid.items():
            if not values:
                raise WrongKeyError(f"grid.{key}", "has no value")
        if self.checkpoints and not self.evaluate:
            raise WrongKeyError("checkpoints", "evaluate: false scores nothing; leave one out")
        if len(set(self.seeds)) < len(self.seeds):
            raise WrongKeyError("seeds", "a seed stands twice")
        return self


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        label: its directory's name: the setting and the seed.
        setting: what it shares with the runs of other seeds.
        recipe: the whole page.
    """

    label: str
    setting: str
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """A validated sweep.

    Attributes:
        name: of the sweep.
        page: as written.
        points: in the order in which they run.
    """

    name: str
    page: SweepSection
    points: tuple[Point, ...]

    @property
    def groups(self) -> dict[str, list[str]]:
        """Setting -> the labels of its runs."""
        groups: dict[str, list[str]] = {}
        for point in self.points:
            groups.setdefault(point.setting, []).append(point.label)
        return groups


def load_sweep(path: str | Path, overrides: Mapping[str, Any] | Iterable[str] = ()) -> Sweep:
    """Read a sweep, and build and validate the recipe of every point.

    Args:
        path: the sweep's YAML file.
        overrides: of every point next to its `set`; texts `data.root=FOLDER`, or a mapping.

    Raises:
        RecipeError: one sentence a line for each thing that is wrong, with its point.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError(f"no sweep '{path}'; give a YAML file")
    page = validate(SweepSection, read_page(file))
    sibling = file.parent / page.recipe
    base = str(sibling) if sibling.is_file() else page.recipe
    given = as_overrides(overrides)
    points, wrong = [], []
    for seed in page.seeds or (None,):  # outermost: what is cut short has whole seeds
        for setting, setting_of in _settings(page):
            label = setting if seed is None else ",".join(filter(None, (setting, f"seed={seed}")))
            every = _of_seed({**page.set, **given, **setting_of}, seed)
            try:
                recipe = load_recipe(base, {**every, "name": label})
                _can_be_scored(page, recipe)
            except RecipeError as error:
                wrong += [f"{file}: point '{label}': {line}" for line in str(error).splitlines()]
                continue
            points.append(Point(label, setting or "all", recipe))
    if wrong:
        raise RecipeError("\n".join(dict.fromkeys(wrong)))
    _check_labels(file, [point.label for point in points])
    return Sweep(page.name or file.stem, page, tuple(points))


def _settings(page: SweepSection) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every point's name, seeds left out, and its overrides."""
    if page.points:
        yield from ((_word(point.label), dict(point.set)) for point in page.points)
        return
    names = _short_names(list(page.grid))
    for values in itertools.product(*page.grid.values()):
        overrides = dict(zip(page.grid, values, strict=True))
        words = (f"{names[key]}={_short_word(value)}" for key, value in overrides.items())
        yield ",".join(words), overrides


def _of_seed(overrides: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """Give a point its seed; in a text `{seed}` stands for it.

    >>> _of_seed({"model.connector.weights": "runs/stage1/seed={seed}"}, 3)
    {'model.connector.weights': 'runs/stage1/seed=3', 'seed': 3}
    """
    if seed is None:
        return dict(overrides)
    put = {
        key: value.replace("{seed}", str(seed)) if isinstance(value, str) else value
        for key, value in overrides.items()
    }
    return {**put, "seed": seed}


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each dotted key, or the whole key where two end alike.

    >>> _short_names(["tuner.rank", "data.mixture.total"])
    {'tuner.rank': 'rank', 'data.mixture.total': 'total'}
    """
    short = {key: key.rpartition(".")[2] for key in keys}
    return {
        key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()
    }


def _word(value: Any) -> str:
    """Write a value so that it can stand in a file's name.

    >>> _word(-0.5), _word("a/b c"), _word(["q_proj", "v_proj"])
    ('-0.5', 'a-b-c', 'q_proj-v_proj')
    """
    if isinstance(value, int | float):
        return json.dumps(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:60]


_LONGEST_WORD = 24


def _short_word(value: Any) -> str:
    """Write a value of a grid as `_word`, a long one by its start and a digest.

    >>> _short_word(["q_proj", "k_proj", "v_proj", "o_proj"])
    'q_proj-k_proj-v_proj-b29d'
    """
    word = _word(value)
    if len(word) <= _LONGEST_WORD:
        return word
    start = word[:_LONGEST_WORD].rpartition("-")[0] or word[:_LONGEST_WORD]
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{start}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"


def _can_be_scored(page: SweepSection, recipe: Recipe) -> None:
    if page.evaluate and not (page.sources or recipe.data.evaluate):
        raise RecipeError(
            "data.evaluate names no source to score on; name one there or in the sweep's sources, "
            "or set the sweep's evaluate to false"
        )
    limit = recipe.training.save_total_limit
    if page.checkpoints and limit is not None:
        raise RecipeError(
            f"training.save_total_limit keeps {limit} checkpoints, and the sweep is to score all "
            "of them; set it to null"
        )
    strategy = (recipe.training.model_extra or {}).get("save_strategy", "steps")
    if page.checkpoints and strategy != "steps":
        raise RecipeError(
            f"training.save_strategy: {strategy} writes no checkpoints by training.save_steps, "
            "which the sweep is to score; leave it out"
        )
    if page.checkpoints and recipe.tuner.type == "full":
        raise RecipeError(
            "tuner.type: full leaves checkpoints without a model, which cannot be scored; take "
            "another tuner, or set the sweep's checkpoints to false"
        )


def _check_labels(file: Path, labels: Sequence[str]) -> None:
    for label in labels:
        if not label or labels.count(label) > 1:
            raise RecipeError(
                f"{file}: {labels.count(label)} points are called '{label}'; give points with "
                "labels of their own"
            )


def run_sweep(sweep: Sweep, out: str | Path, progress: Progress | None = None) -> RunsTable:
    """Train and score every point that is not done yet, then lay all of them side by side.

    Args:
        sweep: from `load_sweep`.
        out: where the points' run directories and the report go.
        progress: told of every stage: (stage, done, total, note).

    Raises:
        RunError: a point's directory holds a run of another recipe.
        Stopped: Ctrl-C or SIGTERM; the same sweep goes on where it stopped.
        DataError, ModelError, RecipeError: as a point's training and scoring.
    """
    from varifocal.reports.runs_table import tabulate_runs

    out = Path(out)
    progress = progress or silent
    claim_folder(out, known={*(point.label for point in sweep.points), *REPORT_FILES})
    for point in sweep.points:
        check_same_point(point, RunDirectory(out / point.label))
    for number, point in enumerate(sweep.points):
        progress("sweep", number, len(sweep.points), point.label)
        run = RunDirectory(out / point.label)
        if not (run.root / DONE).is_file():
            run = RunDirectory.create(run.root, resume=True)
            with run.lock():
                _do(sweep.page, point, run, progress)
            gc.collect()  # one point's model has to go before the next one comes
    progress("sweep", len(sweep.points), len(sweep.points))
    report = tabulate_runs([out / point.label for point in sweep.points], sweep.groups)
    report.write(out)
    return report


def _do(page: SweepSection, point: Point, run: RunDirectory, progress: Progress) -> None:
    """Train a point, or what is left of it, score it, and say that it is done."""
    from varifocal.training.train import run_training

    try:
        run_training(point.recipe, run.root, resume=run.recipe.exists(), progress=progress)
    except Stopped as stop:
        raise Stopped(
            f"stopped in point '{point.label}'; what is done is saved. Go on with the same command"
        ) from stop
    if page.evaluate:
        steps = run.steps() if page.checkpoints else []
        for step in filter(_planned(point.recipe, steps), steps[:-1]):
            _score(page, run, progress, step)
            gc.collect()
        _score(page, run, progress)
        if steps:  # the last one is written at the end, which is scored already
            _same_scores(run, steps[-1])
    write_json(run.root / DONE, {"label": point.label, "setting": point.setting})


def _planned(recipe: Recipe, steps: Sequence[int]) -> Callable[[int], bool]:
    """Tell whether the recipe asked for a step's checkpoint; an interruption writes one, too."""
    every = recipe.training.save_steps
    every = every if every >= 1 else math.ceil(every * max(steps, default=1))  # a share of the run
    return lambda step: step % every == 0


def _score(
    page: SweepSection, run: RunDirectory, progress: Progress, step: int | None = None
) -> None:
    """Score a run's end, or one of its checkpoints."""
    from varifocal.assemble import open_run
    from varifocal.evaluation.sources import about_run, evaluate_recipe

    recipe, parts = open_run(run.root, checkpoint=step)
    sources = None if page.sources is None else [_here(source) for source in page.sources]
    place = run.evaluations_at(step)
    about = about_run(run.root, recipe, parts, checkpoint=step)
    for _ in evaluate_recipe(
        recipe, parts, place, about, sources=sources, blind=None, progress=progress
    ):
        pass  # each score is written as it comes


def _same_scores(run: RunDirectory, step: int) -> None:
    """Put the scores of a run's end down as those of its last checkpoint, too."""
    place = run.evaluations_at(step)
    for file in run.evaluations.glob("[!.]*.json*"):
        with atomic_file(place / file.name) as staging:
            shutil.copyfile(file, staging)


def _here(source: SourceSection) -> SourceSection:
    """Let a source's relative paths start at the current directory."""
    places = {
        key: os.path.abspath(Path(value).expanduser())
        for key in ("path", "image_folder")
        if (value := getattr(source, key, None)) is not None
    }
    return source.model_copy(update=places)


def check_same_point(point: Point, run: RunDirectory) -> None:
    """Refuse to go on with, or to report, a run of another recipe.

    Args:
        point: what is to stand there.
        run: where; a directory without a recipe is free.

    Raises:
        RunError: the run's recipe differs; the text names the first key that does.
    """
    if not run.recipe.is_file():
        return
    before = _plain(load_recipe(run.recipe, check_paths=False))
    now = _plain(point.recipe)
    for key in dict.fromkeys((*now, *before)):
        if before.get(key) != now.get(key):
            raise RunError(
                f"{run.root} holds a run with {key}: {before.get(key)}, and the sweep now says "
                f"{now.get(key)}; give back the former sweep, or choose another --out"
            )


def _plain(recipe: Recipe) -> Mapping[str, Any]:
    return flat(recipe.model_dump(mode="json", exclude={"provenance"}))
