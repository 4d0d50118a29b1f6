"""The suites a recipe names, scored on a run: one report per source and method."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from varifocal.assemble import Assembly
from varifocal.data.example import Example
from varifocal.data.loading import check_images, load_source
from varifocal.data.metric import Gold, choose_metric, gold_answers
from varifocal.data.readers.images import absent_pictures_allowed
from varifocal.data.reading import Examples, OnBadRecord, gather
from varifocal.errors import AnswerError, DataError, RecipeError
from varifocal.evaluation.benchmark import Benchmark, Item
from varifocal.evaluation.evaluated_model import Asker, EncodedAsker
from varifocal.evaluation.open_answers import benchmark_of, items_of, with_own_ids
from varifocal.evaluation.runner import About, Result, Tell, Way, run
from varifocal.evaluation.scienceqa import Method, Report, evaluate
from varifocal.locking import alone
from varifocal.recipe import Recipe, SourceSection

ScoreBy = Literal["options", "generate", "both"]

_METHODS: dict[ScoreBy, tuple[Method, ...]] = {
    "options": ("likelihood",),
    "generate": ("generate",),
    "both": ("likelihood", "generate"),
}


@dataclass(frozen=True)
class Scored:
    """A suite's result.

    Attributes:
        report: its scores and predictions: a `Report` of multiple-choice questions, a `Result` of
            questions that are answered in words.
        file: where the scores stand.
        skipped: one sentence for each record that was left out.
    """

    report: Report | Result
    file: Path
    skipped: Sequence[str]


def score_sources(
    recipe: Recipe,
    parts: Assembly,
    directory: Path,
    *,
    sources: Sequence[SourceSection] | None = None,
    score: ScoreBy | None = None,
    blind: bool | None = False,
    progress: Callable[[str, int, int], None] | None = None,
    on_bad_record: OnBadRecord | None = None,
) -> Iterator[Scored]:
    """Score a model on sources, and write each report as soon as it is there.

    Multiple-choice questions are scored by ScienceQA's protocol, others by their source's `metric`.

    Args:
        recipe: its `evaluation` section says how; its `data.evaluate`, on what.
        parts: the model with its encoder and its pictures' way in.
        directory: the run's `eval`.
        sources: other sources than the recipe's.
        score: another method than the recipe's.
        blind: leave the pictures out of the prompts; None does where the model has no eyes.
        progress: called with (suite, questions done, questions in all).
        on_bad_record: another rule than the recipe's for records that cannot be asked.

    Raises:
        RecipeError: there is no source, or two would write the same files.
        DataError: a source cannot be read, its metric does not fit its questions, or it has
            pictures and the model no eyes.
        RunError: another process scores the same suite, or the directory cannot be written.
    """
    chosen = recipe.data.evaluate if sources is None else sources
    if not chosen:
        raise RecipeError("data.evaluate names no source; there is nothing to score on")
    _check_names(chosen)
    on_bad_record = on_bad_record or recipe.data.on_bad_record
    for source in chosen:
        examples, is_blind = _questions(source, parts, blind, on_bad_record)
        asked = "likelihood" if score == "options" else source.metric
        metric = choose_metric(asked, Gold.of(examples), source.place)
        suite = suite_name(source, "likelihood")
        if metric != "likelihood":
            way = Way(blind=is_blind, batch_size=recipe.evaluation.batch_size)
            benchmark = benchmark_of(metric, suite, source.place, recipe.evaluation.max_new_tokens)
            yield _score_open(recipe, parts, directory, benchmark, examples, way, progress)
            continue
        for method in _METHODS[score or recipe.evaluation.score]:
            suite = suite_name(source, method, blind=is_blind)
            yield _score_choices(
                recipe, parts, directory, suite, examples, method, is_blind, progress
            )


def _questions(
    source: SourceSection, parts: Assembly, blind: bool | None, on_bad_record: OnBadRecord
) -> tuple[Examples, bool]:
    """Read a source's questions; and whether they are asked without their pictures.

    Then no picture is looked for, and a missing one is nothing bad. Otherwise each is decoded.
    """
    needs_none = blind is True or (blind is None and parts.load_images is None)
    with absent_pictures_allowed(needs_none):
        found = load_source(source, on_bad_record=on_bad_record)
    is_blind = _leaves_pictures_out(source, found, parts, blind)
    answered = gather(found, _with_answer, on_bad_record)
    examples = Examples(answered, [*found.skipped, *answered.skipped])
    if not is_blind:
        examples = check_images(examples, on_bad_record)
    if not examples:
        first = f"; {examples.skipped[0]}" if examples.skipped else ""
        raise DataError(
            f"'{source.place}': all {len(examples.skipped):,} records are left out{first}"
        )
    return examples, is_blind


def _with_answer(example: Example) -> Example:
    if not gold_answers(example):
        raise AnswerError(f"{example.name}: no gold answer to compare with")
    return example


def _score_choices(
    recipe: Recipe,
    parts: Assembly,
    directory: Path,
    suite: str,
    examples: Examples,
    method: Method,
    is_blind: bool,
    progress: Callable[[str, int, int], None] | None,
) -> Scored:
    """Score multiple-choice questions."""
    with alone(directory, suite):  # which also shows at once whether it can be written
        report = evaluate(
            parts.model,
            parts.encoder,
            with_own_ids(examples),
            parts.load_images,
            method=method,
            blind=is_blind,
            token_budget=recipe.evaluation.batch_size * recipe.data.max_length,
            max_new_tokens=recipe.evaluation.max_new_tokens,
            suite=suite,
            progress=partial(progress, suite) if progress else None,
            left_out=examples.skipped,
        )
        scores, _ = report.write(directory)
    return Scored(report, scores, examples.skipped)


def _score_open(
    recipe: Recipe,
    parts: Assembly,
    directory: Path,
    benchmark: Benchmark,
    examples: Examples,
    way: Way,
    progress: Callable[[str, int, int], None] | None,
) -> Scored:
    """Score questions that are answered in words."""

    def tell(stage: str, done: int, total: int, note: str = "") -> None:
        if progress is not None:
            progress(stage, done, total)

    about = About(model=recipe.name or "", seed=recipe.seed, dtype=recipe.model.dtype)
    result = run(
        benchmark,
        items_of(examples),
        EncodedAsker(parts),
        directory,
        way=way,
        about=about,
        progress=tell,
        left_out=examples.skipped,
    )
    return Scored(result, result.file, examples.skipped)


def _leaves_pictures_out(
    source: SourceSection, examples: Sequence[Example], parts: Assembly, blind: bool | None
) -> bool:
    """Whether a source is asked without its pictures; a model without eyes cannot be shown them."""
    shown = parts.load_images is None and any(example.images for example in examples)
    if shown and blind is False:
        raise DataError(
            f"'{source.place}' has pictures, but the model has no vision tower; leave the pictures "
            "out with --blind"
        )
    return shown if blind is None else blind


def score_benchmarks(
    asked: Sequence[tuple[Benchmark, Sequence[Item]]],
    asker: Asker,
    directory: Path,
    way: Way,
    about: About,
    score: ScoreBy | None = None,
    progress: Tell | None = None,
) -> Iterator[Result]:
    """Score a model on benchmarks, and write each one's scores as soon as they are there.

    Args:
        asked: rows of the table with their items.
        asker: the model.
        directory: where the files go.
        way: how they are asked.
        about: who is asked.
        score: another method than the rows' own; see `running.Way`.
        progress: told of every batch.

    Raises:
        DataError, RunError: as `running.run`.
    """
    for benchmark, items in asked:
        for method in (None,) if score is None else _METHODS[score]:
            chosen = replace(way, method=method)
            yield run(
                benchmark, items, asker, directory, way=chosen, about=about, progress=progress
            )


def can_be_scored(recipe: Recipe) -> bool:
    """Tell whether `data.evaluate` names sources, each with a name of its own."""
    try:
        _check_names(recipe.data.evaluate)
    except RecipeError:
        return False
    return bool(recipe.data.evaluate)


def _check_names(sources: Sequence[SourceSection]) -> None:
    """Refuse two sources of one name: the second's scores would take the place of the first's."""
    first: dict[str, str] = {}
    for source in sources:
        name = suite_name(source, "likelihood")
        if name in first:
            raise RecipeError(
                f"data.evaluate: '{first[name]}' and '{source.place}' would both be scored as "
                f"'{name}'; give one of them another name"
            )
        first[name] = source.place


def suite_name(source: SourceSection, method: Method, *, blind: bool = False) -> str:
    """Name the files of a suite.

    >>> source = SourceSection(path="data/sciencebook", split="test")
    >>> suite_name(source, "likelihood"), suite_name(source, "generate", blind=True)
    ('sciencebook-test', 'sciencebook-test-generate-blind')
    >>> suite_name(SourceSection(path="nlvr/test.jsonl", name="true or false"), "likelihood")
    'true-or-false'
    """
    words = [re.sub(r"[^\w.+-]+", "-", source.name or Path(source.place).stem)]
    if source.split is not None:
        words.append(source.split)
    if method == "generate":
        words.append(method)
    if blind:
        words.append("blind")
    return "-".join(words)
