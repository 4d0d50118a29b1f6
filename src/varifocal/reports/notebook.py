"""A run as a piece of HTML, as notebooks show it: loss curve, scores and sample answers.

Every text in it is escaped, images stand inside as PNG, and nothing is written or loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from varifocal.data.example import Image
from varifocal.errors import DataError
from varifocal.pages import render, small_copy
from varifocal.reports.blocks import Block, Bullets, Grid, Heading, Paragraph
from varifocal.reports.card_scores import Sample, former_scores, read_samples, read_scores
from varifocal.reports.runs import RunSummary, read_run
from varifocal.run import RunDirectory
from varifocal.trained_weights import scores_folder

SAMPLES = 4
_SIDE = 160  # pixels of a sample image's longer side
_WIDTH, _HEIGHT, _MARGIN = 480, 160, 44  # pixels of the loss curve


def run_html(root: str | Path) -> str:
    """Return a run's loss curve, scores and sample answers as HTML.

    Args:
        root: the run directory, finished or not; what it lacks is left out.
    """
    summary = read_run(root)
    folder = scores_folder(RunDirectory(Path(root)))
    return render(
        "notebook.html",
        head=_head(summary),
        curve=_curve(summary.metrics),
        scores=_scores(folder),
        samples=read_samples(folder, SAMPLES),
        thumbnail=_thumbnail,
    )


def _head(summary: RunSummary) -> Iterator[Block]:
    yield Heading(summary.name, 3)
    words = [summary.state, str(summary.knobs.get("tuner.type", ""))]
    if summary.trained_parameters is not None:
        words.append(f"{summary.trained_parameters:,} trained parameters")
    if summary.loss is not None:
        words.append(f"loss {summary.loss:.3f}")
    yield Paragraph(", ".join(filter(None, words)))


def _scores(folder: Path) -> Iterator[Block]:
    lines = [
        [line.suite, line.measure, f"{line.value:.1f}", line.interval, f"{line.count:,}"]
        for line in read_scores(folder)
        if line.main
    ]
    if lines:
        yield Grid(["suite", "measure", "score", "95 % interval", "items"], lines)
    if former := former_scores(folder):
        yield Bullets(former)


def _thumbnail(sample: Sample) -> str:
    """Return a small copy of a sample's image as an address; "" where it cannot be read."""
    if sample.image is None:
        return ""
    try:
        return small_copy(Image(sample.image).open(), _SIDE, "png")
    except DataError:
        return ""


def _curve(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Place the training loss of each optimiser step; None where there are fewer than two.

    >>> _curve([{"step": 1, "loss": 2.0}]) is None
    True
    """
    points = [
        (float(line["step"]), float(line["loss"]))
        for line in metrics
        if _is_number(line.get("step")) and _is_number(line.get("loss"))
    ]
    if len(points) < 2:
        return None
    first, last = points[0][0], points[-1][0]
    top = max(loss for _, loss in points) or 1.0
    width, height = _WIDTH - 2 * _MARGIN, _HEIGHT - _MARGIN
    places = [
        (_MARGIN + width * (step - first) / ((last - first) or 1.0), 8 + height * (1 - loss / top))
        for step, loss in points
    ]
    floor, right = 8 + height, _WIDTH - _MARGIN
    labels = [
        (_MARGIN - 4, 14, "end", f"{top:.2f}"),
        (_MARGIN - 4, floor, "end", "0"),
        (right + 4, places[-1][1], "start", f"{points[-1][1]:.2f}"),
        (right, floor + 16, "end", f"step {last:.0f}"),
    ]
    edges = {"left": _MARGIN, "right": right, "floor": floor}
    return {"width": _WIDTH, "height": _HEIGHT, "points": places, "labels": labels, **edges}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
