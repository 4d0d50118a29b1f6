"""Read everything once: what a run would train on, what comes twice, and the first epoch's rows.

Letters: R records.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.inspect.counts import SourceCounts, as_numbers
from varifocal.data.inspect.findings import HEADINGS, KINDS, SIDES, Finding, Findings, Kind, Side
from varifocal.data.inspect.scan import Looker, RecordScan
from varifocal.data.inspect.verdict import Verdict, judge_data
from varifocal.data.mixture import MODALITY_NAMES, Draw, Part, ReportRow, draw_epoch
from varifocal.data.parallel import map_in_order
from varifocal.data.rows.packing import WINDOW, efficiency, pack
from varifocal.data.source import Source, StreamedSource, open_source
from varifocal.errors import VarifocalError
from varifocal.progress import Progress
from varifocal.recipe import DataSection, SourceSection
from varifocal.recipe.prompt_formats import CAPTION
from varifocal.writing import atomic_file

MOST_WORKERS = 8
WORTH_WORKERS = 1000
"""Records of a source from which on further processes are worth their start."""


@dataclass(frozen=True)
class DataReport:
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
    images_only: bool = False,
) -> DataReport:
    """Read, decode and encode every record of `train`, `captions` and `evaluate` once.

    Memory holds some 50 bytes a record: lengths and digests, and no example.

    Args:
        data: the recipe's section, its paths absolute.
        encoder: the run's own.
        seed: the run's; decides the draw of the mixture and the rows.
        num_workers: processes that read; by default as many as there are processors, at most
            `MOST_WORKERS`, and none for small sources.
        progress: called with (source, records done, records in all).
        images_only: whether records without an image are not trained on.

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
    if images_only:
        for counts in trained:
            counts.leave_out_text()
    has_samples = any(num_left for counts in trained for num_left in counts.left)
    epoch = first_epoch(data, data.train, trained, seed) if has_samples else None
    return DataReport(data, sources, findings, epoch, judge_data(data, sources, findings))


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
        section = section.model_copy(update={"prompt_format": CAPTION})
    source = open_source(section, seed)
    counts = SourceCounts(source.name, section.place, side, notes=source.notes())
    stage = f"{side}: {source.name}"
    for scanned in _scans(source, Looker(encoder, side), seed, num_workers):
        counts.add(scanned, findings)
        if progress is not None and isinstance(source, Source):
            progress(stage, len(counts), len(source))
    if progress is not None and isinstance(source, StreamedSource):
        progress(stage, len(counts), len(counts))
    return counts


def _scans(
    source: Source | StreamedSource, looker: Looker, seed: int, num_workers: int | None
) -> Iterable[RecordScan]:
    """Look at every record in order, in several processes where they can be told apart."""
    if isinstance(source, StreamedSource):
        return map(looker.scan, source)
    scan = partial(looker.read_and_scan, source, _plain(source, seed))
    workers = _workers(len(source)) if num_workers is None else num_workers
    return map_in_order(scan, range(len(source)), workers)


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
        is_shared = (ordered[first] == asked) & (asked != 0) if len(ordered) else asked != asked
        for record in np.flatnonzero(is_shared):
            yield (counts, int(record)), _place(trained, int(order[first[record]]))


def _joined(digests: Sequence[array[int]]) -> Digests:
    parts = [np.frombuffer(part, np.uint64) for part in digests if part]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _place(all_counts: Sequence[SourceCounts], number: int) -> Place:
    """Return the source, and the record in it, of a record of all sources joined."""
    for counts in all_counts:
        if number < len(counts):
            return counts, number
        number -= len(counts)
    raise IndexError(number)


@dataclass(frozen=True)
class Epoch:
    """The first epoch, as the recipe asks for it.

    Attributes:
        num_samples: records drawn that give a sample, repeats counted.
        num_rows: that they are packed into.
        row_length: tokens of a row.
        efficiency: share of the rows' tokens that are no padding, 0 to 1.
        num_tokens: of all samples.
        num_trained_tokens: of those.
        mixture: asked and realised counts; empty for sources that are read as they come.
        notes: what is not as the mixture asks for it.
    """

    num_samples: int
    num_rows: int
    row_length: int
    efficiency: float
    num_tokens: int
    num_trained_tokens: int
    mixture: tuple[ReportRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def trained_share(self) -> float:
        """The share of the tokens that train, 0 to 1."""
        return self.num_trained_tokens / max(self.num_tokens, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        rows = [{**asdict(r), "modality": MODALITY_NAMES[r.modality]} for r in self.mixture]
        return {**asdict(self), "trained_share": self.trained_share, "mixture": rows}


def first_epoch(
    data: DataSection, sections: Sequence[SourceSection], trained: Sequence[SourceCounts], seed: int
) -> Epoch:
    """Draw and pack the first epoch from the lengths alone, as the training does.

    Args:
        data: mixture, row length and packing.
        sections: of the sources.
        trained: what their records showed.
        seed: the run's.

    Raises:
        RecipeError: the mixture contradicts itself.
    """
    row_length = data.row_length or data.max_length
    streamed = any(section.streaming for section in sections)
    drawn = None if streamed else _draw(data, sections, trained, seed)
    lengths = _of_epoch([counts.left for counts in trained], drawn)  # [n]
    learned = _of_epoch([counts.trained for counts in trained], drawn)[lengths > 0]
    lengths = lengths[lengths > 0]
    window = WINDOW if data.packing else 1
    rows = pack(lengths.tolist(), row_length, (seed, 0, 0), window)
    return Epoch(
        num_samples=len(lengths),
        num_rows=len(rows),
        row_length=row_length,
        efficiency=efficiency(rows, lengths.tolist(), row_length),
        num_tokens=int(lengths.sum()),
        num_trained_tokens=int(learned.sum()),
        mixture=drawn.report if drawn else (),
        notes=drawn.notes if drawn else (),
    )


def _draw(
    data: DataSection, sections: Sequence[SourceSection], trained: Sequence[SourceCounts], seed: int
) -> Draw:
    parts = [
        Part(
            counts.name,
            len(counts),
            as_numbers(counts.modalities).astype(np.int8),
            as_numbers(counts.task_codes).astype(np.int32),
            counts.task_names,
            section.epochs,
            section.weight,
            section.max_per_task,
        )
        for section, counts in zip(sections, trained, strict=True)
    ]
    return draw_epoch(parts, data.mixture, seed)


def _of_epoch(values: Sequence[Any], drawn: Draw | None) -> np.ndarray:
    """Return a number of each record of the epoch; of all records without a draw."""
    columns = [as_numbers(column) for column in values]
    joined = np.concatenate([np.zeros(0, np.int64), *columns])
    if drawn is None:
        return joined
    starts = np.cumsum([0, *map(len, columns)])
    return joined[starts[drawn.parts] + drawn.records]
