"""The report's image: scores against what it took, and the losses on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from varifocal.plotting import FAINT, INK, new_figure, save_figure, smoothed, whole_steps
from varifocal.reports.runs import RunSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = (
    ("tokens", "tokens (millions)", 1e-6),
    ("flops", "TFLOP", 1e-12),
    ("seconds_total", "minutes", 1 / 60),
)
_MAX_LEGEND = 20


def report_plot(
    runs: Sequence[RunSummary],
    path: Path,
    *,
    knob: str | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> bool:
    """Draw accuracy against tokens, operations and minutes, and loss over steps.

    Args:
        runs: each gets a colour; a suite has a panel row of its own.
        path: the PNG to write.
        knob: a recipe's key with a number, that accuracy is drawn against too.
        groups: name -> runs of one setting with other seeds, which share a colour.

    Returns:
        whether there was anything to draw.
    """
    suites = list(dict.fromkeys(suite for run in runs for suite in run.scores))
    curves = [run for run in runs if len(_losses(run)[0]) > 1]
    if not suites and not curves:
        return False
    axes_of = [*_AXES, *([(knob, knob, 1.0)] if knob else [])]
    axes_of = [pair for pair in axes_of if any(_amount(run, pair[0]) is not None for run in runs)]
    axes_of = axes_of or [_AXES[0]]
    rows = len(suites) + bool(curves)
    figure = new_figure(4.2 * (len(axes_of) if suites else 2), 3.4 * rows)
    figure.set_layout_engine("constrained")
    grid = figure.add_gridspec(rows, len(axes_of) if suites else 1)
    colours = _colours(runs, groups or {})
    for row, suite in enumerate(suites):
        for column, (key, label, factor) in enumerate(axes_of):
            panel = _panel(figure.add_subplot(grid[row, column]))
            _against(panel, runs, suite, key, factor, colours)
            panel.set(xlabel=label, ylabel=_axis(runs, suite) if column == 0 else "")
            panel.set_title(suite if column == 0 else "", loc="left", color=INK, fontsize=10)
    if curves:
        panel = _panel(figure.add_subplot(grid[rows - 1, :]))
        for run in curves:
            steps, losses = _losses(run)
            panel.plot(steps, smoothed(losses), color=colours[run.name], label=run.name)
        panel.set(xlabel="step", ylabel="loss, nats a trained token")
        whole_steps(panel)
        if len(curves) <= _MAX_LEGEND:
            panel.legend(frameon=False, fontsize=8, ncols=1 + len(curves) // 8)
    save_figure(figure, path)
    return True


def _against(
    panel: Axes,
    runs: Sequence[RunSummary],
    suite: str,
    key: str,
    factor: float,
    colours: Mapping[str, Any],
) -> None:
    """Put a point with its interval for every run that has a score and this cost."""
    for run in runs:
        score = headline(run.scores.get(suite, {}))
        amount = _amount(run, key)
        if score is None or amount is None:
            continue
        right = score["value"]
        ends = [score.get("low"), score.get("high")]
        low, high = (right if end is None else end for end in ends)
        panel.errorbar(
            [amount * factor],
            [right],
            yerr=[[max(0.0, right - low)], [max(0.0, high - right)]],
            fmt="o",
            color=colours[run.name],
            markersize=5,
            elinewidth=1,
            capsize=2,
            label=run.name,
        )
    panel.margins(x=0.12)


def _amount(run: RunSummary, key: str) -> float | None:
    """A run's cost, or its knob, of that name."""
    value = run.cost.get(key, run.knobs.get(key))
    return value if isinstance(value, int | float) else None


def headline(scores: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The measure that stands for a suite, which leads, or the first one."""
    return next(iter(scores.values()), None)


def _axis(runs: Sequence[RunSummary], suite: str) -> str:
    """What a suite's panel shows: the main measure's name, in percent unless it says otherwise."""
    name = next(name for run in runs for name in run.scores.get(suite, {}))
    return "% right" if name == "average" else name if name.endswith(")") else f"{name} %"


def _colours(runs: Sequence[RunSummary], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    from matplotlib import colormaps

    group_of = {name: group for group, names in groups.items() for name in names}
    keys = list(dict.fromkeys(group_of.get(run.name, run.name) for run in runs))
    if len(keys) <= 10:
        palette = [colormaps["tab10"](number) for number in range(len(keys))]
    else:
        palette = [colormaps["viridis"](number / (len(keys) - 1)) for number in range(len(keys))]
    return {run.name: palette[keys.index(group_of.get(run.name, run.name))] for run in runs}


def _losses(run: RunSummary) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of the lines that have both."""
    pairs = [
        (float(line["step"]), float(line["loss"]))
        for line in run.metrics
        if isinstance(line.get("step"), int | float) and isinstance(line.get("loss"), int | float)
    ]
    steps, losses = np.array(sorted(pairs)).reshape(-1, 2).T
    return steps, losses


def _panel(panel: Axes) -> Axes:
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(FAINT)
    panel.tick_params(colors=INK, labelsize=8)
    panel.grid(color=FAINT, alpha=0.25, linewidth=0.6)
    return panel
