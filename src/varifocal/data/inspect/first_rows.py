"""The rows of a run's first epoch with their records, packed as the training packs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from varifocal.data.encode import Encoder
from varifocal.data.encoded import Encoded
from varifocal.data.inspect.rows import Member, ShownRow, show_row
from varifocal.data.lazy_rows import LazyRows, estimate_rows, shuffled_passes
from varifocal.data.packing import Collator, PackedDataset
from varifocal.data.samples import Samples, UsableSamples
from varifocal.errors import DataError
from varifocal.recipe import DataSection

Progress = Callable[[int, int], None]
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
        progress: Progress | None = None,
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
    samples: Samples, data: DataSection, row_length: int, seed: int, progress: Progress | None
) -> tuple[int, Members]:
    usable = UsableSamples(samples, progress)
    if not len(usable):
        raise DataError("there is no example to train on: all were skipped or dropped")
    rows = PackedDataset(usable, row_length, seed, data.packing, usable.lengths.tolist())

    def members(index: int) -> list[Member]:
        numbers = usable.numbers[rows.rows[index]]
        return [
            _member(samples, int(number), sample)
            for number, sample in zip(numbers, rows[index], strict=True)
        ]

    return len(rows), members


def _lazy(
    samples: Samples, data: DataSection, row_length: int, seed: int, progress: Progress | None
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
        self, numbers: Sequence[int], progress: Progress | None = None
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
