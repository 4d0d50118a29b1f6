"""The choices of a question, in every way in which tables hold them."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varifocal.data.formats.base import short
from varifocal.data.formats.gold import choice_text
from varifocal.data.formats.questions import LETTERS
from varifocal.errors import DataError

_LONGEST_LITERAL = 10_000


@dataclass(frozen=True)
class Choices:
    """What can be chosen from.

    Attributes:
        raw: as the file has them, texts or numbers.
        labels: their names where the file gives some, as ARC's "A" or "1".
    """

    raw: tuple[Any, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The choices as the model reads them."""
        return tuple(choice_text(choice) for choice in self.raw)


def read_choices(value: Any, where: str) -> Choices:
    """Read a cell of choices; none where it is empty.

    It is a list; a text with bars ("true|false"); a list written into a cell, as JSON or as Python
    prints it; `{"text": [...], "label": [...]}`; or a list of `{"text": ..., "label": ...}`.

    Raises:
        DataError: it is none of these, or holds fewer than 2 choices, too many, or an empty one.

    >>> read_choices("red|blue", "").texts, read_choices('["red", "blue"]', "").texts
    (('red', 'blue'), ('red', 'blue'))
    >>> read_choices({"text": ["copper", "paper"], "label": ["1", "2"]}, "").labels
    ('1', '2')
    """
    if isinstance(value, str):
        value = list_in_cell(value) or value.split("|")
    texts, labels = _with_labels(value)
    if texts is None:
        raise DataError(f"{where}: choices must be a list or a text 'a|b', not {short(value)}")
    for text in texts:
        if text is not None and not isinstance(text, (str, int, float)):
            raise DataError(f"{where}: a choice must be a text or a number, not {short(text)}")
    choices = Choices(
        tuple("" if text is None else text for text in texts), tuple(map(choice_text, labels))
    )
    if not 2 <= len(choices.raw) <= len(LETTERS) or not all(choices.texts):
        raise DataError(f"{where}: 2 to {len(LETTERS)} choices are needed, not {short(texts)}")
    if labels and len(labels) != len(texts):
        raise DataError(f"{where}: {len(texts)} choices have {len(labels)} labels")
    return choices


def list_in_cell(text: str) -> list[Any] | None:
    """Read a list that is written into a cell; None where the text is something else.

    >>> list_in_cell('["a", "b"]'), list_in_cell("['a', 'b']"), list_in_cell("[a] and [b]")
    (['a', 'b'], ['a', 'b'], None)
    """
    if not (text.startswith("[") and text.endswith("]")):
        return None
    value: Any = None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text) if len(text) <= _LONGEST_LITERAL else None
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return None
    return value if isinstance(value, list) else None


def _with_labels(value: Any) -> tuple[Sequence[Any] | None, Sequence[Any]]:
    """Return the choices' texts and labels; None for what holds no choices."""
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label") or []
        known = isinstance(texts, list) and isinstance(labels, list)
        return (texts, labels) if known else (None, [])
    if not isinstance(value, list):
        return None, []
    if value and all(isinstance(option, Mapping) and "text" in option for option in value):
        labels = [option.get("label") for option in value]
        return [option["text"] for option in value], [] if None in labels else labels
    return value, []
