"""What Varifocal says when something is wrong: one sentence that names the place and the fix.

Every error a user can cause is a `VarifocalError`. The command line prints its text after
`error: ` and ends with `exit_code`, without a traceback; a library caller catches one class.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class VarifocalError(Exception):
    """Something the user can fix; the text is one clear sentence."""

    exit_code = 2
    """What the command line ends with."""


class RecipeError(VarifocalError):
    """A recipe has an unknown key, a wrong value or a path that is not there."""


class DataError(VarifocalError):
    """A record, an image or a data folder cannot be used; the text names file and record."""


class PlaceholderError(DataError):
    """A record's image placeholders and its images disagree."""


class ImageError(DataError):
    """A record's image is missing or cannot be opened."""


class AnswerError(DataError):
    """A record has no answer to learn from."""


class ModelError(VarifocalError):
    """A model, tower, adapter or installed library version does not fit."""


class ChatTemplateError(ModelError):
    """A chat template refuses a conversation, or does not write it so that it can be used."""


class RunError(VarifocalError):
    """A run directory cannot be read, written or continued."""


class Stopped(VarifocalError):  # noqa: N818 - it is no error
    """Work was asked to stop and has saved what it had; the text says how to go on."""

    exit_code = 130


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Suggest the allowed word closest to a mistyped one.

    Args:
        word: what was given.
        allowed: the words that would have been accepted.

    Returns:
        A clause to append to an error text, or the empty string when nothing is close.

    >>> nearest("alpca.json", ["alpaca.json", "problems.json"])
    "; did you mean 'alpaca.json'?"
    >>> nearest("zebra", ["alpaca.json"])
    ''
    """
    matches = get_close_matches(word, [str(other) for other in allowed], n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""
