"""Where the elements of a JSON list or object lie in a file, without reading them as objects.

Letters: N elements.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from varifocal.data.byte_index import BLANKS, MAX_RECORD_BYTES, Index, behind_mark, blocks
from varifocal.errors import DataError

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
    return index_container(file, behind_mark(file))


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
    """What is known behind the blocks seen so far.

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
