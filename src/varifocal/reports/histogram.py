"""Plots of data before a run: how long its examples are, and how many tokens its images take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from varifocal.plotting import FAINT, IMAGE_COLOUR, INK, TEXT_COLOUR, panels, save_figure

Lengths = npt.NDArray[np.int64]

_BINS = 48
_FEW = 6  # bars that fill the width
_COLOURS = {"text": TEXT_COLOUR, "image": IMAGE_COLOUR}


def length_histogram(
    lengths: Mapping[str, Lengths], path: Path, *, limit: int | None, title: str = "Token lengths"
) -> None:
    """Draw how many examples have which length, the modalities on top of one another.

    Args:
        lengths: tokens of each example, [n], by modality (`text`, `image`).
        path: the PNG to write.
        limit: `max_length`, drawn as a line with the share of examples beyond it.
        title: what stands above it.

    Raises:
        ValueError: there is no example.
    """
    there = {name: values for name, values in lengths.items() if len(values)}
    if not there:
        raise ValueError("there is no length to draw")
    every = np.concatenate(list(there.values()))
    figure, (axes,) = panels(7.0, 3.8, [1])
    axes.hist(
        list(there.values()),
        bins=_edges(every, limit),
        stacked=True,
        color=[_COLOURS[name] for name in there],
        label=[f"{name} ({len(values):,})" for name, values in there.items()],
    )
    if limit is not None:
        over = float((every > limit).mean())
        axes.axvline(limit, color=INK, linewidth=1, linestyle="--")
        axes.annotate(
            f"max_length {limit}\n{over:.1%} beyond", (limit, 0.97), (-6, 0),
            xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="right", va="top", fontsize=9, color=INK,
        )  # fmt: skip
    axes.set(xlabel="tokens of an example, its images' included", ylabel="examples")
    axes.set_title(title, loc="left", color=INK)
    axes.legend(frameon=False, fontsize=9, loc="center right")
    save_figure(figure, path)


def _edges(values: Lengths, limit: int | None) -> list[float]:
    """Return bins from 0 over the longest and the limit."""
    most = max(int(values.max()), limit or 0)
    return np.linspace(0, most * 1.02 + 1, _BINS + 1).tolist()


def image_token_histogram(
    counts: Mapping[int, int], path: Path, *, title: str = "Image tokens"
) -> None:
    """Draw how many examples have how many image tokens.

    Args:
        counts: examples by their number of image tokens.
        path: the PNG to write.
        title: what stands above it.

    Raises:
        ValueError: there is no example.
    """
    if not counts:
        raise ValueError("there is no count to draw")
    figure, (axes,) = panels(7.0, 3.2, [1])
    tokens = sorted(counts)
    heights = [counts[number] for number in tokens]
    colours = [IMAGE_COLOUR if number else FAINT for number in tokens]
    if len(tokens) <= _BINS:
        places = range(len(tokens))
        axes.bar(places, heights, color=colours, width=0.7)
        axes.set_xticks(places, [str(number) for number in tokens])
        axes.set_xlim(-0.6, max(len(tokens), _FEW) - 0.4)
    else:
        edges = np.linspace(0, tokens[-1] + 1, _BINS + 1)
        axes.hist(tokens, bins=edges.tolist(), weights=heights, color=IMAGE_COLOUR)
    axes.set(xlabel="image tokens of an example", ylabel="examples")
    axes.set_title(title, loc="left", color=INK)
    save_figure(figure, path)
