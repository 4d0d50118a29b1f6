"""ANLS next to the paper's formula, written out plainly."""

from __future__ import annotations

import doctest
from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varifocal.evaluation.metrics import text_match
from varifocal.evaluation.metrics import text_match as module
from varifocal.evaluation.metrics.text_match import anls, levenshtein


def distance(first: str, second: str) -> int:
    """The recursive definition of the edit distance."""

    @lru_cache(None)
    def of(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        change = of(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, change)

    return of(len(first), len(second))


def paper(answer: str, references: list[str]) -> float:
    """Equation 1 of Biten et al. (2019): max over answers of s = 1 - NL if NL < 0.5 else 0."""
    best = 0.0
    for right in references:
        one, other = (" ".join(text.lower().split()) for text in (answer, right))
        longest = max(len(one), len(other))
        nl = distance(one, other) / longest if longest else 0.0
        best = max(best, 1 - nl if nl < 0.5 else 0.0)
    return best


words = st.text("abC d", max_size=8)


@given(words, words)
def test_the_distance_is_the_definitions(first: str, second: str) -> None:
    assert levenshtein(first, second) == distance(first, second)


@given(words, st.lists(words, min_size=1, max_size=3))
def test_what_an_answer_earns_is_the_papers(answer: str, references: list[str]) -> None:
    assert anls(answer, references) == pytest.approx(paper(answer, references), abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "references", "earned"),
    [
        ("Stop", ["stop"], 1.0),
        ("st0p", ["stop"], 0.75),
        ("stop  sign", ["STOP SIGN", "sign"], 1.0),
        ("ab", ["cd"], 0.0),
        ("ab", ["ac"], 0.0),  # NL = 0.5 earns nothing in the paper
        ("", ["stop"], 0.0),
        ("12 March 1990", ["12 march 1991"], 12 / 13),
    ],
)
def test_cases_worked_by_hand(answer: str, references: list[str], earned: float) -> None:
    assert anls(answer, references) == pytest.approx(earned)


def test_no_right_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="no right answer"):
        anls("stop", [])


@pytest.mark.parametrize(
    ("text", "reference", "found"),
    [
        ("It is red.", "red", True),
        ("It is REDDISH.", "red", False),
        ("about 12.", "12", True),
        ("112", "12", False),
        ("a red\ncar", "Red car.", True),
        ("", "red", False),
        ("anything", ".", False),
    ],
)
def test_words_that_a_text_says(text: str, reference: str, found: bool) -> None:
    assert text_match.says(text, reference) is found


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(text_match).failed == 0
