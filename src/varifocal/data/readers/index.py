"""Where the records of a file lie, in bytes, so that any of them is read without the others.

A file is gone through once, block by block, and nothing of it is kept but three numbers a record:
first byte, first byte after it, and the number a person counts it by (a line from 1 on, or an
element of a JSON list from 0 on). The numbers of a large file are kept in the cache and mapped
into memory.

`datasets` reads these files, too, and is not used for them. Until a row in the middle of a million
was read, with nothing cached, one core of a shared machine took (CPU seconds; peak memory):

    file            this index      datasets 5.2
    JSON Lines      0.3 s, 0.10 GB   2.0 s, 0.15 GB
    a JSON list     1.1 s, 0.09 GB  11.5 s, 2.15 GB
    CSV             2.4 s, 0.05 GB   1.0 s, 0.08 GB

It copies the rows into a cache as large as the file, fixes a column's type by the first rows, and
refuses a file with one broken line, which it numbers within a block ("row 14386" of line 700,001).

Letters: N records.
"""

from __future__ import annotations

import contextlib
import csv
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from varifocal.cache import cache_root
from varifocal.errors import DataError, RunError, nearest
from varifocal.writing import atomic_file

Index = npt.NDArray[np.int64]
"""[N, 3]: first byte, first byte after, number."""

MAX_RECORD_BYTES = 64 * 2**20
"""A longer record is refused unread: no line of a file may fill the memory."""

BLOCK = 4 * 2**20
_SAVED_FROM = 8 * 2**20  # smaller files are indexed faster than a note of them is found
BLANKS = b" \t\r\n"
_VERSION = "1"


def cached_index(file: Path, kind: str, make: Callable[[Path], Index]) -> Index:
    """Return a file's index; a large file's is kept in the cache by path, size and change time.

    Args:
        file: what is indexed.
        kind: what is told apart in it, in a word that belongs to `make`.
        make: finds the records.
    """
    stat = file.stat()
    if stat.st_size < _SAVED_FROM:
        return make(file)
    identity = f"{_VERSION}\0{kind}\0{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    note = cache_root() / "indexes" / f"{sha256(identity.encode()).hexdigest()}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        return np.load(note, mmap_mode="r")
    index = make(file)
    # A cache that cannot be written costs time, nothing else.
    with contextlib.suppress(OSError, RunError):
        with atomic_file(note) as staging, staging.open("wb") as stream:
            np.save(stream, index)
        return np.load(note, mmap_mode="r")
    return index


def index_lines(file: Path) -> Index:
    """Find the lines of a file that are not blank."""
    starts, firsts = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]
    begin = after_byte_order_mark(file)
    with file.open("rb") as stream:
        stream.seek(begin)
        place, before = begin, ord("\n")
        for block in blocks(stream):
            is_first = np.concatenate(([before == ord("\n")], block[:-1] == ord("\n")))
            positions = np.flatnonzero(is_first)
            starts.append(positions + place)
            firsts.append(block[positions])
            place, before = place + len(block), int(block[-1])
        start = np.concatenate(starts)
        last = place - 1 if before == ord("\n") else place
        end = np.append(start[1:] - 1, last)[: len(start)]
        keep = ~_are_blank(stream, start, end, np.concatenate(firsts))
    number = np.arange(1, len(start) + 1)
    return np.stack([start, end, number], axis=1)[keep]


def after_byte_order_mark(file: Path) -> int:
    """Return the first byte after a byte order mark; refuse UTF-16's and UTF-32's."""
    with file.open("rb") as stream:
        head = stream.read(4)
    if head.startswith(b"\xef\xbb\xbf"):
        return 3
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"'{file}' is not UTF-8: it begins as UTF-16 does; save it as UTF-8")
    return 0


def blocks(stream: IO[bytes], size: int = BLOCK) -> Iterator[npt.NDArray[np.uint8]]:
    """Read the rest of a file piece by piece."""
    while block := stream.read(size):
        yield np.frombuffer(block, np.uint8)


def _are_blank(
    stream: IO[bytes], start: Index, end: Index, first: npt.NDArray[np.uint8]
) -> npt.NDArray[np.bool_]:
    """Tell which lines hold blanks alone; only those that begin with one are looked at."""
    blank = end <= start
    for line in np.flatnonzero(np.isin(first, np.frombuffer(BLANKS, np.uint8)) & ~blank):
        stream.seek(int(start[line]))
        left = int(end[line] - start[line])
        while left and not (piece := stream.read(min(left, 1 << 16))).strip(BLANKS):
            left -= len(piece)
        blank[line] = left == 0
    return blank


def index_csv(file: Path, separator: str) -> Index:
    """Find the rows of a CSV file, its header included; quotation marks may hold new lines.

    Raises:
        DataError: a quotation mark is left open or stands where none may.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
    rows = array("q")
    begin = place = after_byte_order_mark(file)
    number = line = 0

    def lines() -> Iterator[str]:
        nonlocal place, line
        with file.open("rb") as stream:
            stream.seek(begin)
            while raw := stream.readline(MAX_RECORD_BYTES):
                place, line = place + len(raw), line + 1
                yield raw.decode("latin-1")  # one character a byte; nothing is read from it

    reader = csv.reader(lines(), delimiter=separator, strict=True)
    start = begin
    try:
        for cells in reader:
            if cells:
                rows.extend((start, place, number + 1))
            start, number = place, line
    except csv.Error as error:
        raise DataError(f"{file}: line {number + 1} is not CSV: {error}") from error
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_Places = npt.NDArray[np.intp]
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1
_MARKS = _STEPS != 0
_MARKS[_COMMA] = True


def index_list(file: Path) -> Index:
    """Find the elements of the list that a JSON file holds.

    Raises:
        DataError: the list is not closed, or something follows it; the text names the first
            element that is not JSON.
    """
    return index_container(file, after_byte_order_mark(file))


def index_container(file: Path, begin: int, whole: bool = True) -> Index:
    """Find the elements of a JSON list, or the `key: value` pairs of a JSON object.

    Args:
        file: where it lies.
        begin: its opening bracket, or blanks in front of it.
        whole: nothing but blanks may follow the closing bracket.

    Returns:
        [N, 3], the elements with the blanks around them.
    """
    scan = _Scan(begin)
    with file.open("rb") as stream:
        stream.seek(begin)
        for block in blocks(stream):
            scan.take(block)
            if scan.closed and not (whole and scan.is_clean):
                break
    bounds = np.concatenate([*scan.starts, *scan.ends]).reshape(2, -1).T if scan.closed else None
    if bounds is None or (whole and not scan.is_clean):
        raise DataError(_say_what_is_wrong(file, scan))
    index = np.column_stack([bounds, np.arange(len(bounds))]).astype(np.int64)
    if len(index) == 1 and _read(file, index[0]).strip(BLANKS) == b"":
        return index[:0]
    return index


@dataclass
class _Scan:
    """What is known after the blocks seen so far.

    Attributes:
        place: first byte of the next block.
        depth: open brackets.
        in_text: between quotation marks.
        escaped: the next byte belongs to a backslash.
        closed: the outermost bracket is closed.
        is_clean: nothing but blanks stands outside of it.
        starts, ends: of the elements.
    """

    place: int
    depth: int = 0
    in_text: bool = False
    escaped: bool = False
    closed: bool = False
    is_clean: bool = True
    starts: list[npt.NDArray[np.int64]] = field(default_factory=list)
    ends: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def take(self, block: npt.NDArray[np.uint8]) -> None:
        """Go through the next block."""
        place = self.place
        self.place += len(block)
        if self.closed:
            self.is_clean = self.is_clean and not block.tobytes().strip(BLANKS)
            return
        marks = np.flatnonzero(_MARKS.take(block))
        marks = marks[self._are_outside(block, marks)]
        steps = _STEPS[block[marks]]
        depths = self.depth + np.cumsum(steps, dtype=np.int64)
        ended = np.flatnonzero((depths == 0) & (steps < 0))
        if len(ended):
            last = ended[0]
            marks, steps, depths = marks[: last + 1], steps[: last + 1], depths[: last + 1]
            self.closed = True
            self.is_clean = not block[marks[-1] + 1 :].tobytes().strip(BLANKS)
        opened = (depths == 1) & (steps > 0)
        split = (depths == 1) & (steps == 0)
        self.starts.append(marks[opened | split] + place + 1)
        self.ends.append(marks[split | ((depths == 0) & (steps < 0))] + place)
        if len(depths):
            self.depth = int(depths[-1])

    def _are_outside(self, block: npt.NDArray[np.uint8], marks: _Places) -> npt.NDArray[np.bool_]:
        """Tell which bytes have no quotation marks around them."""
        is_quote = block == _QUOTE
        is_quote[self._escaped(block)] = False
        quotes = np.flatnonzero(is_quote)
        outside = (np.searchsorted(quotes, marks) + self.in_text) % 2 == 0
        self.in_text = (len(quotes) + self.in_text) % 2 == 1
        return outside

    def _escaped(self, block: npt.NDArray[np.uint8]) -> _Places:
        """Return the bytes that follow an odd run of backslashes."""
        slashes = np.flatnonzero(block == _BACKSLASH)
        first = [0] if self.escaped else []
        if self.escaped:
            slashes = slashes[slashes > 0]
        run_starts = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
        lengths = np.diff(np.append(run_starts, len(slashes)))
        behind = (slashes[run_starts] + lengths)[lengths % 2 == 1]
        self.escaped = bool(len(behind)) and int(behind[-1]) == len(block)
        return np.append(np.array(first, np.intp), behind[: len(behind) - self.escaped])


def _read(file: Path, row: Index) -> bytes:
    with file.open("rb") as stream:
        stream.seek(int(row[0]))
        return stream.read(min(int(row[1] - row[0]), MAX_RECORD_BYTES))


def _say_what_is_wrong(file: Path, scan: _Scan) -> str:
    """Name the first element that is not JSON; what was left open hides there."""
    starts = np.concatenate([*scan.starts, np.zeros(0, np.int64)])
    ends = np.concatenate([*scan.ends, [scan.place]])
    for number, (start, end) in enumerate(zip(starts, ends, strict=False)):
        try:
            json.loads(_read(file, np.array([start, end])))
        except (ValueError, RecursionError) as error:
            return f"{file}: row {number} is not JSON: {' '.join(str(error).split())}"
    what = "something follows the end of its list" if scan.closed else "it ends too early"
    return f"'{file}' is not JSON: {what}"


def index_field(path: Path, field: str) -> tuple[Index, tuple[str, ...]]:
    """Find the elements of the list under a key of an object.

    Returns:
        [N, 3] as `json_index.index_container`, and a note on what the object holds in addition.

    Raises:
        DataError: the file is no JSON object, or has no list under that key.
    """
    lists, others = _keys(path)
    if field not in lists:
        known = ", ".join(lists) or "none"
        raise DataError(
            f"'{path}' has no list under field '{field}'; its lists are {known}"
            f"{nearest(field, lists)}"
        )
    index = cached_index(path, f"field {field}", partial(_index, field=field))
    more = [key for key in (*lists, *others) if key != field]
    return index, (f"in addition to {field} the file holds {', '.join(more)}",) if more else ()


def _index(path: Path, field: str) -> Index:
    return index_container(path, values_of(path)[field], whole=False)


def _keys(path: Path) -> tuple[list[str], list[str]]:
    """Return the keys of an object whose values are lists, lists of objects first, and the rest."""
    by_start: dict[bytes, list[str]] = {b"[{": [], b"[": [], b"": []}
    with path.open("rb") as stream:
        for key, begin in values_of(path).items():
            stream.seek(begin)
            head = b"".join(stream.read(1 << 12).split())
            next(names for start, names in by_start.items() if head.startswith(start)).append(key)
    return [*by_start[b"[{"], *by_start[b"["]], by_start[b""]


def refuse_object(path: Path) -> DataError:
    """Return the error for an object where a list of rows is needed; it says which lists it has."""
    try:
        lists, _ = _keys(path)
    except DataError:
        lists = []
    text = f"'{path}' holds an object, a list of objects is needed"
    if not lists:
        return DataError(text)
    if {"questions", "annotations"} & set(lists):
        return DataError(
            f"{text}; VQA has its questions and its answers in two files: name the first by field: "
            "questions and the second by join: {path: ..., field: annotations, key: question_id}"
        )
    if "data" in lists and _holds(path, "data", b'"paragraphs":', b'"qas":'):
        return DataError(
            f"{text}; SQuAD has its questions in the paragraphs of its articles: say record_path: "
            "data.paragraphs.qas"
        )
    fields = " or ".join(f"field: {name}" for name in lists[:4])
    return DataError(
        f"{text}; if one of its lists holds the rows, name it: {fields}, or record_path: "
        f"{lists[0]} where each row needs the object's other values, too"
    )


def _holds(path: Path, key: str, *marks: bytes) -> bool:
    """Tell whether the beginning of a value of an object holds all marks, blanks left out."""
    with path.open("rb") as stream:
        stream.seek(values_of(path)[key])
        head = b"".join(stream.read(1 << 16).split())
    return all(mark in head for mark in marks)


def values_of(path: Path) -> dict[str, int]:
    """Return where the values of a JSON object begin, by key.

    Raises:
        DataError: the file is no JSON object.
    """
    values: dict[str, int] = {}
    with path.open("rb") as stream:
        for start, end, _ in index_container(path, after_byte_order_mark(path)):
            stream.seek(int(start))
            head = stream.read(min(int(end - start), 4096)).decode("utf-8", "replace")
            lead = len(head) - len(head.lstrip())
            try:
                key, after = json.JSONDecoder().raw_decode(head, lead)
            except ValueError as error:
                raise DataError(f"'{path}' is not JSON: {error}") from error
            values[str(key)] = int(start) + len(head[: head.index(":", after) + 1].encode())
    return values
