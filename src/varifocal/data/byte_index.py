"""Where the records of a file lie, in bytes, so that any of them is read without the others.

A file is gone through once, block by block, and nothing of it is kept but three numbers a record:
first byte, first byte behind it, and the number a person counts it by (a line from 1 on, or an
element of a JSON list from 0 on). The numbers of a large file are kept in the cache and mapped
into memory.

Letters: N records.
"""

from __future__ import annotations

import contextlib
import csv
from array import array
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from varifocal.cache import cache_root
from varifocal.errors import DataError, RunError
from varifocal.writing import whole_file

Index = npt.NDArray[np.int64]
"""[N, 3]: first byte, first byte behind, number."""

MAX_RECORD_BYTES = 64 * 2**20
"""A longer record is refused unread: no line of a file may fill the memory."""

BLOCK = 4 * 2**20
_KEPT_FROM = 8 * 2**20  # smaller files are indexed faster than a note of them is found
BLANKS = b" \t\r\n"
_VERSION = "1"


def kept(file: Path, kind: str, make: Callable[[Path], Index]) -> Index:
    """Return a file's index; a large file's is kept in the cache by path, size and change time.

    Args:
        file: what is indexed.
        kind: what is told apart in it, in a word that belongs to `make`.
        make: finds the records.
    """
    stat = file.stat()
    if stat.st_size < _KEPT_FROM:
        return make(file)
    identity = f"{_VERSION}\0{kind}\0{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    note = cache_root() / "indexes" / f"{sha256(identity.encode()).hexdigest()}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        return np.load(note, mmap_mode="r")
    index = make(file)
    # A cache that cannot be written costs time, nothing else.
    with contextlib.suppress(OSError, RunError):
        with whole_file(note) as staging, staging.open("wb") as stream:
            np.save(stream, index)
        return np.load(note, mmap_mode="r")
    return index


def index_lines(file: Path) -> Index:
    """Find the lines of a file that are not blank."""
    starts, firsts = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]
    begin = behind_mark(file)
    with file.open("rb") as stream:
        stream.seek(begin)
        place, before = begin, ord("\n")
        for block in blocks(stream):
            is_first = np.concatenate(([before == ord("\n")], block[:-1] == ord("\n")))
            found = np.flatnonzero(is_first)
            starts.append(found + place)
            firsts.append(block[found])
            place, before = place + len(block), int(block[-1])
        start = np.concatenate(starts)
        last = place - 1 if before == ord("\n") else place
        end = np.append(start[1:] - 1, last)[: len(start)]
        keep = ~_are_blank(stream, start, end, np.concatenate(firsts))
    number = np.arange(1, len(start) + 1)
    return np.stack([start, end, number], axis=1)[keep]


def behind_mark(file: Path) -> int:
    """Return the first byte behind a byte order mark; refuse UTF-16's and UTF-32's."""
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
    begin = place = behind_mark(file)
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
