"""Which visual tokens of a run say which words: before its training, and after.

Each token's distribution over a vocabulary is the word alignment's own, softmax over the words of
`scale cos(token, embedding)`; the language model is not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from varifocal.analysis.run_analysis import WrittenFiles, analysis_folder
from varifocal.assemble import Assembly, assemble, open_run
from varifocal.data.example import Image
from varifocal.data.loading import check_images, load_captions, load_source
from varifocal.errors import RecipeError
from varifocal.models import GraftedForConditionalGeneration
from varifocal.models.saved import load_connector
from varifocal.models.words import build_vocabulary, embed_words, token_log_probabilities
from varifocal.plotting import INK, new_figure, save_figure
from varifocal.progress import Progress, silent
from varifocal.recipe import AlignmentSection, Recipe
from varifocal.recipe.data import AlignmentText
from varifocal.tuners.plugin import evaluating
from varifocal.writing import write_json

if TYPE_CHECKING:
    import PIL.Image
    from matplotlib.axes import Axes

MOST_LOCAL_TOKENS = 64
"""More cells than this hold no readable word."""

WIDTH, ROW, HEAD = 11.0, 2.9, 0.5  # inches
LARGE, SMALL = 8.5, 6.0  # points
LONG = 10
"""Letters of a word that fit a cell of four columns."""

Token = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Spoken:
    """What the tokens of one image say.

    Attributes:
        image: the image.
        grid: rows and columns of its local tokens, which come first.
        before: token -> its nearest words with their probabilities, by the untrained connector.
        after: the same by the trained one.
    """

    image: PIL.Image.Image
    grid: tuple[int, int]
    before: Sequence[Token]
    after: Sequence[Token]


def words_sheet(spoken: Sequence[Spoken], path: Path) -> None:
    """Draw each image with its tokens' words in their places, before and after.

    A cell shows the token's likeliest word, smaller the second; the more probable the first, the
    bluer the cell. Tokens that see the whole image stand in a row below.

    Args:
        spoken: one an image.
        path: the PNG to write.

    Raises:
        ValueError: there is no image.
    """
    if not spoken:
        raise ValueError("a sheet of words needs at least one image")
    height = ROW * len(spoken) + HEAD
    figure = new_figure(WIDTH, height)
    for row, item in enumerate(spoken):
        bottom = height - HEAD - (row + 1) * ROW
        boxes = ((0.1, 2.5), (2.8, 4.0), (6.95, 4.0))  # left and width, inches
        axes = [
            figure.add_axes(
                (left / WIDTH, (bottom + 0.1) / height, wide / WIDTH, (ROW - 0.2) / height)
            )
            for left, wide in boxes
        ]
        axes[0].imshow(item.image.convert("RGB"), interpolation="antialiased")
        axes[0].set_axis_off()
        _cells(axes[1], item.grid, item.before)
        _cells(axes[2], item.grid, item.after)
    for x, text in ((1.35, "image"), (4.8, "before training"), (8.95, "after training")):
        figure.text(
            x / WIDTH,
            1 - 0.5 * HEAD / height,
            text,
            ha="center",
            va="center",
            color=INK,
            fontsize=12,
        )
    save_figure(figure, path)


def _cells(axes: Axes, grid: tuple[int, int], tokens: Sequence[Token]) -> None:
    """Fill a grid of cells, and a row below it with the tokens that have no place."""
    rows, columns = grid
    others = tokens[rows * columns :]
    gap = 0.25 if others else 0.0
    axes.set(xlim=(0, columns), ylim=(rows + gap + bool(others), 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    size = min(1.0, 4 / max(columns, len(others), 1))
    for number, token in enumerate(tokens[: rows * columns]):
        _cell(axes, number % columns, number // columns, 1.0, token, size)
    for number, token in enumerate(others):
        wide = columns / len(others)
        _cell(axes, number * wide, rows + gap, wide, token, size)


def _cell(axes: Axes, x: float, y: float, wide: float, token: Token, size: float) -> None:
    """Draw one token: its first word on a ground as dark as it is probable."""
    from matplotlib.patches import Rectangle

    (word, share), *rest = token
    blue = tuple(1 - share * (1 - part) * 0.75 for part in (0.0, 0.447, 0.698))  # #0072b2
    axes.add_patch(Rectangle((x, y), wide, 1, facecolor=blue, edgecolor="white", linewidth=1.5))
    middle = x + wide / 2
    lines = [(word, 0.36, LARGE, "bold"), (f"{share:.0%}", 0.62, SMALL, "normal")]
    if rest:
        lines.append((f"{rest[0][0]} {rest[0][1]:.0%}", 0.84, SMALL, "normal"))
    for text, down, points, weight in lines:
        fit = min(1.0, LONG / len(text)) if points == LARGE else 1.0
        axes.text(
            middle, y + down, text, ha="center", va="center", color=INK, weight=weight,
            fontsize=points * size * fit, parse_math=False,
        )  # fmt: skip


NEAREST = 3
"""Words a token that are kept in the JSON; two are drawn."""


@dataclass(frozen=True)
class ScaledVocabulary:
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
    num_images: int = 4,
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[list[Spoken], WrittenFiles]:
    """Find the words nearest to each visual token, and write them down.

    Writes `words.json` and `words.png`: each image next to the words of its tokens, by the
    connector that the training began with, and by the trained one.

    Args:
        root: the run directory.
        images: images to look at; by default some of data.evaluate, or of the descriptions.
        words: what tokens may say; by default the descriptions' words, as the alignment has them.
        num_images: how many, where `images` does not say.
        out: where to write; the run's `analysis` by default.
        progress: told of the two looks.

    Raises:
        RecipeError: the run has no connector of ours, or its tokens are too many to draw.
        DataError: there is no description to take words from, or an image cannot be read.
        RunError, ModelError: the run cannot be opened.
    """
    recipe, parts = open_run(root)
    _check(recipe, parts, root)
    with analysis_folder(root, out) as place:
        vocabulary = _vocabulary(recipe, parts, words)
        shown = [Image(path=path) for path in images] or _some(recipe, num_images)
        report = progress or silent
        start = _start(recipe)
        report("looks", 0, 2)
        before = nearest_words(start, shown, vocabulary)
        report("looks", 1, 2)
        after = nearest_words(parts, shown, vocabulary)
        report("looks", 2, 2)
        grid = _grid(parts)
        spoken = [
            Spoken(image.open(), grid, *pair)
            for image, *pair in zip(shown, before, after, strict=True)
        ]
        page = {
            "run": str(root),
            "scale": vocabulary.scale,
            "vocabulary": list(vocabulary.words),
            "grid": list(grid),
            "pictures": [
                {"picture": str(image.path or ""), "before": item.before, "after": item.after}
                for image, item in zip(shown, spoken, strict=True)
            ],
        }
        write_json(place / "words.json", page)
        words_sheet(spoken, place / "words.png")
        return spoken, WrittenFiles([place / "words.json", place / "words.png"])


def _start(recipe: Recipe) -> Assembly:
    """The model as its training found it, its connector's given weights included."""
    start, section = assemble(recipe), recipe.model.connector
    if section is not None and section.weights is not None:
        load_connector(start.base, Path(section.weights))
    return start


@torch.no_grad()
def nearest_words(
    parts: Assembly, images: Sequence[Image], vocabulary: ScaledVocabulary
) -> list[list[list[tuple[str, float]]]]:
    """Return image -> token -> its nearest words, each with its probability, falling."""
    model: Any = parts.base
    assert parts.load_images is not None  # `_check` has refused models without a vision tower
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
            f"{root}: an image has {rows} x {columns} local tokens, and a sheet can show "
            f"{MOST_LOCAL_TOKENS}; model.connector.num_tokens pools them"
        )


def _grid(parts: Assembly) -> tuple[int, int]:
    """Rows and columns of the tokens that stand for places; the others see the whole image."""
    connector: Any = parts.base.connector
    grid = getattr(connector, "pooled", getattr(connector, "grid", None))
    return grid or (1, connector.tokens_per_image)


def _vocabulary(recipe: Recipe, parts: Assembly, words: Sequence[str] | None) -> ScaledVocabulary:
    """The words that are asked for, or those of the run's descriptions."""
    scale = (recipe.alignment or AlignmentSection()).scale
    tokenizer: Any = parts.encoder.tokenizer
    embedding: Any = parts.base.get_input_embeddings()
    given = (
        lambda word: tokenizer(word, add_special_tokens=False)["input_ids"],
        embedding.weight.detach(),
    )
    if words is not None:
        if not words:
            raise RecipeError("--words names no word; give some, as in --words red,green,blue")
        return ScaledVocabulary(words, embed_words(words, *given), scale)
    vocabulary = build_vocabulary(
        [text for _, text in load_captions(recipe.data, _text_of(recipe))], *given
    )
    return ScaledVocabulary(vocabulary.words, vocabulary.embeddings, scale)


def _text_of(recipe: Recipe) -> AlignmentText:
    return (recipe.alignment or AlignmentSection()).text


def _some(recipe: Recipe, number: int) -> list[Image]:
    """Images spread evenly over those that the run is scored on, or that are described."""
    images = [
        image
        for source in recipe.data.evaluate
        for example in check_images(load_source(source), recipe.data.on_bad_record)
        for image in example.images[:1]
    ] or [image for image, _ in load_captions(recipe.data, _text_of(recipe))]
    number = min(number, len(images))
    return [images[place * len(images) // number] for place in range(number)]
