"""Numbers in a few bins with round edges, for a histogram that is read as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Bin:
    """Values from `low` to `high`, both included.

    Attributes:
        low: the smallest whole number that falls into it.
        high: the largest.
        counts: how many values of each series fall into it.
    """

    low: int
    high: int
    counts: tuple[int, ...]


def binned(series: Sequence[npt.NDArray[np.int64]], most_bins: int = 16) -> list[Bin]:
    """Sort whole numbers from 0 into bins as wide as 1, 2 or 5 times a power of ten.

    Args:
        series: any number of arrays, counted apart in the same bins.
        most_bins: how many bins there may be.

    Returns:
        Bins from the one with the smallest to the one with the largest value; none without values.

    >>> [(bin.low, bin.high, bin.counts) for bin in binned([np.array([12, 14, 31])], most_bins=3)]
    [(10, 19, (2,)), (20, 29, (0,)), (30, 39, (1,))]
    """
    joined = np.concatenate([np.zeros(0, np.int64), *series])
    if not len(joined):
        return []
    width = next(
        width
        for power in range(18)
        for width in (10**power, 2 * 10**power, 5 * 10**power)
        if joined.max() // width - joined.min() // width < most_bins
    )
    first, last = int(joined.min() // width), int(joined.max() // width)
    counts = [np.bincount(values // width - first, minlength=last - first + 1) for values in series]
    return [
        Bin((first + n) * width, (first + n + 1) * width - 1, tuple(int(c[n]) for c in counts))
        for n in range(last - first + 1)
    ]
