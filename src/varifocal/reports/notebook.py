"""A run as a piece of HTML, as notebooks show it: loss curve, scores and sample answers.

Every text in it is escaped, images stand inside as PNG, and nothing is written or loaded.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from varifocal.data.example import Image
from varifocal.errors import DataError
from varifocal.reports.blocks import Block, Bullets, Grid, Heading, Paragraph, to_fragment
from varifocal.reports.card_scores import Sample, former_scores, read_samples, read_scores
from varifocal.reports.runs import RunSummary, read_run
from varifocal.run import RunDirectory
from varifocal.trained import scores_folder

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
    parts = [
        to_fragment(_head(summary)),
        loss_svg(summary.metrics),
        to_fragment(_scores(folder)),
        *map(_sample, read_samples(folder, SAMPLES)),
    ]
    return f"<div>{''.join(parts)}</div>"


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


def _sample(sample: Sample) -> str:
    words = {True: "right", False: "wrong", None: "not judged alone"}
    answer = sample.answer if sample.answer is not None else "nothing that can be read"
    bullets = Bullets([f"asked: {sample.question}", f"answered: {answer}", f"right: {sample.gold}"])
    title = Heading(f"{sample.suite}, item {sample.id}: {words[sample.correct]}", 4)
    return to_fragment([title]) + _thumbnail(sample.image) + to_fragment([bullets])


def _thumbnail(path: Path | None) -> str:
    """Return a small copy of an image as an element; nothing where it cannot be read."""
    if path is None:
        return ""
    try:
        image = Image(path).open()
    except DataError:
        return ""
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(path.name)}" src="data:image/png;base64,{data}">'


def loss_svg(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Draw the training loss over optimiser steps; nothing where there are fewer than two.

    >>> loss_svg([{"step": 1, "loss": 2.0}])
    ''
    """
    points = [
        (float(line["step"]), float(line["loss"]))
        for line in metrics
        if _is_number(line.get("step")) and _is_number(line.get("loss"))
    ]
    if len(points) < 2:
        return ""
    first, last = points[0][0], points[-1][0]
    top = max(loss for _, loss in points) or 1.0
    wide, high = _WIDTH - 2 * _MARGIN, _HEIGHT - _MARGIN
    places = [
        (_MARGIN + wide * (step - first) / ((last - first) or 1.0), 8 + high * (1 - loss / top))
        for step, loss in points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    floor, end = 8 + high, _WIDTH - _MARGIN
    label = 'font-size="11" fill="#57606a" font-family="sans-serif"'
    return (
        f'<svg role="img" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        "<title>training loss by step</title>"
        f'<path d="M{_MARGIN} 8V{floor}H{end}" fill="none" stroke="#8b949e"/>'
        f'<polyline points="{line}" fill="none" stroke="#2f6db5" stroke-width="1.5"/>'
        f'<text x="{_MARGIN - 4}" y="14" text-anchor="end" {label}>{top:.2f}</text>'
        f'<text x="{_MARGIN - 4}" y="{floor}" text-anchor="end" {label}>0</text>'
        f'<text x="{end + 4}" y="{places[-1][1]:.1f}" {label}>{points[-1][1]:.2f}</text>'
        f'<text x="{end}" y="{floor + 16}" text-anchor="end" {label}>step {last:.0f}</text></svg>'
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
