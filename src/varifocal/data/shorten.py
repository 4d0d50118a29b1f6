"""Make a conversation fit by taking text out of what the user says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from varifocal.data.template import Turn

CUT_MARK = " ... "
"""Stands where text was taken out."""
LEAST_KEPT = 40
"""Characters of a user's text that stay; with fewer there is no question left to answer."""


def shorten(
    turns: Sequence[Turn], image_token: str | None, fits: Callable[[list[Turn]], bool]
) -> list[Turn] | None:
    """Take text out of the middle of the longest user texts until the conversation fits.

    A question's beginning and its options at the end stay. Image placeholders, system and
    assistant turns are left as they are.

    Args:
        turns: the conversation.
        image_token: the placeholder; texts before and behind one are cut apart.
        fits: whether a conversation is short enough.

    Returns:
        The conversation with as much text as fits, or None if it does not fit with `LEAST_KEPT`
        characters of each text either.
    """
    shorter = list(turns)
    for number, part in _user_texts(turns, image_token):
        before = shorter
        kept, too_many = LEAST_KEPT, len(_parts(turns[number], image_token)[part])
        shorter = _keep(before, number, part, kept, image_token)
        if not fits(shorter):
            continue
        while too_many - kept > 1:
            middle = (kept + too_many) // 2
            longer = _keep(before, number, part, middle, image_token)
            if fits(longer):
                kept, shorter = middle, longer
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
    return sorted((p for p in sizes if sizes[p] > LEAST_KEPT), key=lambda place: -sizes[place])


def _parts(turn: Turn, image_token: str | None) -> list[str]:
    return turn["content"].split(image_token) if image_token else [turn["content"]]


def _keep(
    turns: Sequence[Turn], number: int, part: int, kept: int, image_token: str | None
) -> list[Turn]:
    parts = _parts(turns[number], image_token)
    parts[part] = cut_middle(parts[part], kept)
    content = (image_token or "").join(parts)
    return [*turns[:number], {**turns[number], "content": content}, *turns[number + 1 :]]


def cut_middle(text: str, kept: int) -> str:
    """Take the middle out of a text that has more than `kept` characters.

    >>> cut_middle("Which of these is a metal?", 10)
    'Which ... etal?'
    """
    if kept >= len(text):
        return text
    return text[: kept - kept // 2] + CUT_MARK + text[len(text) - kept // 2 :]
