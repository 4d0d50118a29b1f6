"""Read files of records: what is wrong is said with the file and the record's name."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from varifocal.data.example import Example, Image
from varifocal.errors import DataError, nearest

OnBadRecord = Literal["fail", "skip"]
Item = TypeVar("Item")

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLE_ENDINGS = (".jsonl", ".json", *_SEPARATORS)


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
        raise DataError(f"no file '{path}'{_neighbour(path)}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{path}' is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error


def _neighbour(path: Path) -> str:
    try:
        return nearest(path.name, os.listdir(path.parent))
    except OSError:
        return ""


def parse_json(text: str, where: str) -> Any:
    """Parse JSON.

    Raises:
        DataError: it is not JSON; the text names `where`, line and column.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where} is not JSON that can be read: {error}") from error


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


def read_table(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | DataError]]:
    """Yield the rows of a JSONL, JSON, CSV or TSV file with their place in it.

    A line of a JSONL file that is not a JSON object comes as a DataError in the row's place, so
    that the caller decides whether to skip it.

    Raises:
        DataError: the file cannot be read or its ending is another one.
    """
    ending = path.suffix.lower()
    if ending not in TABLE_ENDINGS:
        raise DataError(f"'{path}': a table's name ends with {', '.join(TABLE_ENDINGS)}")
    text = read_text(path)
    if ending == ".jsonl":
        yield from _read_lines(text, path)
    elif ending == ".json":
        yield from _read_list(text, path)
    else:
        yield from _read_csv(text, path, _SEPARATORS[ending])


def _read_lines(text: str, path: Path) -> Iterator[tuple[str, Mapping[str, Any] | DataError]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"line {number}"
            try:
                yield place, _as_row(parse_json(line, f"{path}: {place}"), f"{path}: {place}")
            except DataError as error:
                yield place, error


def _read_list(text: str, path: Path) -> Iterator[tuple[str, Mapping[str, Any] | DataError]]:
    rows = parse_json(text, f"'{path}'")
    if not isinstance(rows, list):
        raise DataError(f"'{path}' holds a {_kind(rows)}, a list of objects is needed")
    for number, row in enumerate(rows):
        place = f"row {number}"
        try:
            yield place, _as_row(row, f"{path}: {place}")
        except DataError as error:
            yield place, error


def _as_row(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where} holds a {_kind(row)}, an object {{...}} is needed")
    return row


def _read_csv(
    text: str, path: Path, separator: str
) -> Iterator[tuple[str, Mapping[str, Any] | DataError]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        _check_header(reader.fieldnames or (), path)
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row or None in row.values():
                width = len(reader.fieldnames or ())
                yield place, DataError(f"{path}: {place} has not the header's {width} columns")
            else:
                yield place, row
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not CSV: {error}") from error


def _check_header(names: Sequence[str], path: Path) -> None:
    for name in names:
        if list(names).count(name) > 1:
            raise DataError(f"{path}: the header has column '{name}' twice")


def resolve_image(folder: Path, name: Any, where: str) -> Image:
    """Find a picture inside its folder.

    Args:
        folder: the only place pictures are read from; links inside it may lead elsewhere.
        name: path relative to the folder, or an absolute one inside it.
        where: file and record, for the error text.

    Returns:
        The picture, not opened yet.

    Raises:
        DataError: no text, a URL, a path that leaves the folder, or no such file.
    """
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: the picture's path is {name!r}, a text is needed")
    if "://" in name or name.startswith("data:"):
        raise DataError(f"{where}: '{name[:80]}' is a URL; pictures are read from local files only")
    root = os.path.abspath(folder)
    path = os.path.abspath(os.path.join(root, name))
    if not path.startswith(os.path.join(root, "")):
        raise DataError(f"{where}: picture '{name}' leads out of the folder '{folder}'")
    try:
        found = os.path.isfile(path)
    except ValueError:  # a zero byte in the name
        found = False
    if not found:
        raise DataError(f"{where}: no picture '{path}'")
    return Image(Path(path))
