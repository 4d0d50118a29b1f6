"""Answers that have to be the reference itself, but for case and the final full stop (GQA)."""

from __future__ import annotations

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
