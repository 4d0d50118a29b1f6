"""Plots of a run: its loss, and its routing weights.

This package is the only door to matplotlib. Figures are drawn on Agg canvases of their own, so that
no display is needed and no global state is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from varifocal.writing import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, PAPER = "#22272e", "#8b949e", "#ffffff"
TEXT_COLOUR, IMAGE_COLOUR = "#2f6db5", "#d9792b"
DPI = 130


def loss_curve(metrics: Sequence[Mapping[str, Any]], path: Path, *, title: str = "Loss") -> None:
    """Draw the training loss, raw and smoothed, over optimiser steps.

    Args:
        metrics: rows of `metrics.jsonl`; those with `step` and `loss` are drawn.
        path: the PNG to write.
        title: what stands above it.

    Raises:
        ValueError: no row has both.
    """
    points = sorted(
        (float(row["step"]), float(row["loss"])) for row in metrics if {"step", "loss"} <= set(row)
    )
    if not points:
        raise ValueError("no metrics row has both 'step' and 'loss'")
    steps, losses = np.array(points).T
    figure, (axes,) = panels(7.0, 3.8, [1])
    axes.plot(steps, losses, color=TEXT_COLOUR, alpha=0.3, linewidth=1, label="each log")
    smooth = smoothed(losses)
    axes.plot(steps, smooth, color=TEXT_COLOUR, linewidth=2, label="smoothed")
    axes.annotate(
        f"{smooth[-1]:.3f}", (steps[-1], smooth[-1]), (0, 8), textcoords="offset points",
        ha="center", color=TEXT_COLOUR, fontsize=9,
    )  # fmt: skip
    axes.set(xlabel="step", ylabel="nats per supervised token")
    whole_steps(axes)
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", color=INK)
    axes.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


def whole_steps(axes: Axes) -> None:
    """Label the horizontal axis with whole numbers alone: there is no half of a step or a layer."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def smoothed(values: npt.NDArray[np.float64], span: float = 0.05) -> npt.NDArray[np.float64]:
    """Average over past values with exponentially falling weights.

    Args:
        values: [n].
        span: the average's reach as a share of n.
    """
    keep = 1 - 1 / max(1.0, span * len(values))
    total, weight = 0.0, 0.0
    averages = np.empty(len(values))
    for index, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1
        averages[index] = total / weight
    return averages


def routing_plot(table: Mapping[str, Any], path: Path, *, title: str = "Routing weights") -> None:
    """Draw how MMA's router splits each modality between its two branches, layer by layer.

    Args:
        table: weights [2 modalities (text, image), 2 branches] by layer name, in the layers' order,
            as `varifocal.tuners.routing_table` gives them; each row adds up to 1.
        path: the PNG to write.
        title: what stands above it.

    Raises:
        ValueError: the table is empty or a layer's weights are not [2, 2].
    """
    layers = range(len(table))
    weights = np.array([np.asarray(of_layer, dtype=np.float64) for of_layer in table.values()])
    if weights.shape[1:] != (2, 2):
        raise ValueError(f"each layer needs [2, 2] routing weights, the table is {weights.shape}")
    figure, (lines, heat) = panels(7.0, 4.6, [3.2, 1])
    for modality, (name, colour) in enumerate((("text", TEXT_COLOUR), ("image", IMAGE_COLOUR))):
        lines.plot(layers, weights[:, modality, 0], "o-", color=colour, markersize=4, label=name)
    lines.axhline(0.5, color=FAINT, linewidth=1, linestyle=":")
    reach = min(0.5, max(0.05, 1.15 * float(np.abs(weights[:, :, 0] - 0.5).max())))
    lines.set_ylim(0.5 - 1.05 * reach, 0.5 + 1.25 * reach)  # the legend stands above the lines
    lines.set_ylabel("weight of branch 0")
    lines.set_title(f"{title} (branch 1 has the rest)", loc="left", color=INK)
    lines.legend(frameon=False, fontsize=9, ncols=2, loc="upper left")
    image = heat.imshow(
        weights[:, :, 0].T, aspect="auto", cmap="PuOr", vmin=0.5 - reach, vmax=0.5 + reach,
        extent=(layers[0] - 0.5, layers[-1] + 0.5, 1.5, -0.5),
    )  # fmt: skip
    heat.set_yticks([0, 1], ["text", "image"])
    heat.grid(visible=False)
    heat.set_xlabel("adapted decoder layer")
    whole_steps(heat)
    figure.colorbar(image, ax=[lines, heat], pad=0.02, aspect=30)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches with a canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_file(path) as staging:
        figure.savefig(staging, format="png")


def panels(width: float, height: float, shares: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels from top to bottom, with light frames."""
    figure = new_figure(width, height)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(shares), 1, squeeze=False, sharex=True, height_ratios=list(shares))
    every = list(grid[:, 0])
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, every
