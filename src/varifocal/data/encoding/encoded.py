"""An example as token ids, and encoded records on disk: nothing is encoded twice.

There is a table for each source and encoder, of two files. `index.bin` holds a 64-bit number a
record, the place of its entry plus one, or 0 while it is unknown; `entries.bin` holds the entries
in the order in which they were made. Both may be used by several processes. Neither is mapped into
memory: a page that a full disk cannot hold would end the process without a word, where a write says
what is wrong.

Letters: T tokens of one example, V tokens an image takes, N its images.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from varifocal.data.example import Example, Image
from varifocal.writing import unwritable_is_an_error

Ids = npt.NDArray[np.int32]

IGNORED = -100
"""Label of a token that is not trained, as transformers has it."""


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    Attributes:
        input_ids: [T], each image's placeholder expanded to V copies.
        prompt_mask: [T], False where a token is trained, True elsewhere; the first is never
            trained, since nothing predicts it.
        modality: 0 text alone, 1 with an image.
        images: in the order of their placeholders.
        example_id: the example's id.
        was_cut: whether prompt text was taken out to meet the limit.
        dropped_turns: how many of the oldest turns were left out to meet the limit, two a pair.
        rewritten_answers: answers that are prompt alone, because the chat template writes them in
            another way once the conversation goes on than when they are to be written.
        lost_system: whether the system message is not in what the model reads.
        unread_keys: whether its turns have keys that nothing is made of.
        reference: the place of its first trained token in a `ReferenceTable`, the others after it;
            -1 for a sample that learns its own tokens.
    """

    input_ids: Ids
    prompt_mask: npt.NDArray[np.bool_]
    modality: int = 0
    images: tuple[Image, ...] = ()
    example_id: str = ""
    was_cut: bool = False
    dropped_turns: int = 0
    rewritten_answers: int = 0
    lost_system: bool = False
    unread_keys: bool = False
    reference: int = -1

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.input_ids)

    @property
    def is_counted(self) -> bool:
        """Whether it is not all that its record seems to say, so that it has to be counted."""
        counts = (self.dropped_turns, self.rewritten_answers)
        return any((self.was_cut, self.lost_system, self.unread_keys, *counts))

    @property
    def labels(self) -> Ids:
        """[T], the ids where they are trained and -100 elsewhere."""
        return np.where(self.prompt_mask, np.int32(IGNORED), self.input_ids)

    @property
    def trained_ids(self) -> Ids:
        """The trained ids alone."""
        return self.input_ids[~self.prompt_mask]


@dataclass
class EncodedExamples:
    """What `Encoder.encode_all` made of a list of examples.

    Attributes:
        samples: the encoded examples, in order.
        skipped: one sentence for each broken example (`on_bad_record="skip"`).
        dropped: one sentence for each example over the limit (`overflow="drop"`).
    """

    samples: list[Encoded] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def num_cut(self) -> int:
        """Count the examples whose prompt was cut (`overflow="truncate_prompt"`)."""
        return sum(sample.was_cut for sample in self.samples)

    @property
    def num_shortened(self) -> int:
        """Count the examples that lost their oldest turns (`overflow="drop_oldest_turns"`)."""
        return sum(sample.dropped_turns > 0 for sample in self.samples)


_HEADER = 8
"""Numbers in front of an entry: T, N, modality, was_cut, dropped_turns, rewritten_answers,
lost_system, unread_keys."""


class EncodedTable:
    """A memory-mapped table of encoded records.

    Args:
        directory: where it lies, named by the content of source and encoder; made if new.
    """

    def __init__(self, directory: Path) -> None:
        self._entries, self._index = directory / "entries.bin", directory / "index.bin"
        with unwritable_is_an_error(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._entries.touch()
            self._index.touch()

    def __contains__(self, number: int) -> bool:
        """Whether a record is encoded already."""
        return bool(self._place(number))

    def _place(self, number: int) -> int:
        """Read where a record's entry starts, plus one; 0 while it is unknown."""
        handle = os.open(self._index, os.O_RDONLY)
        try:
            # After the file's end nothing is read, and in a hole zeros: both are unknown.
            return int.from_bytes(os.pread(handle, 8, number * 8), "little")
        finally:
            os.close(handle)

    def read(self, number: int, example: Example | None) -> Encoded:
        """Return an encoded record.

        Args:
            number: of the record; it must be in the table.
            example: the record itself, which brings the images; None for one without any.
        """
        with self._entries.open("rb") as file:
            file.seek(self._place(number) - 1)
            header = np.frombuffer(file.read(_HEADER * 4), np.int32)
            length, num_images, modality, was_cut, dropped_turns, *notes = map(int, header)
            body = np.frombuffer(file.read((num_images + length) * 4), np.int32)
            bits = np.frombuffer(file.read(-(-length // 8)), np.uint8)
        every: tuple[Image, ...] = example.images if example is not None else ()
        return Encoded(
            input_ids=body[num_images:],
            prompt_mask=np.unpackbits(bits, count=length).astype(np.bool_),
            modality=modality,
            images=tuple(every[int(place)] for place in body[:num_images]),
            example_id=example.id if example is not None else "",
            was_cut=bool(was_cut),
            dropped_turns=dropped_turns,
            rewritten_answers=notes[0],
            lost_system=bool(notes[1]),
            unread_keys=bool(notes[2]),
        )

    def has_images(self, number: int) -> bool:
        """Whether an encoded record has images, so that reading it takes its example."""
        with self._entries.open("rb") as file:
            file.seek(self._place(number) - 1 + 4)
            return bool(np.frombuffer(file.read(4), np.int32)[0])

    def add(self, encoded: Sequence[tuple[int, Encoded, Example]]) -> None:
        """Put records in, each with its number and its example; one that is there stays.

        Raises:
            RunError: the disk is full.
        """
        with (
            unwritable_is_an_error(self._entries),
            self._index.open("r+b", buffering=0) as index,
            self._entries.open("ab") as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, os.SEEK_END)
            for number, sample, example in encoded:
                if number in self:
                    continue
                place = file.tell()
                file.write(_entry(sample, example))
                file.flush()
                index.seek(number * 8)
                index.write((place + 1).to_bytes(8, "little"))  # only now: the entry is whole


def _entry(sample: Encoded, example: Example) -> bytes:
    """Write an entry: header, the images' places in the example, ids, mask in bits."""
    places = [
        next(place for place, there in enumerate(example.images) if there is image)
        for image in sample.images
    ]
    notes = [sample.rewritten_answers, int(sample.lost_system), int(sample.unread_keys)]
    header = [len(sample), len(places), sample.modality, int(sample.was_cut), sample.dropped_turns]
    numbers = np.array([*header, *notes, *places], np.int32).tobytes()
    return numbers + sample.input_ids.tobytes() + np.packbits(sample.prompt_mask).tobytes()
