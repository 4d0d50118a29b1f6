"""Counts of one source, some 50 bytes a record: no example is kept."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from varifocal.data.inspect.findings import Finding, Findings, Side
from varifocal.data.inspect.scan import RecordScan
from varifocal.data.metric import Gold


@dataclass(frozen=True)
class Bin:
    """Values from `low` to `high`, both included.

    Attributes:
        low: the smallest whole number that falls into it.
        high: the largest.
        counts: how many values of each series fall into it.
    """

    low: int
    high: int
    counts: tuple[int, ...]


def binned(series: Sequence[npt.NDArray[np.int64]], most_bins: int = 16) -> list[Bin]:
    """Sort whole numbers from 0 into bins as wide as 1, 2 or 5 times a power of ten.

    Args:
        series: any number of arrays, counted apart in the same bins.
        most_bins: how many bins there may be.

    Returns:
        Bins from the one with the smallest to the one with the largest value; none without values.

    >>> [(bin.low, bin.high, bin.counts) for bin in binned([np.array([12, 14, 31])], most_bins=3)]
    [(10, 19, (2,)), (20, 29, (0,)), (30, 39, (1,))]
    """
    joined = np.concatenate([np.zeros(0, np.int64), *series])
    if not len(joined):
        return []
    width = next(
        width
        for power in range(18)
        for width in (10**power, 2 * 10**power, 5 * 10**power)
        if joined.max() // width - joined.min() // width < most_bins
    )
    first, last = int(joined.min() // width), int(joined.max() // width)
    counts = [np.bincount(values // width - first, minlength=last - first + 1) for values in series]
    return [
        Bin((first + n) * width, (first + n + 1) * width - 1, tuple(int(c[n]) for c in counts))
        for n in range(last - first + 1)
    ]


def _numbers() -> array[int]:
    return array("i")


def _digests() -> array[int]:
    return array("Q")


@dataclass
class SourceCounts:
    """What the records of a source showed.

    Attributes:
        name: what reports call the source.
        file: its path or hub id.
        side: what it is for.
        tasks: usable records of each task.
        usable: usable records of each modality, 0 text, 1 image.
        modalities: of each record; -1 for one that cannot be read.
        task_codes: of each record, what `task_names` lists; -1 as above.
        lengths: tokens of each record without a limit; 0 where it cannot be encoded.
        left: of those, what the recipe's limit leaves; 0 for one that gives no sample.
        trained: of those kept, how many train.
        image_tokens: records by their number of image tokens.
        num_cut: records whose prompt is cut.
        num_shortened: records whose oldest turns are left out.
        num_left_out: records over the limit that give no sample.
        num_text: records left out for having no image, where only images are trained on.
        content, question, id: digests of each record (see `Look`).
        gold: what its usable questions are compared with when they are scored.
        notes: what is not read of the source, and what was found out about its file.
    """

    name: str
    file: str
    side: Side
    tasks: Counter[str] = field(default_factory=Counter)
    usable: Counter[int] = field(default_factory=Counter)
    modalities: array[int] = field(default_factory=lambda: array("b"))
    task_codes: array[int] = field(default_factory=_numbers)
    lengths: array[int] = field(default_factory=_numbers)
    left: array[int] = field(default_factory=_numbers)
    trained: array[int] = field(default_factory=_numbers)
    image_tokens: Counter[int] = field(default_factory=Counter)
    num_cut: int = 0
    num_shortened: int = 0
    num_left_out: int = 0
    num_text: int = 0
    content: array[int] = field(default_factory=_digests)
    question: array[int] = field(default_factory=_digests)
    id: array[int] = field(default_factory=_digests)
    gold: Gold = field(default_factory=Gold)
    notes: list[str] = field(default_factory=list)
    _codes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Count the records that were looked at."""
        return len(self.lengths)

    def add(self, scan: RecordScan, findings: Findings) -> None:
        """Take in what the next record showed."""
        for kind, text in scan.findings:
            findings.add(Finding(kind, self.side, self.name, self.file, len(self), text))
        self.lengths.append(scan.num_tokens)
        self.left.append(scan.num_left)
        self.trained.append(scan.num_trained)
        self.content.append(scan.content)
        self.question.append(scan.question)
        self.id.append(scan.id)
        self.modalities.append(scan.modality)
        self.task_codes.append(self._code(scan.task) if scan.modality >= 0 else -1)
        if scan.is_usable:
            self._count(scan)

    def leave_out_text(self) -> None:
        """Let records without an image give no sample."""
        for number, modality in enumerate(self.modalities):
            if modality == 0 and self.left[number]:
                self.left[number] = self.trained[number] = 0
                self.num_text += 1

    def _count(self, scan: RecordScan) -> None:
        self.tasks[scan.task] += 1
        self.usable[scan.modality] += 1
        self.gold.add(scan.has_choices, scan.num_answers)
        self.image_tokens[scan.num_image_tokens] += 1
        self.num_cut += scan.was_cut
        self.num_shortened += scan.lost_turns
        self.num_left_out += self.side != "captions" and scan.num_left == 0

    def _code(self, task: str) -> int:
        return self._codes.setdefault(task, len(self._codes))

    @property
    def task_names(self) -> tuple[str, ...]:
        """What `task_codes` stand for."""
        return tuple(self._codes)

    @property
    def num_usable(self) -> int:
        """Count the records that nothing but the limit keeps from being a sample."""
        return self.usable.total()

    @property
    def num_trained_tokens(self) -> int:
        """Count the trained tokens of all that is kept."""
        return int(as_numbers(self.trained).sum())

    @property
    def num_tokens_in_limit(self) -> int:
        """Count the tokens that the limit leaves."""
        return int(as_numbers(self.left).sum())

    @property
    def num_lost_tokens(self) -> int:
        """Count the tokens that the limit takes, whole records included."""
        return int(as_numbers(self.lengths).sum()) - self.num_tokens_in_limit

    def lengths_of(self, modality: int) -> npt.NDArray[np.int64]:
        """Return the lengths without a limit of what can be encoded of a modality, [n]."""
        lengths = as_numbers(self.lengths)
        return lengths[(as_numbers(self.modalities) == modality) & (lengths > 0)]

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON takes them."""
        lengths = np.concatenate([self.lengths_of(0), self.lengths_of(1)])
        return {
            "name": self.name,
            "file": self.file,
            "side": self.side,
            "records": len(self),
            "usable": self.num_usable,
            "text": self.usable[0],
            "image": self.usable[1],
            "tasks": dict(self.tasks.most_common()),
            "tokens": int(lengths.sum()),
            "tokens_kept": self.num_tokens_in_limit,
            "tokens_lost": self.num_lost_tokens,
            "trained_tokens": self.num_trained_tokens,
            "median_length": float(np.median(lengths)) if len(lengths) else None,
            "longest": int(lengths.max(initial=0)),
            "cut": self.num_cut,
            "turns_left_out": self.num_shortened,
            "over_limit_left_out": self.num_left_out,
            "text_left_out": self.num_text,
            "notes": list(self.notes),
            "image_tokens": {str(n): count for n, count in sorted(self.image_tokens.items())},
        }


def as_numbers(values: array[int]) -> npt.NDArray[np.int64]:
    """Return an array of any integer type as int64, [n]."""
    return np.frombuffer(values, values.typecode).astype(np.int64) if values else np.zeros(0, int)
