"""MLAN's three claims, counted on the study's runs: a flat middle, a cliff, a saving."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from studies.record import over_seeds

ASKED = ("unseen vision", "unseen language", "trained vision", "trained language")
"""Suites that every scored moment has: new questions of skills no row was of, and of the others."""
Moment = Mapping[str, Any]
"""One scored moment of a run: `tokens`, and each measure by suite."""
Point = Mapping[str, Any]
"""A run: its `share`, `seed` and `rows`, and its `moments`, the start before the first step too."""


def budgets_of(points: Sequence[Point]) -> dict[int, float]:
    """The tokens of each seed's cheapest share: what all may spend at equal cost."""
    budgets: dict[int, float] = {}
    for one in points:
        spent = one["moments"][-1]["tokens"]
        budgets[one["seed"]] = min(spent, budgets.get(one["seed"], spent))
    return budgets


def at_cost(moments: Sequence[Moment], tokens: float, measure: str) -> dict[str, float]:
    """A measure by suite once a run has spent so many tokens, straight between scored moments.

    >>> start, end = dict.fromkeys(ASKED, 40.0), dict.fromkeys(ASKED, 60.0)
    >>> found = at_cost([{"tokens": 0, "right": start}, {"tokens": 8, "right": end}], 2, "right")
    >>> found["unseen vision"]
    45.0
    """
    spent = [one["tokens"] for one in moments]
    return {
        suite: float(np.interp(tokens, spent, [one[measure][suite] for one in moments]))
        for suite in ASKED
    }


def cost_to_reach(spent: Sequence[float], scores: Sequence[float], aim: float) -> float | None:
    """The tokens after which a run first scores as much; None if it never does.

    >>> cost_to_reach([0, 8], [40.0, 60.0], 45.0), cost_to_reach([0, 8], [40.0, 60.0], 61.0)
    (2.0, None)
    """
    if scores[0] >= aim:
        return 0.0
    for place, now in enumerate(scores[1:], start=1):
        if now >= aim:
            was, part = spent[place - 1], (aim - scores[place - 1]) / (now - scores[place - 1])
            return was + part * (spent[place] - was)
    return None


def claims(points: Sequence[Point], measure: str) -> dict[str, Any]:
    """The paper's three claims as differences, paired by seed and then taken over seeds.

    `middle` are the shares from 12.5 to 87.5 %. A slope is in points from one end of the middle to
    the other; a cliff is the middle's mean less the pure share's, both at equal rows. Seeds that
    lack a share are left out.

    Args:
        points: with `share`, `seed`, `rows` and `moments`, the first moment being the start.
        measure: that is compared; more is better.
    """
    whole = [seed for seed in budgets_of(points) if _is_whole(points, seed)]
    if not whole:
        return {}
    found: dict[str, Any] = {"seeds": whole}
    for suite in ASKED:
        rows = [_ends(points, seed, suite, measure) for seed in whole]
        bases = [_of(points, seed, 0.0)["moments"][0][measure][suite] for seed in whole]
        middles = [{share: y for share, y in row.items() if 0 < share < 1} for row in rows]
        found[suite] = {
            "gain_of_language_alone": _differences(rows, 1.0, bases),
            "gain_of_vision_alone": _differences(rows, 0.0, bases),
            "gain_of_middle": over_seeds(
                [fmean(m.values()) - b for m, b in zip(middles, bases, strict=True)]
            ),
            "slope_of_middle": over_seeds([_slope(middle) for middle in middles]),
            "cliff_at_all_language": over_seeds(
                [fmean(m.values()) - r[1.0] for m, r in zip(middles, rows, strict=True)]
            ),
            "cliff_at_no_language": over_seeds(
                [fmean(m.values()) - r[0.0] for m, r in zip(middles, rows, strict=True)]
            ),
            "tokens_to_what_vision_alone_reached": _saving(points, whole, suite, measure),
        }
    found["tokens_a_row"] = _tokens_a_row(points, whole)
    return found


def _is_whole(points: Sequence[Point], seed: int) -> bool:
    """Whether a seed has the pure shares and all that any other seed has between."""
    shares = {one["share"] for one in points}
    return {0.0, 1.0} <= shares == {one["share"] for one in points if one["seed"] == seed}


def _of(points: Sequence[Point], seed: int, share: float) -> Point:
    return next(one for one in points if (one["seed"], one["share"]) == (seed, share))


def _ends(points: Sequence[Point], seed: int, suite: str, measure: str) -> dict[float, float]:
    """Share -> its score at the end of its run."""
    own = (one for one in points if one["seed"] == seed)
    return {one["share"]: one["moments"][-1][measure][suite] for one in own}


def _differences(
    rows: Sequence[Mapping[float, float]], share: float, bases: Sequence[float]
) -> dict[str, Any]:
    return over_seeds([row[share] - base for row, base in zip(rows, bases, strict=True)])


def _slope(middle: Mapping[float, float]) -> float:
    """The straight line's rise over the middle shares; 0 where there is one alone."""
    if len(middle) < 2:
        return 0.0
    shares = sorted(middle)
    rise = np.polyfit(shares, [middle[share] for share in shares], 1)[0]
    return float(rise * (shares[-1] - shares[0]))


def _saving(points: Sequence[Point], seeds: Sequence[int], suite: str, measure: str) -> Any:
    """By share, a value a seed: what vision alone spent over what the share took to be as good."""
    found: dict[str, list[float | None]] = defaultdict(list)
    for seed in seeds:
        last = _of(points, seed, 0.0)["moments"][-1]
        for share in sorted(_ends(points, seed, suite, measure)):
            moments = _of(points, seed, share)["moments"]
            scores = [one[measure][suite] for one in moments]
            spent = cost_to_reach([one["tokens"] for one in moments], scores, last[measure][suite])
            found[f"{share:g}"].append(last["tokens"] / spent if spent else spent)
    return found


def _tokens_a_row(points: Sequence[Point], seeds: Sequence[int]) -> dict[str, float]:
    """The mean length of a row with an image and of one without, in tokens."""
    means = {}
    for kind, share in (("vision", 0.0), ("language", 1.0)):
        runs = [_of(points, seed, share) for seed in seeds]
        means[kind] = fmean(one["moments"][-1]["tokens"] / one["rows"] for one in runs)
    return means
