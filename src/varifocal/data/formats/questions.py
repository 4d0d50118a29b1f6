"""How a question becomes a conversation: one wording for every format."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Literal

from varifocal.data.example import Image, Message
from varifocal.errors import PlaceholderError

AnswerAs = Literal["text", "letter"]
AnswerIs = Literal["auto", "index", "index_from_1", "value", "letter"]
"""What the gold answers of a source are; see `gold.gold_index`."""
PromptText = Literal["plain", "published"]
"""How ScienceQA's prompts are written; see `scienceqa_prompts`."""
Integers = Literal["index", "value"]
"""What the integers among them are; see `gold.settle_integers`."""

LETTERS = string.ascii_uppercase
CAPTION_PROMPT = "Describe the picture."
PLACEHOLDER = "<image>"
"""Stands in a text where an image belongs."""


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
    """Build the user's turn: the image first, then the text, nothing between."""
    return Message("user", (image, text) if image else (text,))


def without_leading_places(text: str, num_images: int) -> str:
    r"""Take placeholders off the front of a text if all of its images stand there.

    >>> without_leading_places("<image>\nWhat colour is it?", 1)
    'What colour is it?'
    >>> without_leading_places("<image> or <image>?", 2)
    '<image> or <image>?'
    """
    bare = text
    for _ in range(num_images):
        bare = bare.removeprefix(PLACEHOLDER).lstrip()
    return bare if text.count(PLACEHOLDER) == num_images and PLACEHOLDER not in bare else text


def placed_turn(text: str, images: Sequence[Image], where: str) -> Message:
    """Build the user's turn with its images where `<image>` stands, or in front of the text.

    Args:
        text: what is asked.
        images: in their order.
        where: file and place of the record, for the error text.

    Raises:
        PlaceholderError: there are placeholders, but not as many as images.
    """
    pieces = text.split(PLACEHOLDER)
    if len(pieces) == 1:
        return Message("user", (*images, text))
    if len(pieces) - 1 != len(images):
        raise PlaceholderError(
            f"{where}: the text has {len(pieces) - 1} placeholders {PLACEHOLDER}, "
            f"but {len(images)} images are given"
        )
    content: list[str | Image] = [pieces[0]]
    for image, piece in zip(images, pieces[1:], strict=True):
        content += [image, piece]
    return Message("user", tuple(part for part in content if part))
