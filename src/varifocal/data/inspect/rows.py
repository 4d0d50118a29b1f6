"""A packed row as the model gets it: what each token is to it, and which record it came from.

Letters: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from varifocal.data.encoding.encoded import IGNORED, Encoded
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.encoding.samples import Samples, UsableSamples
from varifocal.data.example import Image
from varifocal.data.rows.lazy import LazyRows, estimate_rows, shuffled_passes
from varifocal.data.rows.packing import Collator, PackedDataset
from varifocal.errors import DataError
from varifocal.progress import StepProgress
from varifocal.recipe import DataSection

TokenKind = Literal["prompt", "trained", "image", "pad"]
Decode = Callable[[Sequence[int]], str]

_HALF_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class Member:
    """A sample of the row and the record it was made of.

    Attributes:
        encoded: the sample, as it is trained.
        source: the name of its source.
        record: its index there, from 0; None of a stream, whose records have no number.
        task: the record's.
    """

    encoded: Encoded
    source: str
    record: int | None = None
    task: str = ""

    @property
    def name(self) -> str:
        """What a reader finds the record by."""
        place = f"record {self.record}" if self.record is not None else "a record of the stream"
        return f"{self.source}, {place}"


@dataclass(frozen=True)
class Token:
    """One token; or a few: the parts of one character, or an image's placeholders.

    Attributes:
        kind: what it is to the training.
        text: decoded, special tokens written out; of an image how many tokens it takes.
        ids: one, but for the cases above.
        place: of the first in the row, from 0.
        position: of the first, as `position_ids` has it.
    """

    kind: TokenKind
    text: str
    ids: tuple[int, ...]
    place: int
    position: int


@dataclass(frozen=True)
class Segment:
    """A sample inside the row.

    Attributes:
        number: its segment id.
        member: sample, record and source.
        modality: 0 text, 1 image, as `modality_ids` has it.
        tokens: in reading order.
        num_tokens: ids in them.
        num_trained: of those, with a label.
    """

    number: int
    member: Member
    modality: int
    tokens: tuple[Token, ...]
    num_tokens: int
    num_trained: int

    @property
    def images(self) -> tuple[Image, ...]:
        """Its images, in the order of their placeholders."""
        return self.member.encoded.images


@dataclass(frozen=True)
class ShownRow:
    """A row of the first epoch.

    Attributes:
        index: of the row in the epoch.
        num_rows: of the epoch.
        length: T, padding included.
        segments: its samples.
        num_pad: tokens of padding at its end.
    """

    index: int
    num_rows: int
    length: int
    segments: tuple[Segment, ...]
    num_pad: int

    @property
    def num_trained(self) -> int:
        """Count the tokens with a label."""
        return sum(segment.num_trained for segment in self.segments)


def show_row(
    members: Sequence[Member],
    collator: Collator,
    decode: Decode,
    image_token_id: int | None,
    tokens_per_image: int,
    index: int = 0,
    num_rows: int = 1,
) -> ShownRow:
    """Build a row's tensors with the training's own collator and say what every token is.

    Args:
        members: the row's samples with their records.
        collator: the training's; its images are not loaded here.
        decode: ids -> text, special tokens written out.
        image_token_id: the placeholder's id; None for a model without a vision tower.
        tokens_per_image: V, placeholders an image takes.
        index: of the row.
        num_rows: of the epoch.
    """
    batch = Collator(collator.pad_id, collator.row_length, lambda images: {})(
        [[member.encoded for member in members]]
    )
    row = {name: tensor[0].numpy() for name, tensor in batch.items()}  # each [T]
    kinds = token_kinds(row, len(members), image_token_id)
    segments = tuple(
        _segment(number, member, row, kinds, decode, tokens_per_image)
        for number, member in enumerate(members)
    )
    num_pad = int((kinds == "pad").sum())
    return ShownRow(index, num_rows, len(kinds), segments, num_pad)


def token_kinds(
    row: Mapping[str, npt.NDArray[Any]], num_segments: int, image_token_id: int | None
) -> npt.NDArray[np.str_]:
    """Say what each token of a row is, by the tensors the model gets, [T].

    Args:
        row: `input_ids`, `labels` and `segment_ids`, each [T].
        num_segments: samples in the row; what lies after them is padding.
        image_token_id: the placeholder's id.

    >>> row = {"input_ids": np.array([5, 9, 6, 7, 0]), "segment_ids": np.array([0, 0, 0, 0, 1]),
    ...        "labels": np.array([-100, -100, -100, 7, -100])}
    >>> token_kinds(row, num_segments=1, image_token_id=9).tolist()
    ['prompt', 'image', 'prompt', 'trained', 'pad']
    """
    kinds = np.where(row["labels"] != IGNORED, "trained", "prompt")
    if image_token_id is not None:
        kinds = np.where(row["input_ids"] == image_token_id, "image", kinds)
    return np.where(row["segment_ids"] >= num_segments, "pad", kinds)


def _segment(
    number: int,
    member: Member,
    row: Mapping[str, npt.NDArray[Any]],
    kinds: npt.NDArray[np.str_],
    decode: Decode,
    tokens_per_image: int,
) -> Segment:
    places = np.flatnonzero(row["segment_ids"] == number)
    tokens = tuple(
        token
        for start, end in _runs(kinds, places)
        for token in _tokens(row, kinds[start], start, end, decode, tokens_per_image)
    )
    trained = int((kinds[places] == "trained").sum())
    return Segment(
        number, member, int(row["modality_ids"][places[0]]), tokens, len(places), trained
    )


def _runs(kinds: npt.NDArray[np.str_], places: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield where tokens of one kind begin and end."""
    first, last = int(places[0]), int(places[-1]) + 1
    borders = [n for n in range(first + 1, last) if kinds[n] != kinds[n - 1]]
    yield from zip([first, *borders], [*borders, last], strict=True)


def _tokens(
    row: Mapping[str, npt.NDArray[Any]],
    kind: TokenKind,
    start: int,
    end: int,
    decode: Decode,
    tokens_per_image: int,
) -> Iterator[Token]:
    """Yield the tokens of a run: readable pieces of text, or one for each image."""
    ids = [int(number) for number in row["input_ids"][start:end]]
    if kind == "image":
        whole = tokens_per_image and not len(ids) % tokens_per_image
        size = tokens_per_image if whole else len(ids)
        pieces = [(n, n + size, collapsed("image", size)) for n in range(0, len(ids), size)]
    else:
        pieces = readable(ids, decode)
    for first, last, text in pieces:
        place = start + first
        position = int(row["position_ids"][place])
        yield Token(kind, text, tuple(ids[first:last]), place, position)


def collapsed(name: str, count: int) -> str:
    r"""Write many equal tokens as one.

    >>> ascii(collapsed("pad", 3))
    "'\\u27e8pad \\xd73\\u27e9'"
    """
    return f"⟨{name} \u00d7{count}⟩"


def readable(ids: Sequence[int], decode: Decode) -> list[tuple[int, int, str]]:
    """Split ids into the smallest pieces that can be read, as (first, last + 1, text).

    A token is decoded after the one before it, since some tokenizers leave the blank in front of
    a text's first word out; tokens that are bytes of one character stay together.
    """
    pieces: list[tuple[int, int, str]] = []
    context = start = 0
    for end in range(1, len(ids) + 1):
        before = decode(ids[context:start]) if start > context else ""
        text = decode(ids[context:end])
        if text.endswith(_HALF_CHARACTER) and end < len(ids) and end - start < 4:
            continue
        pieces.append((start, end, text[len(before) :]))
        context, start = start, end
    return pieces


Members = Callable[[int], list[Member]]


class FirstRows:
    """The rows of the first epoch, each ready to be shown.

    Args:
        samples: what an epoch holds.
        data: row length and packing.
        seed: the run's.
        lazy: pack as a run does that encodes while it trains.
        progress: told of encoding, which an eager run does first.

    Raises:
        DataError: nothing can be trained on, or a record is bad and `on_bad_record` is `fail`.
    """

    def __init__(
        self,
        samples: Samples,
        data: DataSection,
        *,
        seed: int = 0,
        lazy: bool = False,
        progress: StepProgress | None = None,
    ) -> None:
        self.encoder: Encoder = samples.encoder
        self.row_length = data.row_length or data.max_length
        open_rows = _lazy if lazy else _eager
        self._num_rows, self._members = open_rows(samples, data, self.row_length, seed, progress)

    def __len__(self) -> int:
        """Count the rows of the epoch."""
        return self._num_rows

    def __getitem__(self, index: int) -> ShownRow:
        """Return a row.

        Raises:
            DataError: there is no such row.
        """
        if not 0 <= index < len(self):
            raise DataError(
                f"there is no row {index}; the first epoch has {len(self):,}, from 0 to "
                f"{len(self) - 1}"
            )
        return show_row(
            self._members(index),
            Collator(_pad_id(self.encoder.tokenizer), self.row_length),
            self._decode,
            self.encoder.image_token_id,
            self.encoder.tokens_per_image,
            index,
            len(self),
        )

    def random(self, seed: int | None = None) -> ShownRow:
        """Return any row; the same one for the same seed."""
        return self[int(np.random.default_rng(seed).integers(len(self)))]

    def _decode(self, ids: Sequence[int]) -> str:
        options: dict[str, Any] = {"clean_up_tokenization_spaces": False}
        return str(self.encoder.tokenizer.decode(list(ids), skip_special_tokens=False, **options))


def _eager(
    samples: Samples, data: DataSection, row_length: int, seed: int, progress: StepProgress | None
) -> tuple[int, Members]:
    usable = UsableSamples(samples, progress)
    if not len(usable):
        raise samples.tally.nothing_left()
    rows = PackedDataset(usable, row_length, seed, data.packing, usable.lengths.tolist())

    def members(index: int) -> list[Member]:
        numbers = usable.numbers[rows.rows[index]]
        return [
            _member(samples, int(number), sample)
            for number, sample in zip(numbers, rows[index], strict=True)
        ]

    return len(rows), members


def _lazy(
    samples: Samples, data: DataSection, row_length: int, seed: int, progress: StepProgress | None
) -> tuple[int, Members]:
    noted = _NotedSamples(samples)
    num_rows = estimate_rows(samples, row_length, seed, data.packing)
    rows = LazyRows(shuffled_passes(noted, seed), row_length, seed, num_rows, data.packing)

    def members(index: int) -> list[Member]:
        return [_member(samples, noted.numbers[id(sample)], sample) for sample in rows[index]]

    return num_rows, members


class _NotedSamples(Samples):
    """Samples that note which one each is, while a window of them is held.

    Attributes:
        numbers: `id` of a sample -> its number.
    """

    def __init__(self, samples: Samples) -> None:
        vars(self).update(vars(samples))
        self.numbers: dict[int, int] = {}

    def usable(
        self, numbers: Sequence[int], progress: StepProgress | None = None
    ) -> Iterator[tuple[int, Encoded]]:
        """Encode samples and yield the usable ones; see `Samples.usable`."""
        for number, sample in super().usable(numbers, progress):
            self.numbers[id(sample)] = number
            yield number, sample


def _member(samples: Samples, number: int, sample: Encoded) -> Member:
    part = int(samples.draw.parts[number])
    example = samples.example(number)
    source: Any = samples.sources[part]
    return Member(sample, source.name, int(samples.draw.records[number]), example.task)


def _pad_id(tokenizer: Any) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
