"""Heat maps of signed matrices between tasks: who helps whom, who harms whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from varifocal.plotting import FAINT, INK, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLOURS = "RdBu"
EMPTY = "#d8dce1"
LONGEST_NAME = 24
_CELL = 0.62  # inches
_PANEL = 1.75  # inches
_COLUMNS = 6
_TITLE = 0.4  # inches

Cells = npt.NDArray[np.float64]


def interference_heatmap(
    cells: npt.ArrayLike,
    tasks: Sequence[str],
    path: Path,
    *,
    sure: npt.ArrayLike | None = None,
    title: str = "Task interference",
) -> None:
    """Draw an interference matrix with a number in every cell.

    Colours are centred at 0: red harms, blue helps, grey is undefined. The title names the share of
    negative pairs. A number whose sign is not sure stands in brackets.

    Args:
        cells: T [n, n]: row, whose loss; column, whose step.
        tasks: n names.
        path: the PNG to write.
        sure: [n, n] bool; every cell when None.
        title: what stands above it.

    Raises:
        ValueError: the matrix is not n by n.
    """
    matrix = _checked(cells, tasks)
    certain = np.ones(matrix.shape, bool) if sure is None else np.asarray(sure, dtype=bool)
    n = len(tasks)
    figure = new_figure(3.4 + _CELL * n, 2.6 + _CELL * n)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    image = _draw(axes, matrix, _reach([matrix]))
    name_cells(axes, tasks)
    size = 9 if n <= 8 else 7.5
    for (row, column), value in np.ndenumerate(matrix):
        _write(axes, row, column, value, bool(certain[row, column]), _reach([matrix]), size)
    axes.set_xlabel("a step on this task ...", color=INK)
    axes.set_ylabel("... and the loss of this task", color=INK)
    lines = [
        f"{title}: {_share(matrix)}",
        "1: helps like a step on the task itself; below 0: harms",
    ]
    if not certain.all():
        lines.append("in brackets: two halves of the examples disagree on the sign")
    axes.set_title(lines[0], loc="left", color=INK, fontsize=11, pad=12 * len(lines) + 2)
    axes.text(0, 1.015, "\n".join(lines[1:]), transform=axes.transAxes, color="#57606a", fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8, extend="both")
    save_figure(figure, path)


def layer_heatmaps(
    cells: Mapping[str, npt.ArrayLike],
    tasks: Sequence[str],
    path: Path,
    *,
    title: str = "Task interference by layer",
) -> None:
    """Draw the matrices of many blocks as small multiples, on one scale of colours.

    Args:
        cells: T [n, n] by block, as `interference_heatmap` takes it.
        tasks: n names; they are numbered next to the panels, and the key stands below.
        path: the PNG to write.
        title: what stands above them.

    Raises:
        ValueError: there is no block, or a matrix is not n by n.
    """
    if not cells:
        raise ValueError("there is no layer to draw")
    matrices = {name: _checked(matrix, tasks) for name, matrix in cells.items()}
    note = "columns: whose step; rows: whose loss; blue helps, red harms"
    figure, panels = numbered_panels(len(matrices), tasks, title=title, note=note)
    reach = _reach(list(matrices.values()))
    images = []
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        images.append(_draw(axes, matrix, reach))
        axes.set_title(f"{name}\n{_share(matrix)}", fontsize=7.5, color=INK)
        number_ticks(axes, len(tasks), rows_only=False)
    bar = figure.colorbar(images[0], ax=panels, shrink=0.6, aspect=30, extend="both")
    bar.ax.tick_params(labelsize=7.5)
    save_figure(figure, path)


def numbered_panels(
    count: int, tasks: Sequence[str], *, title: str, note: str
) -> tuple[Figure, list[Axes]]:
    """Return a figure of small panels, below them the key to the tasks' numbers.

    Args:
        count: panels, at least 1.
        tasks: their names stand in the key, numbered from 1.
        title: what stands above them.
        note: one line below the key.
    """
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    key = [*_key(tasks, width=max(60, 22 * columns)), note]
    below = 0.17 * len(key) + 0.2
    width = max(5.5, 0.9 + (_PANEL + 0.2) * columns)
    height = _TITLE + (_PANEL + 0.42) * rows + below
    figure = new_figure(width, height)
    figure.set_layout_engine(
        "constrained", rect=(0, below / height, 1, 1 - (below + _TITLE) / height)
    )
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    figure.text(0.01, 1 - 0.12 / height, title, color=INK, fontsize=11, va="top")
    figure.text(0.01, 0.08 / height, "\n".join(key), fontsize=7.5, color=INK, va="bottom")
    return figure, panels[:count]


def number_ticks(axes: Axes, count: int, *, rows_only: bool) -> None:
    """Number a small panel's rows, and columns, from 1."""
    labels = [str(number + 1) for number in range(count)]
    axes.set_yticks(range(count), labels)
    if not rows_only:
        axes.set_xticks(range(count), labels)
    axes.tick_params(labelsize=5.5, length=0, colors=INK)
    axes.spines[:].set_color(FAINT)


def shorten_name(name: str, longest: int = LONGEST_NAME) -> str:
    """Cut a task's name to what fits next to a cell.

    >>> shorten_name("Compare properties of objects made of wool", 12)
    'Compare pro…'
    """
    return name if len(name) <= longest else f"{name[: longest - 1].rstrip()}…"


def _checked(cells: npt.ArrayLike, tasks: Sequence[str]) -> Cells:
    """Read a matrix; None, as JSON has it, becomes NaN."""
    matrix = np.asarray(cells, dtype=np.float64)
    if matrix.shape != (len(tasks), len(tasks)):
        raise ValueError(f"{len(tasks)} tasks need a square matrix of them, it is {matrix.shape}")
    return matrix


def _off_diagonal(matrix: Cells) -> Cells:
    cells = matrix[~np.eye(len(matrix), dtype=bool)]
    return cells[~np.isnan(cells)]


def _reach(matrices: Sequence[Cells]) -> float:
    """Find the value of the strongest colour: 1, or less where nearly all pairs are weaker."""
    pairs = np.abs(np.concatenate([_off_diagonal(matrix) for matrix in matrices]))
    return float(np.clip(np.quantile(pairs, 0.95), 0.1, 1.0)) if pairs.size else 1.0


def _share(matrix: Cells) -> str:
    pairs = _off_diagonal(matrix)
    return f"{(pairs < 0).mean():.0%} of pairs negative" if pairs.size else "undefined"


def _draw(axes: Axes, matrix: Cells, reach: float) -> AxesImage:
    from matplotlib import colormaps

    colours = colormaps[COLOURS].with_extremes(bad=EMPTY)
    image = axes.imshow(matrix, cmap=colours, vmin=-reach, vmax=reach)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_color(FAINT)
    return image


def name_cells(axes: Axes, tasks: Sequence[str]) -> None:
    """Name a matrix's rows and columns after tasks, white lines between the cells."""
    names = [shorten_name(task) for task in tasks]
    axes.set_xticks(range(len(tasks)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(tasks)), names)
    axes.tick_params(labelsize=9)
    axes.set_xticks(np.arange(len(tasks) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(tasks) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)


def _write(
    axes: Axes, row: int, column: int, value: float, sure: bool, reach: float, size: float
) -> None:
    """Write a cell's number, dark on light and light on dark."""
    if np.isnan(value):
        text, colour = "-", INK
    else:
        number = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.0f}"
        text = number if sure or row == column else f"({number})"
        colour = "white" if abs(value) > 0.65 * reach else INK
    axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _key(tasks: Sequence[str], width: int) -> list[str]:
    """Write the tasks' numbers and names in lines of a limited width."""
    lines = [""]
    for number, task in enumerate(tasks, start=1):
        entry = f"{number} {shorten_name(task)}"
        if lines[-1] and len(lines[-1]) + 3 + len(entry) > width:
            lines.append("")
        lines[-1] += f"   {entry}" if lines[-1] else entry
    return lines


TASK_COLOURS = "Blues"
# inches


def overlap_heatmap(overlap: npt.ArrayLike, tasks: Sequence[str], path: Path, title: str) -> None:
    """Draw what two tasks share of an adapter's factors, with a number in every cell.

    Args:
        overlap: [n, n], 0 (no factor in common) to 1 (the same ones alike).
        tasks: n names.
        path: the PNG to write.
        title: what stands above it.
    """
    cells = np.asarray(overlap, dtype=np.float64)
    n = len(tasks)
    figure = new_figure(3.2 + _CELL * n, 2.2 + _CELL * n)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    pairs = cells[~np.eye(n, dtype=bool)]
    low = min(0.95, float(np.floor(20 * pairs.min()) / 20)) if pairs.size else 0.0
    image = axes.imshow(cells, cmap=TASK_COLOURS, vmin=low, vmax=1)
    name_cells(axes, tasks)
    for (row, column), value in np.ndenumerate(cells):
        colour = "white" if value > low + 0.6 * (1 - low) else INK
        text = f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    figure.colorbar(image, ax=axes, shrink=0.8)
    save_figure(figure, path)


def usage_panels(
    panels: Mapping[str, npt.ArrayLike], tasks: Sequence[str], path: Path, title: str
) -> None:
    """Draw each task's shares of the factors, one panel a router.

    Args:
        panels: [n, E] by name, rows adding up to 1.
        tasks: n names.
        path: the PNG to write.
        title: what stands above them.
    """
    shares = {name: np.asarray(panel, dtype=np.float64) for name, panel in panels.items()}
    most = max(float(panel.max()) for panel in shares.values())
    note = "rows: tasks; columns: factors; dark: used more"
    figure, places = numbered_panels(len(shares), tasks, title=title, note=note)
    images = []
    for axes, (name, panel) in zip(places, shares.items(), strict=True):
        images.append(axes.imshow(panel, cmap=TASK_COLOURS, vmin=0, vmax=most, aspect="auto"))
        axes.set_title(name, fontsize=7.5, color=INK)
        axes.set_xticks(sorted({0, panel.shape[1] - 1}))
        number_ticks(axes, len(tasks), rows_only=True)
    bar = figure.colorbar(images[0], ax=places, shrink=0.6, aspect=30)
    bar.ax.tick_params(labelsize=7.5)
    save_figure(figure, path)
