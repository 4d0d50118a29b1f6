"""Intervals for scores, and tests for two models on the same items.

Proportions get Wilson's interval; everything else the percentile bootstrap (Efron 1979): items are
drawn with replacement, the measure is taken again, and the middle 95 % of what comes out is the
interval. Items are the unit, so questions about one image count as independent. The percentile
interval is a little too narrow for few items (about 92 % instead of 95 % at twenty), and has no
width where all items are the same.

Letters: N items, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile

RESAMPLES = 2000
"""Enough that an end moves by about a twentieth of the interval's width from seed to seed."""

_BLOCK = 1_000_000  # indices drawn at a time

Floats = Sequence[float] | npt.NDArray[np.float64]
Picked = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A number and how sure it is.

    Attributes:
        value: the measure on all items.
        low, high: ends of its interval.
    """

    value: float
    low: float
    high: float


def wilson(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927), 95 % by default.

    Unlike the textbook interval it stays inside [0, 1] and has a width at 0 and n successes.

    Args:
        successes: 0 to `n`.
        n: trials, at least 1.
        z: standard normal quantile of the two-sided confidence.

    Raises:
        ValueError: no trials, or more successes than trials.

    >>> low, high = wilson(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must be 0 to n and n at least 1, not {successes} of {n}")
    share = successes / n
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)
    return min(low, share), max(high, share)  # rounding at 0 and n successes


def bootstrap(
    count: int,
    measure: Callable[[Picked], float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Return a measure of items with its percentile bootstrap interval.

    For what is no average: F1, a ratio, a sum over categories, the difference of two such things
    on the same items.

    Args:
        count: N, items; at least 1.
        measure: places of items, [N] with repeats -> the measure on them. A resample on which it
            is not defined gives NaN and is left out.
        resamples: R.
        seed: same seed, same interval.
        confidence: share of the resamples inside, above 0 and below 1.

    Raises:
        ValueError: there are no items or no resamples, or the confidence is no share.
    """
    _check(count, resamples, confidence)
    drawn = (measure(picked) for block in _picks(count, resamples, seed) for picked in block)
    values = np.fromiter(drawn, np.float64, resamples)
    return _percentiles(float(measure(np.arange(count))), values, confidence)


def bootstrap_mean(
    values: Floats, *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Return the average of a number that every item has, with its bootstrap interval.

    Args:
        values: [N].
        resamples: R.
        seed: same seed, same interval.
        confidence: share of the resamples inside, above 0 and below 1.

    Raises:
        ValueError: as `bootstrap`.

    >>> bootstrap_mean([0.0, 0.3, 1.0, 0.6, 0.6, 1.0]).value
    0.5833333333333334
    """
    return bootstrap_ratio(
        values, np.ones(len(values)), resamples=resamples, seed=seed, confidence=confidence
    )


def bootstrap_ratio(
    above: Floats,
    below: Floats,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Return sum(above) / sum(below) over items, with its bootstrap interval.

    F1 is 2 TP / (2 TP + FP + FN), so `above` is 2 for a true positive and `below` is 2 for it and 1
    for either mistake; nats a token are an item's nats above its tokens.

    Args:
        above: [N].
        below: [N].
        resamples: R; those with nothing below are left out.
        seed: same seed, same interval.
        confidence: share of the resamples inside, above 0 and below 1.

    Returns:
        NaN in all three places where there is nothing below at all.

    Raises:
        ValueError: as `bootstrap`, or the two are of different length.
    """
    tops, bottoms = np.asarray(above, np.float64), np.asarray(below, np.float64)
    if tops.shape != bottoms.shape:
        raise ValueError(f"above and below must be of one length, not {len(tops)}, {len(bottoms)}")
    _check(len(tops), resamples, confidence)
    ratios = [
        _divide(tops[picked].sum(axis=1), bottoms[picked].sum(axis=1))
        for picked in _picks(len(tops), resamples, seed)
    ]
    value = float(_divide(tops.sum(keepdims=True), bottoms.sum(keepdims=True))[0])
    return _percentiles(value, np.concatenate(ratios), confidence)


def paired_bootstrap(
    first: Floats,
    second: Floats,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Return the average of `second` minus `first` over the same items, with its interval.

    Items are drawn, never one side alone: what is hard for both widens nothing.

    Args:
        first: [N], a number of each item.
        second: [N], of the same items in the same order.
        resamples: R.
        seed: same seed, same interval.
        confidence: share of the resamples inside, above 0 and below 1.

    Raises:
        ValueError: as `bootstrap`, or the two are of different length.
    """
    before, after = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if before.shape != after.shape:
        raise ValueError(f"both sides need the same items, not {len(before)} and {len(after)}")
    return bootstrap_mean(after - before, resamples=resamples, seed=seed, confidence=confidence)


def mcnemar(won: int, lost: int) -> float:
    """Return the two-sided p of McNemar's exact test (McNemar 1947).

    Were two models equally good, an item that only one of them gets right would be either's with
    probability one half; p is the chance of a split at least as uneven as the one seen. Items that
    both or neither get right say nothing.

    Args:
        won: items that only the second gets right.
        lost: items that only the first gets right.

    Raises:
        ValueError: a negative count.

    >>> mcnemar(8, 1)
    0.0390625
    """
    if won < 0 or lost < 0:
        raise ValueError(f"counts are 0 or more, not {won} and {lost}")
    trials = won + lost
    ways = tail = 1
    for taken in range(min(won, lost)):
        ways = ways * (trials - taken) // (taken + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**trials)  # whole numbers until here: exact at any count


def _check(count: int, resamples: int, confidence: float) -> None:
    if count < 1 or resamples < 1:
        raise ValueError(f"at least 1 item and 1 resample, not {count} and {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1, not {confidence}")


def _picks(count: int, resamples: int, seed: int) -> Iterator[Picked]:
    """Yield blocks [rows, N] of places drawn with replacement, R rows in all."""
    random = np.random.default_rng(seed)
    rows = max(1, _BLOCK // count)
    for start in range(0, resamples, rows):
        yield random.integers(count, size=(min(rows, resamples - start), count))


def _divide(
    above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)


def _percentiles(value: float, drawn: npt.NDArray[np.float64], confidence: float) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not len(drawn):
        return Interval(value, math.nan, math.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail)).tolist()
    return Interval(value, min(low, value), max(high, value))
