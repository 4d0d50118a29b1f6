"""What the numbers of a run do not show, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from varifocal.reports.blocks import Block, Bullets, Grid, Heading
from varifocal.reports.card_scores import ScoreLine, former_scores, read_object
from varifocal.reports.runs import RunSummary
from varifocal.run import RunDirectory
from varifocal.trained import scores_folder


def in_short(scores: Sequence[ScoreLine], retention: Mapping[str, Any]) -> Iterator[Block]:
    """Yield what the run scores and what that cost its language, in a sentence each.

    Args:
        scores: main scores count.
        retention: `eval/retention.json`, empty where it was not measured.
    """
    scored = [
        f"{one.suite}, {one.measure} {one.value:.1f} ({one.interval})" for one in scores if one.main
    ]
    changes = {
        row.get("name"): row["change"]["value"]
        for row in retention.get("rows") or ()
        if isinstance(row, dict) and isinstance(row.get("change"), dict)
    }
    cost = [
        f"{words} perplexity x {changes[name]:.3f} of the base model's"
        for name, words in _LANGUAGE.items()
        if name in changes
    ]
    yield Bullets(
        [
            f"Scored: {'; '.join(scored) or 'nothing yet'}.",
            f"Cost in language: {'; '.join(cost) or 'not measured; varifocal retention RUN does'}.",
        ]
    )


_LANGUAGE = {"perplexity": "plain text,", "perplexity after an image": "after an image,"}


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
    is_perplexity = str(row.get("name")).startswith("perplexity")
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


FEW_SAMPLES = 10_000
"""Trained samples below which the card calls the data small."""

FEW_ITEMS = 500
"""Items of a suite below which the card warns of its interval."""


def limits(run: RunDirectory, summary: RunSummary, scores: Sequence[ScoreLine]) -> list[str]:
    """Say in plain words what the numbers do not show."""
    found = []
    realised = read_object(run.data).get("realised") or []
    samples = sum(one.get("samples", 0) for one in realised if isinstance(one, dict))
    if samples:
        small = "; that is little: expect no more than what it was shown"
        said = small if samples < FEW_SAMPLES else ""
        found.append(f"It was trained on {samples:,} samples{said}.")
    if not summary.finished:
        found.append(f"Training has not ended ({summary.state}); scores are of what there was.")
    found += [
        f"{one.suite}: {one.unparsed:,} of {one.count:,} answers ({one.unparsed / one.count:.0%}) "
        "could not be read."
        for one in scores
        if one.main and one.count and one.unparsed
    ]
    few = [one for one in scores if one.main and 0 < one.count < FEW_ITEMS]
    found += [
        f"{one.suite} has {one.count:,} items; differences within its interval "
        f"({one.interval}) say nothing."
        for one in few
    ]
    found += [f"{told}." for told in former_scores(scores_folder(run))]
    if not scores:
        found.append("No score has been measured.")
    if not (scores_folder(run) / "retention.json").is_file():
        found.append("What it lost of the base model's language skills was not measured.")
    names = " ".join(one.suite.lower() for one in scores)
    if summary.knobs.get("model.vision_tower") and "pope" not in names:
        found.append("Whether it names things that are not in an image (POPE) was not tested.")
    found.append(
        f"One run with seed {summary.knobs.get('seed', 'unknown')}: how far another seed would "
        "differ was not tested, nor were safety, bias, other languages and other kinds of "
        "images than those of the data above."
    )
    return found
