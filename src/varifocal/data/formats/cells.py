"""Cells of a row by the column's name, by a path into a cell, or by a template of columns."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from varifocal.data.formats.base import ParseOptions, short
from varifocal.data.formats.gold import choice_text
from varifocal.errors import AnswerError, DataError, nearest

_WIDE = re.compile(r"[1-9]\d{2,}")


def cell_at(row: Mapping[str, Any], column: str) -> Any:
    """Return a column's cell, or what a dotted path finds inside of one.

    A part of the path is a key of an object, a place in a list from 0, or a key that every object
    of a list has. A column that has the whole name comes first; what lies below a null is null.

    Raises:
        KeyError: there is no such column or nothing under the path.

    >>> row = {"answers": {"text": ["a dog", "dog"]}, "options": [{"label": "A"}, {"label": "B"}]}
    >>> cell_at(row, "answers.text.0"), cell_at(row, "options.label")
    ('a dog', ['A', 'B'])
    """
    if column in row:
        return row[column]
    first, *parts = column.split(".")
    value = row[first]
    for part in parts:
        value = _inside(value, part)
    return value


def _inside(value: Any, part: str) -> Any:
    if value is None:
        return None
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    if isinstance(value, list) and not part.isdecimal():
        return [_inside(element, part) for element in value]
    if isinstance(value, Mapping):
        return value[part]
    raise KeyError(part)


def paths_of(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names that `cell_at` knows of a row, those inside of objects in dots.

    >>> list(paths_of({"id": 1, "choices": {"text": ["a"], "label": ["A"]}, "qas": [{"id": 2}]}))
    ['id', 'choices', 'choices.text', 'choices.label', 'qas', 'qas.id']
    """
    for name, value in row.items():
        yield str(name)
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, Mapping):
            yield from (f"{name}.{path}" for path in paths_of(inner))


def cell_or_none(row: Mapping[str, Any], column: str) -> Any:
    """Return a cell as `cell_at` does; None where there is none."""
    try:
        return cell_at(row, column)
    except KeyError:
        return None


def is_empty(row: Mapping[str, Any], column: str) -> bool:
    """Tell whether a column is there and holds nothing."""
    try:
        return cell_at(row, column) in (None, "")
    except KeyError:
        return False


def raw_cell(row: Mapping[str, Any], name: str, asked: ParseOptions, where: str) -> Any:
    """Return a cell as it is; None where its column is neither mapped nor there.

    Raises:
        DataError: the mapped column is not there.
    """
    column = asked.columns.get(name)
    if column is None:
        return row.get(name)
    try:
        return cell_at(row, column)
    except KeyError as error:
        raise DataError(
            f"{where} has no column '{column}' for {name} but {', '.join(row)}"
            f"{nearest(column, paths_of(row))}"
        ) from error


def text_cell(row: Mapping[str, Any], name: str, asked: ParseOptions, where: str) -> str:
    """Return a cell as text, "" where there is none.

    Raises:
        DataError: it is neither a text nor a number.
    """
    return as_text(raw_cell(row, name, asked, where), name, where)


def needed_cell(row: Mapping[str, Any], name: str, asked: ParseOptions, where: str) -> str:
    """Return a cell that must hold something, as text.

    Raises:
        AnswerError: it is the answer's and empty.
        DataError: it is another's and empty, or no text.
    """
    value = text_cell(row, name, asked, where)
    if not value:
        error = AnswerError if name == "answer" else DataError
        raise error(f"{where} has no {name}: column '{asked.columns.get(name, name)}' is empty")
    return value


def as_text(value: Any, name: str, where: str) -> str:
    """Write a cell as text; JSON's true and false as they stand in the file.

    >>> as_text(True, "answer", ""), as_text(3, "answer", ""), as_text(None, "answer", "")
    ('true', '3', '')
    """
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)):
        raise DataError(f"{where}: {name} must be a text or a number, not {short(value)}")
    return choice_text(value)


def template_columns(template: str) -> list[str]:
    """Return the columns that a template has in braces; none of a text that is no template.

    >>> template_columns("{folder}/{image_id:012}.jpg"), template_columns("{")
    (['folder', 'image_id'], [])
    """
    try:
        return [column for _, column, _, _ in string.Formatter().parse(template) if column]
    except ValueError:
        return []


def fill_template(
    template: str, row: Mapping[str, Any], name: str, asked: ParseOptions, where: str
) -> str:
    """Fill a template with columns in braces; `{image_id:012d}` pads a number with zeros.

    Raises:
        DataError: it is no template, or a column is missing or empty.

    >>> fill_template("{a:04}.jpg", {"a": 7}, "image", ParseOptions("", "table", None), "")
    '0007.jpg'
    """
    parts: list[str] = []
    try:
        for text, column, width, _ in string.Formatter().parse(template):
            parts.append(text)
            if column is not None:
                parts.append(
                    _field(row, name, replace(asked, columns={name: column}), where, width)
                )
    except ValueError as error:
        raise DataError(f"'{asked.source}': {name} template '{template}': {error}") from error
    return "".join(parts)


def _field(
    row: Mapping[str, Any], name: str, asked: ParseOptions, where: str, width: str | None
) -> str:
    value = needed_cell(row, name, asked, where)
    if not width:
        return value
    if _WIDE.search(width):
        raise ValueError(f"'{width}' is wider than 99 characters")
    return format(int(value) if value.isdecimal() else value, width)
