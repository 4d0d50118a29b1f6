"""Answers next to the images they are about, as one image."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from varifocal.plotting import FAINT, INK, new_figure, save_figure

if TYPE_CHECKING:
    import PIL.Image
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG = "#2e7d43", "#b93a32"
GROUND = "#f6f7f9"

CARD_WIDTH, CARD_HEIGHT, TITLE_HEIGHT, GAP = 3.5, 4.9, 0.45, 0.1  # inches
IMAGE_HEIGHT, LINE_HEIGHT, MARGIN = 2.2, 0.185, 0.15  # inches
BAR, INDENT, OPTION_SPACE = 0.06, 0.2, 0.03  # inches
FONT_SIZE = 9.0  # points


@dataclass(frozen=True)
class SheetCard:
    """One answered question.

    Attributes:
        image: what the question is about, or None.
        question: its text.
        options: its options' texts; empty when it is open.
        answer: what the model answered; None when it could not be read as an option.
        gold: the right answer.
        correct: the verdict.
    """

    image: PIL.Image.Image | None
    question: str
    options: Sequence[str]
    answer: str | None
    gold: str
    correct: bool


def contact_sheet(
    cards: Sequence[SheetCard], path: Path, *, columns: int = 3, title: str = ""
) -> None:
    """Draw cards of image, question, options, answer and verdict, row by row.

    Args:
        cards: six make a sheet; any number is drawn.
        path: the PNG to write.
        columns: cards next to each other.
        title: what stands above them.

    Raises:
        ValueError: there are no cards.
    """
    if not cards:
        raise ValueError("a contact sheet needs at least one card")
    columns = min(columns, len(cards))
    rows = -(-len(cards) // columns)
    head = TITLE_HEIGHT if title else 0.0
    width, height = CARD_WIDTH * columns, CARD_HEIGHT * rows + head
    figure = new_figure(width, height)
    for index, card in enumerate(cards):
        row, column = divmod(index, columns)
        left, bottom = column * CARD_WIDTH, height - head - (row + 1) * CARD_HEIGHT
        axes = figure.add_axes(
            (
                (left + GAP) / width,
                (bottom + GAP) / height,
                (CARD_WIDTH - 2 * GAP) / width,
                (CARD_HEIGHT - 2 * GAP) / height,
            )
        )
        _draw_card(figure, axes, card)
    figure.text(
        0.5, 1 - 0.5 * head / height, title, ha="center", va="center", fontsize=13, color=INK,
        parse_math=False,
    )  # fmt: skip
    save_figure(figure, path)


@dataclass(frozen=True)
class _Line:
    """A line of a card: its text, how far it is set in (inches), its weight, space above it."""

    text: str
    indent: float = 0.0
    weight: str = "normal"
    space: float = 0.0


def _draw_card(figure: Figure, axes: Axes, card: SheetCard) -> None:
    """Fill one card, from the image down; the axes' units are inches from the upper left."""
    width, height = CARD_WIDTH - 2 * GAP, CARD_HEIGHT - 2 * GAP
    colour = RIGHT if card.correct else WRONG
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], facecolor=GROUND)
    axes.spines[:].set_color(FAINT)
    axes.spines[:].set_linewidth(0.6)
    axes.axhspan(0, BAR, color=colour, linewidth=0)
    y = MARGIN + BAR
    if card.image is not None:
        _draw_image(axes, card.image, y, width)
        y += IMAGE_HEIGHT + MARGIN
    foot = _verdict(card)
    room = int((height - 2 * MARGIN - y) / LINE_HEIGHT) - len(foot)
    for line in _body(figure, card, width - 2 * MARGIN, room):
        y += line.space
        _write(axes, line.text, MARGIN + line.indent, y + 0.5 * LINE_HEIGHT, weight=line.weight)
        y += LINE_HEIGHT
    y = height - MARGIN - len(foot) * LINE_HEIGHT
    for text in foot:
        cut = _wrap(text, width - 2 * MARGIN, _measure(figure, "bold"), 1)[0]
        _write(axes, cut, MARGIN, y + 0.5 * LINE_HEIGHT, colour=colour, weight="bold")
        y += LINE_HEIGHT


def _draw_image(axes: Axes, image: PIL.Image.Image, top: float, width: float) -> None:
    """Centre the image in its band, in its own proportions."""
    room = width - 2 * MARGIN
    scale = min(room / image.width, IMAGE_HEIGHT / image.height)
    wide, high = image.width * scale, image.height * scale
    left, upper = (width - wide) / 2, top + (IMAGE_HEIGHT - high) / 2
    axes.imshow(
        image.convert("RGB"), extent=(left, left + wide, upper + high, upper),
        aspect="auto", interpolation="antialiased",
    )  # fmt: skip
    axes.set(xlim=(0, width), ylim=(axes.get_ylim()[0], 0))


def _verdict(card: SheetCard) -> list[str]:
    """Return the lines at a card's foot."""
    answer = "not readable as an option" if card.answer is None else card.answer
    if card.correct:
        return [f"\N{HEAVY CHECK MARK} {answer}"]
    return [f"\N{HEAVY BALLOT X} {answer}", f"right: {card.gold}"]


def _body(figure: Figure, card: SheetCard, width: float, max_lines: int) -> list[_Line]:
    """Return the question's and the options' lines, at most `max_lines` of them.

    Where they do not all fit, options are cut to one line each, then the question is cut, and
    the last of very many options are left out.
    """
    plain, bold = _measure(figure, "normal"), _measure(figure, "bold")
    question = _wrap(card.question, width, bold, max_lines)
    for most in (3, 2, 1):
        options = [
            _wrap(option, width - INDENT, plain, most) for option in card.options[: max_lines - 1]
        ]
        used = sum(len(lines) for lines in options)
        if len(question) + used <= max_lines:
            break
    question = _wrap(card.question, width, bold, max(1, max_lines - used))
    body = [_Line(text, weight="bold") for text in question]
    for letter, lines in zip(string.ascii_uppercase, options, strict=False):
        body.append(_Line(f"{letter}", space=OPTION_SPACE))
        body.append(_Line(lines[0], INDENT, space=-LINE_HEIGHT))
        body += [_Line(text, INDENT) for text in lines[1:]]
    return body


def _measure(figure: Figure, weight: str) -> Callable[[str], float]:
    """Return a function from text to its width in inches."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=FONT_SIZE, weight=weight)
    renderer = figure.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]
    return lambda text: renderer.get_text_width_height_descent(text, font, False)[0] / figure.dpi


def _wrap(text: str, width: float, measure: Callable[[str], float], most: int) -> list[str]:
    """Break text into lines of at most `width` inches; what exceeds `most` lines ends in "...".

    A word wider than a line is cut into pieces.
    """
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if measure(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if measure(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    if len(lines) > most:
        last = lines[most - 1]
        while measure(f"{last} ...") > width:
            last = last.rpartition(" ")[0] or last[:-1]
        lines = [*lines[: most - 1], f"{last} ..."]
    return lines


def _write(
    axes: Axes, text: str, x: float, y: float, *, colour: str = INK, weight: str = "normal"
) -> None:
    """Write one line; a dollar sign is a dollar sign."""
    axes.text(
        x, y, text, color=colour, weight=weight, fontsize=FONT_SIZE, va="center", parse_math=False
    )
