"""What the numbers of a run do not show, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from varifocal.reports.blocks import Block, Bullets, Grid, Heading
from varifocal.reports.card_scores import ScoreLine, former_scores, read_object_if_any
from varifocal.reports.runs import RunSummary
from varifocal.run import RunDirectory
from varifocal.trained_weights import scores_folder


def in_short(scores: Sequence[ScoreLine], retention: Mapping[str, Any]) -> Iterator[Block]:
    """Yield what the run scores and what that cost its language, in a sentence each.

    Args:
        scores: main scores count.
        retention: `eval/retention.json`, empty where it was not measured.
    """
    scored = [
        f"{score.suite}, {score.measure} {score.value:.1f} ({score.interval})"
        for score in scores
        if score.main
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


def _of_interval(score: Any, digits: int) -> str:
    if not isinstance(score, dict) or not isinstance(score.get("value"), int | float):
        return "-"
    ends = [score.get(end) for end in ("low", "high")]
    known = all(isinstance(end, int | float) for end in ends)
    value, *ends = (f"{end:.{digits}f}" for end in (score["value"], *(ends if known else ())))
    return f"{value} ({ends[0]} to {ends[1]})" if ends else value


FEW_SAMPLES = 10_000
"""Trained samples below which the card calls the data small."""

FEW_ITEMS = 500
"""Items of a suite below which the card warns of its interval."""


def limits(run: RunDirectory, summary: RunSummary, scores: Sequence[ScoreLine]) -> list[str]:
    """Say in plain words what the numbers do not show."""
    sentences = []
    realised = read_object_if_any(run.data).get("realised") or []
    samples = sum(source.get("samples", 0) for source in realised if isinstance(source, dict))
    if samples:
        small = "; that is little: expect no more than what it was shown"
        note = small if samples < FEW_SAMPLES else ""
        sentences.append(f"It was trained on {samples:,} samples{note}.")
    if not summary.finished:
        sentences.append(f"Training has not ended ({summary.state}); scores are of what there was.")
    sentences += [
        f"{score.suite}: {score.unparsed:,} of {score.count:,} answers "
        f"({score.unparsed / score.count:.0%}) could not be read."
        for score in scores
        if score.main and score.count and score.unparsed
    ]
    few = [score for score in scores if score.main and 0 < score.count < FEW_ITEMS]
    sentences += [
        f"{score.suite} has {score.count:,} items; differences within its interval "
        f"({score.interval}) say nothing."
        for score in few
    ]
    sentences += [f"{sentence}." for sentence in former_scores(scores_folder(run))]
    if not scores:
        sentences.append("No score has been measured.")
    if not (scores_folder(run) / "retention.json").is_file():
        sentences.append("What it lost of the base model's language skills was not measured.")
    names = " ".join(score.suite.lower() for score in scores)
    if summary.knobs.get("model.vision_tower") and "pope" not in names:
        sentences.append("Whether it names things that are not in an image (POPE) was not tested.")
    sentences.append(
        f"One run with seed {summary.knobs.get('seed', 'unknown')}: how far another seed would "
        "differ was not tested, nor were safety, bias, other languages and other kinds of "
        "images than those of the data above."
    )
    return sentences
