"""A mapping of columns to try, for a table whose names are not ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAMES = {
    "question": ("question", "query", "prompt", "instruction", "input", "sentence", "text", "stem"),
    "answer": ("correct", "label", "answer", "target", "output", "response", "gold", "completion"),
    "choices": ("choices", "options", "endings"),
    "context": ("context", "passage"),
}
_NUMBERED = re.compile(r"((?:answer|option|choice|ending|sol)_?)(\d)", re.IGNORECASE)


def suggest_columns(row: Mapping[str, Any]) -> str:
    """Write a mapping for a row, "..." where no column looks like what is needed.

    >>> suggest_columns({"question": "?", "choices": ["a", "b"], "correct_choice_idx": 1})
    'question: question, answer: correct_choice_idx, choices: choices'
    >>> suggest_columns({"text": "?", "option1": "a", "option2": "b", "label": 1})
    "question: text, answer: label, choices: '{option1}|{option2}'"
    """
    names = [name for name in map(str, row) if row[name] not in (None, "")]
    numbered = [name for name in names if _NUMBERED.fullmatch(name)]
    single = [name for name in names if name not in numbered]
    found = {ours: _first(single, words, row) for ours, words in _NAMES.items()}
    if len(numbered) > 1:
        found["choices"] = "'" + "|".join(f"{{{name}}}" for name in numbered) + "'"
    needed = {"question": "...", "answer": "..."}
    return ", ".join(
        f"{ours}: {name or needed[ours]}" for ours, name in found.items() if name or ours in needed
    )


def _first(names: list[str], words: tuple[str, ...], row: Mapping[str, Any]) -> str:
    """Return the first name that is, or else holds, one of some words."""
    lists = words is _NAMES["choices"]
    fitting = [name for name in names if isinstance(row[name], (list, dict)) == lists]
    exact = [name for word in words for name in fitting if name.lower() == word]
    part = [name for word in words for name in fitting if word in name.lower()]
    return next(iter([*exact, *part]), "")
