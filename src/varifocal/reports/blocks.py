"""A page of headings, tables and images, as Markdown or as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from varifocal.pages import render


@dataclass(frozen=True)
class Heading:
    """A title; `level` 1 is the page's own."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain words; no markup in them is read."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Points, each plain words."""

    points: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table: its head, and lines of as many cells."""

    head: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Something to run, and the language it is in."""

    text: str
    language: str


@dataclass(frozen=True)
class Figure:
    """An image's file, and what it shows."""

    path: Path
    caption: str
    width: int | None = None


Block = Heading | Paragraph | Bullets | Grid | Code | Figure


def to_markdown(blocks: Iterable[Block], folder: Path) -> str:
    """Write a page as Markdown; images are named by their way from `folder`."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_plain(block.text)}"
    if isinstance(block, Paragraph):
        return _plain(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_plain(point)}" for point in block.points)
    if isinstance(block, Code):
        return f"```{block.language}\n{block.text.rstrip()}\n```"
    if isinstance(block, Figure):
        place = block.path.relative_to(folder).as_posix().replace(" ", "%20")
        return f"![{_plain(block.caption)}]({place})"
    rule = ["---"] * len(block.head)
    rows = [block.head, rule, *block.lines]
    cells = ([_plain(cell).replace("|", "\\|") if row is not rule else cell for cell in row]
             for row in rows)  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _plain(text: str) -> str:
    """Keep a text on its line, and its signs from being read as markup."""
    text = " ".join(text.split())
    for sign in "\\`*_[]<>":
        text = text.replace(sign, f"\\{sign}")
    return text


def to_html(blocks: Iterable[Block], title: str) -> str:
    """Write a page as one HTML file, its images inside."""
    return render("card.html", title=title, blocks=blocks)
