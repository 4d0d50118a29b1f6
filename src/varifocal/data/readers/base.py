"""Raw rows of a source, each read when it is asked for: of files, inside of rows, or joined."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from varifocal.errors import DataError, nearest


@dataclass(frozen=True)
class Record:
    """One raw row.

    Attributes:
        source: the file it is read from.
        place: where in it, as a person counts ("line 3").
        row: its values by column.
    """

    source: str
    place: str
    row: Mapping[str, Any]

    @property
    def where(self) -> str:
        """File and place, as error texts show them."""
        return f"{self.source}: {self.place}"


class Records(Protocol):
    """Rows that can be read in any order.

    Attributes:
        folder: where relative paths of images start unless the recipe says otherwise.
        place: the file or folder, as error texts name it.
        is_split: whether the place itself was chosen by the recipe's `split`.
    """

    folder: Path
    place: str
    is_split: bool

    def __len__(self) -> int:
        """Count the rows, broken ones included."""
        ...

    def __getitem__(self, number: int) -> Record:
        """Read a row; DataError names file and place of a broken one."""
        ...

    @property
    def fingerprint(self) -> str:
        """A digest of the content."""
        ...


class JoinedRecords:
    """Several files' rows, one after the other.

    Attributes:
        notes: what was found out about the files and has to be known.
    """

    def __init__(
        self, parts: Sequence[Records], folder: Path, place: str, is_split: bool = False
    ) -> None:
        self.folder, self.place, self.is_split = folder, place, is_split
        self._parts = tuple(parts)
        self._ends = tuple(accumulate(len(part) for part in parts))
        notes = (note for part in parts for note in getattr(part, "notes", ()))
        self.notes = tuple(dict.fromkeys(notes))

    def __len__(self) -> int:
        """Count the rows."""
        return self._ends[-1]

    def __getitem__(self, number: int) -> Record:
        """Read a row; see `FileRecords`."""
        part = bisect_right(self._ends, number)
        return self._parts[part][number - (self._ends[part - 1] if part else 0)]

    @property
    def fingerprint(self) -> str:
        """A digest of the files' digests."""
        joined = "\0".join(part.fingerprint for part in self._parts)
        return hashlib.sha256(joined.encode()).hexdigest()


class StreamedRecords:
    """Rows in the order in which they come, without a count.

    Args:
        rows: begins anew whenever it is called; a broken row comes as a DataError in its place.
        folder: as in `Records`.
        place: as in `Records`.
        is_split: as in `Records`.
        notes: what was found out about the files and has to be known.
    """

    def __init__(
        self,
        rows: Callable[[], Iterator[Record | DataError]],
        folder: Path,
        place: str,
        is_split: bool = False,
        notes: Iterable[str] = (),
    ) -> None:
        self._rows, self.folder, self.place, self.is_split = rows, folder, place, is_split
        self.notes = tuple(notes)

    def __iter__(self) -> Iterator[Record | DataError]:
        """Begin at the first row."""
        return self._rows()


def replace_rows(
    records: StreamedRecords, rows: Callable[[], Iterator[Record | DataError]]
) -> StreamedRecords:
    """Return a stream of other rows from the same place."""
    return StreamedRecords(rows, records.folder, records.place, records.is_split, records.notes)


def read_in_order(records: Records) -> Iterator[Record | DataError]:
    """Yield every row, a broken one as its error."""
    for number in range(len(records)):
        try:
            yield records[number]
        except DataError as error:
            yield error


def rows_under(record: Record, path: str) -> list[Record]:
    """Return the rows of the lists under a dotted path, each with its parents' other values.

    Of two values with one name the inner one is taken.

    Raises:
        DataError: there is no list of objects under the path.

    >>> row = {"title": "Ice", "paragraphs": [{"context": "It floats.", "qas": [{"id": 1}]}]}
    >>> rows_under(Record("a.json", "row 0", row), "paragraphs.qas")[0].row
    {'title': 'Ice', 'context': 'It floats.', 'id': 1}
    """
    rows: list[Mapping[str, Any]] = [record.row]
    for part in path.split("."):
        rows = [inner for row in rows for inner in _children(row, part, path, record.where)]
    return [
        Record(record.source, f"{record.place}, {path} {number}", row)
        for number, row in enumerate(rows)
    ]


def _children(
    row: Mapping[str, Any], part: str, path: str, where: str
) -> Iterator[Mapping[str, Any]]:
    if part not in row:
        raise DataError(
            f"{where} has no '{part}' for record_path '{path}' but {', '.join(row)}"
            f"{nearest(part, row)}"
        )
    value = row[part]
    inner = value if isinstance(value, list) else [value]
    parent = {name: cell for name, cell in row.items() if name != part}
    for element in inner:
        if not isinstance(element, Mapping):
            raise DataError(
                f"{where}: '{part}' of record_path '{path}' holds no list of objects; name a list "
                "whose elements are rows"
            )
        yield {**parent, **element}


class NestedRecords:
    """The rows under a path of other rows; see `rows_under`.

    Args:
        records: the outer rows; each is read once to count what it holds.
        path: dotted, as pandas's `record_path`.

    Raises:
        DataError: there is no row under the path.
    """

    def __init__(self, records: Records, path: str) -> None:
        self.folder, self.place, self.is_split = records.folder, records.place, records.is_split
        self.notes = tuple(getattr(records, "notes", ()))
        self._records, self._path = records, path
        self._ends = tuple(accumulate(map(self._count, read_in_order(records))))
        self._last: tuple[int, list[Record]] = (-1, [])
        if not self._ends or not self._ends[-1]:
            raise DataError(f"'{self.place}' has no row under record_path '{path}'")

    def _count(self, outer: Record | DataError) -> int:
        """Count the rows of an outer one; a broken one is a row, whose error is raised if read."""
        try:
            return 1 if isinstance(outer, DataError) else len(rows_under(outer, self._path))
        except DataError:
            return 1

    def __len__(self) -> int:
        """Count the inner rows."""
        return self._ends[-1]

    def __getitem__(self, number: int) -> Record:
        """Read a row; the outer row that was read last is held."""
        outer = bisect_right(self._ends, number)
        last, rows = self._last
        if last != outer:
            rows = rows_under(self._records[outer], self._path)
            self._last = (outer, rows)
        return rows[number - (self._ends[outer - 1] if outer else 0)]

    @property
    def fingerprint(self) -> str:
        """A digest of the content and the path."""
        joined = f"{self._records.fingerprint}\0{self._path}"
        return hashlib.sha256(joined.encode()).hexdigest()


def stream_nested(records: StreamedRecords, path: str) -> Iterator[Record | DataError]:
    """Yield the rows under a path of streamed rows, a broken outer row as its error."""
    for outer in records:
        try:
            yield from [outer] if isinstance(outer, DataError) else rows_under(outer, path)
        except DataError as error:
            yield error


class Lookup:
    """Rows of a file found by the value of a column; the values are held in memory.

    Args:
        records: the file's rows.
        key: the column, whose values stand once each.

    Raises:
        DataError: no row has the column, or a value stands twice.
    """

    def __init__(self, records: Records, key: str) -> None:
        self._records, self._key = records, key
        self._numbers: dict[str, int] = {}
        names: dict[str, None] = {}
        for number, record in enumerate(read_in_order(records)):
            if isinstance(record, DataError):
                continue
            names |= dict.fromkeys(map(str, record.row))
            value = record.row.get(key)
            if value is None:
                continue
            if (first := self._numbers.setdefault(str(value), number)) != number:
                raise DataError(
                    f"'{records.place}' has {key} {value} twice, in {records[first].place} and "
                    f"{record.place}; join a file in which each {key} stands once, for example by "
                    "exchanging path and join.path"
                )
        if not self._numbers:
            raise DataError(
                f"'{records.place}' has no column '{key}' to join on but {', '.join(names)}"
                f"{nearest(key, names)}"
            )

    def joined(self, record: Record, key: str) -> Record:
        """Return a row with the values of the row that has its key; its own come first.

        Raises:
            DataError: it has no key, or none has it.
        """
        value = record.row.get(key)
        if value is None:
            raise DataError(
                f"{record.where} has no column '{key}' to join on but {', '.join(record.row)}"
                f"{nearest(key, record.row)}"
            )
        number = self._numbers.get(str(value))
        if number is None:
            raise DataError(
                f"{record.where}: no row of '{self._records.place}' has {self._key} {value}"
            )
        row = {**self._records[number].row, **record.row}
        return Record(record.source, record.place, row)

    @property
    def fingerprint(self) -> str:
        """A digest of the content and the column."""
        joined = f"{self._records.fingerprint}\0{self._key}"
        return hashlib.sha256(joined.encode()).hexdigest()


class RecordsWithLookup:
    """Rows, each with the values of the row of another file that has the same key."""

    def __init__(self, records: Records, lookup: Lookup, key: str) -> None:
        self.folder, self.place, self.is_split = records.folder, records.place, records.is_split
        self.notes = tuple(getattr(records, "notes", ()))
        self._records, self._lookup, self._key = records, lookup, key

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._records)

    def __getitem__(self, number: int) -> Record:
        """Read a row; see `Lookup.joined`."""
        return self._lookup.joined(self._records[number], self._key)

    @property
    def fingerprint(self) -> str:
        """A digest of both files' contents and the key."""
        joined = f"{self._records.fingerprint}\0{self._lookup.fingerprint}\0{self._key}"
        return hashlib.sha256(joined.encode()).hexdigest()


def stream_with_lookup(
    records: StreamedRecords, lookup: Lookup, key: str
) -> Iterator[Record | DataError]:
    """Yield streamed rows with what a lookup adds, a row that finds nothing as its error."""
    for record in records:
        try:
            yield record if isinstance(record, DataError) else lookup.joined(record, key)
        except DataError as error:
            yield error
