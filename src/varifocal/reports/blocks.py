"""A page of headings, tables and images, as Markdown or as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


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
class Image:
    """An image's file, and what it shows."""

    path: Path
    caption: str
    width: int | None = None


_SHORT_CELL = 24  # characters

Block = Heading | Paragraph | Bullets | Grid | Code | Image


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
    if isinstance(block, Image):
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


_STYLE = """
body{font:15px/1.55 system-ui,-apple-system,'Segoe UI',sans-serif;color:#22272e;background:#fff;
max-width:62rem;margin:2.5rem auto;padding:0 1.5rem}
h1{font-size:1.9rem;margin:0 0 .6rem}h2{font-size:1.25rem;margin:2.2rem 0 .6rem;
padding-bottom:.3rem;border-bottom:1px solid #d8dee4}h3{font-size:1rem;margin:1.4rem 0 .4rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.87rem;margin:.5rem 0}
th,td{padding:.32rem .8rem;border-bottom:1px solid #e6eaee;text-align:left;vertical-align:top}
th{color:#57606a;font-weight:600}td{font-variant-numeric:tabular-nums;overflow-wrap:break-word}
.s{white-space:nowrap}
@media (max-width:40rem){body{margin:1.2rem auto;padding:0 .9rem}th,td{padding:.3rem .5rem}}
pre{background:#f6f7f9;padding:.9rem 1rem;border-radius:6px;overflow-x:auto;font-size:.85rem}
figure{margin:1rem 0}img{max-width:100%;height:auto;border:1px solid #e6eaee;border-radius:4px}
figcaption{color:#57606a;font-size:.85rem}
"""


def to_html(blocks: Iterable[Block], title: str) -> str:
    """Write a page as one HTML file, its images inside."""
    body = to_fragment(blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def to_fragment(blocks: Iterable[Block]) -> str:
    """Write blocks as HTML that goes into a page, its images inside."""
    return "\n".join(map(_html, blocks))


def _cell(text: str) -> str:
    """Keep a short cell, such as an interval, on one line; long ones break."""
    short = ' class="s"' if len(text) <= _SHORT_CELL else ""
    return f"<td{short}>{html.escape(text)}</td>"


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Bullets):
        return (
            "<ul>" + "".join(f"<li>{html.escape(point)}</li>" for point in block.points) + "</ul>"
        )
    if isinstance(block, Code):
        return f"<pre><code>{html.escape(block.text.rstrip())}</code></pre>"
    if isinstance(block, Image):
        data = base64.b64encode(block.path.read_bytes()).decode()
        caption = html.escape(block.caption)
        width = f' width="{block.width}"' if block.width else ""
        return (
            f'<figure><img alt="{caption}"{width} src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.head)
    rows = ("".join(map(_cell, row)) for row in block.lines)
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody>'
        "</table></div>"
    )
