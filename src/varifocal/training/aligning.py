"""The word alignment as a stage of a run: on the recipe's captions, before the first step."""

from dataclasses import dataclass
from typing import Any

from varifocal.assemble import Assembly
from varifocal.data.described import load_captions
from varifocal.errors import RecipeError
from varifocal.models.connector import PlainMLP, embedding_scale
from varifocal.models.words import build_vocabulary
from varifocal.recipe import Recipe
from varifocal.training.alignment import align_connector
from varifocal.training.cost import Clock
from varifocal.training.progress import Progress


def aligns(recipe: Recipe) -> bool:
    """Whether the recipe fits the connector to words first."""
    return recipe.model.connector is not None and recipe.model.connector.alignment == "words"


@dataclass(frozen=True)
class Aligned:
    """What a word alignment came to.

    Attributes:
        loss: the mean of its last hundred steps.
        seconds: of its steps.
        num_pictures: that went through the connector, repeats included.
        num_words: of its vocabulary.
    """

    loss: float
    seconds: float
    num_pictures: int
    num_words: int


def align(recipe: Recipe, parts: Assembly, tell: Progress, clock: Clock) -> Aligned:
    """Fit the connector to the words of its pictures; the language model is not run.

    Raises:
        RecipeError: the tower is not frozen.
        DataError: there are no described pictures.
    """
    section = recipe.model.connector
    model: Any = parts.base
    if section is None or parts.features is None:
        raise RecipeError("connector.alignment needs a vision tower that is frozen before training")
    pairs = load_captions(recipe.data)
    with clock.stage("vision_features"):
        keys = parts.features.fill(
            [image for image, _ in pairs], lambda done, total: tell("see", done, total, "pictures")
        )
    lookup = parts.features.lookup
    tokenizer = parts.encoder.tokenizer
    vocabulary = build_vocabulary(
        [caption for _, caption in pairs],
        lambda word: tokenizer(word, add_special_tokens=False)["input_ids"],
        model.get_input_embeddings().weight.detach(),
    )
    with clock.stage("alignment"):
        losses = align_connector(
            model.connector,
            vocabulary,
            lambda chosen: lookup([keys[index] for index in chosen]),
            steps=section.alignment_steps,
            batch_size=section.alignment_batch_size,
            learning_rate=section.alignment_learning_rate,
            scale=section.alignment_scale,
            seed=recipe.seed,
            progress=lambda done, total, loss: tell("align", done, total, f"loss {loss:.3f}"),
        )
    if isinstance(model.connector, PlainMLP):  # a cosine leaves the tokens' size to chance
        shown = lookup(keys[: section.alignment_batch_size])
        model.connector.enter_at(embedding_scale(model.get_input_embeddings()), shown)
    return Aligned(
        loss=sum(losses[-100:]) / len(losses[-100:]),
        seconds=clock.seconds()["alignment"],
        num_pictures=section.alignment_steps * section.alignment_batch_size,
        num_words=len(vocabulary.embeddings),
    )
