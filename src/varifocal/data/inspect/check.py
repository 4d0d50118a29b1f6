"""Reading everything once, to know before a run what would become of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.inspect.counts import SourceCounts
from varifocal.data.inspect.duplicates import find_doubles
from varifocal.data.inspect.epoch import Epoch, first_epoch
from varifocal.data.inspect.findings import HEADINGS, KINDS, SIDES, Findings, Side
from varifocal.data.inspect.scan import Looker, RecordScan
from varifocal.data.inspect.verdict import Verdict, judge
from varifocal.data.parallel import map_in_order
from varifocal.data.source import Source, StreamedSource, open_source
from varifocal.errors import VarifocalError
from varifocal.recipe import DataSection, SourceSection
from varifocal.writing import atomic_file

Progress = Callable[[str, int, int], None]

MOST_WORKERS = 8
WORTH_WORKERS = 1000
"""Records of a source from which on further processes are worth their start."""


@dataclass(frozen=True)
class Report:
    """What was found in a recipe's data.

    Attributes:
        data: the recipe's section.
        sources: counts of each source, train first.
        findings: what is wrong with single records.
        epoch: the first epoch's rows; None where nothing can be trained.
        verdict: whether a run gets through.
    """

    data: DataSection
    sources: Sequence[SourceCounts]
    findings: Findings
    epoch: Epoch | None
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single findings, as JSON takes it."""
        return {
            "usable": self.verdict.is_usable,
            "sentence": self.verdict.sentence,
            "max_length": self.data.max_length,
            "overflow": self.data.overflow,
            "on_bad_record": self.data.on_bad_record,
            "sources": [source.to_dict() for source in self.sources],
            "epoch": self.epoch.to_dict() if self.epoch else None,
            "counts": {
                kind: {side: self.findings.counts[kind, side] for side in SIDES}
                for kind in KINDS
                if self.findings.count(kind)
            },
            "headings": HEADINGS,
        }

    def write_json(self, path: Path) -> None:
        """Write everything with all findings, one a line; the file is whole or not there.

        Raises:
            VarifocalError: it cannot be written.
        """
        head = json.dumps(self.to_dict(), indent=2).removesuffix("\n}")
        try:
            with atomic_file(path) as staging, staging.open("w", encoding="utf-8") as file:
                file.write(f'{head},\n  "findings": [')
                for number, line in enumerate(self.findings.lines()):
                    file.write(f"{',' if number else ''}\n    {line}")
                file.write("\n  ]\n}\n")
        except OSError as error:
            raise VarifocalError(f"'{path}' cannot be written: {error}") from error


def check_data(
    data: DataSection,
    encoder: Encoder,
    *,
    seed: int = 0,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Read, decode and encode every record of `train`, `captions` and `evaluate` once.

    Memory holds some 50 bytes a record: lengths and digests, and no example.

    Args:
        data: the recipe's section, its paths absolute.
        encoder: the run's own.
        seed: the run's; decides the draw of the mixture and the rows.
        num_workers: processes that read; by default as many as there are processors, at most
            `MOST_WORKERS`, and none for small sources.
        progress: called with (source, records done, records in all).

    Raises:
        DataError: a source cannot be opened at all.
        RecipeError: the mixture contradicts itself.
    """
    findings = Findings()
    sources = [
        _read(section, side, encoder, findings, seed, num_workers, progress)
        for side in SIDES
        for section in getattr(data, side)
    ]
    find_doubles(sources, findings)
    trained = [counts for counts in sources if counts.side == "train"]
    has_samples = any(kept for counts in trained for kept in counts.kept)
    epoch = first_epoch(data, data.train, trained, seed) if has_samples else None
    return Report(data, sources, findings, epoch, judge(data, sources, findings))


def _read(
    section: SourceSection,
    side: Side,
    encoder: Encoder,
    findings: Findings,
    seed: int,
    num_workers: int | None,
    progress: Progress | None,
) -> SourceCounts:
    """Read one source from its first to its last record."""
    if side == "captions":
        section = section.model_copy(update={"prompt_format": "caption"})
    source = open_source(section, seed)
    counts = SourceCounts(source.name, section.place, side, notes=source.notes())
    stage = f"{side}: {source.name}"
    for look in _looks(source, Looker(encoder, side), seed, num_workers):
        counts.add(look, findings)
        if progress is not None and isinstance(source, Source):
            progress(stage, len(counts), len(source))
    if progress is not None and isinstance(source, StreamedSource):
        progress(stage, len(counts), len(counts))
    return counts


def _looks(
    source: Source | StreamedSource, looker: Looker, seed: int, num_workers: int | None
) -> Iterable[RecordScan]:
    """Look at every record in order, in several processes where they can be told apart."""
    if isinstance(source, StreamedSource):
        return map(looker.scan, source)
    look = partial(looker.read_and_scan, source, _plain(source, seed))
    workers = _workers(len(source)) if num_workers is None else num_workers
    return map_in_order(look, range(len(source)), workers)


def _plain(source: Source, seed: int) -> Source | None:
    """Open a source of varied wordings in the plain one: only that tells equal questions."""
    if source.section.instructions == "plain":
        return None
    plain = open_source(source.section.model_copy(update={"instructions": "plain"}), seed)
    return plain if isinstance(plain, Source) else None


def _workers(num_records: int) -> int:
    if num_records < WORTH_WORKERS:
        return 0
    return min(os.cpu_count() or 1, MOST_WORKERS)
