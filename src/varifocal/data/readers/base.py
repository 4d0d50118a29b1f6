"""Raw rows of a source, each read when it is asked for; nothing of them is held in memory."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from varifocal.errors import DataError


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
