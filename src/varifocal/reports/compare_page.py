"""A comparison as one HTML file: tables, and the items won and lost with their images.

Made of what `compare.json` holds. The file needs nothing next to it and nothing from the network;
every text in it is escaped, images are made small, and there is a most to everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from varifocal.data.example import Image
from varifocal.errors import DataError
from varifocal.pages import render, small_copy
from varifocal.writing import write_json, write_text

MOST_CARDS = 60
"""Items of a suite and a kind that are drawn; the JSON has all."""

MOST_TEXT = 600
"""Characters of a question or an answer that are shown."""

MOST_IMAGES = 2
"""Images of an item that are shown."""

IMAGE_SIDE = 320
"""Longest side of an image on the page, in pixels."""

MOST_BYTES = 12_000_000
"""Of all images together; items beyond stand without theirs."""

_DULL = ("split", "hint", "task")  # tags that tell nothing on a card


def write_comparison(comparison: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write `compare.json` and `compare.html` of a comparison, and return their paths.

    Args:
        comparison: as `compare.json` has it.
        folder: where they go.

    Raises:
        RunError: the disk is full.
    """
    files = folder / "compare.json", folder / "compare.html"
    write_json(files[0], comparison)
    write_text(files[1], page(comparison))
    return files


def page(comparison: Mapping[str, Any]) -> str:
    """Return the page of a comparison as HTML."""
    return render(
        "compare.html",
        title=f"{comparison['first']} and {comparison['second']}",
        notes=comparison.get("notes", ()),
        first=comparison["first"],
        second=comparison["second"],
        seed=comparison["seed"],
        suites=map(_with_tags_apart, comparison["suites"]),
        letters=ascii_uppercase,
        most_cards=MOST_CARDS,
        most_images=MOST_IMAGES,
        most_text=MOST_TEXT,
        show=_Album().show,
        question_of=_question_of,
        tags_of=_tags_of,
        say_p=say_p,
    )


def _with_tags_apart(suite: Mapping[str, Any]) -> dict[str, Any]:
    """Divide a suite's rows into those of a tag, whose names are `tag: value`, and the others."""
    by_tag = [row for row in suite["rows"] if ": " in row["name"]]
    plain = [row for row in suite["rows"] if ": " not in row["name"]]
    return {**suite, "plain": plain, "by_tag": by_tag}


class _Album:
    """Images as data addresses, until their bytes are spent."""

    def __init__(self) -> None:
        self._left = MOST_BYTES

    def show(self, path: str) -> dict[str, Any]:
        """Return an image's address and size, or why there is none."""
        try:
            image = Image(path=Path(path)).open()
        except DataError as error:
            return {"missing": str(error)}
        address = small_copy(image, IMAGE_SIDE)
        if len(address) > self._left:
            return {"missing": path}
        self._left -= len(address)
        size = {"width": image.width, "height": image.height}
        return {"missing": None, "address": address, "name": Path(path).name, **size}


def _question_of(item: Mapping[str, Any]) -> str:
    """The question without the line of options, which the card lists."""
    lines = str(item["question"]).strip().splitlines()
    shown = [line for line in lines if not (item["options"] and line.startswith("Options:"))]
    return "\n".join(shown).removeprefix("Question: ")


def _tags_of(item: Mapping[str, Any]) -> str:
    values = [str(value) for key, value in item["tags"].items() if value and key not in _DULL]
    return ", ".join(dict.fromkeys(values))


def say_p(p: float) -> str:
    """Say a p-value.

    >>> say_p(0.0390625), say_p(0.00002)
    ('0.039', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
