"""A packed row as one HTML page that needs nothing next to it, neither a network nor a script."""

from __future__ import annotations

import base64
import io
from html import escape
from itertools import groupby
from pathlib import Path

from varifocal.data.example import Image
from varifocal.data.inspect.rows import Segment, ShownRow, Token, collapsed
from varifocal.errors import DataError

MOST_PIXELS = 360
"""Longest side of an embedded image; its JPEG is then a few dozen kB."""

_STYLE = Path(__file__).with_name("html.css")
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
    body = "\n".join(
        [
            _header(row, title),
            _legend(),
            *(_segment(segment) for segment in row.segments),
            _padding(row),
        ]
    )
    name = escape(f"{title}: row {row.index}")
    style = _STYLE.read_text(encoding="utf-8")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "</main>\n</body>\n</html>\n"
    )


def _header(row: ShownRow, title: str) -> str:
    facts = (
        (f"{row.index} <small>of {row.num_rows:,}</small>", "row"),
        (f"{len(row.segments)}", "samples"),
        (f"{row.length:,}", "tokens"),
        (f"{row.num_trained / max(row.length - row.num_pad, 1):.0%}", "of them train"),
        (f"{1 - row.num_pad / row.length:.0%}", "full"),
    )
    cells = "".join(f"<div><dt>{word}</dt><dd>{number}</dd></div>" for number, word in facts)
    return f"<header>\n<h1>{escape(title)}</h1>\n<dl>{cells}</dl>\n{_strip(row)}\n</header>"


def _strip(row: ShownRow) -> str:
    """Draw the whole row as one bar, each segment as wide as its tokens."""
    parts = [
        f'<a class="{_MODALITIES[segment.modality]}" href="#segment-{segment.number}" '
        f'style="flex-grow:{segment.num_tokens}" title="segment {segment.number}, '
        f'{segment.num_tokens} tokens">'
        f"{_learned(segment)}</a>"
        for segment in row.segments
    ]
    if row.num_pad:
        title = f"padding, {row.num_pad} tokens"
        parts.append(f'<a class="pad" style="flex-grow:{row.num_pad}" title="{title}"></a>')
    return f'<nav class="strip">{"".join(parts)}</nav>'


def _learned(segment: Segment) -> str:
    """Mark where a segment trains, at its place inside the bar."""
    first, total = segment.tokens[0].place, segment.num_tokens
    marks: list[str] = []
    for kind, run in groupby(segment.tokens, lambda token: token.kind):
        tokens = list(run)
        if kind == "trained":
            width = sum(len(token.ids) for token in tokens)
            left = (tokens[0].place - first) / total
            marks.append(f'<i style="left:{left:.2%};width:{width / total:.2%}"></i>')
    return "".join(marks)


def _legend() -> str:
    items = "".join(
        f'<li><span class="t {kind}">{kind}</span> {words}</li>' for kind, words in _KINDS.items()
    )
    hint = '<li class="hint">point at a token for its id and position</li>'
    return f'<ul class="legend">{items}{hint}</ul>'


def _segment(segment: Segment) -> str:
    member, kind = segment.member, _MODALITIES[segment.modality]
    facts = [
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
    images = "".join(_image(image) for image in segment.images)
    figures = f'<div class="images">{images}</div>' if images else ""
    tokens = "".join(_token(token) for token in segment.tokens)
    details = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    return (
        f'<section id="segment-{segment.number}" class="{kind}">\n<h2><b>{segment.number}</b> '
        f'{escape(member.name)} <span class="badge">{kind}</span></h2>\n'
        f'<ul class="facts">{details}</ul>\n{figures}<pre>{tokens}</pre>\n</section>'
    )


def _token(token: Token) -> str:
    ids = " ".join(map(str, token.ids)) if token.kind != "image" else f"{token.ids[0]} each"
    title = f"id {ids} · position {token.position} · place {token.place}"
    return f'<span class="t {token.kind}" title="{title}">{_visible(token.text)}</span>'


def _visible(text: str) -> str:
    """Escape a token's text; a line break is marked and then made.

    >>> _visible("a <b>")
    'a &lt;b&gt;'
    """
    if not text:
        return "<em>∅</em>"
    return escape(text).replace("\r", "<em>␍</em>").replace("\n", "<em>↵</em>\n")


def _image(image: Image) -> str:
    name = escape("/".join(image.path.parts[-2:]) if image.path else "embedded image")
    try:
        pil_image = image.open()
    except DataError as error:
        return f"<figure><figcaption>{escape(str(error))}</figcaption></figure>"
    width, height = pil_image.size
    pil_image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    file = io.BytesIO()
    pil_image.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f'<figure><img alt="{name}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{name} <small>{width} by {height}</small></figcaption></figure>"
    )


def _padding(row: ShownRow) -> str:
    if not row.num_pad:
        return ""
    return (
        f'<section class="pad">\n<h2><b>{len(row.segments)}</b> padding</h2>\n'
        f'<pre><span class="t pad">{collapsed("pad", row.num_pad)}</span></pre>\n</section>'
    )
