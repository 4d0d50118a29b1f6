"""Plain tables: JSONL, JSON, CSV and TSV with named columns."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from varifocal.data.example import Example, Message
from varifocal.data.questions import LETTERS, AnswerAs, option_texts, question_text, user_turn
from varifocal.data.reading import Examples, OnBadRecord, gather, read_table, resolve_image
from varifocal.errors import DataError, nearest

COLUMNS = ("question", "answer", "context", "choices", "image", "id", "split", "skill")
"""What a table can be asked for; `question` and `answer` are needed, the others optional."""


@dataclass(frozen=True)
class _Asked:
    """What is wanted of a table."""

    path: Path
    columns: Mapping[str, str]
    image_folder: Path
    split: str | None
    skills: frozenset[str] | None
    answer_as: AnswerAs


def load_table(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    *,
    image_folder: str | Path | None = None,
    split: str | None = None,
    skills: tuple[str, ...] | None = None,
    answer_as: AnswerAs = "text",
    max_examples: int | None = None,
    on_bad_record: OnBadRecord = "fail",
) -> Examples:
    """Load a table of questions and answers.

    Args:
        path: a `.jsonl`, `.json` (list of objects), `.csv` or `.tsv` file with a header.
        columns: our name -> the file's column, for `question`, `answer`, `context`, `choices`,
            `image`, `id`, `split` and `skill`. One that is not mapped has the same name in the
            file, or is absent. `question` may be a template with columns in braces ("True or
            false? {sentence}"); `choices` may be the choices themselves ("true|false").
        image_folder: where relative picture paths start, and the only place pictures are read
            from; by default the table's folder.
        split: take only rows whose column `split` says so.
        skills: take only rows whose column `skill` is one of these.
        answer_as: for rows with choices, answer with the choice's text or "The answer is B.".
        max_examples: take at most so many, the first ones.
        on_bad_record: "fail" raises at the first broken row, "skip" notes it in `skipped`.

    Returns:
        One example a row; with choices, `answer` is one of them, its letter in brackets or alone,
        or for numbers in a JSON file its index.

    Raises:
        DataError: a file is missing or malformed, a mapped column is unknown, no row is left, or
            a row is broken; the text names file and row.
    """
    file = Path(path)
    columns = dict(columns or {})
    for name in columns:
        if name not in COLUMNS:
            allowed = ", ".join(COLUMNS)
            hint = nearest(name, COLUMNS)
            raise DataError(f"'{file}': column '{name}' is none of {allowed}{hint}")
    asked = _Asked(
        path=file,
        columns=columns,
        image_folder=Path(image_folder) if image_folder is not None else file.parent,
        split=split,
        skills=None if skills is None else frozenset(skills),
        answer_as=answer_as,
    )
    examples = gather(read_table(file), partial(_parse, asked=asked), on_bad_record, max_examples)
    if not examples and not examples.skipped:
        which = "" if split is None else f" of split '{split}'"
        raise DataError(f"'{file}' has no row{which}")
    return examples


def _parse(item: tuple[str, Mapping[str, Any] | DataError], asked: _Asked) -> Example | None:
    place, row = item
    if isinstance(row, DataError):
        raise row
    record = str(_cell(row, "id", asked, place) or place)
    where = f"{asked.path}: record '{record}'"
    if asked.split is not None and _needed(row, "split", asked, where) != asked.split:
        return None
    if asked.skills is not None and _needed(row, "skill", asked, where) not in asked.skills:
        return None
    image = _cell(row, "image", asked, where)
    picture = resolve_image(asked.image_folder, image, where) if image else None
    context = _cell(row, "context", asked, where) or ""
    choices = _choices(row, asked, where)
    answer_index = _answer_index(row, choices, asked, where) if choices else 0
    options = option_texts(choices, asked.answer_as)
    answer = options[answer_index] if choices else _needed(row, "answer", asked, where)
    prompt = _question(row, asked, where)
    if context or choices:
        prompt = question_text(prompt, context, choices)
    return Example(
        messages=(user_turn(prompt, picture), Message("assistant", (answer,))),
        id=record,
        source=str(asked.path),
        task="table",
        choices=choices,
        answer_index=answer_index if choices else None,
        options=options,
        tags={key: value for key in ("split", "skill") if (value := _cell(row, key, asked, where))},
    )


def _raw(row: Mapping[str, Any], name: str, asked: _Asked, where: str) -> Any:
    """Return a cell; None where the column is neither mapped nor there."""
    column = asked.columns.get(name, name)
    if column not in row and name in asked.columns:
        raise DataError(
            f"{where} has no column '{column}' for {name} but {', '.join(row)}"
            f"{nearest(column, row)}"
        )
    return row.get(column)


def _cell(row: Mapping[str, Any], name: str, asked: _Asked, where: str) -> str:
    return _as_text(_raw(row, name, asked, where), name, where)


def _needed(row: Mapping[str, Any], name: str, asked: _Asked, where: str) -> str:
    value = _cell(row, name, asked, where)
    if not value:
        raise DataError(f"{where} has no {name}: column '{asked.columns.get(name, name)}' is empty")
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
        raise DataError(f"{where}: {name} must be a text or a number, not {value!r}")
    return str(value).strip()


def _question(row: Mapping[str, Any], asked: _Asked, where: str) -> str:
    template = asked.columns.get("question", "")
    if "{" not in template:
        return _needed(row, "question", asked, where)
    parts: list[str] = []
    try:
        for text, column, _, _ in string.Formatter().parse(template):
            parts.append(text)
            if column is not None:
                fields = _Asked(
                    asked.path, {"question": column}, asked.image_folder, None, None, "text"
                )
                parts.append(_needed(row, "question", fields, where))
    except ValueError as error:
        raise DataError(f"'{asked.path}': question template '{template}': {error}") from error
    return "".join(parts)


def _choices(row: Mapping[str, Any], asked: _Asked, where: str) -> tuple[str, ...]:
    """Read the choices of a row: a list, a text with bars, or the same ones for every row."""
    fixed = asked.columns.get("choices", "")
    value = fixed if fixed not in row and "|" in fixed else _raw(row, "choices", asked, where)
    if value in (None, ""):
        return ()
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise DataError(f"{where}: choices must be a list or a text 'a|b', not {value!r}")
    choices = tuple(_as_text(part, "a choice", where) for part in parts)
    if not 2 <= len(choices) <= len(LETTERS) or not all(choices):
        raise DataError(f"{where}: 2 to {len(LETTERS)} choices are needed, not {list(choices)}")
    return choices


def _answer_index(
    row: Mapping[str, Any], choices: tuple[str, ...], asked: _Asked, where: str
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
