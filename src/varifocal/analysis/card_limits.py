"""What the numbers of a run do not show, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from varifocal.analysis.card_scores import ScoreLine, read_object
from varifocal.analysis.runs import RunSummary
from varifocal.run import RunDirectory
from varifocal.trained import scores_folder

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
    if not scores:
        found.append("No score has been measured.")
    if not (scores_folder(run) / "retention.json").is_file():
        found.append("What it lost of the base model's language skills was not measured.")
    names = " ".join(one.suite.lower() for one in scores)
    if summary.knobs.get("model.vision_tower") and "pope" not in names:
        found.append("Whether it names things that are not in a picture (POPE) was not tested.")
    found.append(
        f"One run with seed {summary.knobs.get('seed', 'unknown')}: how far another seed would "
        "differ was not tested, nor were safety, bias, other languages and other kinds of "
        "pictures than those of the data above."
    )
    return found
