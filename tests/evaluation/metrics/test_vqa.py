"""VQA's soft accuracy against cases worked out on paper from the official scripts."""

import random

import pytest

from varifocal.evaluation.metrics.vqa import normalise, soft_accuracy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),  # a full stop that no digit follows goes
        ("3.5", "3.5"),  # and stays between digits
        ("a dog", "dog"),
        ("The Cat and an owl", "cat and owl"),
        ("two", "2"),
        ("None", "0"),
        ("eleven", "eleven"),  # the official table ends at ten
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("red\nand\tblue", "red and blue"),
        ("black/white", "black white"),  # inside a text a mark becomes a blank
        ("black / white", "black  white".replace("  ", " ")),  # next to a blank it goes
        ("t-shirt", "t shirt"),
        ("(left)", "left"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("dialect", ["textvqa", "vqa2"])
def test_normalisation_on_paper(text, expected, dialect):
    assert normalise(text, dialect) == expected


@pytest.mark.parametrize(
    ("text", "textvqa", "vqa2"),
    [
        ("1,000", "1000", "1000"),
        ("1,000-2", "1000 2", "10002"),  # vqa2 sees the comma and drops every mark
        ("john's", "john 's", "john's"),
        ("red,blue", "redblue", "red blue"),  # TextVQA drops commas before it looks
    ],
)
def test_where_the_two_scripts_differ(text, textvqa, vqa2):
    assert (normalise(text), normalise(text, "vqa2")) == (textvqa, vqa2)


def test_normalising_twice_changes_nothing():
    for text in ("The two dogs, dont they?", "3.5 x-ray", "1,000/2", "a an the"):
        assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("matches", "expected"),
    [
        (0, 0.0),
        # Leaving one of the n matching annotators out leaves n - 1, else n:
        (1, (1 * 0 + 9 * 1 / 3) / 10),  # 0.3
        (2, (2 * 1 / 3 + 8 * 2 / 3) / 10),  # 0.6
        (3, (3 * 2 / 3 + 7 * 1) / 10),  # 0.9
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_ten_leave_one_out_sets(matches, expected):
    references = ["Red"] * matches + [f"other {number}" for number in range(10 - matches)]
    assert soft_accuracy("red.", references) == pytest.approx(expected, abs=1e-12)


def test_unanimous_answers_are_compared_as_written_by_vqa2_alone():
    assert soft_accuracy("Two.", ["two"] * 10) == 1.0
    assert soft_accuracy("Two.", ["two"] * 10, "vqa2") == 0.0
    assert soft_accuracy("Two.", ["two"] * 9 + ["2"], "vqa2") == 1.0


def test_one_annotator_cannot_be_left_out():
    with pytest.raises(ValueError, match="of 1; 10 are usual"):
        soft_accuracy("red", ["red"])


@pytest.mark.slow
def test_textvqa_is_what_lmms_eval_makes_of_it():
    """Against a port of the official script that is not ours, on random joins of its own words."""
    theirs = pytest.importorskip("lmms_eval.tasks._task_utils.vqa_eval_metric")
    official, draw = theirs.EvalAIAnswerProcessor(), random.Random(0)
    words = [*official.CONTRACTIONS, *official.CONTRACTIONS.values(), *official.NUMBER_MAP]
    words += ["a", "An", "Red", "dog's", "3.5", "1,000", "x.y", "-", "b/w", "(left)", "who?", "\n"]
    for _ in range(3000):
        joined = (draw.choice(words) + draw.choice(" .,") for _ in range(draw.randint(1, 4)))
        text = "".join(joined)
        assert normalise(text) == official(text)
