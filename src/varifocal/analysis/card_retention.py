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
            *_states(row),
            f"{row['p']:.3g}" if isinstance(row.get("p"), int | float) else "-",
            str(row.get("count", "-")),
        ]
        for row in rows
        if isinstance(row, dict)
    ]
    head = ["measure", "base", "adapter off", "adapter on", "change", "p", "items"]
    yield Grid(head, cells)
    yield Bullets([_OF_CHANGE, *_retention_notes(page)])


_STATES = ("base", "off", "on", "change")
_OF_CHANGE = (
    "Change: from the base to the adapter on, in points, and for perplexity as the factor; 95 % "
    "intervals over items, paired for the change; p of McNemar's exact test, where answers are "
    "right or wrong."
)


def _retention_notes(page: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was asked, from where, and what has to be known of it."""
    sources, notes = page.get("sources"), page.get("notes")
    if isinstance(sources, dict):
        yield from (f"{part}: {place}" for part, place in sources.items())
    if isinstance(notes, list):
        yield from map(str, notes)


def _states(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the cells of the three models and of the change."""
    is_perplexity = row.get("name") == "perplexity"
    for key in _STATES:
        if key == "off" and row.get("off") is not None and row["off"] == row.get("base"):
            yield "= base"
        else:
            yield _of_interval(row.get(key), 2 if is_perplexity else 1)


def _of_interval(one: Any, digits: int) -> str:
    if not isinstance(one, dict) or not isinstance(one.get("value"), int | float):
        return "-"
    ends = [one.get(end) for end in ("low", "high")]
    known = all(isinstance(end, int | float) for end in ends)
    value, *ends = (f"{end:.{digits}f}" for end in (one["value"], *(ends if known else ())))
    return f"{value} ({ends[0]} to {ends[1]})" if ends else value
