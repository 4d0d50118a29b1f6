"""What comes twice: records, ids, and questions that are both trained on and scored on.

Letters: R records.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from varifocal.data.inspect.counts import SourceCounts
from varifocal.data.inspect.findings import SIDES, Finding, Findings, Kind

Digests = npt.NDArray[np.uint64]


def find_doubles(all_counts: Sequence[SourceCounts], findings: Findings) -> None:
    """Report repeated records within each side, repeated ids within each source, and overlap.

    Records are compared by 64-bit digests: among a million, two different ones are taken for the
    same with a chance below 1 in 10 million.
    """
    for side in SIDES:
        of_side = [counts for counts in all_counts if counts.side == side]
        for late, early in _repeats(of_side, lambda counts: counts.content):
            _report(findings, "duplicate", late, early, "the same question, images and answer as")
    for counts in all_counts:
        for late, early in _repeats([counts], lambda counts: counts.id):
            _report(findings, "duplicate_id", late, early, "the same id as")
    trained = [counts for counts in all_counts if counts.side == "train"]
    scored = [counts for counts in all_counts if counts.side == "evaluate"]
    for late, early in _shared(scored, trained):
        _report(findings, "overlap", late, early, "its question and images are also trained on:")


Place = tuple[SourceCounts, int]


def _report(findings: Findings, kind: Kind, late: Place, early: Place, words: str) -> None:
    counts, record = late
    first, number = early
    where = f"record {number}" if first is counts else f"record {number} of {first.file}"
    if first is not counts and first.file == counts.file:
        where = f"record {number} of {first.name}"
    text = f"{counts.file}: record {record}: {words} {where}"
    findings.add(Finding(kind, counts.side, counts.name, counts.file, record, text))


def _repeats(
    all_counts: Sequence[SourceCounts], key: Callable[[SourceCounts], array[int]]
) -> Iterator[tuple[Place, Place]]:
    """Yield the records whose digest stood before, each with the first that has it."""
    digests = _joined([key(counts) for counts in all_counts])  # [R]
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    repeats = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)) + 1
    first = np.searchsorted(ordered, ordered[repeats], side="left")
    late, early = order[repeats], order[first]
    for place in np.argsort(late):
        yield _place(all_counts, int(late[place])), _place(all_counts, int(early[place]))


def _shared(
    scored: Sequence[SourceCounts], trained: Sequence[SourceCounts]
) -> Iterator[tuple[Place, Place]]:
    """Yield the records that are scored and whose question is trained, with where it is."""
    known = _joined([counts.question for counts in trained])  # [R]
    order = np.argsort(known, kind="stable")
    ordered = known[order]
    for counts in scored:
        asked = _joined([counts.question])
        first = np.searchsorted(ordered, asked, side="left").clip(max=max(len(ordered) - 1, 0))
        found = (ordered[first] == asked) & (asked != 0) if len(ordered) else asked != asked
        for record in np.flatnonzero(found):
            yield (counts, int(record)), _place(trained, int(order[first[record]]))


def _joined(digests: Sequence[array[int]]) -> Digests:
    parts = [np.frombuffer(one, np.uint64) for one in digests if one]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _place(all_counts: Sequence[SourceCounts], number: int) -> Place:
    """Return the source, and the record in it, of a record of all sources joined."""
    for counts in all_counts:
        if number < len(counts):
            return counts, number
        number -= len(counts)
    raise IndexError(number)
