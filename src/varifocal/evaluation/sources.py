"""A recipe's own sources as benchmarks: what they ask, and how it is scored."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Literal

from varifocal.assemble import Assembly, weights_fingerprint
from varifocal.data.example import Example
from varifocal.data.json_files import Examples, OnBadRecord, gather
from varifocal.data.loading import load_source
from varifocal.data.metric import Gold, choose_metric, gold_answers
from varifocal.data.readers.images import missing_images_allowed
from varifocal.errors import AnswerError, DataError, RecipeError, VarifocalError
from varifocal.evaluation.benchmark import Benchmark, Item, Method
from varifocal.evaluation.benchmarks.scienceqa import choice_benchmark
from varifocal.evaluation.evaluated_model import EncodedAsker
from varifocal.evaluation.open_answers import benchmark_of, items_of
from varifocal.evaluation.runner import About, AskOptions, Result, run
from varifocal.models.families.base import family_of
from varifocal.models.sources import find_checkpoint
from varifocal.progress import Progress
from varifocal.recipe import Recipe, SourceSection

ScoreBy = Literal["options", "generate", "both"]

METHODS: dict[ScoreBy, tuple[Method, ...]] = {
    "options": ("likelihood",),
    "generate": ("generate",),
    "both": ("likelihood", "generate"),
}


def about_run(
    root: str | Path,
    recipe: Recipe,
    parts: Assembly,
    *,
    checkpoint: int | None = None,
    command: str = "",
    strength: float = 1.0,
) -> About:
    """Say who is asked, so that a stopped call goes on and a trained run is asked anew.

    Args:
        root: the run directory.
        recipe: the run's.
        parts: what `open_run` returned.
        checkpoint: the step that it was opened as of; None for the newest.
        command: what repeats the call.
        strength: factor on what the adapter changes, as it was opened with.
    """
    fingerprint = weights_fingerprint(root, parts, None, checkpoint)
    model = str(root), None, fingerprint, recipe.seed, recipe.model.dtype
    return About(*model, command, strength)


def evaluate_recipe(
    recipe: Recipe,
    parts: Assembly,
    directory: Path,
    about: About,
    *,
    sources: Sequence[SourceSection] | None = None,
    score: ScoreBy | None = None,
    blind: bool | None = False,
    progress: Progress | None = None,
    on_bad_record: OnBadRecord | None = None,
) -> Iterator[Result]:
    """Score a model on a recipe's sources, and write each one's scores as soon as they are there.

    Multiple-choice questions are scored by ScienceQA's protocol, others by their source's `metric`.

    Args:
        recipe: its `evaluation` section says how; its `data.evaluate`, on what.
        parts: the model with its encoder and its image loader.
        directory: the run's `eval`.
        about: who is asked; see `about_run`.
        sources: other sources than the recipe's.
        score: another method than the recipe's.
        blind: leave the images out of the prompts; None does so where the model takes none.
        progress: called with stage, done and total.
        on_bad_record: another rule than the recipe's for records that cannot be asked.

    Raises:
        RecipeError: there is no source, or two would write the same files.
        DataError: a source cannot be read, its metric does not fit its questions, or it has
            images and the model takes none.
        RunError: another process scores the same source, or the directory cannot be written.
    """
    chosen = recipe.data.evaluate if sources is None else sources
    if not chosen:
        raise RecipeError("data.evaluate names no source; there is nothing to score on")
    _check_names(chosen)
    rule = on_bad_record or recipe.data.on_bad_record
    asker = EncodedAsker(parts)
    for source in chosen:
        examples, is_blind = _questions(source, parts, blind, rule)
        items, left_out = items_of(examples), examples.skipped
        for benchmark, token_budget in _benchmarks(recipe, source, examples, score):
            batch_size = recipe.evaluation.batch_size
            options = AskOptions(None, is_blind, None, None, batch_size, token_budget, rule)
            yield run(
                benchmark, items, asker, directory,
                options=options, about=about, progress=progress, left_out=left_out,
            )  # fmt: skip


def sample_questions(
    recipe: Recipe, parts: Assembly, number: int
) -> Iterator[tuple[Benchmark, list[Item], AskOptions]]:
    """Draw a few questions of each source of `data.evaluate` by the recipe's seed.

    A source is asked by the first of its methods, and blind where the model takes no images.

    Args:
        recipe: as `evaluate_recipe` takes it.
        parts: the model that will be asked.
        number: most questions of a source.

    Yields:
        What `runner.run` takes of each source.
    """
    _check_names(recipe.data.evaluate)
    rule = recipe.data.on_bad_record
    for source in recipe.data.evaluate:
        examples, is_blind = _questions(source, parts, None, rule)
        benchmark, token_budget = next(_benchmarks(recipe, source, examples, None))
        items = items_of(examples)
        chosen = Random(recipe.seed).sample(range(len(items)), min(number, len(items)))
        batch_size = recipe.evaluation.batch_size
        options = AskOptions(None, is_blind, None, None, batch_size, token_budget, rule)
        yield benchmark, [items[place] for place in sorted(chosen)], options


def _benchmarks(
    recipe: Recipe, source: SourceSection, examples: Sequence[Example], score: ScoreBy | None
) -> Iterator[tuple[Benchmark, int | None]]:
    """Yield how a source's questions are asked and scored, and the tokens of a forward pass."""
    most = recipe.evaluation.max_new_tokens
    asked = "likelihood" if score == "options" else source.metric
    metric = choose_metric(asked, Gold.of(examples), source.place)
    if metric != "likelihood":
        yield benchmark_of(metric, suite_name(source, "likelihood"), source.place, most), None
        return
    token_budget = recipe.evaluation.batch_size * recipe.data.max_length
    for method in METHODS[score or recipe.evaluation.score]:
        name = suite_name(source, method)
        yield choice_benchmark(name, source.place, method, most), token_budget


def _questions(
    source: SourceSection, parts: Assembly, blind: bool | None, on_bad_record: OnBadRecord
) -> tuple[Examples, bool]:
    """Read a source's questions; and whether they are asked without their images.

    Then no image is looked for, and a missing one is nothing bad.
    """
    needs_none = blind is True or (blind is None and parts.load_images is None)
    with missing_images_allowed(needs_none):
        source_examples = load_source(source, on_bad_record=on_bad_record)
    is_blind = _leaves_images_out(source, source_examples, parts, blind)
    answered = gather(source_examples, _with_answer, on_bad_record)
    examples = Examples(answered, [*source_examples.skipped, *answered.skipped])
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


def _leaves_images_out(
    source: SourceSection, examples: Sequence[Example], parts: Assembly, blind: bool | None
) -> bool:
    """Whether a source is asked without its images; a model that takes none cannot be shown any."""
    shown = parts.load_images is None and any(example.images for example in examples)
    if shown and blind is False:
        raise DataError(
            f"'{source.place}' has images, but the model has no vision tower; leave the images "
            "out with --blind"
        )
    return shown if blind is None else blind


def can_be_scored(recipe: Recipe) -> bool:
    """Tell whether `data.evaluate` names sources, each with a name of its own."""
    try:
        _check_names(recipe.data.evaluate)
    except RecipeError:
        return False
    return bool(recipe.data.evaluate)


def shows_images_to_none(recipe: Recipe) -> bool:
    """Tell whether questions of `data.evaluate` have images, and the model takes none.

    A source that cannot be read now says nothing.
    """
    if recipe.model.vision_tower is not None:
        return False
    try:
        if family_of(find_checkpoint(recipe.model.language_model).config) is not None:
            return False
        with missing_images_allowed():
            return any(
                example.images
                for source in recipe.data.evaluate
                for example in load_source(source, on_bad_record="skip")
            )
    except VarifocalError:
        return False


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


def suite_name(source: SourceSection, method: Method) -> str:
    """Name the files of a source's scores; `Way` adds that they are blind.

    >>> from varifocal.recipe import FileSection
    >>> source = FileSection(path="data/sciencebook", split="test")
    >>> suite_name(source, "likelihood"), suite_name(source, "generate")
    ('sciencebook-test', 'sciencebook-test-generate')
    >>> suite_name(FileSection(path="nlvr/test.jsonl", name="true or false"), "likelihood")
    'true-or-false'
    """
    words = [re.sub(r"[^\w.+-]+", "-", source.name or Path(source.place).stem)]
    if source.split is not None:
        words.append(source.split)
    if method == "generate":
        words.append(method)
    return "-".join(words)
