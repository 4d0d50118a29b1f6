"""MME's pair rule, on paper."""

import pytest

from varifocal.evaluation.benchmarks.mme import COGNITION, PERCEPTION, pair_up


def test_ten_subtasks_of_perception_and_four_of_cognition():
    assert (len(PERCEPTION), len(COGNITION)) == (10, 4)
    assert not set(PERCEPTION) & set(COGNITION)


def test_accuracy_plus_needs_both_questions_of_an_image():
    # a: both right; b and c: one; d: none -> 4 of 8 questions, 1 of 4 images
    answers = [("a", 1), ("a", 1), ("b", 1), ("b", 0), ("c", 0), ("c", 1), ("d", 0), ("d", 0)]
    pairs = pair_up([(image, bool(right)) for image, right in answers])
    assert (pairs.accuracy, pairs.accuracy_plus, pairs.score) == (50.0, 25.0, 75.0)


def test_an_image_with_one_question_counts_for_accuracy_alone():
    pairs = pair_up([("a", True), ("a", True), ("b", False)])
    assert pairs.accuracy == pytest.approx(200 / 3)
    assert pairs.accuracy_plus == 100.0
    assert pair_up([("a", True)]).score is None
