"""What is wrong with single records: all of it counted and kept on disk, a little of it listed."""

from __future__ import annotations

import json
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Side = Literal["train", "captions", "evaluate"]
Kind = Literal[
    "broken",
    "placeholders",
    "picture",
    "no_eyes",
    "no_answer",
    "too_long",
    "duplicate",
    "duplicate_id",
    "overlap",
    "rewritten",
    "lost_system",
    "unread_keys",
]
SIDES: tuple[Side, ...] = get_args(Side)
KINDS: tuple[Kind, ...] = get_args(Kind)

HEADINGS: dict[Kind, str] = {
    "broken": "broken: cannot be read or encoded",
    "placeholders": "image placeholders and images disagree",
    "picture": "image cannot be opened",
    "no_eyes": "has an image, the model has no vision tower",
    "no_answer": "without an answer",
    "too_long": "longer than max_length",
    "duplicate": "same question, images and answer as an earlier record",
    "duplicate_id": "same id as an earlier record of its source",
    "overlap": "evaluation question that is trained on",
    "rewritten": "earlier answers that are prompt alone, since the template writes them anew",
    "lost_system": "system message that the chat template leaves out",
    "unread_keys": "keys of turns that nothing is made of",
}
"""What a report calls each kind."""

STOPPING: tuple[Kind, ...] = ("broken", "placeholders", "picture", "no_eyes", "no_answer")
"""Records of these kinds give no sample: `on_bad_record` decides what becomes of the run."""

NUM_LISTED = 20
"""Findings of a kind that are held for the screen."""


@dataclass(frozen=True)
class Finding:
    """Something about one record.

    Attributes:
        kind: of what is wrong.
        side: what the record is for.
        source: the source's name.
        file: the source's path or hub id.
        record: its index among the source's records, from 0.
        text: one sentence that names file and record.
    """

    kind: Kind
    side: Side
    source: str
    file: str
    record: int
    text: str


class Findings:
    """Counts all findings, holds the first of each kind, and keeps the rest in a scratch file.

    Attributes:
        counts: findings of each kind and side.
        first: the first `NUM_LISTED` of each kind.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[Kind, Side]] = Counter()
        self.first: dict[Kind, list[Finding]] = {kind: [] for kind in KINDS}
        self._all = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        weakref.finalize(self, self._all.close)

    def add(self, finding: Finding) -> None:
        """Take one in."""
        self.counts[finding.kind, finding.side] += 1
        listed = self.first[finding.kind]
        if len(listed) < NUM_LISTED:
            listed.append(finding)
        self._all.write(json.dumps(asdict(finding)) + "\n")

    def count(self, *kinds: Kind, side: Side | None = None) -> int:
        """Count the findings of some kinds, on one side or on all."""
        sides = SIDES if side is None else (side,)
        return sum(self.counts[kind, side] for kind in kinds for side in sides)

    def lines(self) -> Iterator[str]:
        """Yield every finding as a line of JSON, in the order found."""
        self._all.flush()
        self._all.seek(0)
        yield from (line.rstrip("\n") for line in self._all)
        self._all.seek(0, 2)
