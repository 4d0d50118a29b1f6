"""Read files of records: what is wrong is said with the file and the record's name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from varifocal.data.example import Example
from varifocal.errors import DataError, nearest

OnBadRecord = Literal["fail", "skip"]
Item = TypeVar("Item")


class Examples(Sequence[Example]):
    """Examples in the order of their source, and why some records are missing.

    Attributes:
        skipped: one sentence for each record that was left out as broken.
    """

    def __init__(self, examples: Iterable[Example], skipped: Iterable[str] = ()) -> None:
        self._examples = tuple(examples)
        self.skipped = list(skipped)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        """Return one example; or a slice, which keeps `skipped`."""
        if isinstance(index, slice):
            return Examples(self._examples[index], self.skipped)
        return self._examples[index]

    def __len__(self) -> int:
        """Count the usable examples."""
        return len(self._examples)

    def __repr__(self) -> str:
        return f"Examples({len(self)} usable, {len(self.skipped)} skipped)"


def gather(
    items: Iterable[Item],
    parse: Callable[[Item], Example | None],
    on_bad_record: OnBadRecord,
    max_examples: int | None = None,
) -> Examples:
    """Parse records until `max_examples` are usable.

    Args:
        items: the raw records.
        parse: returns an example, or None for a record that is not asked for; raises DataError
            for a broken one.
        on_bad_record: "fail" raises the first error, "skip" notes it and goes on.
        max_examples: stop after so many usable ones.

    Returns:
        The examples and the reasons of the skipped records.
    """
    examples: list[Example] = []
    skipped: list[str] = []
    for item in items:
        if max_examples is not None and len(examples) >= max_examples:
            break
        try:
            example = parse(item)
        except DataError as error:
            if on_bad_record == "fail":
                raise
            skipped.append(str(error))
            continue
        if example is not None:
            examples.append(example)
    return Examples(examples, skipped)


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, without a byte order mark.

    Raises:
        DataError: the file is missing (the nearest name is proposed), a directory, or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"no file '{path}'{neighbour(path)}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{path}' is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error


def neighbour(path: Path) -> str:
    """Suggest the name in a file's folder that is closest to a mistyped one."""
    try:
        return nearest(path.name, os.listdir(path.parent))
    except OSError:
        return ""


def parse_json(text: str, where: str) -> Any:
    """Parse JSON.

    Raises:
        DataError: it is not JSON, or an object has two values for one key; the text names `where`,
            and line and column.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where} is not JSON that can be read: {error}") from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of an object's keys and values; two values for one key would lose one of them."""
    page = dict(pairs)
    if len(page) != len(pairs):
        for key, value in pairs:
            if page[key] != value:
                raise ValueError(f"key '{key[:40]}' stands twice, with different values")
    return page


def read_json_object(path: Path) -> dict[str, Any]:
    """Return a JSON file whose top level is an object.

    Raises:
        DataError: it cannot be read or holds something else.
    """
    content = parse_json(read_text(path), f"'{path}'")
    if not isinstance(content, dict):
        raise DataError(f"'{path}' holds a {_kind(content)}, an object {{...}} is needed")
    return content


def _kind(value: Any) -> str:
    names = {list: "list", dict: "object", str: "text", bool: "truth value", type(None): "null"}
    return names.get(type(value), "number")


def as_row(row: Any, where: str, names: Sequence[str] | None = None) -> Mapping[str, Any]:
    """Return a row that is an object, or with `names` one of a list of as many values.

    Raises:
        DataError: it is something else.

    >>> as_row(["Red?", "no", 0], "a.json: row 0", ["question", "answer", "image_id"])
    {'question': 'Red?', 'answer': 'no', 'image_id': 0}
    """
    if names is not None and isinstance(row, list):
        if len(row) != len(names):
            raise DataError(f"{where} has {len(row)} values, but column_names has {len(names)}")
        return dict(zip(names, row, strict=True))
    if names is not None and isinstance(row, dict):
        raise DataError(f"{where} has names of its own; leave column_names out")
    if not isinstance(row, dict):
        fix = "; give its values names, as column_names: [question, answer, ...]"
        fix = fix if isinstance(row, list) else ""
        raise DataError(f"{where} holds a {_kind(row)}, an object {{...}} is needed{fix}")
    return row
