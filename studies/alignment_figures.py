"""The alignment study's figure: accuracy along the runs, by steps and by minutes."""

from pathlib import Path
from typing import Any

from varifocal.plotting import FAINT, INK, new_figure, save_figure

STYLE = {
    "none": ("no stage", "#6b7280", "o", ":"),
    "words": ("aligned to words", "#0072b2", "s", "-"),
    "captions": ("caption stage, as many seconds", "#d55e00", "^", "--"),
    "words-few": ("aligned to words, as few pictures as the caption stage", "#009e73", "D", "-."),
}
"""Colours of Okabe and Ito, and a marker and a dash each, so that none is told by colour alone."""
TITLES = {"book": "sciencebook", "nlvr": "NLVR"}


def curves(results: dict[str, Any], file: Path) -> None:
    """Draw each task's curves over seeds; bars are 95 % intervals of the mean."""
    tasks = [task for task in TITLES if results.get(task)]
    figure = new_figure(9.0, 3.4 * len(tasks) + 0.7)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(tasks), 2, squeeze=False, sharey="row")
    for row, task in zip(grid, tasks, strict=True):
        for axes, axis in zip(row, ("step", "minutes"), strict=True):
            _panel(axes, results[task], axis)
        row[0].set_title(TITLES[task], loc="left", color=INK)
        row[0].set_ylabel("percent right")
    for axes, label in zip(
        grid[-1], ("steps of tuning", "processor minutes, stage included"), strict=True
    ):
        axes.set_xlabel(label)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, file)


def _panel(axes: Any, settings: dict[str, Any], axis: str) -> None:
    for name, one in settings.items():
        label, colour, marker, dash = STYLE[name]
        points = one["curve"]
        x = [point["step"] if axis == "step" else point["minutes"]["mean"] for point in points]
        means = [point["accuracy"]["mean"] for point in points]
        axes.plot(x, means, dash, marker=marker, color=colour, markersize=5, label=label)
        if points[0]["accuracy"]["low"] is not None:
            sides = [
                [abs(point["accuracy"][end] - point["accuracy"]["mean"]) for point in points]
                for end in ("low", "high")
            ]
            axes.errorbar(x, means, sides, fmt="none", ecolor=colour, elinewidth=0.9, capsize=2)
    axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
