"""The rows of JSON Lines, JSON, CSV and TSV files, found by their place in bytes."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from varifocal.cache import file_digest
from varifocal.data.json_files import as_row, neighbour, parse_json
from varifocal.data.readers.base import Record
from varifocal.data.readers.compressed import UNREADABLE, is_packed, opened, unpacked
from varifocal.data.readers.index import (
    MAX_RECORD_BYTES,
    after_byte_order_mark,
    cached_index,
    index_csv,
    index_field,
    index_lines,
    index_list,
    refuse_object,
)
from varifocal.errors import DataError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_NAMES = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
_HEAD = 1 << 16
_PLAIN_ENDINGS = (".jsonl", ".json", *_SEPARATORS)
TEXT_ENDINGS = (*_PLAIN_ENDINGS, *(f"{ending}.gz" for ending in _PLAIN_ENDINGS))


class FileRecords:
    """The rows of a JSON Lines, JSON, CSV or TSV file, found by their place in bytes.

    Args:
        path: the file; its ending says how it is read.
        is_split: as in `Records`.
        field: of a JSON file that holds an object, the key of its list of rows.
        names: of the columns, where the file has none.
        is_row: a JSON object is one row, not lines.

    Attributes:
        notes: how a table's cells are separated, where its ending says something else; what an
            object holds in addition to its list of rows.

    Raises:
        DataError: the file is missing, has another ending, or no rows can be told apart in it.
    """

    def __init__(
        self,
        path: Path,
        is_split: bool = False,
        field: str | None = None,
        names: Sequence[str] | None = None,
        is_row: bool = False,
    ) -> None:
        self.path, self.folder, self.place = path, path.parent, str(path)
        self.is_split = is_split
        self._given_names, self._is_row = names, is_row
        self.notes: tuple[str, ...] = ()
        self._ending = _ending_of(path)
        try:
            file = unpacked(path)
        except OSError as error:
            raise DataError(_why_unreadable(path, error)) from error
        try:
            self._open(file, field)
        except OSError as error:
            raise DataError(_why_unreadable(path, error)) from error
        except DataError as error:  # it names the copy of a packed file
            raise DataError(str(error).replace(str(file), str(path))) from error
        if not len(self._index):
            raise DataError(f"'{path}' has no row")

    def _open(self, file: Path, field: str | None) -> None:
        """Find the rows of the file, unpacked."""
        self._word = "row"
        if self._ending in _SEPARATORS:
            separator, note = _separator_of(file, _SEPARATORS[self._ending])
            self.notes = (note,) if note else ()
            index = partial(index_csv, separator=separator)
            self._index = cached_index(file, f"{self._ending}{separator}", index)
            self._open_csv(separator)
        elif field is not None:
            self._index, self.notes = index_field(file, field)
        elif self._is_row and self._ending == ".json" and _holds_one_object(file):
            begin = after_byte_order_mark(file)
            self._index = np.array([[begin, file.stat().st_size, 0]], np.int64)
        elif self._ending == ".jsonl" or _holds_lines(file):
            self._index, self._word = cached_index(file, "lines", index_lines), "line"
        else:
            self._index = cached_index(file, "list", index_list)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._index)

    def __getitem__(self, number: int) -> Record:
        """Read a row.

        Raises:
            DataError: it is broken, over 64 MB, or not UTF-8.
        """
        start, end, count = (int(value) for value in self._index[number])
        place = f"{self._word} {count}"
        where = f"{self.path}: {place}"
        return Record(str(self.path), place, self._parse(self._text(start, end, where), where))

    @property
    def fingerprint(self) -> str:
        """The file's SHA-256."""
        return file_digest(self.path)

    def _open_csv(self, separator: str) -> None:
        """Read the header, the first row of the index."""
        self._word, self._separator = "line", separator
        if not len(self._index):
            raise DataError(f"'{self.path}' has no row")
        if self._given_names is not None:
            self._names = list(self._given_names)
            return
        start, end, count = (int(value) for value in self._index[0])
        header = self._text(start, end, f"{self.path}: line {count}")
        self._names = next(csv.reader([header], delimiter=separator, strict=True), [])
        for name in self._names:
            if self._names.count(name) > 1:
                raise DataError(f"{self.path}: the header has column '{name}' twice")
        self._index = self._index[1:]

    def _text(self, start: int, end: int, where: str) -> str:
        try:
            with unpacked(self.path).open("rb") as stream:
                stream.seek(start)
                return decode_text(stream.read(min(end - start, MAX_RECORD_BYTES + 1)), where)
        except OSError as error:
            raise DataError(_why_unreadable(self.path, error)) from error

    def _parse(self, text: str, where: str) -> Mapping[str, Any]:
        if self._word == "row" or self._ending not in _SEPARATORS:
            return as_row(parse_json(text, where), where, self._given_names)
        try:
            cells = next(csv.reader([text], delimiter=self._separator, strict=True), [])
        except csv.Error as error:
            raise DataError(f"{where} is not CSV: {error}") from error
        if len(cells) != len(self._names):
            what = "the header's" if self._given_names is None else "column_names'"
            raise DataError(f"{where} has not {what} {len(self._names)} columns but {len(cells)}")
        return dict(zip(self._names, cells, strict=True))


def _ending_of(path: Path) -> str:
    """Return a file's ending, ".gz" left off."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _separator_of(path: Path, usual: str) -> tuple[str, str]:
    """Find out what separates the cells of a table's header.

    Returns:
        The separator, and a note where it is not the usual one of the file's ending.
    """
    with path.open("rb") as stream:
        stream.seek(after_byte_order_mark(path))
        head = stream.read(_HEAD).decode("utf-8", "replace")
    counts = {candidate: _count_cells(head, candidate) for candidate in (usual, *_NAMES)}
    separator = max(counts, key=lambda candidate: counts[candidate])
    if counts[separator] == counts[usual]:
        return usual, ""
    return separator, f"its cells are separated by {_NAMES[separator]}, found out from its header"


def _count_cells(head: str, separator: str) -> int:
    """Count the cells of the header; quotation marks may hold new lines."""
    rows = csv.reader(io.StringIO(head, newline=""), delimiter=separator, strict=True)
    try:
        return len(next(filter(None, rows), []))
    except csv.Error:
        return 0


def _holds_lines(path: Path) -> bool:
    """Tell whether a file called .json holds an object a line, as many data sets have it.

    Raises:
        DataError: it holds neither that nor a list.
    """
    with path.open("rb") as stream:
        stream.seek(after_byte_order_mark(path))
        head = stream.read(_HEAD).lstrip()
        if head.startswith(b"[") or not head:
            return False
        if not head.startswith(b"{"):
            raise DataError(f"'{path}' is not JSON: it begins with {head[:20]!r}")
        stream.seek(after_byte_order_mark(path))
        first = b""
        while not first.strip() and (line := stream.readline(MAX_RECORD_BYTES)):
            first = line
        try:
            parse_json(first.decode("utf-8"), "")
            if stream.read(_HEAD).strip():
                return True
        except (DataError, UnicodeDecodeError):
            parse_json(head.decode("utf-8", "replace"), f"'{path}'") if len(head) < _HEAD else None
    raise refuse_object(path)


def _holds_one_object(path: Path) -> bool:
    """Tell whether a JSON file holds an object that is not one of several lines."""
    with path.open("rb") as stream:
        stream.seek(after_byte_order_mark(path))
        if not stream.read(_HEAD).lstrip().startswith(b"{"):
            return False
    try:
        return not _holds_lines(path)
    except DataError:
        return True


def stream_lines(path: Path, names: Sequence[str] | None = None) -> Iterator[Record | DataError]:
    """Read a JSON Lines file in its order, one line of at most 64 MB in memory.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with opened(path) as stream:
            if not is_packed(path):
                stream.seek(after_byte_order_mark(path))
            number = 0
            while line := stream.readline(MAX_RECORD_BYTES + 1):
                number += 1
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield _record_of(line, f"line {number}", path, names)
                while len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
                    line = stream.readline(MAX_RECORD_BYTES + 1)
    except UNREADABLE as error:
        raise DataError(_why_unreadable(path, error)) from error


def _record_of(
    line: bytes, place: str, path: Path, names: Sequence[str] | None
) -> Record | DataError:
    where = f"{path}: {place}"
    try:
        text = decode_text(line, where)
        return Record(str(path), place, as_row(parse_json(text, where), where, names))
    except DataError as error:
        return error


def decode_text(content: bytes, where: str) -> str:
    """Return a record's text.

    Raises:
        DataError: it is over 64 MB or not UTF-8.
    """
    if len(content) > MAX_RECORD_BYTES:
        raise DataError(f"{where} has over {MAX_RECORD_BYTES:,} bytes, which are not read")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8: {error.reason} at its byte {error.start}; save the file as "
            "UTF-8"
        ) from error


def _why_unreadable(path: Path, error: BaseException) -> str:
    if not path.exists():
        return f"no file '{path}'{neighbour(path)}"
    return f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}"
