"""The raw rows of a source, each read when it is asked for; nothing of them is held in memory."""

from __future__ import annotations

import csv
import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from varifocal.cache import file_digest
from varifocal.data.byte_index import MAX_RECORD_BYTES, behind_mark, index_csv, index_lines
from varifocal.data.byte_index import kept as kept_index
from varifocal.data.json_index import index_list
from varifocal.data.reading import as_row, neighbour, parse_json
from varifocal.errors import DataError, nearest

if TYPE_CHECKING:
    from varifocal.recipe import SourceSection

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
TEXT_ENDINGS = (".jsonl", ".json", *_SEPARATORS)


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
        folder: where relative paths of pictures start unless the recipe says otherwise.
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


class FileRecords:
    """The rows of a JSON Lines, JSON, CSV or TSV file, found by their place in bytes.

    Args:
        path: the file; its ending says how it is read.
        is_split: as in `Records`.

    Raises:
        DataError: the file is missing, has another ending, or no rows can be told apart in it.
    """

    def __init__(self, path: Path, is_split: bool = False) -> None:
        self.path, self.folder, self.place = path, path.parent, str(path)
        self.is_split = is_split
        ending = path.suffix.lower()
        try:
            if ending in _SEPARATORS:
                separator = _SEPARATORS[ending]
                self._index = kept_index(path, ending, partial(index_csv, separator=separator))
                self._open_csv(separator)
            elif ending == ".jsonl" or _holds_lines(path):
                self._index, self._word = kept_index(path, "lines", index_lines), "line"
            else:
                self._index, self._word = kept_index(path, "list", index_list), "row"
        except OSError as error:
            raise DataError(_why_unreadable(path, error)) from error
        if not len(self._index):
            raise DataError(f"'{path}' has no row")

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
        start, end, count = (int(value) for value in self._index[0])
        header = self._text(start, end, f"{self.path}: line {count}")
        self._names = next(csv.reader([header], delimiter=separator, strict=True), [])
        for name in self._names:
            if self._names.count(name) > 1:
                raise DataError(f"{self.path}: the header has column '{name}' twice")
        self._index = self._index[1:]

    def _text(self, start: int, end: int, where: str) -> str:
        if end - start > MAX_RECORD_BYTES:
            raise DataError(
                f"{where} has {end - start:,} bytes, at most {MAX_RECORD_BYTES:,} are read"
            )
        try:
            with self.path.open("rb") as stream:
                stream.seek(start)
                return stream.read(end - start).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where} is not UTF-8: {error.reason} at its byte {error.start}; save the file "
                "as UTF-8"
            ) from error
        except OSError as error:
            raise DataError(_why_unreadable(self.path, error)) from error

    def _parse(self, text: str, where: str) -> Mapping[str, Any]:
        if self._word == "row" or self.path.suffix.lower() not in _SEPARATORS:
            return as_row(parse_json(text, where), where)
        cells = next(csv.reader([text], delimiter=self._separator), [])
        if len(cells) != len(self._names):
            raise DataError(f"{where} has not the header's {len(self._names)} columns")
        return dict(zip(self._names, cells, strict=True))


def _holds_lines(path: Path) -> bool:
    """Tell whether a file called .json holds an object a line, as many data sets have it."""
    with path.open("rb") as stream:
        stream.seek(behind_mark(path))
        first = b""
        while not first.strip() and (line := stream.readline(MAX_RECORD_BYTES)):
            first = line
        if not first.lstrip().startswith(b"{"):
            return False
        try:
            parse_json(first.decode("utf-8"), "")
        except (DataError, UnicodeDecodeError):
            return False
        return bool(stream.read(1 << 16).strip())


def _why_unreadable(path: Path, error: OSError) -> str:
    if not path.exists():
        return f"no file '{path}'{neighbour(path)}"
    return f"'{path}' cannot be read: {error.strerror or error}"


class JoinedRecords:
    """Several files' rows, one after the other."""

    def __init__(self, parts: Sequence[Records], folder: Path, is_split: bool = False) -> None:
        self.folder, self.place, self.is_split = folder, str(folder), is_split
        self._parts = tuple(parts)
        self._ends = tuple(accumulate(len(part) for part in parts))

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
    """

    def __init__(
        self,
        rows: Callable[[], Iterator[Record | DataError]],
        folder: Path,
        place: str,
        is_split: bool = False,
    ) -> None:
        self._rows, self.folder, self.place, self.is_split = rows, folder, place, is_split

    def __iter__(self) -> Iterator[Record | DataError]:
        """Begin at the first row."""
        return self._rows()


def read_in_order(records: Records) -> Iterator[Record | DataError]:
    """Yield every row, a broken one as its error."""
    for number in range(len(records)):
        try:
            yield records[number]
        except DataError as error:
            yield error


def open_records(section: SourceSection, root: str | Path | None = None) -> Records:
    """Open what a recipe's source names.

    Args:
        section: the source.
        root: folder at which a relative path starts; by default the working directory.

    Raises:
        DataError: there is nothing at the path, or it cannot be read as rows.
    """
    path = Path(root or ".") / Path(section.place).expanduser()
    if not path.exists():
        raise DataError(f"no file or folder '{path}'{neighbour(path)}")
    ending = path.suffix.lower()
    if ending in TEXT_ENDINGS:
        return FileRecords(path)
    if (path / "problems.json").is_file() or section.format == "scienceqa":
        from varifocal.data.scienceqa import ScienceQARecords

        return ScienceQARecords(path, section.split)
    raise DataError(
        f"'{path}' cannot be read as rows: a file's name ends with {', '.join(TEXT_ENDINGS)}"
        f"{nearest(ending, TEXT_ENDINGS)}"
    )
