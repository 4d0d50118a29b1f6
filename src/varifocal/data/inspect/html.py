"""A packed row as one HTML page that needs nothing next to it, neither a network nor a script."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from varifocal.data.example import Image
from varifocal.data.inspect.rows import Segment, ShownRow, collapsed
from varifocal.errors import DataError
from varifocal.pages import render, small_copy

MOST_PIXELS = 360
"""Longest side of an embedded image; its JPEG is then a few dozen kB."""

_MODALITIES = ("text", "image")
_KINDS = {
    "prompt": "read, not learned",
    "trained": "learned: the loss is here",
    "image": "an image's tokens",
    "pad": "padding, segment of its own",
}


def html_page(row: ShownRow, title: str) -> str:
    """Write a row as a page.

    Args:
        row: what `show_row` gives.
        title: the recipe's name.

    Returns:
        HTML whose texts are escaped and whose images are JPEGs of bounded size inside it.
    """
    return render(
        "row.html",
        title=f"{title}: row {row.index}",
        recipe=title,
        row=row,
        num_tokens=max(row.length - row.num_pad, 1),
        modalities=_MODALITIES,
        kinds=_KINDS,
        padding=collapsed("pad", row.num_pad),
        trained_spans=_trained_spans,
        facts=_facts,
        figure=_figure,
    )


def _trained_spans(segment: Segment) -> Iterator[tuple[float, float]]:
    """Yield where a segment trains: begin and length, in percent of its tokens."""
    first, total = segment.tokens[0].place, segment.num_tokens
    for kind, run in groupby(segment.tokens, lambda token: token.kind):
        tokens = list(run)
        if kind == "trained":
            length = sum(len(token.ids) for token in tokens)
            yield 100 * (tokens[0].place - first) / total, 100 * length / total


def _facts(segment: Segment) -> list[str]:
    member = segment.member
    return [
        f"positions 0 to {segment.num_tokens - 1}",
        f"row {segment.tokens[0].place} to {segment.tokens[0].place + segment.num_tokens - 1}",
        f"{segment.num_trained:,} of {segment.num_tokens:,} train",
        *([f"task {member.task}"] if member.task else []),
        *([f"id {member.encoded.example_id}"] if member.encoded.example_id else []),
        *(["prompt cut"] if member.encoded.was_cut else []),
        *(["oldest turns left out"] if member.encoded.dropped_turns else []),
        *(["earlier answers are prompt"] if member.encoded.rewritten_answers else []),
        *(["system message left out"] if member.encoded.lost_system else []),
    ]


def _figure(image: Image) -> dict[str, Any]:
    """Return an image's address, name and size, or why it cannot be read."""
    name = "/".join(image.path.parts[-2:]) if image.path else "embedded image"
    try:
        pil_image = image.open()
    except DataError as error:
        return {"missing": str(error)}
    width, height = pil_image.size
    size = {"width": width, "height": height}
    return {"missing": None, "name": name, "address": small_copy(pil_image, MOST_PIXELS), **size}
