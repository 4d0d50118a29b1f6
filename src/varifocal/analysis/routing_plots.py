"""Pictures of how tasks share an adapter's factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from varifocal.analysis.heatmap import name_cells, number_ticks, numbered_panels
from varifocal.analysis.plots import INK, new_figure, save_figure

COLOURS = "Blues"
_CELL = 0.62  # inches


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
    picture = axes.imshow(cells, cmap=COLOURS, vmin=low, vmax=1)
    name_cells(axes, tasks)
    for (row, column), value in np.ndenumerate(cells):
        colour = "white" if value > low + 0.6 * (1 - low) else INK
        text = f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    figure.colorbar(picture, ax=axes, shrink=0.8)
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
    shares = {name: np.asarray(one, dtype=np.float64) for name, one in panels.items()}
    most = max(float(one.max()) for one in shares.values())
    note = "rows: tasks; columns: factors; dark: used more"
    figure, places = numbered_panels(len(shares), tasks, title=title, note=note)
    pictures = []
    for axes, (name, one) in zip(places, shares.items(), strict=True):
        pictures.append(axes.imshow(one, cmap=COLOURS, vmin=0, vmax=most, aspect="auto"))
        axes.set_title(name, fontsize=7.5, color=INK)
        axes.set_xticks(sorted({0, one.shape[1] - 1}))
        number_ticks(axes, len(tasks), rows_only=True)
    bar = figure.colorbar(pictures[0], ax=places, shrink=0.6, aspect=30)
    bar.ax.tick_params(labelsize=7.5)
    save_figure(figure, path)
