"""Answers that have to be the reference itself, but for case and the final full stop (GQA)."""

from __future__ import annotations

import re

_WORDS = "zero one two three four five six seven eight nine ten"
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_WORDS.split())}


def plain(text: str) -> str:
    """Drop case, blanks around and within, and the final full stop.

    >>> plain(" Light blue. ")
    'light blue'
    """
    return " ".join(text.split()).rstrip(".").strip().lower()


def read_short(text: str) -> str | None:
    r"""Return a written answer's first line made plain; None when nothing is left.

    >>> read_short("Left.\nBecause it is."), read_short(" .")
    ('left', None)
    """
    lines = text.strip().splitlines()
    return plain(lines[0]) or None if lines else None


def says(text: str, reference: str) -> bool:
    """Tell whether the words of a reference stand in a text, one after the other.

    Case, blanks and the reference's final full stop do not count. A word that denies it does not
    count either: "not red" says "red".

    >>> says("It is a red Car.", "red car"), says("a scarlet car", "car."), says("a scar", "car")
    (True, True, False)
    """
    wanted = plain(reference) or " ".join(reference.lower().split())
    said = " ".join(text.lower().split())
    return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", said) is not None
