"""What a run learns from: the recipe's sources as rows of samples, and as described images."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from varifocal.cache import cache_root
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.encoding.samples import NO_SOURCE, Samples, Tally, UsableSamples
from varifocal.data.example import Image
from varifocal.data.json_files import OnBadRecord
from varifocal.data.mixture import BROKEN, MODALITY_NAMES, Draw, Part, draw_epoch, needs_scan
from varifocal.data.rows.lazy import LazyRows, estimate_rows, shuffled_passes, streamed_passes
from varifocal.data.rows.packing import PackedDataset
from varifocal.data.rows.replay import Replay, WithReplay
from varifocal.data.source import Source, StreamedSource, open_source
from varifocal.errors import DataError
from varifocal.progress import StepProgress
from varifocal.recipe import DataSection, SourceSection

LAZY_FROM = 20_000
"""Examples of an epoch from which on they are encoded while training."""


@dataclass(frozen=True)
class TrainingData:
    """The rows of a run, and what is known of them.

    Attributes:
        rows: what the trainer reads.
        tally: what was left out so far; a lazy run goes on counting.
        draw: which records of which source an epoch holds; None for streams.
        samples: the samples, where they are all encoded before the first step; else None.
        names: of the sources.
        notes: what is not read of the sources, and what was found out about their files.
        replay: the base's own answers in the rows next to the samples.
    """

    rows: PackedDataset | LazyRows
    tally: Tally
    names: list[str]
    draw: Draw | None = None
    samples: UsableSamples | None = None
    notes: Sequence[str] = ()
    replay: Replay | None = None

    @property
    def is_lazy(self) -> bool:
        """Whether samples are encoded while training."""
        return self.samples is None

    def images(self) -> Iterator[Image]:
        """Walk through the images of samples that are encoded already."""
        for sample in self.samples or ():
            yield from sample.images

    def report(self) -> dict[str, Any]:
        """What was asked for and what an epoch holds; `data.json` of the run directory."""
        rows = [asdict(row) for row in self.draw.report] if self.draw else []
        for row in rows:
            row["modality"] = MODALITY_NAMES[row["modality"]]
        return {
            "mixture": rows,
            "notes": [*self.notes, *(self.draw.notes if self.draw else ())],
            "realised": self._realised(),
            "rows_per_epoch": len(self.rows),
            "row_length": self.rows.row_length,
            "packing_efficiency": self.rows.efficiency,
            "encoded_while_training": self.is_lazy,
            **({"keep": self.replay.facts} if self.replay is not None else {}),
            **asdict(self.tally),
        }

    def _realised(self) -> list[dict[str, Any]]:
        """Samples and tokens of an epoch by source and modality, where all are encoded."""
        if self.samples is None:
            return []
        counts: Counter[tuple[int, int]] = Counter()
        tokens: Counter[tuple[int, int]] = Counter()
        trained: Counter[tuple[int, int]] = Counter()
        parts = self.samples.samples.draw.parts[self.samples.numbers]
        for part, sample in zip(parts, self.samples, strict=True):
            key = (int(part), sample.modality)
            counts[key] += 1
            tokens[key] += len(sample)
            trained[key] += len(sample.trained_ids)
        return [
            {
                "source": self.names[part],
                "modality": MODALITY_NAMES[modality],
                "samples": counts[part, modality],
                "tokens": tokens[part, modality],
                "trained_tokens": trained[part, modality],
            }
            for part, modality in sorted(counts)
        ]


def load_training_data(
    data: DataSection,
    encoder: Encoder,
    *,
    seed: int = 0,
    num_rows: int | None = None,
    progress: StepProgress | None = None,
    replay: Replay | None = None,
    images_only: bool = False,
) -> TrainingData:
    """Open what is learned from, and encode it if it is little.

    Args:
        data: the recipe's section.
        encoder: makes token ids.
        seed: decides the mixture and the rows.
        num_rows: rows that the run takes in all, if `max_steps` decides it; a stream needs it.
        progress: told of encoding.
        replay: plain text to put into the rows next to the samples.
        images_only: whether records without an image are left out, since they would teach nothing.

    Raises:
        DataError: nothing is left to train on, or a record is bad and `on_bad_record` is `fail`.
    """
    if not data.train:
        raise DataError(NO_SOURCE)
    if any(source.streaming for source in data.train):
        return _streamed(data, encoder, seed, num_rows, replay, images_only)
    samples = open_samples(data, encoder, seed=seed, images_only=images_only)
    names = [source.name for source in samples.sources]
    notes = notes_of(samples.sources)
    row_length = data.row_length or data.max_length
    lazy = len(samples) >= LAZY_FROM if data.lazy is None else data.lazy
    if lazy:
        epoch = estimate_rows(samples, row_length, seed, data.packing)
        passes = shuffled_passes(samples, seed)
        if replay is not None:
            passes, epoch = replay.between(passes), round(epoch / (1 - replay.share))
        rows = LazyRows(passes, row_length, seed, epoch, data.packing)
        return TrainingData(rows, samples.tally, names, samples.draw, None, notes, replay)
    usable = UsableSamples(samples, progress)
    if not len(usable):
        raise samples.tally.nothing_left()
    lengths = usable.lengths.tolist()
    added = replay.next_to(sum(lengths)) if replay is not None else []
    rows = PackedDataset(
        WithReplay(usable, added) if added else usable,
        row_length,
        seed,
        data.packing,
        [*lengths, *map(len, added)],
    )
    return TrainingData(rows, samples.tally, names, samples.draw, usable, notes, replay)


def open_epoch(data: DataSection, *, seed: int = 0) -> tuple[list[Source], Draw]:
    """Open the training sources and draw the records of an epoch; nothing is encoded yet.

    Raises:
        DataError: a source cannot be read, or is a stream.
    """
    sources = _open_sized(data, seed)
    scan = needs_scan(data.train, data.mixture)
    parts = [_part(source, scan, data.num_workers, data.on_bad_record) for source in sources]
    return sources, draw_epoch(parts, data.mixture, seed)


def open_samples(
    data: DataSection,
    encoder: Encoder,
    *,
    seed: int = 0,
    images_only: bool = False,
    most: int | None = None,
) -> Samples:
    """Open the training sources with the records of an epoch, to be encoded when asked for.

    Args:
        data: the sources.
        encoder: makes token ids.
        seed: of the epoch, and of what is drawn from it.
        images_only: leave out what has no image.
        most: draw so many records of the epoch; None takes all.
    """
    sources, drawn = open_epoch(data, seed=seed)
    if most is not None and most < len(drawn):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(drawn))[:most])
        drawn = replace(drawn, parts=drawn.parts[chosen], records=drawn.records[chosen])
    return Samples(
        sources,
        drawn,
        encoder,
        cache_root() / "encoded",
        data.on_bad_record,
        data.num_workers,
        images_only=images_only,
    )


def check_mixture(data: DataSection, *, seed: int = 0) -> None:
    """Open the training sources and draw an epoch, where that needs no look at every record.

    Raises:
        DataError: a source cannot be opened, or nothing is left of it.
        RecipeError: the mixture contradicts itself.
    """
    sources = _open_sized(data, seed)
    if not needs_scan(data.train, data.mixture):
        parts = [_part(source, False, 0, data.on_bad_record) for source in sources]
        draw_epoch(parts, data.mixture, seed)


def _open_sized(data: DataSection, seed: int) -> list[Source]:
    return [_sized(open_source(section, seed)) for section in data.train]


def _sized(source: Source | StreamedSource) -> Source:
    if isinstance(source, StreamedSource):
        raise DataError(f"{source.name} is a stream; it has no records to count or to draw from")
    return source


def _part(source: Source, scan: bool, num_workers: int, on_bad_record: OnBadRecord) -> Part:
    """Describe a source to the mixture; with what each record is, where the mixture asks it."""
    section = source.section
    scan_result = source.scan(num_workers) if scan else None
    if scan_result is not None and on_bad_record == "fail" and BROKEN in scan_result.modalities:
        source.example(int((scan_result.modalities == BROKEN).argmax()))  # says what is wrong
    return Part(
        name=source.name,
        size=len(source),
        modalities=scan_result.modalities if scan_result else None,
        tasks=scan_result.tasks if scan_result else None,
        task_names=scan_result.task_names if scan_result else (),
        epochs=section.epochs,
        weight=section.weight,
        max_per_task=section.max_per_task,
    )


def check_streams(data: DataSection, *, has_end: bool) -> None:
    """Refuse streams without an end, or that a mixture would have to count.

    Args:
        data: the recipe's section; one of `train` is a stream.
        has_end: whether `training.max_steps` decides how many rows are taken.

    Raises:
        DataError: says what to set.
    """
    if not has_end:
        raise DataError("a source with streaming: true has no end; set training.max_steps")
    mixture = data.mixture
    if mixture.total or mixture.max_per_task or mixture.language_fraction is not None:
        raise DataError(
            "data.mixture counts records, and a source with streaming: true cannot be counted; "
            "give the sources a weight each, or streaming: false"
        )


def _streamed(
    data: DataSection,
    encoder: Encoder,
    seed: int,
    num_rows: int | None,
    replay: Replay | None,
    images_only: bool,
) -> TrainingData:
    check_streams(data, has_end=num_rows is not None)
    assert num_rows is not None  # `check_streams` has refused others
    tally = Tally()
    sources = [open_source(section, seed) for section in data.train]
    weights = [section.weight or 1.0 for section in data.train]
    passes = streamed_passes(
        sources, weights, encoder, tally, data.on_bad_record, seed, images_only=images_only
    )
    if replay is not None:
        passes = replay.between(passes)
    rows = LazyRows(passes, data.row_length or data.max_length, seed, num_rows, data.packing)
    names = [source.name for source in sources]
    return TrainingData(rows, tally, names, notes=notes_of(sources), replay=replay)


def notes_of(sources: Iterable[Source | StreamedSource]) -> list[str]:
    """Collect what is told of sources, each sentence once."""
    return list(dict.fromkeys(note for source in sources for note in source.notes()))


def fingerprint_sources(data: DataSection) -> dict[str, str]:
    """A fingerprint of each source's records and how they are read, by place; images are not.

    Of several at one place, as the splits of a folder are, the first counts: that trained on.
    """
    fingerprints: dict[str, str] = {}
    for section in (*data.train, *data.captions, *data.evaluate):
        if section.place not in fingerprints:
            fingerprints[section.place] = fingerprint_source(section)
    return fingerprints


def fingerprint_source(section: SourceSection) -> str:
    """The fingerprint of one source's records and how they are read."""
    source = open_source(section)
    return "a stream" if isinstance(source, StreamedSource) else source.fingerprint
