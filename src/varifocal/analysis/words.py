"""Which visual tokens of a run say which words: before its training, and after.

Each token's distribution over a vocabulary is the word alignment's own, softmax over the words of
`scale cos(token, embedding)`; the language model is not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from varifocal.analysis.of_run import Progress, Written, analysis_folder
from varifocal.analysis.words_sheet import MOST_LOCAL_TOKENS, Spoken, words_sheet
from varifocal.assemble import Assembly, assemble, open_run
from varifocal.data.described import load_captions
from varifocal.data.example import Image
from varifocal.data.formats import check_images, load_source
from varifocal.errors import RecipeError
from varifocal.models import GraftedForConditionalGeneration
from varifocal.models.saved_connector import load_connector
from varifocal.models.words import build_vocabulary, embed_words, token_log_probabilities
from varifocal.recipe import Recipe
from varifocal.tuners.plugin import evaluating
from varifocal.writing import write_json

NEAREST = 3
"""Words a token that are kept in the JSON; two are drawn."""


@dataclass(frozen=True)
class Vocabulary:
    """What tokens may say.

    Attributes:
        words: W of them.
        embeddings: [W, D], unit length.
        scale: factor on the cosine.
    """

    words: Sequence[str]
    embeddings: torch.Tensor
    scale: float


def words_of_run(
    root: str | Path,
    *,
    images: Sequence[Path] = (),
    words: Sequence[str] | None = None,
    num_pictures: int = 4,
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[list[Spoken], Written]:
    """Find the words nearest to each visual token, and write them down.

    Writes `words.json` and `words.png`: each picture beside the words of its tokens, by the
    connector that the training began with, and by the trained one.

    Args:
        root: the run directory.
        images: pictures to look at; by default some of data.evaluate, or of the descriptions.
        words: what tokens may say; by default the descriptions' words, as the alignment has them.
        num_pictures: how many, where `images` does not say.
        out: where to write; the run's `analysis` by default.
        progress: told of the two looks.

    Raises:
        RecipeError: the run has no connector of ours, or its tokens are too many to draw.
        DataError: there is no description to take words from, or a picture cannot be read.
        RunError, ModelError: the run cannot be opened.
    """
    recipe, parts = open_run(root)
    _check(recipe, parts, root)
    with analysis_folder(root, out) as place:
        vocabulary = _vocabulary(recipe, parts, words)
        shown = [Image(path=path) for path in images] or _some(recipe, num_pictures)
        told = progress or (lambda stage, done, total: None)
        start = _start(recipe)
        told("looks", 0, 2)
        before = nearest_words(start, shown, vocabulary)
        told("looks", 1, 2)
        after = nearest_words(parts, shown, vocabulary)
        told("looks", 2, 2)
        grid = _grid(parts)
        found = [
            Spoken(image.open(), grid, *pair)
            for image, *pair in zip(shown, before, after, strict=True)
        ]
        page = {
            "run": str(root),
            "scale": vocabulary.scale,
            "vocabulary": list(vocabulary.words),
            "grid": list(grid),
            "pictures": [
                {"picture": str(image.path or ""), "before": one.before, "after": one.after}
                for image, one in zip(shown, found, strict=True)
            ],
        }
        write_json(place / "words.json", page)
        words_sheet(found, place / "words.png")
        return found, Written([place / "words.json", place / "words.png"])


def _start(recipe: Recipe) -> Assembly:
    """The model as its training found it, its connector's given weights included."""
    start, section = assemble(recipe), recipe.model.connector
    if section is not None and section.weights is not None:
        load_connector(start.base, Path(section.weights))
    return start


@torch.no_grad()
def nearest_words(
    parts: Assembly, images: Sequence[Image], vocabulary: Vocabulary
) -> list[list[list[tuple[str, float]]]]:
    """Return picture -> token -> its nearest words, each with its probability, falling."""
    model: Any = parts.base
    assert parts.load_images is not None  # `_check` has refused models without eyes
    device = next(model.parameters()).device
    shown = {name: value.to(device) for name, value in parts.load_images(images).items()}
    with evaluating(model):
        tokens = model.encode_images(**shown)  # [N, V, D]
    embeddings, words = vocabulary.embeddings.to(device), vocabulary.words
    spoken = token_log_probabilities(tokens, embeddings, vocabulary.scale).exp()
    best = spoken.topk(min(NEAREST, len(words)), dim=-1)
    return [
        [
            [(words[int(word)], round(share, 4)) for word, share in zip(*token, strict=True)]
            for token in zip(of_words, of_shares, strict=True)
        ]
        for of_words, of_shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _check(recipe: Recipe, parts: Assembly, root: str | Path) -> None:
    """Refuse a run whose visual tokens are not a connector's of ours, or too many to draw."""
    if recipe.model.connector is None or not isinstance(
        parts.base, GraftedForConditionalGeneration
    ):
        raise RecipeError(
            f"{root} has no connector: model.vision_tower is null; analyze words looks at runs "
            "with a vision tower"
        )
    rows, columns = _grid(parts)
    if rows * columns > MOST_LOCAL_TOKENS:
        raise RecipeError(
            f"{root}: a picture has {rows} x {columns} local tokens, and a sheet can show "
            f"{MOST_LOCAL_TOKENS}; model.connector.num_tokens pools them"
        )


def _grid(parts: Assembly) -> tuple[int, int]:
    """Rows and columns of the tokens that stand for places; the others see the whole picture."""
    connector: Any = parts.base.connector
    grid = getattr(connector, "pooled", getattr(connector, "grid", None))
    return grid or (1, connector.tokens_per_image)


def _vocabulary(recipe: Recipe, parts: Assembly, words: Sequence[str] | None) -> Vocabulary:
    """The words that are asked for, or those of the run's descriptions."""
    section = recipe.model.connector
    assert section is not None  # `_check` has refused it
    tokenizer: Any = parts.encoder.tokenizer
    embedding: Any = parts.base.get_input_embeddings()
    given = (
        lambda word: tokenizer(word, add_special_tokens=False)["input_ids"],
        embedding.weight.detach(),
    )
    if words is not None:
        if not words:
            raise RecipeError("--words names no word; give some, as in --words red,green,blue")
        return Vocabulary(words, embed_words(words, *given), section.alignment_scale)
    found = build_vocabulary([text for _, text in load_captions(recipe.data)], *given)
    return Vocabulary(found.words, found.embeddings, section.alignment_scale)


def _some(recipe: Recipe, number: int) -> list[Image]:
    """Pictures spread evenly over those that the run is scored on, or that are described."""
    images = [
        image
        for source in recipe.data.evaluate
        for example in check_images(load_source(source), recipe.data.on_bad_record)
        for image in example.images[:1]
    ] or [image for image, _ in load_captions(recipe.data)]
    number = min(number, len(images))
    return [images[place * len(images) // number] for place in range(number)]
