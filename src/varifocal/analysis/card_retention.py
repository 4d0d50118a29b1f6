"""What a model card says of the language skills that a run kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from varifocal.analysis.blocks import Block, Bullets, Grid, Heading


def retention_blocks(page: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the part of a card on what was kept; nothing where it was not measured.

    Args:
        page: `eval/retention.json`.
    """
    rows = page.get("rows")
    if not isinstance(rows, list) or not rows:
        return
    yield Heading("What was kept of the language model")
    cells = [
        [
            str(row.get("name")),
            *(_of_interval(row.get(key)) for key in _STATES),
            f"{row['p']:.3g}" if isinstance(row.get("p"), int | float) else "-",
            str(row.get("count", "-")),
        ]
        for row in rows
        if isinstance(row, dict)
    ]
    head = ["measure", "base", "adapter off", "adapter on", "change from off to on", "p", "items"]
    yield Grid(head, cells)
    yield Bullets([_OF_CHANGE, *_retention_notes(page)])


_STATES = ("base", "off", "on", "change")
_OF_CHANGE = (
    "Change: points, and for perplexity the quotient on / off; 95 % intervals over items, paired "
    "for the change; p of McNemar's exact test, where answers are right or wrong."
)


def _retention_notes(page: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was asked, from where, and what has to be known of it."""
    sources, notes = page.get("sources"), page.get("notes")
    if isinstance(sources, dict):
        yield from (f"{part}: {place}" for part, place in sources.items())
    if isinstance(notes, list):
        yield from map(str, notes)


def _of_interval(one: Any) -> str:
    if not isinstance(one, dict) or not isinstance(one.get("value"), int | float):
        return "-"
    ends = [one.get(end) for end in ("low", "high")]
    known = all(isinstance(end, int | float) for end in ends)
    return f"{one['value']:.2f}" + (f" ({ends[0]:.2f} to {ends[1]:.2f})" if known else "")
