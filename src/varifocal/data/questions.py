"""How a question becomes a conversation: one wording for every format."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Literal

from varifocal.data.example import Image, Message

AnswerAs = Literal["text", "letter"]

LETTERS = string.ascii_uppercase
CAPTION_PROMPT = "Describe the picture."


def question_text(question: str, context: str = "", choices: Sequence[str] = ()) -> str:
    """Write a question as the model reads it; empty parts leave no line.

    >>> print(question_text("Which is a metal?", "Metals shine.", ["iron", "wood"]))
    Question: Which is a metal?
    Context: Metals shine.
    Options: (A) iron (B) wood
    """
    lines = [f"Question: {question}"]
    if context:
        lines.append(f"Context: {context}")
    if choices:
        listed = (f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        lines.append(f"Options: {' '.join(listed)}")
    return "\n".join(lines)


def option_texts(choices: Sequence[str], answer_as: AnswerAs) -> tuple[str, ...]:
    """Write what the assistant says to name each choice.

    >>> option_texts(["iron", "wood"], "text")
    ('iron', 'wood')
    >>> option_texts(["iron", "wood"], "letter")
    ('The answer is A.', 'The answer is B.')
    """
    if answer_as == "text":
        return tuple(choices)
    return tuple(f"The answer is {LETTERS[index]}." for index in range(len(choices)))


def user_turn(text: str, image: Image | None = None) -> Message:
    """Build the user's turn: the picture first, then the text, nothing between."""
    return Message("user", (image, text) if image else (text,))
