"""Make a conversation fit: take text out of what the user says, or leave its oldest turns out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from varifocal.data.encoding.answer_span import Turn
from varifocal.data.example import Example, Image, Message
from varifocal.errors import DataError

Overflow = Literal["error", "drop", "truncate_prompt", "drop_oldest_turns"]

CUT_MARK = " ... "
"""Stands where text was taken out."""
MIN_LENGTH = 40
"""Characters of a user's text that stay; with fewer there is no question left to answer."""


class TooLongError(DataError):
    """An example takes more tokens than the limit.

    Attributes:
        tokens: how many.
        at_least: whether that is only the least that it can take; it was not tokenised.
    """

    def __init__(self, message: str, tokens: int, *, at_least: bool = False) -> None:
        super().__init__(message)
        self.tokens, self.at_least = tokens, at_least


def make_fit(
    example: Example,
    build: Callable[[Example], list[Turn]],
    fits: Callable[[list[Turn], Example], bool],
    *,
    num_tokens: int,
    max_length: int | None,
    overflow: Overflow,
    image_token: str | None,
) -> tuple[list[Turn], Example, dict[str, Any]]:
    """Make a conversation fit, as the policy says.

    Args:
        example: what is too long.
        build: writes an example's turns.
        fits: whether the turns of an example are short enough.
        num_tokens: what it takes.
        max_length: what it may take.
        overflow: the policy.
        image_token: the placeholder.

    Returns:
        Its turns, the example they are of, and what of `Encoded` says how it was done.

    Raises:
        TooLongError: that is not the policy, or what has to stay is too long by itself.
    """
    size = f"{example.name} takes {num_tokens} tokens, max_length is {max_length}"
    if overflow == "drop":
        raise TooLongError(f"{size} (overflow: drop)", num_tokens)
    if overflow == "error":
        raise TooLongError(
            f"{size}; raise max_length, or set overflow to 'drop', 'truncate_prompt' or "
            "'drop_oldest_turns'",
            num_tokens,
        )
    if overflow == "drop_oldest_turns":
        shorter = drop_oldest(example, lambda shorter: fits(build(shorter), shorter))
        if shorter is not None:
            dropped = len(example.messages) - len(shorter.messages)
            return build(shorter), shorter, {"dropped_turns": dropped}
        raise TooLongError(
            f"{size}, and its last question with its answer, and the turn of the image it may "
            "speak of, take more by themselves; raise max_length",
            num_tokens,
        )
    turns = shorten(build(example), image_token, lambda turns: fits(turns, example))
    if turns is None:
        raise TooLongError(
            f"{size}, and its images, answer and the chat template's frame leave no room for the "
            "question; raise max_length",
            num_tokens,
        )
    return turns, example, {"was_cut": True}


def shorten(
    turns: Sequence[Turn], image_token: str | None, fits: Callable[[list[Turn]], bool]
) -> list[Turn] | None:
    """Take text out of the middle of the longest user texts until the conversation fits.

    A question's beginning and its options at the end stay. Image placeholders, system and
    assistant turns are left as they are.

    Args:
        turns: the conversation.
        image_token: the placeholder; texts before and after one are cut apart.
        fits: whether a conversation is short enough.

    Returns:
        The conversation with as much text as fits, or None if it does not fit with `MIN_LENGTH`
        characters of each text either.
    """
    shorter = list(turns)
    for number, part in _user_texts(turns, image_token):
        before = shorter
        length, too_many = MIN_LENGTH, len(_parts(turns[number], image_token)[part])
        shorter = _keep(before, number, part, length, image_token)
        if not fits(shorter):
            continue
        while too_many - length > 1:
            middle = (length + too_many) // 2
            longer = _keep(before, number, part, middle, image_token)
            if fits(longer):
                length, shorter = middle, longer
            else:
                too_many = middle
        return shorter
    return None


def _user_texts(turns: Sequence[Turn], image_token: str | None) -> list[tuple[int, int]]:
    """Return (turn, part) of the texts that can be cut, longest first."""
    sizes = {
        (number, part): len(text)
        for number, turn in enumerate(turns)
        if turn["role"] == "user"
        for part, text in enumerate(_parts(turn, image_token))
    }
    return sorted((p for p in sizes if sizes[p] > MIN_LENGTH), key=lambda place: -sizes[place])


def _parts(turn: Turn, image_token: str | None) -> list[str]:
    return turn["content"].split(image_token) if image_token else [turn["content"]]


def _keep(
    turns: Sequence[Turn], number: int, part: int, length: int, image_token: str | None
) -> list[Turn]:
    parts = _parts(turns[number], image_token)
    parts[part] = cut_middle(parts[part], length)
    content = (image_token or "").join(parts)
    return [*turns[:number], {**turns[number], "content": content}, *turns[number + 1 :]]


def cut_middle(text: str, length: int) -> str:
    """Take the middle out of a text that has more than `length` characters.

    >>> cut_middle("Which of these is a metal?", 10)
    'Which ... etal?'
    """
    if length >= len(text):
        return text
    return text[: length - length // 2] + CUT_MARK + text[len(text) - length // 2 :]


def drop_oldest(example: Example, fits: Callable[[Example], bool]) -> Example | None:
    """Leave out as few of the oldest questions, with their answers and images, as will do.

    The system message stays, and so does the last question with its answer. Of the images the
    latest stays, with the turns that brought it: everything said since may speak of it, even when
    turns between are left out.

    Args:
        example: a conversation.
        fits: whether a conversation is short enough.

    Returns:
        What is left, or None if it does not fit with the least that has to stay.
    """
    start = int(example.messages[0].role == "system")
    pairs = [example.messages[at : at + 2] for at in range(start, len(example.messages), 2)]
    with_image = [number for number, pair in enumerate(pairs) if _has_image(pair)]
    needed = {len(pairs) - 1, *with_image[-1:]}
    old = [number for number in range(len(pairs)) if number not in needed]

    def without(count: int) -> Example:
        left_out = set(old[:count])
        remaining = [pair for number, pair in enumerate(pairs) if number not in left_out]
        messages = (*example.messages[:start], *(message for pair in remaining for message in pair))
        return replace(example, messages=messages)

    if not old or not fits(without(len(old))):
        return None
    too_few, enough = 0, len(old)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if fits(without(middle)):
            enough = middle
        else:
            too_few = middle
    return without(enough)


def _has_image(pair: Sequence[Message]) -> bool:
    return any(isinstance(part, Image) for message in pair for part in message.content)
