"""What the frontier study measures of a model: new questions, and what is left of its language."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from varifocal.assemble import Assembly, assemble
from varifocal.data.loading import load_source
from varifocal.evaluation.benchmarks.scienceqa import choice_benchmark
from varifocal.evaluation.evaluated_model import EncodedAsker, without_images
from varifocal.evaluation.generation import evaluation_mode
from varifocal.evaluation.open_answers import items_of
from varifocal.evaluation.readings import TokenReader, after_images, rate_texts
from varifocal.evaluation.retention_data import Material, gather_material
from varifocal.evaluation.runner import About, AskOptions
from varifocal.evaluation.runner import run as run_benchmark
from varifocal.models.decoding import stop_ids
from varifocal.models.likelihood import EncodedQuestion, Rating
from varifocal.recipe import Recipe, SourceSection, load_recipe


@dataclass(frozen=True)
class Language:
    """What is read to see what was lost, and what the base says to it.

    Attributes:
        material: paragraphs, instructions and described images.
        written: the base's answers to the instructions.
        described: its answers to the descriptions.
        figures: of the base itself.
    """

    material: Material
    written: list[EncodedQuestion]
    described: list[EncodedQuestion]
    figures: dict[str, Any]

    def of(self, parts: Assembly) -> dict[str, Any]:
        """Read what a model with eyes makes of it."""
        return _read(parts, self, after_images(parts.encoder, self.material.scenes, self.described))


def language_of_base(recipe: Recipe, data: Path | None, texts: int, folder: Path) -> Language:
    """Let the language model alone read and write, before anything is trained.

    Args:
        recipe: of an arm.
        data: with `alpaca`, or None for what comes with Varifocal.
        texts: paragraphs, instructions and described images, of each so many.
        folder: for its answers to the new questions.
    """
    alone = recipe.model.model_copy(update={"vision_tower": None, "connector": None})
    cut = recipe.data.model_copy(update={"overflow": "truncate_prompt"})
    tuner = load_recipe(recipe, ["tuner={type: none}"]).tuner
    base = assemble(recipe.model_copy(update={"model": alone, "data": cut, "tuner": tuner}))
    material = gather_material(recipe, base.encoder, data, None, texts)
    reader = TokenReader(base, base.encoder, folder, About())
    written = reader.write("start-writes", material.instructions)
    about = [without_images(scene) for scene in material.scenes]
    reader = replace(reader, encoder=base.encoder.for_prompts(None))
    described = reader.write("start-describes", about)
    found = Language(material, written, described, {})
    figures = {
        **asked_of(recipe.data.evaluate[0], base, folder, "start"),
        **_read(base, found, described),
        "sources": dict(material.sources),
    }
    return replace(found, figures=figures)


def asked_of(source: SourceSection, parts: Assembly, folder: Path, name: str) -> dict[str, Any]:
    """Ask the questions of a source, without their images where the model takes none.

    Args:
        source: whose questions have choices.
        parts: the model.
        folder: for the answers.
        name: of their files.
    """
    result = run_benchmark(
        choice_benchmark(f"sciencebook-{name}", "sciencebook", "likelihood", 64),
        items_of(list(load_source(source))),
        EncodedAsker(parts),
        folder,
        options=AskOptions(blind=parts.load_images is None, token_budget=4096),
    )
    return {
        "accuracy": {one.name: one.value for one in result.measures},
        "questions": {one.name: one.count for one in result.measures},
    }


def _read(parts: Assembly, language: Language, scenes: Sequence[EncodedQuestion]) -> dict[str, Any]:
    """Read prose, the base's answers, and its answers after an image."""
    ends = stop_ids(parts.model, parts.encoder.end_of_turn_id)
    with evaluation_mode(parts.model):
        texts = rate_texts(parts.model, language.material.texts)
        answers = rate_texts(parts.model, language.written, ends=ends)
        after = rate_texts(parts.model, scenes, parts.load_images, ends=ends)
    return {
        "prose_nats": _nats(texts),
        "after_image_nats": _nats(after),
        "answers_same": 100 * sum(one.greedy for one in answers) / len(answers),
    }


def _nats(ratings: Sequence[Rating]) -> float:
    return -sum(rating.score for rating in ratings) / sum(rating.tokens for rating in ratings)
