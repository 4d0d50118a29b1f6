"""What a parser of records is given and gives, the words they share, and which columns it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varifocal.data.example import Example
from varifocal.data.formats.questions import AnswerAs, AnswerIs, Integers, PromptText
from varifocal.data.readers.base import Record
from varifocal.errors import DataError


@dataclass(frozen=True)
class ParseOptions:
    """What a recipe's source asks of its records.

    Attributes:
        source: file or folder, for `Example.source`.
        format: the format's name, the task of records that name none.
        image_folder: where relative image paths start, and the only place they may lead to.
        columns: our name of a column -> its name in the file.
        answer_as: how a choice is named.
        prompt_format: ScienceQA's.
        prompt_text: whether ScienceQA's prompts are written as the published code does.
        use_captions: whether a caption is part of ScienceQA's context.
        answer_is: what gold answers are.
        integers: what the integers among them are, found out of the whole source; None: unknown.
    """

    source: str
    format: str
    image_folder: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    answer_as: AnswerAs = "text"
    prompt_format: str = "QCM-A"
    answer_is: AnswerIs = "auto"
    integers: Integers | None = None
    prompt_text: PromptText = "plain"
    use_captions: bool = False


@dataclass(frozen=True)
class Format:
    """One row of the register of formats.

    Attributes:
        about: what its records look like, in a few words.
        detect: whether a record is one of this format.
        parse: makes an example of it; DataError names the record.
        wants: whether a record is asked for; None takes every one.
    """

    about: str
    detect: Callable[[Record], bool]
    parse: Callable[[Record, ParseOptions], Example]
    wants: Callable[[Mapping[str, Any], ParseOptions], bool] | None = None


def text_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """Return a row's text without the blanks around it; "" where it is missing or null.

    Raises:
        DataError: it is no text.
    """
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: '{key}' must be a text, not {short(value)}")
    return (value or "").strip()


def short(value: Any) -> str:
    """Write a value for an error text, the middle of a long one left out."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:70]} ... {text[-20:]}"


def id_of(record: Record) -> str:
    """Return a record's id, or else its place in the file ("line 3")."""
    value = record.row.get("id")
    if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip():
        return str(value).strip()
    return record.place


def task_of(record: Record, asked: ParseOptions) -> str:
    """Return the task a record names, or else the format's name."""
    named = (text_of(record.row, key, record.where) for key in ("task_name", "task"))
    return next(filter(None, named), asked.format)


class _Watched(dict[str, Any]):
    """A row that knows which of its columns were looked at."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)


def unread_columns(
    records: Iterable[Record | DataError], reader: Format, asked: ParseOptions
) -> list[str]:
    """Return the columns that hold something and that a format does not look at, in their order.

    Args:
        records: some of a source's; broken ones are passed.
        reader: the format.
        asked: what the recipe asks of the records.
    """
    filled: dict[str, None] = {}
    read: set[str] = set(asked.columns.values()) | {"split", "skill"}
    for record in records:
        if isinstance(record, DataError):
            continue
        row = _Watched(record.row)
        try:
            reader.parse(Record(record.source, record.place, row), asked)
        except DataError:  # what follows the fault was not looked at
            continue
        filled |= dict.fromkeys(name for name, cell in row.items() if cell not in (None, "", []))
        read |= row.seen
    return [str(name) for name in filled if name not in read]
