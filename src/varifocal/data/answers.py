"""The right answers of a question that has several: annotators' of VQA, alternatives of DocVQA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from varifocal.data.choices import list_in_cell
from varifocal.data.gold import written


def right_answers(cell: Any) -> tuple[str, ...]:
    """Return the texts of a cell that holds all right answers; none for any other cell.

    >>> right_answers(["red", "Red"]), right_answers([{"answer": "2", "answer_id": 1}])
    (('red', 'Red'), ('2',))
    >>> right_answers({"text": ["a dog"], "answer_start": [3]}), right_answers("red")
    (('a dog',), ())
    """
    if isinstance(cell, Mapping):
        cell = cell.get("text")
    if isinstance(cell, str):
        cell = list_in_cell(cell)
    if not isinstance(cell, list):
        return ()
    texts = [one.get("answer") if isinstance(one, Mapping) else one for one in cell]
    if not all(isinstance(one, (str, int, float)) for one in texts):
        return ()
    return tuple(filter(None, map(written, texts)))


def most_given(answers: Sequence[str]) -> str:
    """Return the answer that most annotators gave, the first of equals; the one that is trained.

    >>> most_given(["blue", "red", "red"])
    'red'
    """
    return Counter(answers).most_common(1)[0][0]
