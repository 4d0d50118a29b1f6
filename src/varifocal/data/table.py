"""Plain tables: rows with named columns."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from varifocal.data.example import Example, Message, Question
from varifocal.data.parsing import ParseOptions, short
from varifocal.data.pictures import find_picture
from varifocal.data.questions import LETTERS, option_texts, question_text, user_turn
from varifocal.data.raw_rows import Record
from varifocal.errors import AnswerError, DataError, nearest

COLUMNS = ("question", "answer", "context", "choices", "image", "id", "task", "split", "skill")
"""What a table can be asked for; `question` and `answer` are needed, the others optional."""


def check_columns(columns: Mapping[str, str], place: str) -> None:
    """Refuse names that no table is asked for.

    Raises:
        DataError: with the nearest name.
    """
    for name in columns:
        if name not in COLUMNS:
            allowed = ", ".join(COLUMNS)
            hint = nearest(name, COLUMNS)
            raise DataError(f"'{place}': column '{name}' is none of {allowed}{hint}")


def is_table_row(record: Record) -> bool:
    """Tell whether a row has a table's two columns under our own names."""
    return "question" in record.row and "answer" in record.row


def parse_table_row(record: Record, asked: ParseOptions) -> Example:
    """Make an example of a row.

    `asked.columns` maps our names of `COLUMNS` to the file's; one that is not mapped has the same
    name there, or is absent. `question` may be a template with columns in braces ("True or false?
    {sentence}"); `choices` may be the choices themselves ("true|false"). With choices, `answer` is
    one of them, its letter in brackets or alone, or for numbers in a JSON file its index.

    Raises:
        DataError: a mapped column is not there, or a value cannot be used.
    """
    row, where = record.row, record.where
    value = _raw(row, "image", asked, where)
    picture = find_picture(value, asked.image_folder, where) if value not in (None, "") else None
    context = _cell(row, "context", asked, where)
    choices = _choices(row, asked, where)
    answer_index = _answer_index(row, choices, asked, where) if choices else 0
    options = option_texts(choices, asked.answer_as)
    answer = options[answer_index] if choices else _needed(row, "answer", asked, where)
    question = _question(row, asked, where)
    listed = bool(context or choices)
    prompt = question_text(question, context, choices) if listed else question
    return Example(
        messages=(user_turn(prompt, picture), Message("assistant", (answer,))),
        id=_cell(row, "id", asked, where) or record.place,
        source=record.source,
        task=_cell(row, "task", asked, where) or asked.format,
        choices=choices,
        answer_index=answer_index if choices else None,
        options=options,
        question=Question(question, context),
        tags={key: value for key in ("split", "skill") if (value := _cell(row, key, asked, where))},
    )


def _raw(row: Mapping[str, Any], name: str, asked: ParseOptions, where: str) -> Any:
    """Return a cell; None where the column is neither mapped nor there."""
    column = asked.columns.get(name, name)
    if column not in row and name in asked.columns:
        raise DataError(
            f"{where} has no column '{column}' for {name} but {', '.join(row)}"
            f"{nearest(column, row)}"
        )
    return row.get(column)


def _cell(row: Mapping[str, Any], name: str, asked: ParseOptions, where: str) -> str:
    return _as_text(_raw(row, name, asked, where), name, where)


def _needed(row: Mapping[str, Any], name: str, asked: ParseOptions, where: str) -> str:
    value = _cell(row, name, asked, where)
    if not value:
        error = AnswerError if name == "answer" else DataError
        raise error(f"{where} has no {name}: column '{asked.columns.get(name, name)}' is empty")
    return value


def _as_text(value: Any, name: str, where: str) -> str:
    """Write a cell as text; JSON's true and false as they stand in the file.

    >>> _as_text(True, "answer", ""), _as_text(3, "answer", ""), _as_text(None, "answer", "")
    ('true', '3', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (str, int, float)):
        raise DataError(f"{where}: {name} must be a text or a number, not {short(value)}")
    return str(value).strip()


def _question(row: Mapping[str, Any], asked: ParseOptions, where: str) -> str:
    template = asked.columns.get("question", "")
    if "{" not in template:
        return _needed(row, "question", asked, where)
    parts: list[str] = []
    try:
        for text, column, _, _ in string.Formatter().parse(template):
            parts.append(text)
            if column is not None:
                fields = replace(asked, columns={"question": column})
                parts.append(_needed(row, "question", fields, where))
    except ValueError as error:
        raise DataError(f"'{asked.source}': question template '{template}': {error}") from error
    return "".join(parts)


def _choices(row: Mapping[str, Any], asked: ParseOptions, where: str) -> tuple[str, ...]:
    """Read the choices of a row: a list, a text with bars, or the same ones for every row."""
    fixed = asked.columns.get("choices", "")
    value = fixed if fixed not in row and "|" in fixed else _raw(row, "choices", asked, where)
    if value in (None, ""):
        return ()
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise DataError(f"{where}: choices must be a list or a text 'a|b', not {short(value)}")
    choices = tuple(_as_text(part, "a choice", where) for part in parts)
    if not 2 <= len(choices) <= len(LETTERS) or not all(choices):
        raise DataError(f"{where}: 2 to {len(LETTERS)} choices are needed, not {list(choices)}")
    return choices


def _answer_index(
    row: Mapping[str, Any], choices: tuple[str, ...], asked: ParseOptions, where: str
) -> int:
    answer = _needed(row, "answer", asked, where)
    if choices.count(answer) == 1:
        return choices.index(answer)
    raw = _raw(row, "answer", asked, where)
    if isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw < len(choices):
        return raw
    letter = answer.strip("().")
    if len(letter) == 1 and letter in LETTERS[: len(choices)]:
        return LETTERS.index(letter)
    raise DataError(f"{where}: answer '{answer}' is none of the choices {', '.join(choices)}")
