"""Cells of a table's row by our names of columns, which a recipe maps to the file's."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from varifocal.data.gold import written
from varifocal.data.parsing import ParseOptions, short
from varifocal.errors import AnswerError, DataError, nearest

_WIDE = re.compile(r"[1-9]\d{2,}")


def raw_cell(row: Mapping[str, Any], name: str, asked: ParseOptions, where: str) -> Any:
    """Return a cell as it is; None where its column is neither mapped nor there.

    Raises:
        DataError: the mapped column is not there.
    """
    column = asked.columns.get(name, name)
    if column not in row and name in asked.columns:
        raise DataError(
            f"{where} has no column '{column}' for {name} but {', '.join(row)}"
            f"{nearest(column, row)}"
        )
    return row.get(column)


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
    return written(value)


def filled(
    template: str, row: Mapping[str, Any], name: str, asked: ParseOptions, where: str
) -> str:
    """Fill a template with columns in braces; `{image_id:012}` pads a number with zeros.

    Raises:
        DataError: it is no template, or a column is missing or empty.

    >>> filled("{a:04}.jpg", {"a": 7}, "image", ParseOptions("", "table", None), "")
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
