"""Written answers: what the parser reads, what it refuses, and how answers are written."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from varifocal.evaluation import generation
from varifocal.evaluation.generation import greedy_answers, parse_answer
from varifocal.models.likelihood import EncodedQuestion

CHOICES = ["attract", "repel", "A magnet does nothing"]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("repel", 1),
        ("  Repel. ", 1),
        ("The answer is repel.", 1),
        ("The answer is repel. BECAUSE: like poles face.", 1),
        ("Answer: attract\nLike poles would repel.", 0),
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B.", 1),
        ("B. repel", 1),
        ("(B) repel.", 1),
        ("The answer is B", 1),
        ("The answer is B.", 1),
        ("The answer is (B).", 1),
        ("the correct answer is: B because like poles face", 1),
        ("Like poles face, so the answer is B.", 1),
        ("The answer is A magnet does nothing.", 2),
        ("", None),
        (".", None),
        ("They attract or repel.", None),
        ("The answer is A or B.", None),
        ("The answer is A. No, the answer is B.", None),
        ("The answer is F.", None),
        ("A. repel", None),
        ("The answer is A magnet.", None),
        ("The answer is a.", None),
        ("Z", None),
    ],
)
def test_parser(text: str, index: int | None) -> None:
    assert parse_answer(text, CHOICES) == index


def test_a_text_that_two_options_share_names_none() -> None:
    assert parse_answer("repel", ["repel", "Repel."]) is None


@given(st.text(max_size=40), st.lists(st.text(max_size=8), max_size=30))
def test_any_text_gives_an_option_or_none(text: str, choices: list[str]) -> None:
    index = parse_answer(text, choices)
    assert index is None or 0 <= index < len(choices)


@given(st.lists(st.from_regex(r"[a-z]{2,9}", fullmatch=True), min_size=1, max_size=6, unique=True))
def test_every_option_is_read_from_its_text_and_its_letter(choices: list[str]) -> None:
    for index, choice in enumerate(choices):
        assert parse_answer(choice, choices) == index
        assert parse_answer(f"The answer is {'ABCDEF'[index]}.", choices) == index


def written_alone(model: torch.nn.Module, prompt: np.ndarray, stop: set[int], limit: int) -> list:
    """Greedy decoding without a cache or padding."""
    ids = prompt.tolist()
    for _ in range(limit):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("token_budget", [1, 10_000])
def test_answers_equal_decoding_alone(llama, random_questions, token_budget: int) -> None:
    questions = random_questions(6)
    stop = {5, 6, 7, 8, 9, 10}
    expected = [written_alone(llama, question.prompt_ids, stop, 9) for question in questions]
    assert len({len(ids) for ids in expected}) > 1, "no answer ends early: the test shows nothing"
    assert expected == greedy_answers(
        llama, questions, None, stop_ids=stop, max_new_tokens=9, token_budget=token_budget
    )


def test_images_without_a_loader_are_refused(llama) -> None:
    question = EncodedQuestion(np.array([1], np.int32), (np.array([2], np.int32),), 1, ("picture",))
    with pytest.raises(ValueError, match="load_images is None"):
        greedy_answers(llama, [question], None, stop_ids=[0])


def test_doctests() -> None:
    assert doctest.testmod(generation).failed == 0
