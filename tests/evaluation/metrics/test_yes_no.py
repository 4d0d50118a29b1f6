"""POPE's scores and the two ways of reading yes and no, on paper."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varifocal.evaluation.metrics.text_match import confusion, read_prefix, read_yes_no


def test_pope_on_paper():
    # 4 hits, 1 miss, 2 alarms, 3 passes
    pairs = [("yes", "yes")] * 4 + [("yes", "no")] + [("no", "yes")] * 2 + [("no", "no")] * 3
    scores = confusion(pairs)
    assert scores.accuracy == pytest.approx(7 / 10)
    assert scores.precision == pytest.approx(4 / 6)
    assert scores.recall == pytest.approx(4 / 5)
    assert scores.f1 == pytest.approx(2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5))
    assert scores.yes_ratio == pytest.approx(6 / 10)


def test_what_cannot_be_read_is_wrong_and_no_yes():
    scores = confusion([("yes", "yes"), ("yes", None), ("no", None), ("no", "no")])
    assert (scores.accuracy, scores.precision, scores.recall) == (0.5, 1.0, 0.5)
    assert scores.yes_ratio == 0.25


def test_nothing_said_yes_divides_by_nothing():
    scores = confusion([("yes", "no"), ("no", None)])
    assert (scores.precision, scores.recall, scores.f1) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yes", "yes"),
        ("Yes, there is a dog in the image.", "yes"),
        ("No", "no"),
        ("There is not, I think", "no"),
        ("no, there is none. yes", "no"),  # only the first sentence counts
        ("**Yes**", "yes"),
        ("yes and no", "no"),  # so the official script
        ("A dog", None),  # the official script takes it for a yes
        ("Nothing", None),
        ("", None),
    ],
)
def test_the_first_sentence_says_yes_or_no(text, said):
    assert read_yes_no(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("y", "yes"),
        ("N.", "no"),
        ("no, it is", "no"),
        ("Nope", "no"),  # MME looks at four letters
        (" Yes.", "yes"),
        ("The answer is yes", None),
        ("x", None),
        ("", None),
    ],
)
def test_mme_reads_four_letters(text, said):
    assert read_prefix(text) == said


@given(st.text())
def test_any_text_is_read_or_not(text):
    assert read_yes_no(text) in ("yes", "no", None)
    assert read_prefix(text) in ("yes", "no", None)
