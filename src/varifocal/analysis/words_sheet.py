"""Pictures beside the words that their visual tokens say, as one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from varifocal.analysis.plots import INK, new_figure, save_figure

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
    """What the tokens of one picture say.

    Attributes:
        picture: the picture.
        grid: rows and columns of its local tokens, which come first.
        before: token -> its nearest words with their probabilities, by the untrained connector.
        after: the same by the trained one.
    """

    picture: PIL.Image.Image
    grid: tuple[int, int]
    before: Sequence[Token]
    after: Sequence[Token]


def words_sheet(spoken: Sequence[Spoken], path: Path) -> None:
    """Draw each picture with its tokens' words in their places, before and after.

    A cell shows the token's likeliest word, smaller the second; the more probable the first, the
    bluer the cell. Tokens that see the whole picture stand in a row below.

    Args:
        spoken: one a picture.
        path: the PNG to write.

    Raises:
        ValueError: there is no picture.
    """
    if not spoken:
        raise ValueError("a sheet of words needs at least one picture")
    height = ROW * len(spoken) + HEAD
    figure = new_figure(WIDTH, height)
    for row, one in enumerate(spoken):
        bottom = height - HEAD - (row + 1) * ROW
        boxes = ((0.1, 2.5), (2.8, 4.0), (6.95, 4.0))  # left and width, inches
        axes = [
            figure.add_axes(
                (left / WIDTH, (bottom + 0.1) / height, wide / WIDTH, (ROW - 0.2) / height)
            )
            for left, wide in boxes
        ]
        axes[0].imshow(one.picture.convert("RGB"), interpolation="antialiased")
        axes[0].set_axis_off()
        _cells(axes[1], one.grid, one.before)
        _cells(axes[2], one.grid, one.after)
    for x, text in ((1.35, "picture"), (4.8, "before training"), (8.95, "after training")):
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
