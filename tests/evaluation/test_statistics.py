"""Intervals and tests against values that others printed, and how often intervals hold."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from varifocal.evaluation import statistics
from varifocal.evaluation.statistics import (
    Z_95,
    bootstrap,
    bootstrap_mean,
    bootstrap_ratio,
    mcnemar,
    paired_bootstrap,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),  # the same
        (0, 20, 0.0, 0.1611),  # the same
        (1, 29, 0.0061, 0.1718),  # the same
    ],
)
def test_known_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_solve_wilsons_equation(case: tuple[int, int]) -> None:
    """Each end p satisfies (share - p)^2 = z^2 p (1 - p) / n, the equation it is defined by."""
    successes, n = case
    low, high = wilson(successes, n)
    share = successes / n
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        assert (share - end) ** 2 == pytest.approx(Z_95**2 * end * (1 - end) / n, abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"not {successes} of {n}"):
        wilson(successes, n)


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (1, 0, 1.0),
        (0, 6, 0.03125),  # 2 / 2^6
        (8, 1, 0.0390625),  # 2 (1 + 9) / 2^9
        (12, 4, 0.076813),  # 2 (1 + 16 + 120 + 560 + 1820) / 2^16
        (121, 59, 4.434e-06),  # the textbooks' table of a disease before and after treatment
    ],
)
def test_mcnemars_exact_p(won: int, lost: int, p: float) -> None:
    assert mcnemar(won, lost) == mcnemar(lost, won) == pytest.approx(p, rel=1e-3)


def test_mcnemar_of_many_items_has_a_p() -> None:
    """2^5000 is beyond a float; the test has no approximation that would have to step in."""
    assert 0 < mcnemar(2600, 2400) < 0.005
    with pytest.raises(ValueError, match="not -1 and 2"):
        mcnemar(-1, 2)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_twice_a_binomial_tail(won: int, lost: int) -> None:
    trials = won + lost
    tail = sum(math.comb(trials, k) for k in range(min(won, lost) + 1))
    assert mcnemar(won, lost) == pytest.approx(min(1.0, 2 * tail / 2**trials))


VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


@given(VALUES)
def test_a_bootstrap_interval_holds_its_value_and_stays_among_the_items(values) -> None:
    found = bootstrap_mean(values, resamples=50)
    assert found == bootstrap_mean(values, resamples=50)
    assert min(values) - 1e-9 <= found.low <= found.value <= found.high <= max(values) + 1e-9
    assert found.value == pytest.approx(float(np.mean(values)), abs=1e-9)


@given(VALUES, st.floats(-5, 5))
def test_a_difference_is_paired(values, shift: float) -> None:
    """However much items differ, the same step on each is known exactly."""
    found = paired_bootstrap(values, np.asarray(values) + shift, resamples=50)
    assert [found.low, found.value, found.high] == pytest.approx([shift] * 3, abs=1e-9)


def test_the_general_and_the_quick_bootstrap_agree() -> None:
    random = np.random.default_rng(5)
    above, below = random.random(40), random.random(40) + 0.1
    slow = bootstrap(40, lambda picked: above[picked].sum() / below[picked].sum(), seed=3)
    assert slow == bootstrap_ratio(above, below, seed=3)
    assert slow != bootstrap_ratio(above, below, seed=4)


def f1(gold, said) -> tuple[np.ndarray, np.ndarray]:
    """F1 as a ratio of sums: 2 TP / (2 TP + FP + FN)."""
    return 2.0 * (gold & said), 1.0 * gold + 1.0 * said


def coverage(draw, truth: float, trials: int = 300) -> float:
    found = [draw(np.random.default_rng(seed)) for seed in range(trials)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """On 300 made-up data sets of 80 items each; two standard errors of 95 % are 2.5 points."""

    def mean(random: np.random.Generator):
        return bootstrap_mean(random.exponential(2.0, 80), resamples=400)

    def step(random: np.random.Generator):
        hard = random.normal(0, 5, 80)
        return paired_bootstrap(hard, hard + random.normal(1.0, 1.0, 80), resamples=400)

    def yes(random: np.random.Generator):
        gold = random.random(80) < 0.5
        said = np.where(random.random(80) < 0.8, gold, ~gold)
        return bootstrap_ratio(*f1(gold, said), resamples=400)

    for draw, truth in ((mean, 2.0), (step, 1.0), (yes, 0.8)):
        assert 0.90 <= coverage(draw, truth) <= 0.98


def test_half_the_confidence_holds_half_as_often() -> None:
    def narrow(random: np.random.Generator):
        return bootstrap_mean(random.normal(0, 1, 80), resamples=400, confidence=0.5)

    assert 0.42 <= coverage(narrow, 0.0) <= 0.58


def test_what_is_nowhere_defined_is_not_a_number() -> None:
    nothing = np.zeros(4, bool)
    assert math.isnan(bootstrap_ratio(*f1(nothing, nothing)).value)


def test_impossible_bootstraps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="the same items, not 1 and 2"):
        paired_bootstrap([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="above 0 and below 1"):
        bootstrap_mean([1.0], confidence=1.5)


def test_doctests() -> None:
    assert doctest.testmod(statistics).failed == 0
