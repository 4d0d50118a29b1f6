"""Intervals for scores."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


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
