"""The samples of a run: records of its sources, encoded when they are needed, and only once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np

from varifocal.data.encoding.encoded import EncodedTable
from varifocal.data.encoding.encoder import Encoded, Encoder, TooLongError
from varifocal.data.example import Example
from varifocal.data.json_files import OnBadRecord
from varifocal.data.mixture import Draw
from varifocal.data.parallel import CHUNK, map_in_order
from varifocal.data.source import Source
from varifocal.errors import DataError
from varifocal.progress import StepProgress

NO_SOURCE = "data.train names no source; there is nothing to train on"
NO_EXAMPLE = (
    "there is no example to train on: all were skipped or dropped; look at data.max_length, and at "
    "the sources' split, skills and max_examples"
)
NO_IMAGE = (
    "there is no example with an image to train on, and tuner.text_route: base learns nothing from "
    "text; set it to trained, or add data with images"
)


@dataclass(frozen=True)
class LeftOut:
    """A record that gives no sample.

    Attributes:
        reason: one sentence with file and record.
        too_long: it is over the length limit and dropped.
        is_text: it has no image, and only images are trained on; a record that is neither is
            broken.
    """

    reason: str
    too_long: bool = False
    is_text: bool = False


TEXT_LEFT_OUT = LeftOut("it has no image", is_text=True)


@dataclass
class Tally:
    """What became of the records that were looked at, each counted once.

    Attributes:
        skipped: one sentence for each broken record.
        dropped: one sentence for each sample over the limit.
        num_cut: samples whose prompt was cut.
        num_shortened: conversations whose oldest turns were left out.
        num_rewritten: conversations of which an earlier answer is prompt alone, because the chat
            template writes it in another way once the conversation goes on.
        num_rewritten_answers: those answers.
        num_lost_system: samples whose system message the chat template leaves out.
        num_unread_keys: records whose turns have keys that nothing is made of.
        num_text: records without an image, where only images are trained on.
    """

    skipped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    num_cut: int = 0
    num_shortened: int = 0
    num_rewritten: int = 0
    num_rewritten_answers: int = 0
    num_lost_system: int = 0
    num_unread_keys: int = 0
    num_text: int = 0

    def leave_out(self, sample: LeftOut) -> None:
        """Count a record that gives no sample and has not been counted."""
        if sample.is_text:
            self.num_text += 1
        else:
            (self.dropped if sample.too_long else self.skipped).append(sample.reason)

    def nothing_left(self) -> DataError:
        """Say that no record has given a sample."""
        return DataError(NO_IMAGE if self.num_text else NO_EXAMPLE)

    def add(self, sample: Encoded) -> None:
        """Count a sample that has not been counted."""
        self.num_cut += sample.was_cut
        self.num_shortened += sample.dropped_turns > 0
        self.num_rewritten += sample.rewritten_answers > 0
        self.num_rewritten_answers += sample.rewritten_answers
        self.num_lost_system += sample.lost_system
        self.num_unread_keys += sample.unread_keys

    def notes(self) -> list[str]:
        """Say in a sentence each what is trained otherwise than the records may suggest."""
        notes = []
        if self.num_rewritten:
            notes.append(
                f"{self.num_rewritten_answers:,} earlier answers of {self.num_rewritten:,} "
                "conversations are prompt and not trained: the chat template writes them in "
                "another way once the conversation goes on"
            )
        if self.num_lost_system:
            notes.append(
                f"the chat template leaves out the system message of {self.num_lost_system:,} "
                "samples"
            )
        if self.num_unread_keys:
            notes.append(
                f"the turns of {self.num_unread_keys:,} records have keys that nothing is made of; "
                "varifocal data check names them"
            )
        if self.num_text:
            notes.append(text_left_out(self.num_text))
        return notes


def text_left_out(num_records: int) -> str:
    """Say how many records are left out for having no image."""
    return (
        f"{num_records:,} records without an image are left out: with tuner.text_route: base "
        "nothing is learned from text"
    )


class Samples(Sequence[Encoded]):
    """The records an epoch holds, as encoded samples.

    A sample is looked up in the table of its source, or encoded and put there. A broken record
    raises, or counts and is left out (`on_bad_record="skip"`); one that is too long is counted and
    left out with `overflow="drop"`. Broken ones are tried again in the next run.

    Args:
        sources: where the records come from.
        draw: which records of which source an epoch holds.
        encoder: makes token ids.
        directory: where the tables lie.
        on_bad_record: "fail" or "skip".
        num_workers: processes that encode; the result is the same for any number.
        images_only: whether records without an image are left out.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        draw: Draw,
        encoder: Encoder,
        directory: Path,
        on_bad_record: OnBadRecord = "fail",
        num_workers: int = 0,
        *,
        images_only: bool = False,
    ) -> None:
        self.images_only = images_only
        self.sources, self.draw, self.encoder = sources, draw, encoder
        self.on_bad_record: OnBadRecord = on_bad_record
        self.num_workers = num_workers
        self.tally = Tally()
        self._counted: set[int] = set()
        self._tables = [_table(source, encoder, directory) for source in sources]

    def __len__(self) -> int:
        """Count the records of an epoch, those that will be left out included."""
        return len(self.draw.records)

    @overload
    def __getitem__(self, number: int) -> Encoded: ...
    @overload
    def __getitem__(self, number: slice) -> list[Encoded]: ...
    def __getitem__(self, number: int | slice) -> Encoded | list[Encoded]:
        """Return a sample.

        Raises:
            DataError: the record is broken or too long.
        """
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        sample, example = self._look_up_or_encode(number)
        if isinstance(sample, LeftOut):
            raise DataError(sample.reason)
        if example is not None:
            self._keep([(number, sample, example)])
        return sample

    def example(self, number: int) -> Example:
        """Return a sample's record as it is before it is encoded."""
        return self.sources[self.draw.parts[number]].example(int(self.draw.records[number]))

    def usable(
        self, numbers: Sequence[int], progress: StepProgress | None = None
    ) -> Iterator[tuple[int, Encoded]]:
        """Encode samples and yield those that are usable, in the order given, with their numbers.

        Args:
            numbers: of samples, each 0 to below `len(self)`.
            progress: called with (done, all) after every sample.

        Raises:
            DataError: at the first broken record with `on_bad_record="fail"`, and at the first that
                is too long unless `overflow` is "drop".
        """
        for done, (number, sample) in enumerate(
            zip(numbers, self._encode(numbers), strict=True), start=1
        ):
            self._count(int(number), sample)
            if progress is not None:
                progress(done, len(numbers))
            if isinstance(sample, Encoded):
                yield int(number), sample

    def _encode(self, numbers: Sequence[int]) -> Iterator[Encoded | LeftOut]:
        """Look samples up or encode them, in order; several processes share the encoding."""
        fresh: list[tuple[int, Encoded, Example]] = []
        encoded = map_in_order(self._look_up_or_encode, numbers, self.num_workers)
        for number, (sample, example) in zip(numbers, encoded, strict=True):
            if example is not None and isinstance(sample, Encoded):
                fresh.append((int(number), sample, example))
            if len(fresh) >= CHUNK:
                self._keep(fresh)
                fresh = []
            yield sample
        self._keep(fresh)

    def _look_up_or_encode(self, number: int) -> tuple[Encoded | LeftOut, Example | None]:
        """Return a sample, and its example if it is new to the table."""
        table, record = self._place(number)
        source = self.sources[self.draw.parts[number]]
        try:
            if record in table:
                has_image = table.has_images(record)
                if self.images_only and not has_image:
                    return TEXT_LEFT_OUT, None
                return table.read(record, source.example(record) if has_image else None), None
            example = source.example(record)
            if self.images_only and not example.images:
                return TEXT_LEFT_OUT, None
            check_sample_images(example)
            return self.encoder.encode(example), example
        except TooLongError as error:
            return LeftOut(str(error), too_long=True), None
        except DataError as error:
            return LeftOut(str(error)), None

    def _keep(self, fresh: Sequence[tuple[int, Encoded, Example]]) -> None:
        for part, table in enumerate(self._tables):
            own = [each for each in fresh if self.draw.parts[each[0]] == part]
            table.add([(int(self.draw.records[n]), sample, example) for n, sample, example in own])

    def _place(self, number: int) -> tuple[EncodedTable, int]:
        return self._tables[self.draw.parts[number]], int(self.draw.records[number])

    def _count(self, number: int, sample: Encoded | LeftOut) -> None:
        """Count what became of a record, once; raise where it must not be left out."""
        key = int(self.draw.parts[number]) << 40 | int(self.draw.records[number])
        if isinstance(sample, LeftOut):
            refuse_or_pass(sample, self.encoder.overflow, self.on_bad_record)
            if key not in self._counted:
                self.tally.leave_out(sample)
                self._counted.add(key)
        elif sample.is_counted and key not in self._counted:
            self.tally.add(sample)
            self._counted.add(key)


def refuse_or_pass(left_out: LeftOut, overflow: str, on_bad_record: OnBadRecord) -> None:
    """Raise for a record that may not be left out.

    Raises:
        DataError: it is too long and not to be dropped, or broken and not to be skipped.
    """
    if left_out.is_text or (left_out.too_long and overflow == "drop"):
        return
    if on_bad_record == "fail":
        raise DataError(left_out.reason)


def check_sample_images(example: Example) -> None:
    """Decode an example's images, so that a damaged one is found before it is needed.

    Raises:
        DataError: an image cannot be opened; the text names record and file.
    """
    for image in example.images:
        try:
            image.open()
        except DataError as error:
            raise DataError(f"{example.name}: {error}") from error


class UsableSamples(Sequence[Encoded]):
    """The samples of an epoch that are neither broken nor too long; encodes them all.

    Args:
        samples: all of them.
        progress: called with (done, all) after every sample.

    Attributes:
        numbers: int64 [n], their places in `samples`.
        lengths: int64 [n], their tokens.
    """

    def __init__(self, samples: Samples, progress: StepProgress | None = None) -> None:
        pairs = [(n, len(sample)) for n, sample in samples.usable(range(len(samples)), progress)]
        self.samples = samples
        self.numbers, self.lengths = np.array(pairs, np.int64).reshape(-1, 2).T

    def __len__(self) -> int:
        """Count the usable samples."""
        return len(self.numbers)

    @overload
    def __getitem__(self, number: int) -> Encoded: ...
    @overload
    def __getitem__(self, number: slice) -> list[Encoded]: ...
    def __getitem__(self, number: int | slice) -> Encoded | list[Encoded]:
        """Return a sample."""
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        return self.samples[int(self.numbers[number])]

    def name(self, number: int) -> str:
        """What an error text calls a sample's record."""
        return self.samples.example(int(self.numbers[number])).name


def _table(source: Source, encoder: Encoder, directory: Path) -> EncodedTable:
    identity = f"{source.fingerprint} {encoder.fingerprint}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:24]
    return EncodedTable(directory / key)
